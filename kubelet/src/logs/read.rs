//! Reading a container's log for `kubectl logs`: tail, since, follow, timestamps, limit; across rotated files; woken
//! by inotify (upstream pkg/kubelet/kuberuntime/logs). Owns parsing and selection; who may read is the server's.

use super::rotate::rotated;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// What is asked for (v1.PodLogOptions).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on until the container ends.
    pub follow: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Only so many bytes.
    pub limit: Option<u64>,
    /// Only `stdout` or `stderr`.
    pub stream: Option<String>,
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339.
    pub time: &'a str,
    /// stdout or stderr
    pub stream: &'a str,
    /// More of the same line follows.
    pub partial: bool,
    /// Without the newline.
    pub text: &'a [u8],
}

/// Parses a line (without its newline); None when it is not in the CRI's format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = std::str::from_utf8(parts.next()?).ok()?;
    if !matches!(stream, "stdout" | "stderr") || time.len() < 20 {
        return None;
    }
    Some(Line {
        time,
        stream,
        partial: tags.split(':').next() == Some("P"),
        text: parts.next().unwrap_or_default(),
    })
}

/// Turns raw lines into what the user sees.
struct Renderer {
    options: Options,
    left: Option<u64>,
    begun: bool,
}

impl Renderer {
    fn new(options: &Options) -> Self {
        Self {
            left: options.limit,
            options: options.clone(),
            begun: true,
        }
    }

    /// Appends the line as it is to be shown; false when the limit is reached.
    fn render(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(line) = parse(raw) else { return true };
        if self
            .options
            .stream
            .as_deref()
            .is_some_and(|s| s != line.stream)
        {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return true;
        }
        let at = out.len();
        if self.options.timestamps && self.begun {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.begun = !line.partial;
        if let Some(left) = &mut self.left {
            let new = (out.len() - at) as u64;
            if new >= *left {
                out.truncate(at + *left as usize);
                *left = 0;
                return false;
            }
            *left -= new;
        }
        true
    }
}

/// Sends what is asked for. `running` says whether the container still runs, and `changes` wakes when that may have
/// changed.
pub async fn stream(
    path: PathBuf,
    options: Options,
    tx: mpsc::Sender<std::io::Result<Bytes>>,
    mut changes: Option<watch::Receiver<u64>>,
    running: impl Fn() -> bool,
) {
    if let Err(e) = follow(&path, &options, &tx, &mut changes, &running).await {
        let _ = tx.send(Err(e)).await;
    }
}

async fn follow(
    path: &Path,
    options: &Options,
    tx: &mpsc::Sender<std::io::Result<Bytes>>,
    changes: &mut Option<watch::Receiver<u64>>,
    running: &impl Fn() -> bool,
) -> std::io::Result<()> {
    let mut renderer = Renderer::new(options);
    // The watch begins before the first read, so that nothing is missed between them.
    let notify = if options.follow {
        Some(Watch::new(path)?)
    } else {
        None
    };
    let mut files = rotated(path);
    files.push(path.to_path_buf());
    let mut skip = match options.tail {
        Some(n) => start_of_tail(&files, n)?,
        None => (0, 0),
    };
    if options.tail == Some(0) && !options.follow {
        return Ok(());
    }
    let mut current: Option<BufReader<File>> = None;
    for (i, file) in files.iter().enumerate() {
        if i < skip.0 {
            continue;
        }
        let mut f = match File::open(file) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if i == skip.0 {
            f.seek(SeekFrom::Start(skip.1))?;
            skip = (skip.0, 0);
        }
        let mut reader = BufReader::with_capacity(32 << 10, f);
        if !drain(&mut reader, &mut Vec::new(), &mut renderer, tx).await? {
            return Ok(());
        }
        current = Some(reader);
    }
    let Some(notify) = notify else { return Ok(()) };
    let mut rest = Vec::new();
    loop {
        // First whether it runs, then the file: what it wrote last is not missed.
        let alive = running();
        if let Some(reader) = &mut current
            && !drain(reader, &mut rest, &mut renderer, tx).await?
        {
            return Ok(());
        }
        let replaced = match (&current, std::fs::metadata(path)) {
            (Some(reader), Ok(new)) => reader.get_ref().metadata()?.ino() != new.ino(),
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        };
        if replaced {
            current = Some(BufReader::new(File::open(path)?));
            rest.clear();
            continue;
        }
        if !alive {
            return Ok(());
        }
        tokio::select! {
            () = tx.closed() => return Ok(()),
            r = notify.wait() => r?,
            () = changed(changes) => {}
        }
    }
}

async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    match changes {
        // The worker is gone: the container has ended, the caller sees that next.
        Some(rx) => {
            if rx.changed().await.is_err() {
                *changes = None;
            }
        }
        None => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
    }
}

