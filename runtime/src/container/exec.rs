//! Owns the last steps of every container process, first or exec'd: user, capabilities, seccomp, working directory,
//! the look-up in PATH and execve. Runs in a forked child; it must not touch mounts or namespaces except `run_exec`'s join.
//!
//! A process that is to appear in a process namespace where others are gets all of this outside of it. It is then born
//! into it (a sibling with the same parent, the shim) with nothing left to do but to execve: those others, who may hold
//! CAP_SYS_PTRACE, never see the node's root, a capability too many or a process without its seccomp filter.

use super::caps;
use super::dev;
use super::init::{ChildIo, Inherited, Sent, report_and_exit};
use super::procfs::Procfs;
use super::rootfs::{StepResult, os_text, step};
use super::seccomp;
use super::spec::ProcessSpec;
use super::targets::{IN_ROOT, open_dir};
use crate::sys;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Things read from the node before the process enters the container.
pub struct Ready {
    seccomp: Option<Vec<u8>>,
    caps: super::spec::CapSets,
}

/// Reads the seccomp program and sets what only a node's process can set: oom_score_adj.
pub fn prepare(p: &ProcessSpec, procfs: &Procfs) -> StepResult<Ready> {
    let seccomp = match &p.seccomp {
        Some(file) => Some(step(
            format_args!("read the seccomp program {}", file.display()),
            std::fs::read(file),
        )?),
        None => None,
    };
    if let Some(wish) = p.oom_score_adj {
        set_oom_score_adj(procfs, wish);
    }
    let permitted = step("read own capabilities", sys::cap_permitted())?;
    Ok(Ready {
        seccomp,
        caps: caps::limited(&p.caps, permitted),
    })
}

/// Sets oom_score_adj, or the nearest value that is allowed: lowering it needs CAP_SYS_RESOURCE. Returns what was set.
pub fn set_oom_score_adj(procfs: &Procfs, wish: i32) -> Option<i32> {
    let set = |n: i32| {
        procfs
            .write(Path::new("self/oom_score_adj"), n.to_string().as_bytes())
            .is_ok()
    };
    if set(wish) {
        return Some(wish);
    }
    // 0 resets what a shim or server passed on; if that is refused too, the inherited value stays.
    (wish < 0 && set(0)).then_some(0)
}

/// True when negative oom_score_adj values will be refused.
pub fn lacks_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    sys::cap_permitted().is_ok_and(|c| c & CAP_SYS_RESOURCE == 0)
}

/// Joins the cgroups. The child writes "0" (itself), so no process id has to be translated between namespaces.
pub fn join_cgroups(files: &[PathBuf]) -> StepResult<()> {
    for f in files {
        step(
            format_args!("join the cgroup {}", f.display()),
            std::fs::write(f, "0"),
        )?;
    }
    Ok(())
}

/// Finds the program as a shell would: names with a slash as they are, others along PATH. Messages are upstream's
/// (Go's os/exec), because users search for them.
fn look_up(name: &str, path: &str) -> StepResult<PathBuf> {
    let check = |p: &Path| -> io::Result<()> {
        let m = std::fs::metadata(p)?;
        if m.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if m.permissions().mode() & 0o111 == 0 {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        Ok(())
    };
    if name.contains('/') {
        let p = PathBuf::from(name);
        return match check(&p) {
            Ok(()) => Ok(p),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(format!("exec: {name:?}: stat {name}: {}", os_text(&e)))
            }
            Err(e) => Err(format!("exec: {name:?}: {}", os_text(&e))),
        };
    }
    let mut denied = false;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let p = Path::new(dir).join(name);
        match check(&p) {
            Ok(()) => return Ok(p),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        Err(format!("exec: {name:?}: permission denied"))
    } else {
        Err(format!(
            "exec: {name:?}: executable file not found in $PATH"
        ))
    }
}

/// HOME of a user by the container's /etc/passwd; "/" when it is not listed (runc's rule). The file is the container's:
/// it may be a link, a FIFO or endless.
fn home_of(root: &OwnedFd, uid: u32) -> String {
    let read = || -> Option<String> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let fd = sys::openat2(root.as_fd(), Path::new("/etc/passwd"), flags, 0, IN_ROOT).ok()?;
        let file = std::fs::File::from(fd);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    read()
        .unwrap_or_default()
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && f[2].parse() == Ok(uid))
        .map(|f| f[5].to_string())
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| "/".into())
}

/// Fails unless the current directory is below this process's root (CVE-2024-21626: a working directory that names a
/// descriptor of the runtime is one of the node's).
fn check_inside() -> StepResult<()> {
    let outside = "current working directory is outside of container mount namespace root -- possible container breakout detected";
    match rustix::process::getcwd(Vec::new()) {
        Ok(cwd) if cwd.as_bytes().starts_with(b"/") => Ok(()),
        // libc's spelling of "(unreachable)".
        Ok(_) | Err(rustix::io::Errno::NOENT) => Err(outside.into()),
        Err(e) => Err(format!("{outside}: {}", os_text(&e.into()))),
    }
}

