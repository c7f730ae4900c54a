//! hostPath: a path of the node, checked or made as its type says (upstream pkg/volume/hostpath). Owns nothing.

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::fs;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

/// The path, once it is what the type asks for.
///
/// # Errors
/// `hostPath type check failed: ...`, as upstream says it.
pub fn mount(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    if path
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir))
    {
        return Err(format!("hostPath {} must not contain '..'", source.path));
    }
    let fail = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not {what}",
            source.path
        ))
    };
    let io = |e: std::io::Error| format!("hostPath {}: {e}", source.path);
    let kind = fs::metadata(&path).map(|m| m.file_type()).ok();
    match source.type_.as_deref().unwrap_or_default() {
        "" => {}
        "DirectoryOrCreate" => match kind {
            None => {
                fs::create_dir_all(&path).map_err(io)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(io)?;
            }
            Some(k) if k.is_dir() => {}
            Some(_) => return fail("a directory"),
        },
        "Directory" if !kind.is_some_and(|k| k.is_dir()) => return fail("a directory"),
        "FileOrCreate" => match kind {
            None => {
                fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o644)
                    .open(&path)
                    .map_err(io)?;
            }
            Some(k) if k.is_file() => {}
            Some(_) => return fail("a file"),
        },
        "File" if !kind.is_some_and(|k| k.is_file()) => return fail("a file"),
        "Socket" if !kind.is_some_and(|k| k.is_socket()) => return fail("a socket file"),
        "CharDevice" if !kind.is_some_and(|k| k.is_char_device()) => {
            return fail("a character device");
        }
        "BlockDevice" if !kind.is_some_and(|k| k.is_block_device()) => {
            return fail("a block device");
        }
        "Directory" | "File" | "Socket" | "CharDevice" | "BlockDevice" => {}
        other => return Err(format!("{other} is an invalid volume type")),
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let tmp = std::env::temp_dir().join(format!("skiff-hp-{}", rand::random::<u64>()));
        let run = |path: &str, kind: &str| {
            mount(&HostPathVolumeSource {
                path: path.into(),
                type_: Some(kind.into()),
            })
        };
        let at = |n: &str| tmp.join(n).to_string_lossy().into_owned();
        assert!(
            run(&at("no"), "Directory")
                .unwrap_err()
                .contains("is not a directory")
        );
        assert!(run(&at("dir"), "DirectoryOrCreate").is_ok());
        assert!(run(&at("dir"), "Directory").is_ok());
        assert!(run(&at("dir/file"), "FileOrCreate").is_ok());
        assert!(
            run(&at("dir/file"), "Socket")
                .unwrap_err()
                .contains("is not a socket file")
        );
        assert!(run("/dev/null", "CharDevice").is_ok());
        assert!(run(&at("new"), "").is_ok(), "nothing is asked for");
        assert!(run("/a/../b", "").is_err());
        fs::remove_dir_all(tmp).unwrap();
    }
}
