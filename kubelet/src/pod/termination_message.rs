//! What a container left as its last words (upstream kuberuntime getTerminationMessage). Owns reading them; at most
//! 4 KiB from the file, 2 KiB or 80 lines from the log. Both are a container's to make: nothing is read that is not a
//! regular file below the pod's own directory, and nothing is waited for.

use super::view::{ContainerView, RunState};
use crate::kubelet::Kubelet;
use crate::kuberuntime::container::MAX_TERMINATION_MESSAGE;
use crate::logs::Log;
use crate::volumes::place::Place;
use crate::volumes::work::{Lane, READ};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Puts the message into the view of a container that has ended.
pub async fn fill(run: &mut ContainerView, uid: &str, k: &Kubelet) {
    let Some((path, policy)) = run
        .termination
        .clone()
        .filter(|_| run.state == RunState::Exited)
    else {
        return;
    };
    let place = Place::new(&k.config, uid);
    let from_log = policy == "FallbackToLogsOnError" && run.exit_code != 0;
    let log = from_log.then(|| PathBuf::from(&run.log_path));
    let logs = k.config.pod_logs_dir.clone();
    let shown = path.clone();
    let job = move |_: &_| message(&place, Path::new(&path), &logs, log.as_deref());
    let read = k.volumes.work.run(uid, Lane::Read, READ, job).await;
    let message = match read {
        Ok(Ok(message)) => message,
        Ok(Err(e)) => format!("Error on reading termination log {shown}: {e}"),
        Err(e) => format!("Error on reading termination log {shown}: {e}"),
    };
    if !message.is_empty() {
        run.message = message;
    }
}

/// The file's message, or else the log's.
fn message(place: &Place, path: &Path, logs: &Path, log: Option<&Path>) -> io::Result<String> {
    let message = match read_start(place, path, MAX_TERMINATION_MESSAGE) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        r => r?,
    };
    match log {
        Some(log) if message.is_empty() => Ok(Log::find(logs, log)
            .and_then(|l| log_tail(&l))
            .unwrap_or_default()),
        _ => Ok(message),
    }
}

/// A file of the node that a container has at the place of the message (by hostPath, say) is nobody's message.
fn read_start(place: &Place, path: &Path, max: usize) -> io::Result<String> {
    let below = path
        .strip_prefix(place.path())
        .map_err(|_| io::Error::other("it is no file of the pod"))?;
    let pod = place.kubelet()?.dir(place.relative())?;
    let file = pod.open_file_across(below)?;
    let mut data = Vec::new();
    file.take(max as u64).read_to_end(&mut data)?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}

fn log_tail(log: &Log) -> io::Result<String> {
    const MAX_BYTES: usize = 2048;
    const MAX_LINES: usize = 80;
    // Each line carries some 50 bytes of time and stream.
    const READ: u64 = 64 << 10;
    let mut f = log.open()?;
    let from = f.metadata()?.len().saturating_sub(READ);
    let mut raw = Vec::new();
    f.seek(SeekFrom::Start(from))?;
    f.take(READ).read_to_end(&mut raw)?;
    let text = String::from_utf8_lossy(&raw);
    let mut lines: Vec<&str> = text.lines().collect();
    if from > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let keep = lines.len().saturating_sub(MAX_LINES);
    let mut out = String::new();
    for line in &lines[keep..] {
        // time stream tag text
        let mut parts = line.splitn(4, ' ');
        let tag = parts.nth(2).unwrap_or("F");
        out.push_str(parts.next().unwrap_or_default());
        if !tag.starts_with('P') {
            out.push('\n');
        }
    }
    let mut cut = out.len().saturating_sub(MAX_BYTES);
    while !out.is_char_boundary(cut) {
        cut += 1;
    }
    Ok(out.split_off(cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Setting {
        tmp: tempfile::TempDir,
        place: Place,
    }

    impl Setting {
        fn new() -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let mut config = Config::new("n", tmp.path());
            config.root_dir = tmp.path().join("kubelet");
            fs::create_dir_all(config.root_dir.join("pods/u/c")).unwrap();
            fs::create_dir_all(tmp.path().join("logs")).unwrap();
            Self {
                place: Place::new(&config, "u"),
                tmp,
            }
        }

        fn read(&self, path: &Path, log: bool) -> io::Result<String> {
            let logs = self.tmp.path().join("logs");
            let file = logs.join("0.log");
            message(&self.place, path, &logs, log.then_some(file.as_path()))
        }
    }

    #[test]
    fn the_log_speaks_for_a_container_that_failed_silently() {
        let s = Setting::new();
        let words = s.place.path().join("c/0");
        fs::write(&words, "").unwrap();
        let log = s.tmp.path().join("logs/0.log");
        fs::write(&log, "2026-01-01T00:00:00Z stdout F hello\n2026-01-01T00:00:01Z stderr P bad \n2026-01-01T00:00:01Z stderr F end\n").unwrap();
        assert_eq!(s.read(&words, true).unwrap(), "hello\nbad end\n");
        assert_eq!(s.read(&words, false).unwrap(), "");
        fs::write(&log, "2026-01-01T00:00:00Z stdout P DONE\n").unwrap();
        assert_eq!(
            s.read(&words, true).unwrap(),
            "DONE",
            "no newline was written"
        );
        fs::write(&words, "done").unwrap();
        assert_eq!(s.read(&words, true).unwrap(), "done");
    }

    #[test]
    fn only_a_regular_file_of_the_pod_is_a_message_and_nothing_is_waited_for() {
        let s = Setting::new();
        let c = s.place.path().join("c");
        let fifo = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(rustix::fs::CWD, c.join("fifo"), fifo).unwrap();
        fs::write(s.tmp.path().join("host"), "of the node").unwrap();
        symlink(s.tmp.path().join("host"), c.join("link")).unwrap();
        symlink(s.tmp.path(), c.join("up")).unwrap();
        let device = rustix::fs::makedev(1, 5);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, c.join("zero"), kind, fifo, device).unwrap();
        for bad in ["fifo", "link", "up/host", "zero", "", "../../../../host"] {
            assert!(s.read(&c.join(bad), true).is_err(), "{bad}");
        }
        assert!(s.read(&s.tmp.path().join("host"), false).is_err());
        assert_eq!(s.read(&c.join("none"), false).unwrap(), "");
        let big = fs::File::create(c.join("big")).unwrap();
        big.set_len(1 << 40).unwrap();
        let max = MAX_TERMINATION_MESSAGE;
        assert_eq!(s.read(&c.join("big"), false).unwrap().len(), max);
        // The log, too, may be anything where a pod may write in the logs' directory.
        let log = s.tmp.path().join("logs/0.log");
        symlink(s.tmp.path().join("host"), &log).unwrap();
        assert_eq!(s.read(&c.join("none"), true).unwrap(), "");
        fs::remove_file(&log).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &log, fifo).unwrap();
        assert_eq!(s.read(&c.join("none"), true).unwrap(), "");
        fs::remove_file(&log).unwrap();
        fs::File::create(&log).unwrap().set_len(1 << 40).unwrap();
        assert!(s.read(&c.join("none"), true).unwrap().len() <= 2048);
    }
}