/// Enters the working directory, through links but no magic links of /proc.
fn enter(root: &OwnedFd, cwd: &str) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let dir = sys::openat2(root.as_fd(), Path::new(cwd), flags, 0, IN_ROOT)?;
    Ok(rustix::process::fchdir(&dir)?)
}

/// Becomes the process: everything after the mounts are in place. Returns only with an error. With `born` the process is
/// still outside of its process namespace and is born into it as the last step.
pub fn become_process(
    p: &ProcessSpec,
    ready: Ready,
    got: Inherited<'_>,
    born: bool,
) -> (OwnedFd, String) {
    drop(got.channel);
    match finish(p, ready, got.io, &got.error, born) {
        Ok(never) => match never {},
        Err(e) => (got.error, e),
    }
}

fn finish(
    p: &ProcessSpec,
    ready: Ready,
    io: ChildIo,
    error: &OwnedFd,
    born: bool,
) -> StepResult<std::convert::Infallible> {
    take_stdio(p, io)?;
    if !born {
        lead(p)?;
    }
    // However they were opened: nothing of the node may be left for the program, nor for those who see the process before
    // it runs. What is opened from here on is closed by execve.
    step("close descriptors", sys::close_others(&[error.as_raw_fd()]))?;
    let root = step("open the root", open_dir(Path::new("/")))?;
    sys::umask(0o022);
    let home = home_of(&root, p.uid);
    let cwd = if p.cwd.is_empty() { "/" } else { &p.cwd };
    // A directory that only the user may enter is retried below, as the user.
    let entered = match enter(&root, cwd) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => false,
        r => step(
            format_args!("chdir to cwd ({cwd:?}) set in config.json failed"),
            r,
        )
        .map(|()| true)?,
    };
    check_inside()?;
    drop(root);

    step("drop capabilities", caps::apply_bounding(&ready.caps))?;
    // Where others see the process, it is born with its filter, if the filter lets it be born at all.
    let early = born
        && ready
            .seccomp
            .as_ref()
            .is_some_and(|f| seccomp::permits_birth(f, p.tty));
    let load = || match &ready.seccomp {
        Some(program) => step(
            "load the seccomp filter",
            sys::seccomp_load(program, p.seccomp_flags),
        ),
        None => Ok(()),
    };
    if !p.no_new_privs {
        if born && ready.seccomp.is_some() && !early {
            return Err(
                "the seccomp profile does not allow clone, setsid, prctl and execve, which starting a process beside \
                 others needs; set allowPrivilegeEscalation: false, or allow them"
                    .into(),
            );
        }
        // Without no_new_privs the filter needs CAP_SYS_ADMIN, which is about to go.
        load()?;
    }
    step("keep capabilities", sys::prctl(libc::PR_SET_KEEPCAPS, 1))?;
    step(
        format_args!("become user {}:{}", p.uid, p.gid),
        sys::set_user(p.uid, p.gid, &p.groups),
    )?;
    step("keep capabilities", sys::prctl(libc::PR_SET_KEEPCAPS, 0))?;
    if !entered {
        step(
            format_args!("chdir to cwd ({cwd:?}) set in config.json failed"),
            std::env::set_current_dir(cwd),
        )?;
        check_inside()?;
    }
    step("set capabilities", caps::apply(&ready.caps))?;
    let program = program(p, home)?;

    // The shim goes without huge pages, which is inherited; its containers must not.
    let _ = sys::prctl(libc::PR_SET_THP_DISABLE, 0);
    if p.no_new_privs {
        step("set no_new_privs", sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
        if early {
            load()?;
        }
    }
    if born {
        let pid = step("fork", sys::fork_sibling())?;
        if pid != 0 {
            // It runs its program by now, or has said why not.
            let _ = sys::write(error.as_fd(), &birth_note(pid));
            sys::exit_now(0);
        }
        lead(p)?;
    }
    // The death of the shim ends its containers: nobody would read their output or reap them.
    step(
        "tie to the shim",
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64),
    )?;
    if p.no_new_privs && !early {
        load()?;
    }
    let e = program.exec();
    Err(format!("exec {}: {}", program.path(), os_text(&e)))
}

/// What the parent of a born process writes behind its message: a zero byte and the pid in the shim's namespace.
fn birth_note(pid: i32) -> [u8; 5] {
    let p = pid.to_le_bytes();
    [0, p[0], p[1], p[2], p[3]]
}

