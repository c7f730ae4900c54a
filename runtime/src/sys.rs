//! Owns the thin wrappers over system calls that neither std nor rustix offers safely. It must not hold policy:
//! every function is one call (or one message) and returns the kernel's error.
#![allow(unsafe_code)] // The one place where raw system calls are made; each block says why it is sound.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Clone the whole mount tree below the path (open_tree's AT_RECURSIVE).
pub const AT_RECURSIVE: u32 = libc::AT_RECURSIVE as u32;
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// Turns a libc return value into a result.
pub fn cvt(r: libc::c_long) -> io::Result<libc::c_long> {
    if r == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// A C string out of a path; a path with a NUL is refused as the kernel would refuse it.
pub fn cstr(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn own(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Forks. Only to be called in the single-threaded shim (or its children), where the child may allocate.
pub fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: the caller is single-threaded, so no lock can be held by a thread that does not exist in the child.
    cvt(libc::c_long::from(unsafe { libc::fork() })).map(|p| p as libc::pid_t)
}

/// Forks with the child already in the cgroup whose v2 directory is given (CLONE_INTO_CGROUP, kernel 5.7): a move
/// afterwards would wait for a grace period. The same rules as for `fork`.
pub fn fork_into(cgroup: BorrowedFd<'_>) -> io::Result<libc::pid_t> {
    #[repr(C, align(8))]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with no stack given this is fork; args is a valid struct clone_args of 88 bytes.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &args as *const CloneArgs,
            std::mem::size_of::<CloneArgs>(),
        )
    })
    .map(|p| p as libc::pid_t)
}

/// Forks a sibling: the child's parent is ours (CLONE_PARENT), and we wait until it has become a program or has ended
/// (CLONE_VFORK), so that it is on its way alone. clone(2), because seccomp profiles refuse clone3. The rules of `fork`.
pub fn fork_sibling() -> io::Result<libc::pid_t> {
    // SAFETY: without CLONE_VM and with no stack given this is fork.
    cvt(unsafe { libc::syscall(libc::SYS_clone, SIBLING_FLAGS, 0, 0, 0, 0) })
        .map(|p| p as libc::pid_t)
}

/// The flags that `fork_sibling` passes; a seccomp profile must allow them.
pub const SIBLING_FLAGS: u64 =
    libc::CLONE_PARENT as u64 | libc::CLONE_VFORK as u64 | libc::SIGCHLD as u64;

/// Gives this process an empty session keyring of its own: keys of whoever started the server are not its children's.
/// A kernel without keyrings has none to share.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match cvt(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0, 0, 0, 0) }) {
        Err(e) if e.raw_os_error() != Some(libc::ENOSYS) => Err(e),
        _ => Ok(()),
    }
}

/// Leaves the process at once, without running destructors or at-exit handlers (a forked child must not run its parent's).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

pub fn setsid() -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(libc::c_long::from(unsafe { libc::setsid() })).map(drop)
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers; CLONE_FILES is never passed.
    cvt(libc::c_long::from(unsafe { libc::unshare(flags) })).map(drop)
}

pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call.
    cvt(libc::c_long::from(unsafe {
        libc::setns(fd.as_raw_fd(), flags)
    }))
    .map(drop)
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(own)
}

pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(libc::c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// prctl with one argument.
pub fn prctl(option: i32, arg: u64) -> io::Result<i32> {
    // SAFETY: only options that take integers are used with this function.
    cvt(libc::c_long::from(unsafe {
        libc::prctl(option, arg, 0, 0, 0)
    }))
    .map(|r| r as i32)
}

/// prctl with two integer arguments (ambient capabilities).
pub fn prctl2(option: i32, arg: u64, arg2: u64) -> io::Result<i32> {
    // SAFETY: only options that take integers are used with this function.
    cvt(libc::c_long::from(unsafe {
        libc::prctl(option, arg, arg2, 0, 0)
    }))
    .map(|r| r as i32)
}

/// Sets the name shown by ps; at most 15 bytes count.
pub fn set_name(name: &CStr) {
    // SAFETY: the string is NUL-terminated and the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// One reaped child: pid and raw wait status.
pub fn wait_any_nohang() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: status outlives the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for any child; returns None when there is none. EINTR is retried.
pub fn wait_any() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: status outlives the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        if pid > 0 {
            return Some((pid, status));
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

/// Shell convention: exit code, or 128 + signal.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    }
}

/// mount(2). `data` is the file system's option string.
pub fn mount(source: &str, target: &Path, fstype: &str, flags: u64, data: &str) -> io::Result<()> {
    let bad = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let (source, target) = (CString::new(source).map_err(bad)?, cstr(target)?);
    let (fstype, data) = (
        CString::new(fstype).map_err(bad)?,
        CString::new(data).map_err(bad)?,
    );
    // SAFETY: all strings are NUL-terminated and live until the call returns.
    cvt(libc::c_long::from(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    }))
    .map(drop)
}

/// umount2(2) with MNT_DETACH; a path that is not a mount point is no error.
pub fn umount_detach(target: &Path) -> io::Result<()> {
    let target = cstr(target)?;
    // SAFETY: NUL-terminated string.
    match cvt(libc::c_long::from(unsafe {
        libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW)
    })) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Err(e),
        _ => Ok(()),
    }
}

