//! Owns running one RUN step of a build in its own namespaces. Must not know Dockerfiles, nor need the server: the
//! kubelet's containers are made elsewhere.
//!
//! The step is a child with its own mount, PID, UTS and IPC namespace (and network, if asked for). Everything it mounts
//! lives in its mount namespace and so disappears with it, even if this process is killed. It gets Docker's default
//! capabilities. The work between fork and exec uses only system calls on data prepared before: the parent has threads.
#![allow(unsafe_code)] // fork and raw system calls between fork and exec; each block says why it is sound.

use super::error::IoContext;
use super::{ImageError, Result};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use std::ffi::{CStr, CString};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// What to run.
pub struct RunStep<'a> {
    pub argv: &'a [String],
    pub env: &'a [(String, String)],
    /// Absolute, in the container.
    pub workdir: &'a str,
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
    /// Share the machine's network; otherwise there is none.
    pub host_network: bool,
}

/// Docker's default set (moby, oci/caps/defaults.go), as bits.
const CAPS: u64 = 1 << 0 // CHOWN
    | 1 << 1 // DAC_OVERRIDE
    | 1 << 3 // FOWNER
    | 1 << 4 // FSETID
    | 1 << 5 // KILL
    | 1 << 6 // SETGID
    | 1 << 7 // SETUID
    | 1 << 8 // SETPCAP
    | 1 << 10 // NET_BIND_SERVICE
    | 1 << 13 // NET_RAW
    | 1 << 18 // SYS_CHROOT
    | 1 << 27 // MKNOD
    | 1 << 29 // AUDIT_WRITE
    | 1 << 31; // SETFCAP

/// Run the step on `root`, a detached mount (see [`super::rootfs::overlay_fd`]); `stage` is an empty directory to put it
/// on inside the child's mount namespace. Output lines go to `output`. A status other than 0 is an error.
pub fn run(step: &RunStep<'_>, root: OwnedFd, stage: &Path, output: &dyn Fn(&str)) -> Result<()> {
    let Some(program) = step.argv.first().filter(|p| !p.is_empty()) else {
        return Err(ImageError::Invalid("RUN has an empty command".into()));
    };
    let c = |s: &[u8]| {
        CString::new(s).map_err(|_| ImageError::Invalid("RUN: a NUL byte in the command".into()))
    };
    let stage = c(std::os::unix::ffi::OsStrExt::as_bytes(stage.as_os_str()))?;
    let workdir = c(step.workdir.as_bytes())?;
    if step.argv.iter().any(|a| a.contains('\0')) {
        return Err(ImageError::Invalid("RUN: a NUL byte in the command".into()));
    }
    let (uid, gid, groups, host_network) =
        (step.uid, step.gid, step.groups.to_vec(), step.host_network);
    let (reader, writer) = io::pipe().what(|| "make a pipe for RUN")?;
    let mut command = Command::new(program);
    command
        .args(&step.argv[1..])
        .env_clear()
        .stdin(Stdio::null());
    command.envs(step.env.iter().map(|(k, v)| (k, v)));
    command
        .stdout(writer.try_clone().what(|| "dup")?)
        .stderr(writer);
    let plan = Plan {
        root,
        stage,
        workdir,
        uid,
        gid,
        groups,
        host_network,
    };
    // SAFETY: the closure makes system calls on memory owned by `plan`, allocates nothing and takes no locks, so it is
    // sound in the child of a process with threads.
    unsafe {
        command.pre_exec(move || plan.enter());
    }
    // spawn returns when the step has been exec'ed or has failed to; output is read while it runs.
    let spawned = command.spawn();
    drop(command); // closes our ends of the pipe
    let mut child = spawned.map_err(|e| {
        let said = drain(BufReader::new(&reader), output);
        ImageError::Invalid(match (said.as_str(), e.kind()) {
            ("", io::ErrorKind::NotFound) => {
                format!("{program:?} is not in the image (looked in PATH of the ENV lines)")
            }
            ("", _) => format!("cannot run {program:?}: {e}"),
            (s, _) => format!("cannot set up the container for {program:?}: {s}: {e}"),
        })
    })?;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.what(|| "read the output of RUN")?;
        output(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().what(|| "wait for RUN")?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(n), _) => Err(ImageError::Invalid(format!(
            "the command returned a non-zero code: {n}"
        ))),
        (None, s) => Err(ImageError::Invalid(format!(
            "the command was ended by signal {}",
            s.unwrap_or(0)
        ))),
    }
}

