//! Owns the CRI log format: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`. The splitter is pure; `LogFile` is the file.

use skiff_beneath::Root;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Longer lines are cut into pieces with tag P (upstream's default of 16 KiB).
pub const MAX_LINE: usize = 16 * 1024;

/// Writes `2026-01-02T03:04:05.000000006Z` for nanoseconds since the epoch.
pub fn format_time(ns: i64, out: &mut Vec<u8>) {
    let (secs, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Civil date from days, with eras of 400 years and years that begin in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z"
    );
}

/// The unfinished line of one stream.
pub struct LineSplitter {
    stream: &'static str,
    partial: Vec<u8>,
}

impl LineSplitter {
    pub fn new(stream: &'static str) -> Self {
        Self {
            stream,
            partial: Vec::new(),
        }
    }

    fn emit(&self, now: i64, tag: u8, head: &[u8], tail: &[u8], out: &mut Vec<u8>) {
        format_time(now, out);
        out.push(b' ');
        out.extend_from_slice(self.stream.as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        out.push(b'\n');
    }

    /// Adds output; finished lines go to `out`.
    pub fn push(&mut self, mut data: &[u8], now: i64, out: &mut Vec<u8>) {
        while !data.is_empty() {
            let room = MAX_LINE - self.partial.len();
            match memchr_newline(&data[..data.len().min(room + 1)]) {
                Some(i) => {
                    self.emit(now, b'F', &self.partial, &data[..i], out);
                    self.partial = Vec::new();
                    data = &data[i + 1..];
                }
                None if data.len() > room => {
                    self.emit(now, b'P', &self.partial, &data[..room], out);
                    self.partial = Vec::new();
                    data = &data[room..];
                }
                None => {
                    self.partial.extend_from_slice(data);
                    data = &[];
                }
            }
        }
    }

    /// The stream ended: a last line without a newline is partial (as containerd writes it), so that readers add none.
    pub fn finish(&mut self, now: i64, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(now, b'P', &self.partial, &[], out);
            self.partial = Vec::new();
        }
    }
}

fn memchr_newline(data: &[u8]) -> Option<usize> {
    data.iter().position(|b| *b == b'\n')
}

/// The log file of a container. Write errors (a full disk) lose lines but never stop the container.
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens the file, and makes what is missing: `<logs>/<pod>/<container>/<n>.log`. Below the directory of all logs no
    /// link is followed, and only a regular file is opened: a pod that may write there (a log collector) must not choose
    /// what root writes to.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let base = path.ancestors().skip(1).take(3).last().unwrap_or(parent);
        let below = parent.strip_prefix(base).unwrap_or(Path::new(""));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(base)?;
        let file = Root::open(base)?
            .make_dirs(below, 0o700)?
            .append(name, 0o640)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// After a rotation: the same path again, made anew if it was moved away.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path)?;
        Ok(())
    }

    pub fn write(&mut self, lines: &[u8]) {
        let _ = self.file.write_all(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(ns: i64) -> String {
        let mut out = Vec::new();
        format_time(ns, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            time(951_827_696_000_000_007),
            "2000-02-29T12:34:56.000000007Z"
        );
        assert_eq!(
            time(1_798_761_599_999_999_999),
            "2026-12-31T23:59:59.999999999Z"
        );
    }

    #[test]
    fn lines_come_out_whole_and_long_ones_in_parts() {
        let mut s = LineSplitter::new("stdout");
        let mut out = Vec::new();
        s.push(b"one\ntw", 0, &mut out);
        s.push(b"o\n\n", 0, &mut out);
        s.push(&[b'x'; MAX_LINE + 1], 0, &mut out);
        s.finish(0, &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(|l| l.split_once("Z stdout ").unwrap().1)
            .collect();
        assert_eq!(lines[..3], ["F one", "F two", "F "]);
        assert_eq!(lines[3], format!("P {}", "x".repeat(MAX_LINE)));
        assert_eq!(lines[4], "P x");
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_full_line() {
        let mut s = LineSplitter::new("stderr");
        let mut out = Vec::new();
        let mut data = vec![b'y'; MAX_LINE];
        data.push(b'\n');
        s.push(&data, 0, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("stderr F yyy"));
        assert!(s.partial.is_empty());
    }

    #[test]
    fn a_log_is_written_to_a_regular_file_only() {
        let d = std::env::temp_dir().join(format!("skiff-shimlog-{}", std::process::id()));
        std::fs::create_dir_all(&d).unwrap();
        std::fs::write(d.join("host"), "").unwrap();
        std::os::unix::fs::symlink(d.join("host"), d.join("link")).unwrap();
        let fifo = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, d.join("fifo"), fifo).unwrap();
        std::os::unix::fs::symlink(&d, d.join("dir")).unwrap();
        for bad in ["link", "fifo", "dir/new.log", "dir/c/0.log"] {
            assert!(LogFile::open(&d.join(bad)).is_err(), "{bad}");
        }
        assert!(!d.join("new.log").exists() && !d.join("c").exists());
        LogFile::open(&d.join("new/0.log")).unwrap().write(b"x\n");
        assert_eq!(std::fs::read(d.join("new/0.log")).unwrap(), b"x\n");
        std::fs::remove_dir_all(d).unwrap();
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
        #[test]
        fn any_output_in_any_pieces_can_be_put_together_again(pieces in proptest::collection::vec("[a-z\n]{0,40}", 0..30)) {
            let mut s = LineSplitter::new("stdout");
            let mut out = Vec::new();
            for p in &pieces {
                // A short limit would be another code path; long lines come from repeating the piece.
                s.push(p.repeat(500).as_bytes(), 0, &mut out);
            }
            s.finish(0, &mut out);
            let mut text = String::new();
            for l in String::from_utf8(out).unwrap().lines() {
                let rest = l.split_once("Z stdout ").unwrap().1;
                proptest::prop_assert!(rest.len() <= MAX_LINE + 2);
                text.push_str(&rest[2..]);
                if rest.starts_with('F') {
                    text.push('\n');
                }
            }
            let want: String = pieces.iter().map(|p| p.repeat(500)).collect();
            proptest::prop_assert_eq!(text, want);
        }
    }
}