/// Clones the mount at `path` (with everything below it if `recursive`) into a detached tree.
pub fn open_tree_clone(dir: RawFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: u32 = 1;
    let c = cstr(path)?;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    // SAFETY: NUL-terminated string.
    cvt(unsafe { libc::syscall(libc::SYS_open_tree, dir, c.as_ptr(), flags) }).map(own)
}

/// Attaches a detached tree on the file or directory that `target` (an O_PATH descriptor) names.
pub fn move_mount_to_fd(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const F_EMPTY: u32 = 0x4;
    const T_EMPTY: u32 = 0x40;
    // SAFETY: both paths are the empty string; descriptors are borrowed.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            F_EMPTY | T_EMPTY,
        )
    })
    .map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on the mount that `fd` names. `propagation` is 0 or one of MS_PRIVATE, MS_SLAVE, MS_SHARED.
pub fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: u64,
) -> io::Result<()> {
    let attr = MountAttr {
        set,
        clear: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: attr is a valid struct mount_attr of version 0 and lives until the call returns.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attr as *const MountAttr,
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Resolve as if `dir` were the root; never through magic links of /proc; never across a mount; through no link at all;
/// never out of `dir`.
pub const RESOLVE_IN_ROOT: u64 = 0x10;
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_XDEV: u64 = 0x01;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;

/// openat2(2).
pub fn openat2(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = How {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: u64::from(mode),
        resolve,
    };
    let c = cstr(path)?;
    // SAFETY: how is a valid struct open_how and lives until the call returns.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            c.as_ptr(),
            &how as *const How,
            std::mem::size_of::<How>(),
        )
    })
    .map(own)
}

/// Makes the current directory the root and drops the old one (the pivot_root(".", ".") idiom).
pub fn pivot_to_cwd() -> io::Result<()> {
    // SAFETY: constant NUL-terminated strings.
    unsafe {
        cvt(libc::syscall(
            libc::SYS_pivot_root,
            c".".as_ptr(),
            c".".as_ptr(),
        ))?;
        // The old root is now stacked on the new one at "."; detaching it leaves the new one.
        cvt(libc::c_long::from(libc::umount2(
            c".".as_ptr(),
            libc::MNT_DETACH,
        )))?;
        cvt(libc::c_long::from(libc::chdir(c"/".as_ptr())))?;
    }
    Ok(())
}

/// Unmounts (lazily) the mount whose root is the current directory.
pub fn umount_cwd() -> io::Result<()> {
    // SAFETY: constant NUL-terminated string.
    cvt(libc::c_long::from(unsafe {
        libc::umount2(c".".as_ptr(), libc::MNT_DETACH)
    }))
    .map(drop)
}

/// chroot(2) to the current directory.
pub fn chroot_cwd() -> io::Result<()> {
    // SAFETY: constant NUL-terminated string.
    cvt(libc::c_long::from(unsafe { libc::chroot(c".".as_ptr()) })).map(drop)
}

pub fn umask(mask: u32) {
    // SAFETY: no pointers.
    unsafe { libc::umask(mask) };
}

pub fn sethostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe the same string.
    cvt(libc::c_long::from(unsafe {
        libc::sethostname(name.as_ptr().cast(), name.len())
    }))
    .map(drop)
}

/// Sets the three identities of the process. Groups first, because only root may set them.
pub fn set_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the slice outlives the call.
    unsafe {
        cvt(libc::c_long::from(libc::setgroups(
            groups.len(),
            groups.as_ptr(),
        )))?;
        cvt(libc::c_long::from(libc::setresgid(gid, gid, gid)))?;
        cvt(libc::c_long::from(libc::setresuid(uid, uid, uid)))?;
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
const CAP_VERSION_3: u32 = 0x2008_0522;

/// Sets this process's effective, permitted and inheritable capability sets (bit n is capability n).
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 wants exactly two data structs.
    cvt(unsafe { libc::syscall(libc::SYS_capset, &header as *const CapHeader, data.as_ptr()) })
        .map(drop)
}

/// This process's permitted capabilities.
pub fn cap_permitted() -> io::Result<u64> {
    let header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes exactly two data structs.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_capget,
            &header as *const CapHeader,
            data.as_mut_ptr(),
        )
    })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Loads a compiled seccomp program (an array of struct sock_filter as bytes).
