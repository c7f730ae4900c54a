//! Owns the container's mount namespace: overlay root, mounts, masked and read-only paths. Runs in the forked child of
//! the shim, in two halves: `Prepared::new` while the node's files are still visible, the rest after the root was changed.
//!
//! Every mount is first a detached tree and then put on a descriptor. Host paths become trees before the root changes,
//! and every target is resolved inside the new root without magic links, so no symbolic link of an image or a volume can
//! reach the node, and nothing can be exchanged between the look and the mount.

use super::spec::{BindMount, ContainerSpec, FsMount, MountKind, MountSpec, Propagation, RootSpec};
use super::targets::{ensure, ensure_plain, existing, existing_no_follow, open_dir};
use super::{confine, dev, procfs};
use crate::images::rootfs::{self as images, OverlayOptions};
use crate::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A message for the user: which step failed, on what, and the kernel's word.
pub type StepResult<T> = Result<T, String>;

pub(crate) fn step<T>(what: impl std::fmt::Display, r: io::Result<T>) -> StepResult<T> {
    r.map_err(|e| format!("{what}: {}", os_text(&e)))
}

/// The kernel's text without Rust's "(os error n)".
pub(crate) fn os_text(e: &io::Error) -> String {
    let s = e.to_string();
    match s.find(" (os error") {
        Some(i) => s[..i].to_lowercase(),
        None => s,
    }
}

/// Descriptors of the file systems that were made for the container: what is done in them later does not look for them
/// by paths, which are the container's by then.
#[derive(Default)]
pub struct Handles {
    /// The mount at /proc.
    pub proc: Option<OwnedFd>,
    /// The container's own devpts.
    pub pts: Option<OwnedFd>,
    /// Its own /dev; none when a volume is there.
    pub dev: Option<OwnedFd>,
}

/// The root, and mounts that were taken from the node before it changed.
pub struct Prepared {
    root: OwnedFd,
    /// One entry for each mount of the spec; None where the mount is made later inside the container.
    trees: Vec<Option<OwnedFd>>,
    /// The procfs of a process namespace that others made; else a new one is made.
    proc: Option<OwnedFd>,
    pub handles: Handles,
}

/// Mounts the overlay on `<dir>/rootfs`. `volatile` leaves out the sync of the whole disk at unmount: a container's
/// writable layer is never used again after its container ended, not even after a crash.
fn mount_overlay(root: &RootSpec) -> StepResult<()> {
    let options = OverlayOptions {
        volatile: true,
        plain_upper: root.plain_upper,
        ..OverlayOptions::default()
    };
    images::mount_overlay(
        &root.layers,
        &root.dir.join("upper"),
        &root.dir.join("work"),
        &root.dir.join("rootfs"),
        options,
    )
    .map_err(|e| e.to_string())
}

/// The host side of a bind mount as a detached tree with its flags already set.
fn bind_tree(b: &BindMount) -> io::Result<OwnedFd> {
    if b.create_source
        && std::fs::symlink_metadata(&b.source).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    {
        std::fs::create_dir_all(&b.source)?;
    }
    let tree = sys::open_tree_clone(libc::AT_FDCWD, &b.source, true)?;
    let propagation = match b.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        // A clone of a shared mount stays in its peer group; asking again makes an unshared one shared.
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    sys::mount_setattr(tree.as_fd(), true, 0, propagation)?;
    if b.readonly || b.attrs != 0 {
        let set = b.attrs
            | if b.readonly {
                sys::MOUNT_ATTR_RDONLY
            } else {
                0
            };
        sys::mount_setattr(tree.as_fd(), b.recursive_readonly, set, 0)?;
    }
    Ok(tree)
}

/// A read-only tree of an image.
fn image_tree(layers: &[std::path::PathBuf]) -> io::Result<OwnedFd> {
    let tree = match layers {
        [one] => sys::open_tree_clone(libc::AT_FDCWD, one, false)?,
        many => {
            let options = OverlayOptions {
                read_only: true,
                ..OverlayOptions::default()
            };
            images::overlay_fd(many, None, options).map_err(io::Error::other)?
        }
    };
    sys::mount_setattr(tree.as_fd(), true, sys::MOUNT_ATTR_RDONLY, 0)?;
    Ok(tree)
}

/// The procfs that `proc` (an attached mount) is, as a detached mount of its own. `holder` is a process in whose mount
/// namespace it is attached: a mount can be cloned only there, so we go there for a moment and come back.
pub fn borrow_proc(holder: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> StepResult<OwnedFd> {
    // The shim stays in the node's mount namespace.
    let shim = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get());
    let home = step("find the way back", sys::pidfd_open(shim))?;
    let root = step("open the root", open_dir(Path::new("/")))?;
    step(
        "enter the holder of the process namespace",
        sys::setns(holder, libc::CLONE_NEWNS),
    )?;
    let tree = step(
        "take the procfs of the process namespace",
        sys::open_tree_clone(proc.as_raw_fd(), Path::new(""), false),
    );
    step("come back", sys::setns(home.as_fd(), libc::CLONE_NEWNS))?;
    // A namespace is entered at its own root, which need not have been ours.
    step(
        "come back to the root",
        rustix::process::fchdir(&root).map_err(io::Error::from),
    )?;
    step("come back to the root", sys::chroot_cwd())?;
    tree
}

