//! hostPath: a path of the node, checked or made as its type says (upstream pkg/volume/hostpath). Owns nothing.

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use skiff_beneath::{Attributes, Root};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

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
    let kind_of = || match fs::metadata(&path) {
        Ok(m) => Ok(Some(m.file_type())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("hostPath {}: {e}", source.path)),
    };
    let wanted = source.type_.as_deref().unwrap_or_default();
    if wanted.is_empty() {
        return Ok(path);
    }
    let mut kind = kind_of()?;
    if kind.is_none() {
        let made = match wanted {
            "DirectoryOrCreate" => make_directory(&path),
            "FileOrCreate" => make_file(&path),
            _ => Ok(()),
        };
        made.map_err(|e| format!("hostPath {}: {e}", source.path))?;
        kind = kind_of()?;
    }
    let (good, what) = match wanted {
        "DirectoryOrCreate" | "Directory" => (kind.is_some_and(|k| k.is_dir()), "a directory"),
        "FileOrCreate" | "File" => (kind.is_some_and(|k| k.is_file()), "a file"),
        "Socket" => (kind.is_some_and(|k| k.is_socket()), "a socket file"),
        "CharDevice" => (
            kind.is_some_and(|k| k.is_char_device()),
            "a character device",
        ),
        "BlockDevice" => (kind.is_some_and(|k| k.is_block_device()), "a block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if good {
        return Ok(path);
    }
    Err(format!(
        "hostPath type check failed: {} is not {what}",
        source.path
    ))
}

/// Makes a directory with its parents, from the deepest one that is there; what is made is never reached through a link
/// that somebody puts there meanwhile.
fn make_directory(path: &Path) -> io::Result<()> {
    let mut there = path;
    while let Some(up) = there.parent() {
        there = up;
        match fs::metadata(there) {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
    Root::open(there)?.make_dirs(missing, 0o755).map(drop)
}

fn make_file(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let attributes = Attributes {
        mode: 0o644,
        ..Attributes::default()
    };
    Root::open(parent)?.write_new(name, b"", attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn types_are_checked_and_made() {
        let tmp = tempfile::tempdir().unwrap();
        let run = |path: &str, kind: &str| {
            mount(&HostPathVolumeSource {
                path: path.into(),
                type_: Some(kind.into()),
            })
        };
        let at = |n: &str| tmp.path().join(n).to_string_lossy().into_owned();
        assert!(
            run(&at("no"), "Directory")
                .unwrap_err()
                .contains("is not a directory")
        );
        assert!(run(&at("up/dir"), "DirectoryOrCreate").is_ok());
        let mode = fs::metadata(at("up/dir")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(run(&at("up/dir"), "Directory").is_ok());
        assert!(run(&at("up/dir/file"), "FileOrCreate").is_ok());
        assert!(run(&at("none/file"), "FileOrCreate").is_err());
        assert!(
            run(&at("up/dir/file"), "Socket")
                .unwrap_err()
                .contains("is not a socket file")
        );
        assert!(run("/dev/null", "CharDevice").is_ok());
        assert!(run("/dev/null", "Floppy").is_err());
        assert!(run(&at("new"), "").is_ok(), "nothing is asked for");
        assert!(run("/a/../b", "").is_err());
        // A link to nowhere makes nothing where it points to.
        symlink(at("elsewhere"), at("link")).unwrap();
        for kind in ["DirectoryOrCreate", "FileOrCreate"] {
            assert!(run(&at("link"), kind).is_err(), "{kind}");
            assert!(run(&at("link/below"), kind).is_err(), "{kind}");
        }
        assert!(!tmp.path().join("elsewhere").exists());
    }
}
