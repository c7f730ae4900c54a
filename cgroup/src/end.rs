//! Owns the end of a cgroup: killing what is in it and removing its directories. It must not decide which.

use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::path::{Path, PathBuf};

/// Kills all processes: with cgroup.kill where it exists, else by reading cgroup.procs again until nobody new appears,
/// with the v1 freezer holding a fork bomb still.
pub fn kill_all(kill_file: Option<&Path>, procs: &[PathBuf]) {
    if let Some(f) = kill_file
        && std::fs::write(f, "1").is_ok()
    {
        return;
    }
    let freezer = procs
        .iter()
        .filter_map(|p| p.parent())
        .map(|d| d.join("freezer.state"))
        .find(|f| f.exists());
    let Some(list) = freezer
        .as_ref()
        .and_then(|f| f.parent())
        .map(|d| d.join("cgroup.procs"))
        .or_else(|| procs.first().cloned())
    else {
        return;
    };
    let own = std::process::id() as i32;
    for _ in 0..64 {
        if let Some(f) = &freezer {
            let _ = std::fs::write(f, "FROZEN");
        }
        let pids: Vec<Pid> = std::fs::read_to_string(&list)
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
            .filter(|p| *p != own && *p > 0)
            .filter_map(Pid::from_raw)
            .collect();
        let hit = pids
            .iter()
            .filter(|p| kill_process(**p, Signal::KILL).is_ok())
            .count();
        if let Some(f) = &freezer {
            // Frozen tasks die only after the thaw.
            let _ = std::fs::write(f, "THAWED");
        }
        if hit == 0 || freezer.is_some() {
            return;
        }
    }
}

/// Removes a cgroup directory and its children, deepest first. Not there is fine.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for e in entries.flatten() {
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&e.path())?;
        }
    }
    // v1 has no event for "empty"; a killed process leaves its cgroup within a scheduling round or two.
    let mut pause = std::time::Duration::from_micros(200);
    for _ in 0..14 {
        match std::fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(std::time::Duration::from_millis(250));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            r => return r,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("{} still holds processes", dir.display()),
    ))
}
