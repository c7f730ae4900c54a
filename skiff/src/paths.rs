//! Where things are below a data directory, and what is named after it. Pure.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The data directory that needs no name of its own.
pub const DEFAULT: &str = "/var/lib/skiff";

/// The file that makes a directory a data directory.
pub const MARKER: &str = ".skiff";

/// Everything that a data directory has at its top; `skiff reset` touches nothing else.
pub const ENTRIES: [&str; 4] = ["server", "agent", "lock", MARKER];

/// `agent/runtime`
pub fn runtime(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/runtime")
}

/// `agent/network`
pub fn network(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/network")
}

/// `agent/images`: archives that are imported at start.
pub fn images(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/images")
}

/// `server/manifests`: files that are applied, and pruned.
pub fn manifests(data_dir: &Path) -> PathBuf {
    data_dir.join("server/manifests")
}

/// The cgroup of everything that runs for a data directory: cgroups are not namespaced on the machine, so servers with
/// different data directories must not meet there.
pub fn cgroup(data_dir: &Path) -> String {
    if data_dir == Path::new(DEFAULT) {
        return "/skiff".into();
    }
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("/skiff-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_directories_have_cgroups_of_their_own() {
        assert_eq!(cgroup(Path::new(DEFAULT)), "/skiff");
        let (a, b) = (cgroup(Path::new("/a")), cgroup(Path::new("/b")));
        assert!(a.starts_with("/skiff-") && a.len() == 15 && a != b);
    }
}
