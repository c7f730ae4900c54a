//! Reading a container's log for `kubectl logs`: tail, since, follow, timestamps, limit; across rotated files; woken
//! by inotify (upstream pkg/kubelet/kuberuntime/logs). Owns parsing and selection; who may read is the server's.
//!
//! Memory is bounded whatever the file holds: lines longer than [`LONGEST`] pass in pieces.

use super::Log;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
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

/// A longer line is handed on in pieces. Runtimes cut at 16 KiB.
const LONGEST: usize = 64 << 10;
/// What is sent at once, about.
const CHUNK: usize = 32 << 10;

/// Turns raw lines into what the user sees.
struct Renderer {
    options: Options,
    left: Option<u64>,
    begun: bool,
    /// Of the line whose first piece was rendered: is it shown, and is it partial?
    piece: (bool, bool),
}

impl Renderer {
    fn new(options: &Options) -> Self {
        Self {
            left: options.limit,
            options: options.clone(),
            begun: true,
            piece: (false, false),
        }
    }

    fn shown(&self, line: &Line<'_>) -> bool {
        let other = self.options.stream.as_deref();
        let early = self
            .options
            .since
            .is_some_and(|since| line.time.parse::<Timestamp>().is_ok_and(|t| t < since));
        !early && other.is_none_or(|s| s == line.stream)
    }