pub fn seccomp_load(program: &[u8], flags: u32) -> io::Result<()> {
    if program.is_empty()
        || !program.len().is_multiple_of(8)
        || program.len() / 8 > usize::from(u16::MAX)
    {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let prog = libc::sock_fprog {
        len: filters.len() as u16,
        filter: filters.as_ptr().cast_mut(),
    };
    const SET_MODE_FILTER: u32 = 1;
    // SAFETY: prog points at len filters that live until the call returns; the kernel only reads them.
    cvt(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            flags,
            &prog as *const libc::sock_fprog,
        )
    })
    .map(drop)
}

/// A program with its arguments and environment, laid out for execve(2) before the fork that must not allocate.
pub struct Program {
    path: CString,
    /// The strings that the pointers below point into; never changed.
    _held: [Vec<CString>; 2],
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

impl Program {
    pub fn new(path: CString, args: Vec<CString>, env: Vec<CString>) -> Self {
        let to_ptrs = |v: &[CString]| -> Vec<*const libc::c_char> {
            v.iter()
                .map(|s| s.as_ptr())
                .chain(std::iter::once(std::ptr::null()))
                .collect()
        };
        Self {
            path,
            argv: to_ptrs(&args),
            envp: to_ptrs(&env),
            _held: [args, env],
        }
    }

    /// What it runs, for messages.
    pub fn path(&self) -> std::borrow::Cow<'_, str> {
        self.path.to_string_lossy()
    }

    /// execve(2); returns only on failure.
    pub fn exec(&self) -> io::Error {
        // SAFETY: both arrays are NULL-terminated arrays of NUL-terminated strings that `_held` keeps.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Resets every signal to its default and unblocks all: Rust ignores SIGPIPE and the shim blocks SIGCHLD, and both
/// would be inherited through execve.
pub fn reset_signals() {
    // SAFETY: setting default dispositions and an empty mask has no memory effects.
    unsafe {
        for s in 1..=64 {
            libc::signal(s, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Ignores the signals that a service manager or terminal may send to a whole group.
pub fn ignore_signals(signals: &[i32]) {
    for &s in signals {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(s, libc::SIG_IGN) };
    }
}

/// Blocks SIGCHLD and returns a signalfd that reports it.
pub fn sigchld_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        cvt(libc::c_long::from(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        )))?;
        cvt(libc::c_long::from(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )))
        .map(own)
    }
}

/// dup2 onto a standard descriptor; the copy is not close-on-exec.
pub fn dup_onto(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    let r = if fd.as_raw_fd() == target {
        // SAFETY: clearing FD_CLOEXEC on a descriptor we hold.
        unsafe { libc::fcntl(target, libc::F_SETFD, 0) }
    } else {
        // SAFETY: dup2 onto 0, 1 or 2, which nothing in this process owns as an OwnedFd.
        unsafe { libc::dup2(fd.as_raw_fd(), target) }
    };
    cvt(libc::c_long::from(r)).map(drop)
}

/// Makes the descriptor this session's controlling terminal.
pub fn set_controlling_tty(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    cvt(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))
    .map(drop)
}

/// Opens the slave end of a pty master without a path look-up (TIOCGPTPEER).
pub fn pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor.
    cvt(libc::c_long::from(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    }))
    .map(own)
}

/// Sets a terminal's size in character cells.
pub fn set_winsize(fd: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one struct winsize.
    cvt(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size)
    }))
    .map(drop)
}

/// Sets IFF_UP on an interface of the current network namespace.
pub fn link_up(name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data, zeroed and then filled within its bounds.
    unsafe {
        let fd = own(cvt(libc::c_long::from(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        )))?);
        let mut req: libc::ifreq = std::mem::zeroed();
        for (d, s) in req
            .ifr_name
            .iter_mut()
            .zip(name.bytes().take(libc::IFNAMSIZ - 1))
        {
            *d = s as libc::c_char;
        }
        req.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        cvt(libc::c_long::from(libc::ioctl(
            fd.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &req,
        )))
        .map(drop)
    }
}

/// A TCP socket of the current network namespace, unconnected.
pub fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers.
    cvt(libc::c_long::from(unsafe {
        libc::socket(
            family,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    }))
    .map(own)
}

/// A pipe, close-on-exec: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: fds has room for two.
    cvt(libc::c_long::from(unsafe {
        libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)
    }))?;
    Ok((
        own(libc::c_long::from(fds[0])),
        own(libc::c_long::from(fds[1])),
    ))
}

/// Sets or clears O_NONBLOCK of the open file description.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take integers.
    unsafe {
        let flags = cvt(libc::c_long::from(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_GETFL,
        )))? as i32;
        let flags = if on {
            flags | libc::O_NONBLOCK
        } else {
            flags & !libc::O_NONBLOCK
        };
        cvt(libc::c_long::from(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            flags,
        )))
        .map(drop)
    }
}