/// Takes a note like that off the end of what came out of an error pipe.
pub fn take_birth_note(text: &mut Vec<u8>) -> Option<i32> {
    let at = text.len().checked_sub(5)?;
    let pid = match text[at..] {
        [0, a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
        _ => return None,
    };
    text.truncate(at);
    Some(pid)
}

/// Puts the child's ends of its stdio on the standard descriptors.
fn take_stdio(p: &ProcessSpec, io: ChildIo) -> StepResult<()> {
    let all = [(io.stdin, 0), (io.stdout, 1), (io.stderr, 2)];
    for (fd, n) in all {
        let Some(fd) = fd else { continue };
        // The user must be able to open /dev/stdout again, so pipes change hands; terminals already have.
        if !p.tty
            && p.uid != 0
            && rustix::fs::fstat(&fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFIFO)
        {
            let _ = rustix::fs::fchown(&fd, Some(rustix::fs::Uid::from_raw(p.uid)), None);
        }
        step("set up stdio", sys::dup_onto(fd.as_fd(), n))?;
    }
    Ok(())
}

/// A session of its own, with the terminal if there is one.
fn lead(p: &ProcessSpec) -> StepResult<()> {
    step("start a session", sys::setsid())?;
    if p.tty {
        step(
            "take the terminal",
            sys::set_controlling_tty(sys::std_fd(0)),
        )?;
    }
    Ok(())
}

/// The program with its arguments and environment, as the user who will run it finds it.
fn program(p: &ProcessSpec, home: String) -> StepResult<sys::Program> {
    let mut env = p.env.clone();
    let get = |env: &[String], name: &str| {
        env.iter().rev().find_map(|e| {
            e.strip_prefix(name)
                .and_then(|r| r.strip_prefix('='))
                .map(str::to_string)
        })
    };
    if get(&env, "HOME").is_none_or(|h| h.is_empty()) {
        env.retain(|e| !e.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    let Some(name) = p.args.first() else {
        return Err("no command: set command or args, or use an image with an entrypoint".into());
    };
    let path = look_up(name, &get(&env, "PATH").unwrap_or_default())?;
    let c = |s: &str| CString::new(s).map_err(|_| format!("the argument {s:?} holds a NUL byte"));
    let all = |v: &[String]| v.iter().map(|s| c(s)).collect::<StepResult<Vec<_>>>();
    Ok(sys::Program::new(
        c(&path.to_string_lossy())?,
        all(&p.args)?,
        all(&env)?,
    ))
}

/// An exec'd process: joins the namespaces of `target` (a pidfd of the container's first process), all of them, while it
/// is still outside of the process namespace, and runs. `pts` is the container's devpts.
pub fn run_exec(
    p: &ProcessSpec,
    cgroup_procs: &[PathBuf],
    target: &OwnedFd,
    pts: Option<&OwnedFd>,
    mut got: Inherited<'_>,
) -> ! {
    let r = join(p, cgroup_procs, target, pts, &mut got);
    let message = match r {
        Ok(ready) => become_process(p, ready, got, true),
        Err(e) => (got.error, e),
    };
    report_and_exit(&message.0, &message.1)
}

fn join(
    p: &ProcessSpec,
    cgroup_procs: &[PathBuf],
    target: &OwnedFd,
    pts: Option<&OwnedFd>,
    got: &mut Inherited<'_>,
) -> StepResult<Ready> {
    let more: Vec<_> = [Some(target), pts]
        .into_iter()
        .flatten()
        .map(AsRawFd::as_raw_fd)
        .collect();
    got.close_others(&more)?;
    // Processes of the container see this one in their /proc once it is there; its exe and descriptors are not theirs.
    step(
        "hide from the container",
        sys::prctl(libc::PR_SET_DUMPABLE, 0),
    )?;
    sys::reset_signals();
    let ready = prepare(p, got.procfs)?;
    join_cgroups(cgroup_procs)?;
    step(
        "enter the container's namespaces",
        sys::setns(
            target.as_fd(),
            libc::CLONE_NEWNS
                | libc::CLONE_NEWCGROUP
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWPID,
        ),
    )?;
    if p.tty {
        let pts: BorrowedFd<'_> = pts
            .ok_or("a terminal needs the container's own /dev/pts, and a volume is there")?
            .as_fd();
        let (master, slave) = dev::open_pty(pts, p.uid)?;
        let sent = Sent {
            master: Some(master),
            ..Sent::default()
        };
        if let Some(channel) = got.channel.take() {
            sent.send(&channel)?;
        }
        got.io = ChildIo::of_terminal(slave)?;
    }
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_along_path_with_upstream_s_messages() {
        assert_eq!(
            look_up("sh", "/nowhere:/bin").unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(
            look_up("foo", "/bin").unwrap_err(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(
            look_up("/no/foo", "").unwrap_err(),
            "exec: \"/no/foo\": stat /no/foo: no such file or directory"
        );
        assert_eq!(
            look_up("/etc/passwd", "").unwrap_err(),
            "exec: \"/etc/passwd\": permission denied"
        );
    }

    #[test]
    fn a_note_of_a_birth_is_told_from_a_message() {
        let mut text = b"exec: no".to_vec();
        assert_eq!(take_birth_note(&mut text), None);
        text.extend(birth_note(70000));
        assert_eq!(take_birth_note(&mut text), Some(70000));
        assert_eq!(text, b"exec: no");
        assert_eq!(take_birth_note(&mut Vec::new()), None);
    }
}
