//! File systems in memory at a volume's place: tmpfs, and hugetlbfs for huge pages. Owns mounting them by descriptor,
//! ready with size, mode and group before anybody can see them.

use rustix::fd::{AsFd, OwnedFd};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use skiff_beneath::Root;
use std::io;

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Mode of its root.
    pub mode: u32,
    /// Group of its root.
    pub group: Option<u32>,
    /// Bytes it may hold; None for the kernel's default.
    pub size: Option<i64>,
    /// Size of its pages in bytes: hugetlbfs. None: tmpfs.
    pub page_size: Option<i64>,
    /// Made by the kubelet alone: no setuid programs and no devices in it.
    pub ours: bool,
}

/// Mounts it at a name, unless something is mounted there already.
///
/// # Errors
/// The kernel's.
pub fn mount(parent: &Root, name: &str, options: &Options) -> io::Result<Root> {
    let point = parent.make_dir(name, super::place::PRIVATE)?;
    if parent.is_mount_point(name)? {
        return Ok(point);
    }
    let fs = make(options).map_err(|e| {
        let what = if options.page_size.is_some() {
            "hugetlbfs"
        } else {
            "tmpfs"
        };
        io::Error::new(e.kind(), format!("mounting a {what} at {name}: {e}"))
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(fs.as_fd(), "", point.as_fd(), "", flags)?;
    parent.dir_across(name)
}

fn make(o: &Options) -> io::Result<OwnedFd> {
    let kind = if o.page_size.is_some() {
        "hugetlbfs"
    } else {
        "tmpfs"
    };
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: String| fsconfig_set_string(fs.as_fd(), key, value);
    // What /proc/mounts shows first.
    set("source", kind.into())?;
    set("mode", format!("{:o}", o.mode))?;
    if let Some(group) = o.group {
        set("gid", group.to_string())?;
    }
    if let Some(size) = o.size {
        set("size", size.to_string())?;
    }
    match o.page_size {
        Some(bytes) => set("pagesize", bytes.to_string())?,
        // Secrets must not reach a disk by way of swap. Kernels before 6.4 do not know it.
        None => drop(fsconfig_set_flag(fs.as_fd(), "noswap")),
    }
    fsconfig_create(fs.as_fd())?;
    let quiet = if o.ours {
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
    } else {
        MountAttrFlags::empty()
    };
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, quiet)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_is_there_once_with_its_mode_group_and_size() {
        let tmp = tempfile::tempdir().unwrap();
        let parent = Root::open(tmp.path()).unwrap();
        let options = Options {
            mode: 0o3777,
            group: Some(7),
            size: Some(1 << 20),
            page_size: None,
            ours: true,
        };
        let first = mount(&parent, "m", &options);
        let again = mount(&parent, "m", &options);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left = super::super::tear_down::remove(&tmp.path().join("m"));
        left.unwrap();
        let st = first.unwrap().stat().unwrap();
        assert_eq!((st.st_mode & 0o7777, st.st_gid), (0o3777, 7));
        assert_eq!(again.unwrap().stat().unwrap().st_dev, st.st_dev);
        let place = tmp.path().join("m").to_string_lossy().into_owned();
        let lines: Vec<&str> = table.lines().filter(|l| l.contains(&place)).collect();
        let [line] = lines[..] else {
            panic!("{lines:?}")
        };
        assert!(line.contains("- tmpfs tmpfs "), "{line}");
        assert!(
            line.contains("nosuid,nodev") && line.contains("size=1024k"),
            "{line}"
        );
    }
}
