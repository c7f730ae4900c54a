//! Where a pod's files are on the node, as upstream lays them out below `pods/<uid>`. Owns these directories, which only
//! the kubelet's user may enter: containers reach what is below through their mounts.

use crate::config::Config;
use skiff_beneath::Root;
use std::io;
use std::path::{Path, PathBuf};

/// Mode of everything above a volume: nobody but the kubelet's user (upstream's 0750 is for root's group too).
pub const PRIVATE: u32 = 0o700;

/// A pod's directory, by name: made when it is first used.
#[derive(Debug, Clone)]
pub struct Place {
    root_dir: PathBuf,
    uid: String,
}

impl Place {
    /// Of a pod.
    pub fn new(config: &Config, uid: &str) -> Self {
        Self {
            root_dir: config.root_dir.clone(),
            uid: uid.to_string(),
        }
    }

    /// `pods/<uid>` below the kubelet's directory.
    pub fn relative(&self) -> PathBuf {
        Path::new("pods").join(&self.uid)
    }

    /// The same as a whole path.
    pub fn path(&self) -> PathBuf {
        self.root_dir.join(self.relative())
    }

    /// The kubelet's own directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn kubelet(&self) -> io::Result<Root> {
        Root::open(&self.root_dir)
    }

    /// The pod's directory, made if it is missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn pod(&self) -> io::Result<Root> {
        self.kubelet()?.make_dirs(self.relative(), PRIVATE)
    }

    /// Where the volumes of one plugin are, made if it is missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn volumes(&self, plugin: &str) -> io::Result<Root> {
        self.pod()?
            .make_dirs(Path::new("volumes").join(escape(plugin)), PRIVATE)
    }

    /// A volume's whole path.
    pub fn volume_path(&self, plugin: &str, name: &str) -> PathBuf {
        self.path().join("volumes").join(escape(plugin)).join(name)
    }

    /// Uids of pods other than this one that have a volume of this plugin and name.
    ///
    /// # Errors
    /// The file system's.
    pub fn others_with(&self, plugin: &str, name: &str) -> io::Result<Vec<String>> {
        let pods = self.kubelet()?.make_dirs("pods", PRIVATE)?;
        let relative = Path::new("volumes").join(escape(plugin)).join(name);
        let mut out = Vec::new();
        for (uid, _) in pods.entries()? {
            if uid != self.uid.as_str() && pods.dir_across(Path::new(&uid).join(&relative)).is_ok()
            {
                out.push(uid.to_string_lossy().into_owned());
            }
        }
        Ok(out)
    }
}

fn escape(plugin: &str) -> String {
    plugin.replace('/', "~")
}

/// Closes the kubelet's directories to other users of the node, also those that an earlier version made.
///
/// # Errors
/// The file system's.
pub fn close(config: &Config) -> io::Result<()> {
    let root = Root::open(&config.root_dir)?;
    root.set_mode(PRIVATE)?;
    root.make_dirs("pods", PRIVATE)?.set_mode(PRIVATE)?;
    Root::open(&config.pod_logs_dir)?.set_mode(PRIVATE)
}

/// The root directory of a volume, made if it is missing so that it is never seen with another mode or group.
///
/// # Errors
/// The file system's.
pub fn make_volume(parent: &Root, name: &str, mode: u32, group: Option<u32>) -> io::Result<Root> {
    match parent.dir_across(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    // No volume's name begins so.
    let unfinished = format!("..new-{name}");
    parent.remove_tree(&unfinished)?;
    let dir = parent.make_dir(&unfinished, 0o700)?;
    dir.set_owner(None, group)?;
    dir.set_mode(mode)?;
    parent.rename_new(&unfinished, name)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn other_users_of_the_node_cannot_enter_and_volumes_have_their_mode_from_the_first() {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Config::new("n", tmp.path());
        config.root_dir = tmp.path().join("kubelet");
        config.pod_logs_dir = tmp.path().join("logs");
        std::fs::create_dir_all(config.root_dir.join("pods")).unwrap();
        std::fs::create_dir(&config.pod_logs_dir).unwrap();
        close(&config).unwrap();
        let place = Place::new(&config, "u1");
        let parent = place.volumes("kubernetes.io/empty-dir").unwrap();
        make_volume(&parent, "v", 0o2777, Some(7)).unwrap();
        let st = make_volume(&parent, "v", 0o700, None)
            .unwrap()
            .stat()
            .unwrap();
        assert_eq!((st.st_mode & 0o7777, st.st_gid), (0o2777, 7));
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        let volume = place.volume_path("kubernetes.io/empty-dir", "v");
        let mut above = volume.parent().unwrap();
        while above != tmp.path() {
            assert_eq!(mode(above), 0o700, "{}", above.display());
            above = above.parent().unwrap();
        }
        assert_eq!(mode(&config.pod_logs_dir), 0o700);
        let other = Place::new(&config, "u2");
        let plugin = "kubernetes.io/empty-dir";
        assert_eq!(other.others_with(plugin, "v").unwrap(), ["u1"]);
        assert!(place.others_with(plugin, "v").unwrap().is_empty());
    }
}