impl Prepared {
    /// Enters a mount namespace of its own and takes everything the container needs from the node; then the root is
    /// the container's. `proc` is the procfs of a process namespace that exists already.
    pub fn new(spec: &ContainerSpec, proc: Option<OwnedFd>) -> StepResult<Self> {
        step("make a mount namespace", sys::unshare(libc::CLONE_NEWNS))?;
        let mut trees = Vec::with_capacity(spec.mounts.len());
        for m in &spec.mounts {
            let target = m.target.display();
            trees.push(match &m.kind {
                MountKind::Bind(b) => Some(step(
                    format_args!("mount {} at {target}", b.source.display()),
                    bind_tree(b),
                )?),
                MountKind::Image { layers } => Some(step(
                    format_args!("mount an image at {target}"),
                    image_tree(layers),
                )?),
                _ => None,
            });
        }
        // From here on nothing we mount may reach the node's namespace.
        step(
            "make the mounts private",
            sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, ""),
        )?;
        mount_overlay(&spec.root)?;
        step(
            "enter the root",
            std::env::set_current_dir(spec.root.dir.join("rootfs")),
        )?;
        step("change the root", sys::pivot_to_cwd())?;
        Ok(Self {
            root: step("open the root", open_dir(Path::new("/")))?,
            trees,
            proc,
            handles: Handles::default(),
        })
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Makes the mounts inside the new root, in order.
    pub fn mount_all(&mut self, spec: &ContainerSpec, cgroups: &[CgroupMount]) -> StepResult<()> {
        let trees: Vec<_> = self.trees.drain(..).collect();
        for (m, tree) in spec.mounts.iter().zip(trees) {
            match (&m.kind, tree) {
                (MountKind::Fs(fs), _) => self.mount_own(spec, m, fs)?,
                (MountKind::Cgroup { readonly }, _) => {
                    mount_cgroups(&self.root, &m.target, *readonly, cgroups)?;
                }
                (_, Some(tree)) => attach_volume(&self.root, &m.target, &tree)?,
                (_, None) => {
                    let what = m.target.display();
                    return Err(format!("mount at {what}: its source was not prepared"));
                }
            }
        }
        Ok(())
    }

    /// A file system that is made for the container.
    fn mount_own(&mut self, spec: &ContainerSpec, m: &MountSpec, fs: &FsMount) -> StepResult<()> {
        let what = format!("mount {} at {}", fs.fstype, m.target.display());
        let proc = if fs.fstype == "proc" {
            self.proc.take()
        } else {
            None
        };
        let tree = match proc {
            Some(tree) => tree,
            None => step(&what, fs_tree(fs))?,
        };
        attach_own(&self.root, &m.target, &tree)?;
        match (fs.fstype.as_str(), m.target.to_str()) {
            ("tmpfs", Some("/dev")) => {
                dev::make_nodes(&self.root, &tree, &spec.devices)?;
                self.handles.dev = Some(tree);
            }
            ("proc", Some("/proc")) => self.handles.proc = Some(tree),
            ("devpts", Some("/dev/pts")) => self.handles.pts = Some(tree),
            _ => {}
        }
        Ok(())
    }

