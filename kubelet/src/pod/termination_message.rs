//! What a container left as its last words (upstream kuberuntime getTerminationMessage). Owns reading them; at most
//! 4 KiB from the file, 2 KiB or 80 lines from the log.

use super::view::{ContainerView, RunState};
use crate::kuberuntime::container::MAX_TERMINATION_MESSAGE;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Puts the message into the view of a container that has ended.
pub fn fill(run: &mut ContainerView) {
    let Some((path, policy)) = run
        .termination
        .clone()
        .filter(|_| run.state == RunState::Exited)
    else {
        return;
    };
    let mut message = read_start(Path::new(&path), MAX_TERMINATION_MESSAGE);
    if message.is_empty() && policy == "FallbackToLogsOnError" && run.exit_code != 0 {
        message = log_tail(Path::new(&run.log_path));
    }
    if !message.is_empty() {
        run.message = message;
    }
}

fn read_start(path: &Path, max: usize) -> String {
    let mut data = Vec::new();
    if let Ok(f) = File::open(path) {
        let _ = f.take(max as u64).read_to_end(&mut data);
    }
    String::from_utf8_lossy(&data).into_owned()
}

fn log_tail(path: &Path) -> String {
    const MAX_BYTES: usize = 2048;
    const MAX_LINES: usize = 80;
    let Ok(mut f) = File::open(path) else {
        return String::new();
    };
    let size = f.metadata().map_or(0, |m| m.len());
    // Each line carries some 50 bytes of time and stream.
    let from = size.saturating_sub(64 << 10);
    let mut raw = Vec::new();
    if f.seek(SeekFrom::Start(from)).is_err() || f.read_to_end(&mut raw).is_err() {
        return String::new();
    }
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
    out.split_off(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_speaks_for_a_container_that_failed_silently() {
        let tmp = std::env::temp_dir().join(format!("skiff-tm-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&tmp).unwrap();
        let log = tmp.join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F hello\n2026-01-01T00:00:01Z stderr P bad \n2026-01-01T00:00:01Z stderr F end\n").unwrap();
        let words = tmp.join("msg");
        std::fs::write(&words, "").unwrap();
        let mut run = ContainerView {
            state: RunState::Exited,
            exit_code: 1,
            log_path: log.to_string_lossy().into_owned(),
            termination: Some((
                words.to_string_lossy().into_owned(),
                "FallbackToLogsOnError".into(),
            )),
            ..ContainerView::default()
        };
        fill(&mut run);
        assert_eq!(run.message, "hello\nbad end\n");
        std::fs::write(&words, "done").unwrap();
        fill(&mut run);
        assert_eq!(run.message, "done");
        std::fs::remove_dir_all(tmp).unwrap();
    }
}
