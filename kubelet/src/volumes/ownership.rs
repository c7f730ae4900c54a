//! fsGroup: group and permission bits of volumes (upstream pkg/volume/volume_linux.go). Owns the walk that gives a tree
//! to a group; nothing in the tree can make it leave the tree.

use skiff_beneath::{Entry, Root};
use std::collections::HashMap;
use std::io;

/// A file with several names is remembered until all are seen; no more than this many at a time.
const LINKED: usize = 1 << 20;

/// Mode for the group: read and write, or read alone, and for directories also search and setgid. Pure.
pub fn with_group(mode: u32, directory: bool, read_only: bool) -> u32 {
    let mode = mode | if read_only { 0o440 } else { 0o660 };
    if directory { mode | 0o2110 } else { mode }
}

/// fsGroup as the kernel's group.
///
/// # Errors
/// A number that is no group.
pub fn group_id(group: i64) -> Result<u32, String> {
    u32::try_from(group).map_err(|_| format!("fsGroup {group} is no group id"))
}

/// Gives a tree to the group, its root last: a walk that did not come to its end is not mistaken for one that did.
/// With `on_root_mismatch` nothing is done when the root is as it should be.
///
/// # Errors
/// The file system's; a tree beyond the bounds of [`Root::walk`].
pub fn apply(root: &Root, group: u32, on_root_mismatch: bool) -> io::Result<()> {
    let st = root.stat()?;
    if on_root_mismatch && st.st_gid == group && st.st_mode & 0o2770 == 0o2770 {
        return Ok(());
    }
    // A file that also has a name outside of the volume is somebody else's too, and stays as it is.
    let mut linked: HashMap<(u64, u64), u64> = HashMap::new();
    root.walk(&mut |e| {
        let directory = e.kind() == rustix::fs::FileType::Directory;
        if e.stat.st_nlink > 1 && !directory {
            let key = (e.stat.st_dev, e.stat.st_ino);
            let seen = linked.entry(key).or_default();
            *seen += 1;
            if *seen < e.stat.st_nlink {
                if linked.len() > LINKED {
                    return Err(io::Error::other("too many files with several names"));
                }
                return Ok(());
            }
            linked.remove(&key);
        }
        give(e, group, directory)
    })?;
    if !linked.is_empty() {
        tracing::warn!(
            files = linked.len(),
            "files that also have names outside of the volume were not given to its fsGroup"
        );
    }
    if st.st_gid != group {
        root.set_owner(None, Some(group))?;
    }
    root.set_mode(with_group(st.st_mode & 0o7777, true, false))
}

fn give(e: &Entry<'_>, group: u32, directory: bool) -> io::Result<()> {
    if e.stat.st_gid != group {
        e.set_group(group)?;
    }
    let old = e.stat.st_mode & 0o7777;
    let new = with_group(old, directory, false);
    let link = e.kind() == rustix::fs::FileType::Symlink;
    // A change of the group takes setuid and setgid away.
    if !link && (new != old || e.stat.st_gid != group) {
        e.set_mode(new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn modes_follow_upstreams_masks() {
        assert_eq!(with_group(0o400, false, true), 0o440);
        assert_eq!(with_group(0o440, false, true), 0o440);
        assert_eq!(with_group(0o600, false, false), 0o660);
        assert_eq!(with_group(0o755, true, true), 0o2755);
        assert_eq!(with_group(0o700, true, false), 0o2770);
        assert!(group_id(-1).is_err() && group_id(1 << 33).is_err());
    }

    #[test]
    fn a_tree_is_given_to_the_group_but_nothing_it_points_to_or_shares() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir_all(t.join("v/d")).unwrap();
        for f in ["v/d/f", "out", "v/twice"] {
            fs::write(t.join(f), "").unwrap();
            fs::set_permissions(t.join(f), fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink("../out", t.join("v/link")).unwrap();
        fs::hard_link(t.join("out"), t.join("v/hard")).unwrap();
        fs::hard_link(t.join("v/twice"), t.join("v/d/twice")).unwrap();
        let fifo = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, t.join("v/fifo"), fifo).unwrap();
        let of = |p: &str| {
            let m = fs::symlink_metadata(t.join(p)).unwrap();
            (m.mode() & 0o7777, m.gid())
        };
        let before = of("out");
        let root = Root::open(t.join("v")).unwrap();
        apply(&root, 7, true).unwrap();
        assert_eq!(of("v/d/f"), (0o660, 7));
        assert_eq!(of("v/fifo"), (0o660, 7));
        assert_eq!(
            of("v/d/twice"),
            (0o660, 7),
            "all its names are in the volume"
        );
        assert_eq!((of("v/d").0 & 0o2770, of("v").0 & 0o2770), (0o2770, 0o2770));
        assert_eq!(of("v/link").1, 7);
        assert_eq!(of("out"), before);
        // The root matches: nothing is looked at again.
        fs::set_permissions(t.join("v/d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        apply(&root, 7, true).unwrap();
        assert_eq!(of("v/d/f").0, 0o600);
        apply(&root, 7, false).unwrap();
        assert_eq!(of("v/d/f").0, 0o660);
    }

    #[test]
    fn a_container_that_swaps_links_in_meanwhile_gains_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let t = tmp.path();
        fs::create_dir_all(t.join("v/a/in")).unwrap();
        fs::create_dir_all(t.join("out/in")).unwrap();
        fs::write(t.join("out/in/f"), "").unwrap();
        fs::set_permissions(t.join("out/in/f"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("../out", t.join("v/b")).unwrap();
        let root = Root::open(t.join("v")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let swap = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                while !stop.load(Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(cwd, t.join("v/a"), cwd, t.join("v/b"), swap);
                }
            });
            for _ in 0..2000 {
                let _ = apply(&root, 7, false);
            }
            stop.store(true, Ordering::Relaxed);
        });
        for p in ["out", "out/in", "out/in/f"] {
            assert_ne!(fs::metadata(t.join(p)).unwrap().gid(), 7, "{p}");
        }
    }
}