/// What a child that never came to exec said.
fn drain(mut r: impl BufRead, output: &dyn Fn(&str)) -> String {
    let mut last = String::new();
    let mut line = String::new();
    while r.read_line(&mut line).is_ok_and(|n| n > 0) {
        last = line.trim().to_owned();
        output(&last);
        line.clear();
    }
    last
}

struct Plan {
    root: OwnedFd,
    stage: CString,
    workdir: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    host_network: bool,
}

/// Say which step failed: exec's error pipe carries only a number.
fn step<T>(what: &str, r: rustix::io::Result<T>) -> io::Result<T> {
    r.map_err(|e| {
        let _ = rustix::io::write(rustix::stdio::stderr(), what.as_bytes());
        let _ = rustix::io::write(rustix::stdio::stderr(), b"\n");
        e.into()
    })
}

fn raw(r: libc::c_long) -> rustix::io::Result<libc::c_long> {
    match r {
        -1 => Err(
            rustix::io::Errno::from_io_error(&io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::INVAL),
        ),
        n => Ok(n),
    }
}

impl Plan {
    /// In the child: becomes the container's first process, in all namespaces, and returns to be exec'ed.
    fn enter(&self) -> io::Result<()> {
        let mut spaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        if !self.host_network {
            spaces |= libc::CLONE_NEWNET;
        }
        // SAFETY: plain system calls without pointers.
        step(
            "unshare namespaces (root is needed)",
            raw(unsafe { libc::syscall(libc::SYS_unshare, spaces) }),
        )?;
        // A PID namespace begins with the next child. clone directly: libc's fork would run handlers that take locks.
        // SAFETY: no memory is shared, so both sides go on with their own copy.
        let pid = step(
            "clone",
            raw(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }),
        )?;
        if pid > 0 {
            wait_and_exit(pid as i32);
        }
        // The step ends when its guardian does.
        // SAFETY: prctl with integers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        self.mounts()?;
        self.become_user()
    }

    fn mounts(&self) -> io::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        step(
            "make mounts private",
            rustix::mount::mount_change(c"/", private),
        )?;
        // Taken before the root changes; only with the machine's network does its resolver make sense.
        let resolv = match self.host_network {
            true => clone_file(c"/etc/resolv.conf"),
            false => None,
        };
        let hosts = if self.host_network {
            clone_file(c"/etc/hosts")
        } else {
            None
        };
        let empty_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        step(
            "mount the root",
            rustix::mount::move_mount(&self.root, c"", CWD, &*self.stage, empty_path),
        )?;
        step("enter the root", rustix::process::chdir(&*self.stage))?;
        step("pivot_root", rustix::process::pivot_root(c".", c"."))?;
        step(
            "unmount the old root",
            rustix::mount::unmount(c".", UnmountFlags::DETACH),
        )?;
        step("enter the new root", rustix::process::chdir(c"/"))?;
        // From here on every path, links included, resolves inside the image.
        let safe = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        make_dir(c"/proc");
        make_dir(c"/sys");
        make_dir(c"/dev");
        let none: Option<&CStr> = None;
        step(
            "mount /proc",
            rustix::mount::mount(c"proc", c"/proc", c"proc", safe, none),
        )?;
        let sys =
            rustix::mount::mount(c"sysfs", c"/sys", c"sysfs", safe | MountFlags::RDONLY, none);
        if self.host_network {
            // sysfs belongs to the network namespace; in a shared one it may be refused, and a build can do without.
            let _ = sys;
        } else {
            step("mount /sys", sys)?;
        }
        let dev = MountFlags::NOSUID | MountFlags::STRICTATIME;
        step(
            "mount /dev",
            rustix::mount::mount(c"tmpfs", c"/dev", c"tmpfs", dev, Some(c"mode=755,size=64k")),
        )?;
        for (path, major, minor) in [
            (c"/dev/null", 1, 3),
            (c"/dev/zero", 1, 5),
            (c"/dev/full", 1, 7),
            (c"/dev/random", 1, 8),
            (c"/dev/urandom", 1, 9),
            (c"/dev/tty", 5, 0),
        ] {
            let device = rustix::fs::makedev(major, minor);
            step(
                "make devices",
                rustix::fs::mknodat(
                    CWD,
                    path,
                    FileType::CharacterDevice,
                    Mode::from_raw_mode(0o666),
                    device,
                ),
            )?;
            step(
                "make devices",
                rustix::fs::chmod(path, Mode::from_raw_mode(0o666)),
            )?;
        }
        for (path, target) in [
            (c"/dev/fd", c"/proc/self/fd"),
            (c"/dev/stdin", c"/proc/self/fd/0"),
            (c"/dev/stdout", c"/proc/self/fd/1"),
            (c"/dev/stderr", c"/proc/self/fd/2"),
            (c"/dev/ptmx", c"pts/ptmx"),
        ] {
            step("make /dev links", rustix::fs::symlink(target, path))?;
        }
        make_dir(c"/dev/pts");
        let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = c"newinstance,ptmxmode=0666,mode=0620";
        step(
            "mount /dev/pts",
            rustix::mount::mount(c"devpts", c"/dev/pts", c"devpts", pts, Some(options)),
        )?;
        make_dir(c"/dev/shm");
        let options = c"mode=1777,size=64m";
        step(
            "mount /dev/shm",
            rustix::mount::mount(c"shm", c"/dev/shm", c"tmpfs", safe, Some(options)),
        )?;
        for (tree, path) in [(&resolv, c"/etc/resolv.conf"), (&hosts, c"/etc/hosts")] {
            let Some(tree) = tree else { continue };
            make_dir(c"/etc");
            // Opening an existing file for writing would copy it into the layer.
            if rustix::fs::stat(path).is_err() {
                let flags = rustix::fs::OFlags::CREATE
                    | rustix::fs::OFlags::WRONLY
                    | rustix::fs::OFlags::CLOEXEC;
                let _ = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
            }
            // It may be a link to nowhere: then the step does without.
            let _ = rustix::mount::move_mount(tree, c"", CWD, path, empty_path);
        }
        // Kernel settings are the machine's.
        for path in [
            c"/proc/sys",
            c"/proc/sysrq-trigger",
            c"/proc/bus",
            c"/proc/fs",
            c"/proc/irq",
        ] {
            if rustix::mount::mount_bind(path, path).is_ok() {
                let flags = MountFlags::BIND | MountFlags::RDONLY | safe;
                step(
                    "make /proc/sys read-only",
                    rustix::mount::mount_remount(path, flags, c""),
                )?;
            }
        }
        let _ = rustix::system::sethostname(b"skiff-build");
        step(
            "enter the working directory",
            rustix::process::chdir(&*self.workdir),
        )
    }

    fn become_user(&self) -> io::Result<()> {
        // SAFETY: system calls with integers, and with pointers into memory that outlives the call.
        unsafe {
            for cap in 0..64u64 {
                if CAPS & (1 << cap) == 0 && libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) == 1 {
                    libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0);
                }
            }
            // Raw calls: the wrappers of libc signal all threads, and this child has none but itself.
            let (n, groups) = (self.groups.len(), self.groups.as_ptr());
            step(
                "setgroups",
                raw(libc::syscall(libc::SYS_setgroups, n, groups)),
            )?;
            let (uid, gid) = (self.uid, self.gid);
            step(
                "setgid",
                raw(libc::syscall(libc::SYS_setresgid, gid, gid, gid)),
            )?;
            step(
                "setuid",
                raw(libc::syscall(libc::SYS_setresuid, uid, uid, uid)),
            )?;
            // Version 3 header, then effective, permitted, inheritable for the low and the high 32 bits. After a
            // change to another user nothing is permitted, and nothing may be asked for.
            let header: [u32; 2] = [0x2008_0522, 0];
            let low = if uid == 0 { CAPS as u32 } else { 0 };
            let data: [u32; 6] = [low, low, 0, 0, 0, 0];
            step(
                "capset",
                raw(libc::syscall(
                    libc::SYS_capset,
                    header.as_ptr(),
                    data.as_ptr(),
                )),
            )?;
            libc::syscall(libc::SYS_umask, 0o022);
        }
        Ok(())
    }
}

fn make_dir(path: &CStr) {
    // Exists, or is a link to one: the mount that follows says if it is neither.
    let _ = rustix::fs::mkdir(path, Mode::from_raw_mode(0o755));
}

fn clone_file(path: &CStr) -> Option<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).ok()
}

/// The guardian between us and the container: waits for it and passes its end on.
fn wait_and_exit(pid: i32) -> ! {
    // SAFETY: system calls on a local integer; _exit runs no handlers.
    unsafe {
        // Among the descriptors closed is the pipe on which spawn waits for exec: the container has its own copy.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        let mut status = 0i32;
        loop {
            let r = libc::syscall(libc::SYS_wait4, pid, &mut status as *mut i32, 0, 0usize);
            if r == libc::c_long::from(pid) {
                break;
            }
            if r == -1 && io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                libc::_exit(125);
            }
        }
        if libc::WIFSIGNALED(status) {
            libc::_exit(128 + libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}