/// Sends every complete line there is; an incomplete one waits in `rest`. False when nobody wants more.
async fn drain(
    reader: &mut BufReader<File>,
    rest: &mut Vec<u8>,
    renderer: &mut Renderer,
    tx: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<bool> {
    const CHUNK: usize = 32 << 10;
    let mut out = Vec::new();
    loop {
        let n = reader.read_until(b'\n', rest)?;
        let complete = rest.last() == Some(&b'\n');
        let mut more = true;
        if complete {
            more = renderer.render(&rest[..rest.len() - 1], &mut out);
            rest.clear();
        }
        if (n == 0 || !more || out.len() >= CHUNK) && !out.is_empty() {
            let chunk = Bytes::from(std::mem::take(&mut out));
            if tx.send(Ok(chunk)).await.is_err() {
                return Ok(false);
            }
        }
        if !more {
            return Ok(false);
        }
        if n == 0 || !complete {
            if n != 0 {
                continue;
            }
            return Ok(true);
        }
    }
}

/// Index of the file and offset in it where the last `lines` lines begin.
fn start_of_tail(files: &[PathBuf], lines: u64) -> std::io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (i, file) in files.iter().enumerate().rev() {
        let mut f = match File::open(file) {
            Ok(f) => f,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let size = f.metadata()?.len();
        if wanted == 0 {
            return Ok((i, size));
        }
        const BLOCK: u64 = 8 << 10;
        let mut end = size;
        let mut block = vec![0u8; BLOCK as usize];
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            let n = (end - start) as usize;
            f.seek(SeekFrom::Start(start))?;
            f.read_exact(&mut block[..n])?;
            for at in (0..n).rev() {
                let position = start + at as u64;
                // The newline that ends the file begins no line.
                if block[at] == b'\n' && position + 1 < size {
                    wanted -= 1;
                    if wanted == 0 {
                        return Ok((i, position + 1));
                    }
                }
            }
            end = start;
        }
        if size > 0 {
            // Its first line counts too.
            wanted -= 1;
            if wanted == 0 {
                return Ok((i, 0));
            }
        }
    }
    Ok((0, 0))
}

/// Tells when the log or its directory changes.
struct Watch {
    fd: AsyncFd<std::os::fd::OwnedFd>,
}

impl Watch {
    fn new(path: &Path) -> std::io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(
            &fd,
            dir,
            inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::MOVED_FROM,
        )?;
        // The deprecation is about types whose descriptor may change; an OwnedFd's does not, and the other way is unsafe.
        #[allow(deprecated)]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd })
    }

    async fn wait(&self) -> std::io::Result<()> {
        let mut guard = self.fd.readable().await?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
        // Only that something happened matters.
        while reader.next().is_ok() {}
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n\
                       2026-01-01T00:00:01.1Z stderr F two\n\
                       2026-01-01T00:00:02.1Z stdout P thr\n\
                       2026-01-01T00:00:02.2Z stdout F ee\n";

    fn dir() -> PathBuf {
        let d = std::env::temp_dir().join(format!("skiff-log-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&d).unwrap();
        d
    }

    async fn run(path: &Path, options: Options) -> String {
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(stream(path.to_path_buf(), options, tx, None, || false));
        let mut out = Vec::new();
        while let Some(chunk) = rx.recv().await {
            out.extend(chunk.unwrap());
        }
        task.await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn lines_are_selected_as_asked() {
        let d = dir();
        let path = d.join("0.log");
        std::fs::write(&path, LOG).unwrap();
        std::fs::write(
            d.join("0.log.20260101-000000"),
            "2025-12-31T00:00:00.1Z stdout F zero\n",
        )
        .unwrap();
        let o = Options::default;
        for (options, want) in [
            (o(), "zero\none\ntwo\nthree\n"),
            (
                Options {
                    tail: Some(2),
                    ..o()
                },
                "three\n",
            ),
            (
                Options {
                    tail: Some(3),
                    ..o()
                },
                "two\nthree\n",
            ),
            (
                Options {
                    tail: Some(5),
                    ..o()
                },
                "zero\none\ntwo\nthree\n",
            ),
            (
                Options {
                    tail: Some(99),
                    ..o()
                },
                "zero\none\ntwo\nthree\n",
            ),
            (
                Options {
                    tail: Some(0),
                    ..o()
                },
                "",
            ),
            (
                Options {
                    since: Some("2026-01-01T00:00:01Z".parse().unwrap()),
                    ..o()
                },
                "two\nthree\n",
            ),
            (
                Options {
                    limit: Some(7),
                    ..o()
                },
                "zero\non",
            ),
            (
                Options {
                    stream: Some("stderr".into()),
                    ..o()
                },
                "two\n",
            ),
            (
                Options {
                    timestamps: true,
                    tail: Some(3),
                    ..o()
                },
                "2026-01-01T00:00:01.1Z two\n2026-01-01T00:00:02.1Z three\n",
            ),
        ] {
            assert_eq!(run(&path, options.clone()).await, want, "{options:?}");
        }
        std::fs::remove_dir_all(d).unwrap();
    }

    #[tokio::test]
    async fn following_sees_what_is_written_later_also_after_a_rotation() {
        let d = dir();
        let path = d.join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let (changed, changes) = watch::channel(0u64);
        let (tx, mut rx) = mpsc::channel(16);
        let options = Options {
            follow: true,
            tail: Some(0),
            ..Options::default()
        };
        let a = alive.clone();
        let task = tokio::spawn(stream(
            path.clone(),
            options,
            tx,
            Some(changes),
            move || a.load(Ordering::SeqCst),
        ));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let append = |text: &str| {
            let mut f = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap();
            f.write_all(text.as_bytes()).unwrap();
        };
        append("2026-01-01T00:00:03.1Z stdout F fo");
        append("ur\n");
        assert_eq!(rx.recv().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&path, d.join("0.log.20260101-000004")).unwrap();
        append("2026-01-01T00:00:04.1Z stdout F five\n");
        assert_eq!(rx.recv().await.unwrap().unwrap(), "five\n");
        alive.store(false, Ordering::SeqCst);
        changed.send(1).unwrap();
        assert!(rx.recv().await.is_none());
        task.await.unwrap();
        std::fs::remove_dir_all(d).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(raw in proptest::collection::vec(proptest::num::u8::ANY, 0..200), text in "[^\\n]{0,50}") {
            let _ = parse(&raw);
            let line = format!("2026-01-01T00:00:00.1Z stderr P {text}");
            let got = parse(line.as_bytes());
            proptest::prop_assert_eq!(got.map(|l| (l.partial, l.text.to_vec())), Some((true, text.into_bytes())));
        }
    }
}
