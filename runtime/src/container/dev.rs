//! Owns the container's devices: the nodes of its own /dev, its terminal, and the null device that masks are made of.
//! Everything by descriptor; a volume at /dev gets nothing made on it.

use super::rootfs::{StepResult, fs_tree, os_text, step};
use super::spec::{DeviceNode, FsMount};
use super::targets::{IN_ROOT, ensure, open_dir};
use crate::sys;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// True if the descriptor is the character or block device.
fn is_device(fd: &OwnedFd, kind: u32, major: u32, minor: u32) -> io::Result<bool> {
    let s = rustix::fs::fstat(fd)?;
    Ok(s.st_mode & libc::S_IFMT == kind && s.st_rdev == rustix::fs::makedev(major, minor))
}

/// Makes one node. One that is there already must be the same device.
fn make_node(dir: BorrowedFd<'_>, name: &std::ffi::OsStr, d: &DeviceNode) -> io::Result<()> {
    let (kind, bits) = if d.kind == 'b' {
        (FileType::BlockDevice, libc::S_IFBLK)
    } else {
        (FileType::CharacterDevice, libc::S_IFCHR)
    };
    let mode = Mode::from_raw_mode(d.mode);
    match rustix::fs::mknodat(dir, name, kind, mode, rustix::fs::makedev(d.major, d.minor)) {
        // Whatever the umask is.
        Ok(()) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?,
        Err(rustix::io::Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let there = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            return if is_device(&there, bits, d.major, d.minor)? {
                Ok(())
            } else {
                Err(io::ErrorKind::AlreadyExists.into())
            };
        }
        Err(e) => return Err(e.into()),
    }
    if (d.uid, d.gid) != (0, 0) {
        let uid = rustix::fs::Uid::from_raw(d.uid);
        let gid = rustix::fs::Gid::from_raw(d.gid);
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Fills the fresh /dev (`dev`, our own tmpfs): nodes and the usual links. Devices elsewhere go where they are asked for.
pub fn make_nodes(root: &OwnedFd, dev: &OwnedFd, devices: &[DeviceNode]) -> StepResult<()> {
    for d in devices {
        let what = format!("make the device {}", d.path.display());
        let (Some(parent), Some(name)) = (d.path.parent(), d.path.file_name()) else {
            return Err(format!("{what}: it has no name"));
        };
        let made;
        let dir = if parent == Path::new("/dev") {
            dev.as_fd()
        } else {
            made = step(&what, ensure(root, parent, true))?;
            made.as_fd()
        };
        step(&what, make_node(dir, name, d))?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        match rustix::fs::symlinkat(target, dev, link) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(format!("link /dev/{link}: {}", os_text(&e.into()))),
        }
    }
    Ok(())
}

/// Opens a new terminal of the container's own devpts: (master, slave). `pts` is its descriptor, so nothing that the
/// container did to its paths matters.
pub fn open_pty(pts: BorrowedFd<'_>, uid: u32) -> StepResult<(OwnedFd, OwnedFd)> {
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_SYMLINKS;
    let master = step(
        "open /dev/pts/ptmx",
        sys::openat2(
            pts,
            Path::new("ptmx"),
            libc::O_RDWR | libc::O_NOCTTY | libc::O_NOFOLLOW,
            0,
            resolve,
        ),
    )?;
    if !step(
        "look at /dev/pts/ptmx",
        is_device(&master, libc::S_IFCHR, 5, 2),
    )? {
        return Err("/dev/pts/ptmx is not a terminal multiplexer".into());
    }
    step(
        "unlock the terminal",
        rustix::pty::unlockpt(&master).map_err(io::Error::from),
    )?;
    let slave = step("open the terminal", sys::pty_peer(master.as_fd()))?;
    step(
        "hand over the terminal",
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)
            .map_err(io::Error::from),
    )?;
    Ok((master, slave))
}

