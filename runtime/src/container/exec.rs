//! Owns the last steps of every container process, first or exec'd: user, capabilities, seccomp, working directory,
//! the look-up in PATH and execve. Runs in a forked child; it must not touch mounts or namespaces except `run_exec`'s join.

use super::caps;
use super::init::{ChildIo, report_and_exit};
use super::rootfs::{StepResult, os_text, step};
use super::spec::ProcessSpec;
use crate::sys;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Things read from the node before the process enters the container.
pub struct Ready {
    seccomp: Option<Vec<u8>>,
    caps: super::spec::CapSets,
}

/// Reads the seccomp program and sets what only a node's process can set: oom_score_adj.
pub fn prepare(p: &ProcessSpec) -> StepResult<Ready> {
    let seccomp = match &p.seccomp {
        Some(file) => Some(step(
            format_args!("read the seccomp program {}", file.display()),
            std::fs::read(file),
        )?),
        None => None,
    };
    if let Some(wish) = p.oom_score_adj {
        set_oom_score_adj(wish);
    }
    let permitted = step("read own capabilities", sys::cap_permitted())?;
    Ok(Ready {
        seccomp,
        caps: caps::limited(&p.caps, permitted),
    })
}

/// Sets oom_score_adj, or the nearest value that is allowed: lowering it needs CAP_SYS_RESOURCE. Returns what was set.
pub fn set_oom_score_adj(wish: i32) -> Option<i32> {
    let file = "/proc/self/oom_score_adj";
    if std::fs::write(file, wish.to_string()).is_ok() {
        return Some(wish);
    }
    // 0 resets what a shim or server passed on; if that is refused too, the inherited value stays.
    (wish < 0 && std::fs::write(file, "0").is_ok()).then_some(0)
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

/// HOME of a user by the container's /etc/passwd; "/" when it is not listed (runc's rule).
fn home_of(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && f[2].parse() == Ok(uid))
        .map(|f| f[5].to_string())
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| "/".into())
}

/// Becomes the process: everything after the mounts are in place. Returns only with an error.
pub fn become_process(p: &ProcessSpec, ready: Ready, io: &ChildIo) -> String {
    match finish(p, ready, io) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn finish(p: &ProcessSpec, ready: Ready, io: &ChildIo) -> StepResult<std::convert::Infallible> {
    let fd_of = |f: &Option<OwnedFd>, n: i32| -> StepResult<()> {
        match f {
            Some(fd) => step("set up stdio", sys::dup_onto(fd.as_fd(), n)),
            None => Ok(()),
        }
    };
    // The user must be able to open /dev/stdout again, so pipes change hands; terminals already have.
    if !p.tty && p.uid != 0 {
        for f in [&io.stdin, &io.stdout, &io.stderr].into_iter().flatten() {
            if rustix::fs::fstat(f).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFIFO) {
                let _ = rustix::fs::fchown(f, Some(rustix::fs::Uid::from_raw(p.uid)), None);
            }
        }
    }
    fd_of(&io.stdin, 0)?;
    fd_of(&io.stdout, 1)?;
    fd_of(&io.stderr, 2)?;

    sys::umask(0o022);
    let cwd = if p.cwd.is_empty() { "/" } else { &p.cwd };
    // A directory that only the user may enter is retried below, as the user.
    let entered = std::env::set_current_dir(cwd);

    step("drop capabilities", caps::apply_bounding(&ready.caps))?;
    if let (Some(program), false) = (&ready.seccomp, p.no_new_privs) {
        // Without no_new_privs the filter needs CAP_SYS_ADMIN, which is about to go.
        step("load the seccomp filter", sys::seccomp_load(program, 0))?;
    }
    step("keep capabilities", sys::prctl(libc::PR_SET_KEEPCAPS, 1))?;
    step(
        format_args!("become user {}:{}", p.uid, p.gid),
        sys::set_user(p.uid, p.gid, &p.groups),
    )?;
    step("keep capabilities", sys::prctl(libc::PR_SET_KEEPCAPS, 0))?;
    if entered.is_err() {
        step(
            format_args!("chdir to cwd ({cwd:?}) set in config.json failed"),
            std::env::set_current_dir(cwd),
        )?;
    }
    step("set capabilities", caps::apply(&ready.caps))?;

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
        env.push(format!("HOME={}", home_of(p.uid)));
    }
    let Some(name) = p.args.first() else {
        return Err("no command: set command or args, or use an image with an entrypoint".into());
    };
    let program = look_up(name, &get(&env, "PATH").unwrap_or_default())?;

    let c = |s: &str| CString::new(s).map_err(|_| format!("the argument {s:?} holds a NUL byte"));
    let path = c(&program.to_string_lossy())?;
    let args = p
        .args
        .iter()
        .map(|a| c(a))
        .collect::<StepResult<Vec<_>>>()?;
    let envs = env.iter().map(|e| c(e)).collect::<StepResult<Vec<_>>>()?;

    // The shim goes without huge pages, which is inherited; its containers must not.
    let _ = sys::prctl(libc::PR_SET_THP_DISABLE, 0);
    // The death of the shim ends its containers: nobody would read their output or reap them.
    step(
        "tie to the shim",
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64),
    )?;
    if p.no_new_privs {
        step("set no_new_privs", sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
        if let Some(program) = &ready.seccomp {
            step("load the seccomp filter", sys::seccomp_load(program, 0))?;
        }
    }
    let e = sys::execve(&path, &args, &envs);
    Err(format!("exec {}: {}", program.display(), os_text(&e)))
}

/// An exec'd process: joins the container's namespaces through `target` (a pidfd of its first process) and runs.
/// The shim has already chosen the pid namespace, so one fork is enough. `tty` is where the terminal's master goes.
pub fn run_exec(
    p: &ProcessSpec,
    cgroup_procs: &[PathBuf],
    target: BorrowedFd<'_>,
    mut io: ChildIo,
    tty: Option<OwnedFd>,
    error: OwnedFd,
) -> ! {
    let r = (|| -> StepResult<Ready> {
        // Processes of the container see this one in their /proc; its exe and descriptors are not theirs.
        step(
            "hide from the container",
            sys::prctl(libc::PR_SET_DUMPABLE, 0),
        )?;
        step("start a session", sys::setsid())?;
        sys::reset_signals();
        let ready = prepare(p)?;
        join_cgroups(cgroup_procs)?;
        step(
            "enter the container's namespaces",
            sys::setns(
                target,
                libc::CLONE_NEWNS
                    | libc::CLONE_NEWCGROUP
                    | libc::CLONE_NEWIPC
                    | libc::CLONE_NEWUTS
                    | libc::CLONE_NEWNET,
            ),
        )?;
        if let Some(channel) = tty {
            io.use_pty(p.uid, &channel, false)?;
        }
        Ok(ready)
    })();
    let message = match r {
        Ok(ready) => become_process(p, ready, &io),
        Err(e) => e,
    };
    report_and_exit(&error, &message)
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
}