/// A fresh descriptor above the standard ones for `fd`, close-on-exec.
pub fn dup_high(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and returns a new descriptor.
    cvt(libc::c_long::from(unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3)
    }))
    .map(own)
}

/// Borrows a standard descriptor (0, 1 or 2).
pub fn std_fd(n: RawFd) -> BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&n));
    // SAFETY: the standard descriptors are open for the whole life of the process.
    unsafe { BorrowedFd::borrow_raw(n) }
}

/// poll(2) over (descriptor, wanted events); fills the returned events. A negative timeout waits for ever.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    // SAFETY: pointer and length describe the same slice.
    let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match cvt(libc::c_long::from(n)) {
        Ok(n) => Ok(n as usize),
        Err(e) if e.raw_os_error() == Some(libc::EINTR) => Ok(0),
        Err(e) => Err(e),
    }
}

/// read(2) into the buffer.
pub fn read(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    rustix::io::read(fd, buf).map_err(io::Error::from)
}

/// write(2) of the buffer, once.
pub fn write(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    rustix::io::write(fd, buf).map_err(io::Error::from)
}

/// Sends bytes with descriptors attached to the first of them.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(rustix::net::SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    rustix::net::sendmsg(
        socket,
        &[io::IoSlice::new(bytes)],
        &mut control,
        rustix::net::SendFlags::NOSIGNAL,
    )
    .map_err(io::Error::from)
}

/// Receives bytes and whatever descriptors came with them (close-on-exec).
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let r = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(buf)],
        &mut control,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(r.bytes)
}

/// Registers a non-blocking descriptor with the reactor.
pub fn async_fd(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open description until it is dropped, which the AsyncFd outlives.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// Nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

/// Milliseconds of the monotonic clock, for deadlines.
pub fn monotonic_ms() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec * 1000 + t.tv_nsec / 1_000_000
}

/// Closes every descriptor above the standard ones except those in `keep`. For children that never return to code that
/// owns one of the closed.
pub fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter(|f| **f > 2).map(|f| *f as u32).collect();
    keep.sort_unstable();
    let mut from = 3u32;
    for k in keep.into_iter().chain(std::iter::once(u32::MAX)) {
        let to = if k == u32::MAX { k } else { k - 1 };
        if from <= to {
            // SAFETY: the callers never use a closed descriptor again; they exit through _exit or execve.
            cvt(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) })?;
        }
        from = k.saturating_add(1);
    }
    Ok(())
}

/// The parts of this process that are mapped from files and were never written: its program text and constants. Pages
/// that were relocated at start are read-only now but not the file's any more, so only mappings without any count.
pub fn file_mappings() -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut at = None;
    for l in std::fs::read_to_string("/proc/self/smaps")
        .unwrap_or_default()
        .lines()
    {
        let mut f = l.split_whitespace();
        let (Some(first), Some(second)) = (f.next(), f.next()) else {
            continue;
        };
        if let Some(name) = first.strip_suffix(':') {
            if matches!(name, "Private_Dirty" | "Anonymous") && second != "0" {
                at = None;
            }
            // The last line of a mapping that matters.
            if name == "Swap" {
                out.extend(at.take());
            }
            continue;
        }
        let hex = |s| usize::from_str_radix(s, 16).ok();
        let range = first
            .split_once('-')
            .and_then(|(from, to)| Some((hex(from)?, hex(to)?)));
        let inode = f.nth(2).unwrap_or("0");
        at = range
            .filter(|_| !second.contains('w') && inode != "0")
            .map(|(from, to)| (from, to - from));
    }
    out
}

/// Lets go of the resident pages of such mappings; they come back from the page cache when they are touched.
pub fn forget_pages(mappings: &[(usize, usize)]) {
    for (at, len) in mappings {
        // SAFETY: the ranges are private, unmodified file mappings: dropping pages changes nothing that can be read.
        unsafe { libc::madvise(*at as *mut libc::c_void, *len, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_child_can_be_born_in_a_v2_cgroup() {
        let Some(root) = crate::cgroup::Hierarchies::detect().unwrap().v2 else {
            eprintln!("SKIPPED: no cgroup v2 is mounted");
            return;
        };
        let dir = root.join(format!("skiff-test-{}", std::process::id()));
        if std::fs::create_dir(&dir).is_err() {
            eprintln!("SKIPPED: making a cgroup needs root");
            return;
        }
        let fd = std::fs::File::open(&dir).unwrap();
        let pid = fork_into(fd.as_fd()).unwrap();
        if pid == 0 {
            // Only system calls: this process has threads.
            unsafe { libc::pause() };
            exit_now(0);
        }
        let inside = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        kill(pid, libc::SIGKILL).unwrap();
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(inside.trim(), pid.to_string());
    }
}