/// Binds the terminal on /dev/console, by descriptor. Where /dev is a volume it is bound over a console that is there
/// (the node's own must not be the container's), and nothing is made.
pub fn bind_console(root: &OwnedFd, dev: Option<&OwnedFd>, slave: &OwnedFd) -> StepResult<()> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match dev {
        Some(dev) => {
            let make = flags | OFlags::CREATE | OFlags::EXCL;
            match rustix::fs::openat(dev, "console", make, Mode::from_raw_mode(0o600)) {
                // A device of the request.
                Err(rustix::io::Errno::EXIST) => {
                    rustix::fs::openat(dev, "console", flags | OFlags::PATH, Mode::empty())
                }
                r => r,
            }
            .map_err(io::Error::from)
        }
        None => {
            let resolve = IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
            let path = Path::new("/dev/console");
            match sys::openat2(
                root.as_fd(),
                path,
                libc::O_PATH | libc::O_NOFOLLOW,
                0,
                resolve,
            ) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                r => r,
            }
        }
    };
    let target = step("make /dev/console", target)?;
    let tree = step(
        "clone the terminal",
        sys::open_tree_clone(slave.as_raw_fd(), Path::new(""), false),
    )?;
    step(
        "mount /dev/console",
        sys::move_mount_to_fd(tree.as_fd(), target.as_fd()),
    )
}

/// A file system with nothing but a null device. It is at the path where /proc/self/fd is expected to show it.
fn null_fs() -> io::Result<OwnedFd> {
    let fs = fs_tree(&FsMount {
        fstype: "tmpfs".into(),
        flags: libc::MS_NOSUID | libc::MS_NOEXEC,
        data: "mode=755,size=4k".into(),
        readonly: false,
    })?;
    let d = DeviceNode {
        path: "/dev/null".into(),
        kind: 'c',
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    rustix::fs::mkdirat(&fs, "dev", Mode::from_raw_mode(0o755))?;
    make_node(fs.as_fd(), "dev/null".as_ref(), &d)?;
    Ok(fs)
}

fn open_null(fs: &OwnedFd, how: OFlags) -> io::Result<OwnedFd> {
    let flags = how | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(fs, "dev/null", flags, Mode::empty())?;
    if !is_device(&node, libc::S_IFCHR, 1, 3)? {
        return Err(io::Error::other("it is something else"));
    }
    Ok(node)
}

/// Opens a null device that is nobody else's. A container gets it as its stdio: through /proc/self/fd its root may change
/// the mode and owner of what it has open, and the node's /dev/null is not its to change.
pub fn private_null() -> io::Result<OwnedFd> {
    open_null(&null_fs()?, OFlags::RDWR)
}

/// A null device that was looked at: character device 1:3, by descriptor (CVE-2025-31133: a container that shares a
/// volume can put a link in the place of /dev/null, and the mask becomes a bind mount of what it points to).
pub struct Null {
    node: OwnedFd,
    /// Where it had to be made: a tmpfs on the root directory, to be taken away again.
    own: Option<OwnedFd>,
}

impl Null {
    /// The container's /dev/null, or one of our own if that is something else.
    pub fn open(root: &OwnedFd) -> StepResult<Self> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let resolve = IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
        if let Ok(node) = sys::openat2(root.as_fd(), Path::new("/dev/null"), flags, 0, resolve)
            && is_device(&node, libc::S_IFCHR, 1, 3).unwrap_or(false)
        {
            return Ok(Self { node, own: None });
        }
        let what = "make a null device";
        let own = step(what, null_fs())?;
        // A mount can be cloned only where it is attached.
        step(what, sys::move_mount_to_fd(own.as_fd(), root.as_fd()))?;
        let node = step(what, open_null(&own, OFlags::PATH))?;
        Ok(Self {
            node,
            own: Some(own),
        })
    }

    /// A mount of it, detached. Read-only, so that nobody changes the node's mode or owner through a mask.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        let tree = sys::open_tree_clone(self.node.as_raw_fd(), Path::new(""), false)?;
        let attrs = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC;
        sys::mount_setattr(tree.as_fd(), false, attrs, 0)?;
        Ok(tree)
    }

    /// Takes away what was made for it; its mounts stay.
    pub fn close(self) -> StepResult<()> {
        let Some(own) = self.own else { return Ok(()) };
        let what = "take away the null device's file system";
        let go = |fd: &OwnedFd| rustix::process::fchdir(fd).map_err(io::Error::from);
        step(what, go(&own))?;
        step(what, sys::umount_cwd())?;
        let root = step(what, open_dir(Path::new("/")))?;
        step(what, go(&root))
    }
}