    /// Masks and write-protects paths, then the root itself. The last changes to the tree.
    pub fn protect(&self, spec: &ContainerSpec) -> StepResult<()> {
        for p in &spec.readonly_paths {
            let Some(target) = existing(&self.root, p)? else {
                continue;
            };
            let what = format!("make {} read-only", p.display());
            let tree = step(
                &what,
                sys::open_tree_clone(target.as_raw_fd(), Path::new(""), true),
            )?;
            step(
                &what,
                sys::mount_setattr(tree.as_fd(), true, sys::MOUNT_ATTR_RDONLY, 0),
            )?;
            step(&what, sys::move_mount_to_fd(tree.as_fd(), target.as_fd()))?;
        }
        self.mask(&spec.masked_paths)?;
        if spec.root.readonly {
            step(
                "make the root read-only",
                sys::mount_setattr(self.root.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
            )?;
        }
        Ok(())
    }

    /// A masked file reads as /dev/null, a directory is empty. The name is masked, not what a link of that name points to.
    fn mask(&self, paths: &[std::path::PathBuf]) -> StepResult<()> {
        let mut null = None;
        for p in paths {
            let Some(target) = existing_no_follow(&self.root, p)? else {
                continue;
            };
            let what = format!("mask {}", p.display());
            let tree = if step(&what, is_dir(&target))? {
                step(&what, empty_tmpfs())?
            } else {
                let null = match &null {
                    Some(n) => n,
                    None => null.insert(dev::Null::open(&self.root)?),
                };
                step(&what, null.mount())?
            };
            step(&what, sys::move_mount_to_fd(tree.as_fd(), target.as_fd()))?;
        }
        null.map_or(Ok(()), dev::Null::close)
    }
}

fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::fs::fstat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Puts a file system of the container's own at its place, on whose way there may be no link.
fn attach_own(root: &OwnedFd, path: &Path, tree: &OwnedFd) -> StepResult<()> {
    let what = format!("mount at {}", path.display());
    let target = ensure_plain(root, path).map_err(|e| match e.raw_os_error() {
        // A link at the end is no directory.
        Some(libc::ELOOP | libc::ENOTDIR) => format!(
            "{what}: it must be a directory and no symbolic link, in the image or a volume, may be on the way to it"
        ),
        _ => format!("make the mount point {}: {}", path.display(), os_text(&e)),
    })?;
    step(&what, sys::move_mount_to_fd(tree.as_fd(), target.as_fd()))
}

/// Puts a volume at its place, links followed inside the root, but never over the root, /proc or anything in it: there a
/// volume would take the place of what the masks are made on and what the kernel is told through.
fn attach_volume(root: &OwnedFd, path: &Path, tree: &OwnedFd) -> StepResult<()> {
    let what = path.display();
    let dir = step(&what, is_dir(tree))?;
    let target = step(
        format_args!("make the mount point {what}"),
        ensure(root, path, dir),
    )?;
    let in_proc = step(&what, procfs::is_procfs(&target))?;
    if in_proc && (dir || !confine::is_lxcfs(path)) {
        return Err(format!(
            "mount at {what}: it cannot be mounted because it is inside /proc"
        ));
    }
    let id = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino));
    if id(root).ok() == id(&target).ok() {
        return Err(format!("mount at {what}: it leads to the root directory"));
    }
    step(
        format_args!("mount at {what}"),
        sys::move_mount_to_fd(tree.as_fd(), target.as_fd()),
    )
}

/// A new file system as a detached mount.
pub(super) fn fs_tree(fs: &FsMount) -> io::Result<OwnedFd> {
    use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
    // MS_RDONLY to MS_NOEXEC have the same bits as MOUNT_ATTR_*.
    let simple = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let mut attrs = MountAttrFlags::from_bits_retain((fs.flags & simple) as u32);
    if fs.flags & libc::MS_STRICTATIME != 0 {
        attrs |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    }
    if fs.readonly {
        attrs |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    if fs.flags & !(simple | libc::MS_STRICTATIME | libc::MS_RELATIME) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let context = mount::fsopen(&fs.fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(context.as_fd(), "source", &fs.fstype)?;
    for option in fs.data.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => mount::fsconfig_set_string(context.as_fd(), key, value)?,
            None => mount::fsconfig_set_flag(context.as_fd(), option)?,
        }
    }
    mount::fsconfig_create(context.as_fd())?;
    Ok(mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attrs,
    )?)
}

fn empty_tmpfs() -> io::Result<OwnedFd> {
    fs_tree(&FsMount {
        fstype: "tmpfs".into(),
        flags: 0,
        data: "size=0".into(),
        readonly: true,
    })
}

pub use skiff_cgroup::CgroupMount;

fn mount_cgroups(
    root: &OwnedFd,
    at: &Path,
    readonly: bool,
    cgroups: &[CgroupMount],
) -> StepResult<()> {
    let what = format!("mount the cgroups at {}", at.display());
    let tree = |fstype: &str, data: &str, readonly: bool| {
        fs_tree(&FsMount {
            fstype: fstype.into(),
            flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            data: data.into(),
            readonly,
        })
    };
    if let [only] = cgroups
        && only.name.is_empty()
    {
        return attach_own(root, at, &step(&what, tree(&only.fstype, "", readonly))?);
    }
    let top = step(&what, tree("tmpfs", "mode=755,size=64k", false))?;
    attach_own(root, at, &top)?;
    for c in cgroups {
        // A hierarchy that cannot be mounted here (another user namespace owns it) is left out, as runc does.
        let Ok(t) = tree(&c.fstype, &c.data, readonly) else {
            continue;
        };
        attach_own(&top, &Path::new("/").join(&c.name), &t)?;
        for link in &c.links {
            let _ = rustix::fs::symlinkat(&*c.name, &top, &**link);
        }
    }
    if readonly {
        step(
            "make /sys/fs/cgroup read-only",
            sys::mount_setattr(top.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0),
        )?;
    }
    Ok(())
}