    /// Appends a line, or a piece of one, as it is to be shown; false when the limit is reached. `first`: it begins the
    /// line; `last`: it ends it.
    fn render(&mut self, raw: &[u8], first: bool, last: bool, out: &mut Vec<u8>) -> bool {
        let at = out.len();
        let mut text = raw;
        if first {
            let line = parse(raw);
            let shown = line.as_ref().is_some_and(|l| self.shown(l));
            let partial = line.as_ref().is_some_and(|l| l.partial);
            self.piece = (shown, partial);
            if let Some(line) = line.filter(|_| shown) {
                if self.options.timestamps && self.begun {
                    out.extend_from_slice(line.time.as_bytes());
                    out.push(b' ');
                }
                text = line.text;
            }
        }
        let (shown, partial) = self.piece;
        if !shown {
            return true;
        }
        out.extend_from_slice(text);
        if last && !partial {
            out.push(b'\n');
        }
        self.begun = last && !partial;
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

/// Sends what is asked for. `base` is the directory of all logs; `running` says whether the container still runs, and
/// `changes` wakes when that may have changed.
pub async fn stream(
    base: PathBuf,
    path: PathBuf,
    options: Options,
    tx: mpsc::Sender<std::io::Result<Bytes>>,
    mut changes: Option<watch::Receiver<u64>>,
    running: impl Fn() -> bool,
) {
    if let Err(e) = follow(base, path, &options, &tx, &mut changes, &running).await {
        let _ = tx.send(Err(e)).await;
    }
}

/// Files are read off the threads that carry everybody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?
}

async fn follow(
    base: PathBuf,
    path: PathBuf,
    options: &Options,
    tx: &mpsc::Sender<std::io::Result<Bytes>>,
    changes: &mut Option<watch::Receiver<u64>>,
    running: &impl Fn() -> bool,
) -> std::io::Result<()> {
    let log = Arc::new(blocking(move || Log::find(&base, &path)).await?);
    // The watch begins before the first read, so that nothing is missed between them.
    let notify = if options.follow {
        Some(Watch::new(&log)?)
    } else {
        None
    };
    let (held, tail) = (log.clone(), options.tail);
    let (files, mut skip) = blocking(move || {
        let mut files = held.rotated();
        files.push(held.name.clone());
        let skip = match tail {
            Some(n) => start_of_tail(&held, &files, n)?,
            None => (0, 0),
        };
        Ok((files, skip))
    })
    .await?;
    if options.tail == Some(0) && !options.follow {
        return Ok(());
    }
    let renderer = Renderer::new(options);
    let mut source = Source {
        reader: None,
        rest: Vec::new(),
        first: true,
        renderer,
    };
    for (i, file) in files.iter().enumerate() {
        if i < skip.0 {
            continue;
        }
        let from = if i == skip.0 { skip.1 } else { 0 };
        skip = (skip.0, 0);
        if source.open(&log, file, from).await? {
            match drain(source, tx).await? {
                Some(back) => source = back,
                None => return Ok(()),
            }
        }
    }
    let Some(notify) = notify else { return Ok(()) };
    loop {
        // First whether it runs, then the file: what it wrote last is not missed.
        let alive = running();
        match drain(source, tx).await? {
            Some(back) => source = back,
            None => return Ok(()),
        }
        let replaced = match (&source.reader, log.dir.stat_at(&log.name)) {
            (Some(reader), Ok(new)) => reader.get_ref().metadata()?.ino() != new.st_ino,
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        };
        if replaced {
            source.open(&log, &log.name, 0).await?;
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

/// The file that is read now, and what of it waits for its end.
struct Source {
    reader: Option<BufReader<File>>,
    /// A line, or the piece of one, that has not ended yet.
    rest: Vec<u8>,
    /// Does `rest` begin its line?
    first: bool,
    renderer: Renderer,
}

impl Source {
    /// Goes on with another file; false when it is gone already.
    async fn open(&mut self, log: &Arc<Log>, name: &OsStr, from: u64) -> std::io::Result<bool> {
        self.rest.clear();
        self.first = true;
        let (log, name) = (log.clone(), name.to_owned());
        let opened = blocking(move || {
            let mut file = log.dir.open_file(name)?;
            file.seek(SeekFrom::Start(from))?;
            Ok(file)
        });
        match opened.await {
            Ok(file) => self.reader = Some(BufReader::with_capacity(CHUNK, file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// The next chunk to be sent, and whether there may be more to read. An incomplete line waits in `rest`.
    fn read(&mut self, out: &mut Vec<u8>) -> std::io::Result<Next> {
        let Some(reader) = &mut self.reader else {
            return Ok(Next::End);
        };
        while out.len() < CHUNK {
            let have = reader.fill_buf()?;
            if have.is_empty() {
                return Ok(Next::End);
            }
            let room = LONGEST - self.rest.len();
            let have = &have[..have.len().min(room)];
            let newline = have.iter().position(|b| *b == b'\n');
            let taken = newline.map_or(have.len(), |at| at + 1);
            self.rest.extend_from_slice(&have[..taken]);
            reader.consume(taken);
            if newline.is_none() && self.rest.len() < LONGEST {
                continue;
            }
            let last = newline.is_some();
            let text = &self.rest[..self.rest.len() - usize::from(last)];
            let more = self.renderer.render(text, self.first, last, out);
            self.rest.clear();
            self.first = last;
            if !more {
                return Ok(Next::Enough);
            }
        }
        Ok(Next::More)
    }
}

enum Next {
    More,
    End,
    Enough,
}

/// Sends everything there is. None when nobody wants more.
async fn drain(
    mut source: Source,
    tx: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<Option<Source>> {
    loop {
        let (next, out);
        (source, next, out) = blocking(move || {
            let mut out = Vec::new();
            let next = source.read(&mut out)?;
            Ok((source, next, out))
        })
        .await?;
        if !out.is_empty() && tx.send(Ok(Bytes::from(out))).await.is_err() {
            return Ok(None);
        }
        match next {
            Next::More => {}
            Next::End => return Ok(Some(source)),
            Next::Enough => return Ok(None),
        }
    }
}

/// Index of the file and offset in it where the last `lines` lines begin.
fn start_of_tail(log: &Log, files: &[OsString], lines: u64) -> std::io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (i, file) in files.iter().enumerate().rev() {
        let mut f = match log.dir.open_file(file) {
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
    fn new(log: &Log) -> std::io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &fd,
            log.dir.proc_path(),
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
    use std::path::Path;
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

    fn base(path: &Path) -> PathBuf {
        path.parent().unwrap().to_path_buf()
    }

    async fn run(path: &Path, options: Options) -> String {
        let (tx, mut rx) = mpsc::channel(16);
        let (base, path) = (base(path), path.to_path_buf());
        let task = tokio::spawn(stream(base, path, options, tx, None, || false));
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
            base(&path),
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

    #[tokio::test]
    async fn a_line_that_never_ends_passes_in_pieces_and_is_selected_as_one() {
        let d = dir();
        let path = d.join("0.log");
        let mut f = std::fs::File::create(&path).unwrap();
        let long = "x".repeat(3 << 20);
        writeln!(f, "2026-01-01T00:00:00.1Z stdout F {long}").unwrap();
        writeln!(f, "2026-01-01T00:00:00.1Z stderr F {long}").unwrap();
        writeln!(f, "2026-01-01T00:00:00.1Z stdout P end").unwrap();
        let options = Options {
            timestamps: true,
            stream: Some("stdout".into()),
            ..Options::default()
        };
        let (tx, mut rx) = mpsc::channel(1);
        tokio::spawn(stream(d.clone(), path, options, tx, None, || false));
        let mut out = Vec::new();
        while let Some(chunk) = rx.recv().await {
            let chunk = chunk.unwrap();
            assert!(chunk.len() <= CHUNK + LONGEST + 100, "{}", chunk.len());
            out.extend(chunk);
        }
        let time = "2026-01-01T00:00:00.1Z";
        // The last line of a container that wrote no newline has none.
        let want = format!("{time} {long}\n{time} end");
        assert!(String::from_utf8(out).unwrap() == want);
        std::fs::remove_dir_all(d).unwrap();
    }

    #[tokio::test]
    async fn a_log_that_is_no_regular_file_is_not_opened() {
        let d = dir();
        let fifo = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(rustix::fs::CWD, d.join("0.log"), fifo).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", d.join("1.log")).unwrap();
        std::os::unix::fs::symlink("/etc", d.join("etc")).unwrap();
        for bad in ["0.log", "1.log", "etc/passwd"] {
            let (tx, mut rx) = mpsc::channel(1);
            let options = Options::default();
            tokio::spawn(stream(d.clone(), d.join(bad), options, tx, None, || false));
            assert!(rx.recv().await.unwrap().is_err(), "{bad}");
            assert!(rx.recv().await.is_none());
        }
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
