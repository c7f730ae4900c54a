//! emptyDir: a directory, or a tmpfs for medium Memory. Also makes the tmpfs that secrets live on (upstream
//! pkg/volume/emptydir). Owns making them; `tear_down` removes them.

use super::ownership;
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use rustix::mount::{MountFlags, mount as mount_fs};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Makes the directory.
///
/// # Errors
/// An unknown medium, or the file system's error.
pub fn mount(pod: &Pod, source: &EmptyDirVolumeSource, path: &Path) -> Result<(), String> {
    let existed = path.exists();
    match source.medium.as_deref().unwrap_or_default() {
        "" => fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))?,
        "Memory" => {
            let limit = source
                .size_limit
                .as_ref()
                .and_then(quantity::value)
                .filter(|v| *v > 0);
            // A pod that limits its memory limits its memory volumes too (upstream SizeMemoryBackedVolumes).
            let of_pod = crate::kuberuntime::resources::pod_cgroup(pod).memory;
            let size = match (limit, of_pod) {
                (Some(l), m) if m > 0 => Some(l.min(m)),
                (Some(l), _) => Some(l),
                (None, m) if m > 0 => Some(m),
                _ => None,
            };
            ensure_tmpfs(path, size)?;
        }
        other => {
            return Err(format!(
                "emptyDir medium {other:?} is not supported; use \"\" or Memory"
            ));
        }
    }
    if !existed || source.medium.as_deref() == Some("Memory") {
        let group = spec::spec(pod)
            .security_context
            .as_ref()
            .and_then(|s| s.fs_group);
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        if let Some(group) = group.filter(|g| !ownership::root_matches(path, *g)) {
            ownership::set_group(path, group).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

/// Mounts a tmpfs unless one is mounted there already.
///
/// # Errors
/// The file system's error.
pub fn ensure_tmpfs(path: &Path, size: Option<i64>) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    fs::create_dir_all(path).map_err(fail)?;
    if is_mount_point(path) {
        return Ok(());
    }
    let mut options = String::from("mode=0777");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let options = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
    mount_fs(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .map_err(|e| format!("mounting a tmpfs at {}: {e}", path.display()))
}

/// Is another file system mounted here?
pub fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else {
        return true;
    };
    match (fs::symlink_metadata(path), fs::symlink_metadata(parent)) {
        (Ok(a), Ok(b)) => a.dev() != b.dev(),
        _ => false,
    }
}
