//! Owns building an image from a Dockerfile: stages, variables, one layer for each COPY, ADD, RUN and new WORKDIR.
//! Must not parse (see [`super::dockerfile`]) nor run anything itself (see [`super::runstep`]).
//!
//! The same inputs give the same image id as far as RUN's commands allow: times in the config are SOURCE_DATE_EPOCH or
//! 1970, directories made on the way have the time 0, copied files keep their own.

use super::config::{ExecConfig, History, ImageConfig, RootFs, this_architecture};
use super::copy::{Copier, Source};
use super::diff::{DiffOptions, write_layer};
use super::digest::{Digest, HashingWriter};
use super::dockerfile::{Command, Dockerfile, Flags, Instruction, Line, expand};
use super::dockerignore::Ignore;
use super::error::IoContext;
use super::ingest::{Ingest, NewImage, StagedLayer};
use super::lower::Lower;
use super::rootfs::{OverlayOptions, lookup_user_at, overlay_fd, parse_signal};
use super::runstep::{self, RunStep};
use super::store::{ImageRecord, ImageStore};
use super::tree::{Meta, TreeWriter};
use super::{ImageError, Reference, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, Timespec};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Directory whose files COPY and ADD take.
    pub context: PathBuf,
    /// `Dockerfile` in the context if none is given.
    pub dockerfile: Option<PathBuf>,
    /// Names of the result.
    pub tags: Vec<String>,
    pub build_args: BTreeMap<String, String>,
    /// Stop at this stage.
    pub target: Option<String>,
    /// SOURCE_DATE_EPOCH: the image's time, and the latest time of files in its layers.
    pub epoch: Option<i64>,
}

/// What a build asks of its surroundings.
pub struct BuildContext<'a> {
    /// Told each line of progress.
    pub progress: &'a dyn Fn(&str),
    /// Get an image of a FROM that is not in the store.
    pub fetch: &'a dyn Fn(&str) -> Result<Arc<ImageRecord>>,
}

/// Build and store; the image is pinned (never collected).
pub fn build(
    store: &ImageStore,
    options: &BuildOptions,
    around: &BuildContext<'_>,
) -> Result<Arc<ImageRecord>> {
    let mut names = NewImage {
        pinned: true,
        ..Default::default()
    };
    for t in &options.tags {
        let r = Reference::parse(t)?;
        if r.digest.is_some() {
            return Err(ImageError::Invalid(format!(
                "{t:?} cannot be a name for a build: it has a digest"
            )));
        }
        names.repo_tags.push(r.to_string());
    }
    let path = options
        .dockerfile
        .clone()
        .unwrap_or_else(|| options.context.join("Dockerfile"));
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(&path).what(|| format!("read {shown}"))?;
    let file = Dockerfile::parse(&text, &shown)?;
    let context = rustix::fs::open(
        &options.context,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .what(|| format!("open the build context {}", options.context.display()))?;
    let ignore = read_ignore(&path, &options.context)?;
    let mut b = Builder {
        store,
        options,
        around,
        file: &file,
        ingest: store.ingest()?,
        context: Source {
            root: Some(context),
            what: format!("the build context {}", options.context.display()),
            ignore,
            keep_owner: false,
        },
        global_args: platform_args(),
        stages: Vec::new(),
    };
    let total = file.lines.len();
    for (i, line) in file.lines.iter().enumerate() {
        if b.target_reached(line) {
            break;
        }
        (around.progress)(&format!("[{}/{total}] {}", i + 1, line.text));
        b.step(line).map_err(|e| match e {
            e @ ImageError::Dockerfile { .. } => e,
            e => file.error(line.number, e.to_string()),
        })?;
    }
    b.finish(names)
}

fn read_ignore(dockerfile: &Path, context: &Path) -> Result<Ignore> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for p in [PathBuf::from(own), context.join(".dockerignore")] {
        match std::fs::read_to_string(&p) {
            Ok(t) => return Ok(Ignore::parse(&t)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io(format!("read {}", p.display()), e)),
        }
    }
    Ok(Ignore::default())
}

/// BuildKit's automatic arguments.
fn platform_args() -> BTreeMap<String, Option<String>> {
    let arch = this_architecture();
    ["TARGET", "BUILD"]
        .iter()
        .flat_map(|p| {
            [
                ("PLATFORM", format!("linux/{arch}")),
                ("OS", "linux".into()),
                ("ARCH", arch.into()),
                ("VARIANT", String::new()),
            ]
            .map(|(k, v)| (format!("{p}{k}"), Some(v)))
        })
        .collect()
}

struct Stage {
    name: Option<String>,
    chain: Vec<Digest>,
    config: ImageConfig,
    /// Declared arguments with a value.
    args: BTreeMap<String, String>,
    cmd_set: bool,
}

struct Builder<'a> {
    store: &'a ImageStore,
    options: &'a BuildOptions,
    around: &'a BuildContext<'a>,
    file: &'a Dockerfile,
    ingest: Ingest,
    context: Source,
    /// ARGs before the first FROM and the automatic ones.
    global_args: BTreeMap<String, Option<String>>,
    stages: Vec<Stage>,
}

impl Builder<'_> {
    fn target_reached(&self, line: &Line) -> bool {
        let from = matches!(line.instruction, Instruction::From { .. });
        match (&self.options.target, self.stages.last()) {
            (Some(t), Some(s)) if from => {
                s.name.as_deref() == Some(t) || (self.stages.len() - 1).to_string() == *t
            }
            _ => false,
        }
    }

    fn stage(&mut self) -> Result<&mut Stage> {
        self.stages
            .last_mut()
            .ok_or_else(|| ImageError::Invalid("no FROM yet".into()))
    }

    /// Expand variables of a word with what is known at this place.
    fn expand(&self, word: &str) -> Result<String> {
        let lookup = |name: &str| -> Option<String> {
            match self.stages.last() {
                Some(s) => env_of(&s.config.config, name).or_else(|| s.args.get(name).cloned()),
                None => self.global(name),
            }
        };
        expand(word, self.file.escape, &lookup).map_err(ImageError::Invalid)
    }

    fn global(&self, name: &str) -> Option<String> {
        let default = self.global_args.get(name)?;
        self.options
            .build_args
            .get(name)
            .cloned()
            .or_else(|| default.clone())
    }

    fn step(&mut self, line: &Line) -> Result<()> {
        let mut empty = true;
        match &line.instruction {
            Instruction::From { image, name } => return self.from(image, name.clone()),
            Instruction::Arg(list) => self.arg(list)?,
            Instruction::Ignored(warning) => {
                (self.around.progress)(&format!(
                    "warning: {}:{}: {warning}",
                    self.file.file, line.number
                ));
            }
            Instruction::Maintainer(who) => self.stage()?.config.author = Some(who.clone()),
            Instruction::Env(list) => {
                for (k, v) in list {
                    let (k, v) = (self.expand(k)?, self.expand(v)?);
                    set_env(&mut self.stage()?.config.config, &k, &v);
                }
            }
            Instruction::Label(list) => {
                for (k, v) in list {
                    let (k, v) = (self.expand(k)?, self.expand(v)?);
                    self.stage()?.config.config.labels.insert(k, v);
                }
            }
            Instruction::User(u) => {
                let u = self.expand(u)?;
                self.stage()?.config.config.user = u;
            }
            Instruction::Expose(list) => {
                for p in list {
                    for port in ports(&self.expand(p)?)? {
                        self.stage()?
                            .config
                            .config
                            .exposed_ports
                            .insert(port, serde_json::json!({}));
                    }
                }
            }
            Instruction::Volume(list) => {
                for v in list {
                    let v = self.expand(v)?;
                    if v.is_empty() {
                        return Err(ImageError::Invalid("VOLUME with an empty path".into()));
                    }
                    self.stage()?
                        .config
                        .config
                        .volumes
                        .insert(v, serde_json::json!({}));
                }
            }
            Instruction::StopSignal(s) => {
                let s = self.expand(s)?;
                if parse_signal(&s).is_none() {
                    return Err(ImageError::Invalid(format!(
                        "STOPSIGNAL: {s:?} is not a signal"
                    )));
                }
                self.stage()?.config.config.stop_signal = s;
            }
            Instruction::Shell(list) => self.stage()?.config.config.shell = list.clone(),
            Instruction::Cmd(c) => {
                let argv = self.argv(c)?;
                let s = self.stage()?;
                (s.config.config.cmd, s.cmd_set) = (argv, true);
            }
            Instruction::Entrypoint(c) => {
                let argv = self.argv(c)?;
                let s = self.stage()?;
                s.config.config.entrypoint = argv;
                // The base's arguments were for the base's entry point.
                if !s.cmd_set {
                    s.config.config.cmd.clear();
                }
            }
            Instruction::Workdir(d) => empty = !self.workdir(d)?,
            Instruction::Copy { add, flags, paths } => empty = !self.copy(*add, flags, paths)?,
            Instruction::Run { flags, command } => empty = !self.run(flags, command)?,
        }
        let created = Some(self.created());
        if let Some(s) = self.stages.last_mut() {
            let entry = History {
                created,
                created_by: line.text.clone(),
                empty_layer: empty,
                ..Default::default()
            };
            s.config.history.push(entry);
        }
        Ok(())
    }

    fn from(&mut self, image: &str, name: Option<String>) -> Result<()> {
        // Only the arguments before the first FROM are known here.
        let image =
            expand(image, self.file.escape, &|n| self.global(n)).map_err(ImageError::Invalid)?;
        if image.is_empty() {
            return Err(ImageError::Invalid(
                "FROM: the image's name is empty after variables were put in".into(),
            ));
        }
        let earlier = self
            .stages
            .iter()
            .rev()
            .find(|s| s.name.as_deref() == Some(&image.to_ascii_lowercase()));
        let (chain, mut config) = if let Some(s) = earlier {
            (s.chain.clone(), s.config.clone())
        } else if image == "scratch" {
            let config = ImageConfig {
                architecture: this_architecture().into(),
                os: "linux".into(),
                config: ExecConfig::default(),
                rootfs: RootFs::default(),
                ..Default::default()
            };
            (Vec::new(), config)
        } else {
            let record = self.image(&image)?;
            (record.layers.clone(), self.store.config(&record)?)
        };
        config.config.shell.clear();
        self.stages.push(Stage {
            name,
            chain,
            config,
            args: BTreeMap::new(),
            cmd_set: false,
        });
        Ok(())
    }

    /// An image of the store, fetched if it is not there, with its layers kept for this build.
    fn image(&mut self, name: &str) -> Result<Arc<ImageRecord>> {
        let record = match self.store.resolve(name)? {
            Some(r) => r,
            None => (self.around.fetch)(name)?,
        };
        for l in &record.layers {
            if !self.ingest.has_layer(l)? {
                return Err(ImageError::NotFound(name.to_owned()));
            }
        }
        Ok(record)
    }

    fn arg(&mut self, list: &[(String, Option<String>)]) -> Result<()> {
        for (k, default) in list {
            let k = self.expand(k)?;
            let default = default.as_ref().map(|d| self.expand(d)).transpose()?;
            if self.stages.is_empty() {
                self.global_args.insert(k, default);
                continue;
            }
            let value = self
                .options
                .build_args
                .get(&k)
                .cloned()
                .or(default)
                .or_else(|| self.global(&k));
            if let Some(v) = value {
                self.stage()?.args.insert(k, v);
            }
        }
        Ok(())
    }

    fn argv(&mut self, c: &Command) -> Result<Vec<String>> {
        Ok(match c {
            Command::Exec(l) => l.clone(),
            Command::Shell(text) => {
                let shell = &self.stage()?.config.config.shell;
                let mut argv = if shell.is_empty() {
                    vec!["/bin/sh".to_owned(), "-c".to_owned()]
                } else {
                    shell.clone()
                };
                argv.push(text.clone());
                argv
            }
        })
    }

    /// The stage's files as a container would see them, read-only and mounted nowhere.
    fn view(&self, chain: &[Digest]) -> Result<OwnedFd> {
        let dirs = self.store.lowerdirs(chain);
        match dirs.as_slice() {
            [one] => rustix::fs::open(
                one,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .what(|| format!("open {}", one.display())),
            many => overlay_fd(
                many,
                None,
                OverlayOptions {
                    read_only: true,
                    ..Default::default()
                },
            ),
        }
    }

    /// A directory to write the next layer into, with everything below it known.
    fn open_layer(&mut self) -> Result<(StagedLayer, TreeWriter)> {
        let chain = self.stage()?.chain.clone();
        let staged = self.ingest.stage_layer()?;
        let root = rustix::fs::open(
            staged.fs(),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .what(|| format!("open {}", staged.fs().display()))?;
        let lower = if chain.is_empty() {
            Vec::new()
        } else {
            self.store.lowerdirs(&chain)
        };
        Ok((
            staged,
            TreeWriter::new(root, Lower::open(&lower)?, "of this build", false),
        ))
    }

    /// Make the directory a layer of the stage; false if nothing is in it.
    fn close_layer(&mut self, staged: StagedLayer) -> Result<bool> {
        if std::fs::read_dir(staged.fs())
            .what(|| format!("list {}", staged.fs().display()))?
            .next()
            .is_none()
        {
            return Ok(false);
        }
        let options = DiffOptions {
            clamp_mtime: self.options.epoch,
        };
        let (w, usage) = write_layer(&staged.fs(), HashingWriter::new(io::sink()), options)?;
        let (_, diff_id, _) = w.finish();
        let s = self
            .stages
            .last_mut()
            .ok_or_else(|| ImageError::Invalid("no FROM yet".into()))?;
        let chain = Digest::chain(s.chain.last(), &diff_id);
        self.ingest.commit_layer(staged, &chain, usage)?;
        s.chain.push(chain);
        s.config.rootfs.diff_ids.push(diff_id);
        Ok(true)
    }

    fn absolute(&self, path: &str) -> String {
        let workdir = self
            .stages
            .last()
            .map_or("", |s| s.config.config.working_dir.as_str());
        join(workdir, path)
    }

    fn workdir(&mut self, dir: &str) -> Result<bool> {
        let dir = self.expand(dir)?;
        if dir.is_empty() {
            return Err(ImageError::Invalid(
                "WORKDIR is empty after variables were put in".into(),
            ));
        }
        let full = self.absolute(&dir);
        let user = self.stage()?.config.config.user.clone();
        self.stage()?.config.config.working_dir = full.clone();
        let view = self.view(
            &self
                .stages
                .last()
                .map(|s| s.chain.clone())
                .unwrap_or_default(),
        )?;
        if stat_in(&view, &full).is_some_and(|is_dir| is_dir) {
            return Ok(false);
        }
        let owner = lookup_user_at(&view, &user)?;
        let (staged, mut u) = self.open_layer()?;
        u.make_dirs(full.as_bytes(), &dir_meta(owner.uid, owner.gid))?;
        u.finish()?;
        self.close_layer(staged)
    }

    fn copy(&mut self, add: bool, flags: &Flags, paths: &[String]) -> Result<bool> {
        let name = if add { "ADD" } else { "COPY" };
        let mut words = Vec::new();
        for p in paths {
            words.push(self.expand(p)?);
        }
        let Some((dest, sources)) = words.split_last() else {
            return Ok(false);
        };
        if dest.is_empty() {
            return Err(ImageError::Invalid(format!(
                "{name}: the destination is empty after variables were put in"
            )));
        }
        let view = self.view(
            &self
                .stages
                .last()
                .map(|s| s.chain.clone())
                .unwrap_or_default(),
        )?;
        let owner = match flags.get("chown") {
            Some(o) => {
                let o = self.expand(o)?;
                let u = lookup_user_at(&view, &o)?;
                // Without a group, Docker takes the number of the user's own group; a plain number is both.
                let gid = match (o.contains(':'), o.parse::<u32>()) {
                    (false, Ok(n)) if u.name.is_empty() => n,
                    _ => u.gid,
                };
                Some((u.uid, gid))
            }
            None => None,
        };
        let mode = match flags.get("chmod") {
            Some(m) => {
                let m = self.expand(m)?;
                let n = u32::from_str_radix(&m, 8).ok().filter(|n| *n <= 0o7777);
                Some(n.ok_or_else(|| {
                    ImageError::Invalid(format!("--chmod={m}: only octal numbers are supported"))
                })?)
            }
            None => None,
        };
        let stage_source = match flags.get("from") {
            None => None,
            Some(f) => {
                let f = self.expand(f)?;
                let before = self.stages.len() - 1;
                let by_name = self.stages[..before]
                    .iter()
                    .rposition(|s| s.name.as_deref() == Some(&*f.to_lowercase()));
                let chain = match by_name.or_else(|| f.parse().ok().filter(|n| *n < before)) {
                    Some(n) => self.stages[n].chain.clone(),
                    None => self.image(&f)?.layers.clone(),
                };
                let root = Some(self.view(&chain)?);
                Some(Source {
                    root,
                    what: format!("stage {f}"),
                    ignore: Ignore::default(),
                    keep_owner: true,
                })
            }
        };
        let mut full = self.absolute(dest);
        if dest.ends_with('/') || dest.ends_with("/.") || dest == "." {
            full.push('/');
        }
        let (staged, unpacker) = self.open_layer()?;
        let mut c = Copier {
            name,
            unpacker,
            source: stage_source.as_ref().unwrap_or(&self.context),
            owner,
            mode,
            extract: add,
            dest_is_dir: full.ends_with('/') || stat_in(&view, &full).is_some_and(|d| d),
            dest: full,
        };
        c.copy_all(sources)?;
        drop(c);
        self.close_layer(staged)
    }

    fn run(&mut self, flags: &Flags, command: &Command) -> Result<bool> {
        let argv = self.argv(command)?;
        let s = self.stage()?;
        let (chain, config) = (s.chain.clone(), s.config.config.clone());
        let mut env: Vec<(String, String)> =
            s.args.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        for e in &config.env {
            let (k, v) = e.split_once('=').unwrap_or((e, ""));
            env.retain(|(have, _)| have != k);
            env.push((k.to_owned(), v.to_owned()));
        }
        let view = self.view(&chain)?;
        let user = lookup_user_at(&view, &config.user)?;
        for (k, v) in [("PATH", DEFAULT_PATH), ("HOME", user.home.as_str())] {
            if !env.iter().any(|(have, _)| have == k) {
                env.push((k.into(), v.into()));
            }
        }
        let points = ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts", "etc"];
        let absent: Vec<&str> = points
            .into_iter()
            .filter(|p| stat_in(&view, p).is_none())
            .collect();
        drop(view);
        let staged = self.ingest.stage_layer()?;
        let work = self.ingest.temp_path("work");
        let stage = self.ingest.temp_path("root");
        for d in [&work, &stage] {
            std::fs::create_dir(d).what(|| format!("create {}", d.display()))?;
        }
        let options = OverlayOptions {
            plain_upper: true,
            ..Default::default()
        };
        let root = overlay_fd(
            &self.store.lowerdirs(&chain),
            Some((&staged.fs(), &work)),
            options,
        )?;
        let workdir = if config.working_dir.is_empty() {
            "/"
        } else {
            &config.working_dir
        };
        let step = RunStep {
            argv: &argv,
            env: &env,
            workdir,
            uid: user.uid,
            gid: user.gid,
            groups: &user.additional_gids,
            host_network: flags.get("network").map(String::as_str) != Some("none"),
        };
        runstep::run(&step, root, &stage, self.around.progress)?;
        // Places made only to mount on are not part of the image.
        for p in absent {
            let p = staged.fs().join(p);
            let empty = std::fs::symlink_metadata(&p).is_ok_and(|m| m.is_file() && m.len() == 0);
            let _ = if empty {
                std::fs::remove_file(&p)
            } else {
                std::fs::remove_dir(&p)
            };
        }
        self.close_layer(staged)
    }

    fn created(&self) -> String {
        jiff::Timestamp::from_second(self.options.epoch.unwrap_or(0))
            .unwrap_or_default()
            .to_string()
    }

    fn finish(mut self, names: NewImage) -> Result<Arc<ImageRecord>> {
        if let Some(t) = &self.options.target
            && !self
                .stages
                .iter()
                .enumerate()
                .any(|(i, s)| s.name.as_deref() == Some(t) || i.to_string() == *t)
        {
            return Err(self
                .file
                .error(1, format!("there is no stage {t:?} to build")));
        }
        for k in self.options.build_args.keys() {
            let used = self.global_args.contains_key(k)
                || self.stages.iter().any(|s| s.args.contains_key(k));
            if !used {
                (self.around.progress)(&format!(
                    "warning: build argument {k:?} is not used: no ARG declares it"
                ));
            }
        }
        let created = self.created();
        let Some(mut stage) = self.stages.pop() else {
            return Err(self.file.error(1, "it has no FROM instruction"));
        };
        stage.config.created = Some(created);
        let bytes = serde_json::to_vec(&stage.config)
            .map_err(|e| ImageError::Invalid(format!("encode: {e}")))?;
        let id = self.ingest.put_blob(&bytes)?;
        self.ingest.finish(&id, names, super::store::now())
    }
}

/// Metadata of directories made on the way.
pub fn dir_meta(uid: u32, gid: u32) -> Meta {
    Meta {
        mode: 0o755,
        uid,
        gid,
        mtime: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        xattrs: Vec::new(),
    }
}

/// Is there something at the path (links followed inside the root)? True for a directory.
fn stat_in(root: &OwnedFd, path: &str) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let st = rustix::fs::fstat(&fd).ok()?;
    Some(rustix::fs::FileType::from_raw_mode(st.st_mode) == rustix::fs::FileType::Directory)
}

/// Join and clean, as Go's path.Join does.
fn join(base: &str, path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for c in base.split('/').chain(path.split('/')) {
        match c {
            "" | "." => {}
            ".." => drop(out.pop()),
            c => out.push(c),
        }
    }
    format!("/{}", out.join("/"))
}

fn env_of(c: &ExecConfig, name: &str) -> Option<String> {
    c.env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn set_env(c: &mut ExecConfig, k: &str, v: &str) {
    let entry = format!("{k}={v}");
    match c
        .env
        .iter_mut()
        .find(|e| e.strip_prefix(k).is_some_and(|r| r.starts_with('=')))
    {
        Some(e) => *e = entry,
        None => c.env.push(entry),
    }
}

fn ports(s: &str) -> Result<Vec<String>> {
    let bad = || {
        ImageError::Invalid(format!(
            "EXPOSE: {s:?} is not PORT, PORT/tcp, PORT/udp or a range of ports"
        ))
    };
    let (range, proto) = s.split_once('/').unwrap_or((s, "tcp"));
    let proto = proto.to_ascii_lowercase();
    if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let (lo, hi) = range.split_once('-').unwrap_or((range, range));
    let (lo, hi): (u16, u16) = (
        lo.parse().map_err(|_| bad())?,
        hi.parse().map_err(|_| bad())?,
    );
    if lo == 0 || hi < lo {
        return Err(bad());
    }
    Ok((lo..=hi).map(|p| format!("{p}/{proto}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::Mutex;

    struct Bench {
        dir: tempfile::TempDir,
        store: ImageStore,
    }

    impl Bench {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = ImageStore::open(&dir.path().join("store")).unwrap();
            let ctx = dir.path().join("ctx");
            fs::create_dir(&ctx).unwrap();
            for (name, text) in files {
                let p = ctx.join(name);
                fs::create_dir_all(p.parent().unwrap()).unwrap();
                fs::write(p, text).unwrap();
            }
            fs::copy("/bin/busybox", ctx.join("busybox")).unwrap();
            Bench { dir, store }
        }

        fn ctx(&self) -> PathBuf {
            self.dir.path().join("ctx")
        }

        fn build(&self, dockerfile: &str) -> Result<Arc<ImageRecord>> {
            self.build_with(dockerfile, |_| {}).0
        }

        fn build_with(
            &self,
            dockerfile: &str,
            change: impl FnOnce(&mut BuildOptions),
        ) -> (Result<Arc<ImageRecord>>, String) {
            fs::write(self.ctx().join("Dockerfile"), dockerfile).unwrap();
            let mut options = BuildOptions {
                context: self.ctx(),
                tags: vec!["test/app:1".into()],
                ..Default::default()
            };
            change(&mut options);
            let lines = Mutex::new(String::new());
            let progress = |l: &str| {
                let mut t = lines.lock().unwrap();
                t.push_str(l);
                t.push('\n');
            };
            let fetch = |n: &str| Err(ImageError::NotFound(n.to_owned()));
            let r = build(
                &self.store,
                &options,
                &BuildContext {
                    progress: &progress,
                    fetch: &fetch,
                },
            );
            assert_eq!(
                fs::read_dir(self.store.root().join("tmp")).unwrap().count(),
                0,
                "leftovers in tmp"
            );
            let said = lines.lock().unwrap().clone();
            (r, said)
        }

        /// A path of the image as a container sees it.
        fn look(&self, path: &str) -> PathBuf {
            let root = self.store.hold("test/app:1", "look").unwrap();
            let found = root
                .lowerdirs
                .iter()
                .map(|d| d.join(path))
                .find(|p| fs::symlink_metadata(p).is_ok());
            found.unwrap_or_else(|| self.dir.path().join("is-not-there"))
        }

        fn text(&self, path: &str) -> String {
            fs::read_to_string(self.look(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
        }
    }

    const BASE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

    #[test]
    fn an_image_is_built_run_and_configured() {
        let b = Bench::new(&[
            ("www/index.html", "hello"),
            ("www/sub/x", "x"),
            ("etc/passwd", "root:x:0:0::/:\nweb:x:33:44::/www:\n"),
        ]);
        let image = b
            .build(&format!(
                "ARG BASE=scratch\n{}COPY etc/passwd /etc/passwd\nENV A=1 B=\"two words\"\nARG WHO=world\nWORKDIR /srv\n\
                 RUN echo \"hi $WHO $B\" > greeting && id -u > uid && pwd > cwd && echo $$ > pid && hostname > host\n\
                 RUN [\"true\"]\n\
                 RUN rm /bin/ls && mkdir -p /data && chmod 1777 /data\n\
                 COPY --chown=web --chmod=640 www/ page/\nUSER web\nRUN id -u > /data/who && id -g >> /data/who && grep Cap /proc/self/status > /data/caps\n\
                 EXPOSE 80 90-91/udp\nVOLUME /vol\nLABEL x=\"$A\" y=z\nSTOPSIGNAL SIGQUIT\nENTRYPOINT [\"httpd\"]\nCMD -f -p 80\nHEALTHCHECK NONE\n",
                BASE.replace("scratch", "$BASE")
            ))
            .unwrap();
        assert_eq!(b.text("srv/greeting"), "hi world two words\n");
        assert_eq!(
            (b.text("srv/uid"), b.text("srv/cwd"), b.text("srv/pid")),
            ("0\n".into(), "/srv\n".into(), "1\n".into())
        );
        assert_eq!(b.text("srv/host"), "skiff-build\n");
        assert_eq!(b.text("data/who"), "33\n44\n");
        assert!(
            b.text("data/caps").contains("CapEff:\t0000000000000000"),
            "{}",
            b.text("data/caps")
        );
        assert!(
            b.text("data/caps").contains("CapBnd:\t00000000a80425fb"),
            "Docker's default set"
        );
        assert_eq!(
            fs::metadata(b.look("data")).unwrap().mode() & 0o7777,
            0o1777
        );
        let page = fs::metadata(b.look("srv/page/index.html")).unwrap();
        assert_eq!(
            (page.uid(), page.gid(), page.mode() & 0o7777),
            (33, 44, 0o640)
        );
        assert_eq!(b.text("srv/page/sub/x"), "x");
        let gone = fs::symlink_metadata(b.look("bin/ls")).unwrap();
        assert_eq!(
            (gone.rdev(), gone.mode() & libc::S_IFMT),
            (0, libc::S_IFCHR),
            "a whiteout"
        );
        for p in ["proc", "dev", "sys", "etc/resolv.conf"] {
            assert!(!b.look(p).exists(), "{p} is not part of the image");
        }
        let c = b.store.config(&image).unwrap();
        let e = &c.config;
        assert_eq!(e.env, ["A=1", "B=two words"]);
        assert_eq!(
            (
                e.working_dir.as_str(),
                e.user.as_str(),
                e.stop_signal.as_str()
            ),
            ("/srv", "web", "SIGQUIT")
        );
        assert_eq!(e.entrypoint, ["httpd"]);
        assert_eq!(e.cmd, ["/bin/sh", "-c", "-f -p 80"]);
        assert_eq!(
            e.exposed_ports.keys().collect::<Vec<_>>(),
            ["80/tcp", "90/udp", "91/udp"]
        );
        assert_eq!(e.labels["x"], "1");
        assert!(e.volumes.contains_key("/vol") && image.pinned);
        assert_eq!(
            c.history.iter().filter(|h| !h.empty_layer).count(),
            c.rootfs.diff_ids.len()
        );
        assert_eq!(image.repo_tags, ["docker.io/test/app:1"]);
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let b = Bench::new(&[("a/b/c", "1")]);
        let text = "FROM scratch\nCOPY a /x\nADD busybox /bin/\nWORKDIR /w\nENV a=b\n";
        let one = b.build(text).unwrap().id.clone();
        b.store.remove("test/app:1").unwrap();
        assert_eq!(b.build(text).unwrap().id, one);
        fs::write(b.ctx().join("a/b/c"), "2").unwrap();
        assert_ne!(b.build(text).unwrap().id, one);
    }

    #[test]
    fn stages_copy_from_each_other_and_a_target_stops() {
        let b = Bench::new(&[("one", "1")]);
        let text = "FROM scratch AS first\nCOPY one /a/one\nFROM scratch AS second\nCOPY --from=first /a /b\nCOPY --from=0 /a/one /c\nFROM second\nCOPY one /d\n";
        b.build(text).unwrap();
        assert_eq!(
            (b.text("b/one"), b.text("c"), b.text("d")),
            ("1".into(), "1".into(), "1".into())
        );
        let (r, _) = b.build_with(text, |o| o.target = Some("second".into()));
        r.unwrap();
        assert!(!b.look("d").exists());
        let (r, _) = b.build_with(text, |o| o.target = Some("third".into()));
        assert!(r.unwrap_err().to_string().contains("third"));
        // An image of the store as base, and as source.
        b.build_with("FROM test/app:1\nCOPY --from=test/app:1 /c /again\n", |o| {
            o.tags = vec!["two".into()]
        })
        .0
        .unwrap();
    }

    #[test]
    fn dockerignore_wildcards_and_destinations_follow_docker() {
        let b = Bench::new(&[
            ("src/a.c", "a"),
            ("src/b.c", "b"),
            ("src/b.h", "h"),
            ("secret/key", "k"),
            ("secret/public", "p"),
            (".dockerignore", "secret\n!secret/public\n*.md\n"),
            ("x.md", "m"),
        ]);
        symlink("a.c", b.ctx().join("src/link")).unwrap();
        symlink("/etc", b.ctx().join("out")).unwrap();
        b.build("FROM scratch\nCOPY src/*.c /c/\nCOPY src /s\nCOPY . /all\nCOPY src/a.c /renamed\nCOPY src/link /followed\n").unwrap();
        assert!(b.look("c/a.c").is_file() && !b.look("c/b.h").exists());
        assert_eq!(fs::read_link(b.look("s/link")).unwrap(), Path::new("a.c"));
        assert!(b.look("all/secret/public").is_file() && !b.look("all/secret/key").exists());
        assert!(!b.look("all/x.md").exists());
        assert_eq!(
            (b.text("renamed"), b.text("followed")),
            ("a".into(), "a".into())
        );
        for (line, want) in [
            ("COPY ../x /", "outside"),
            ("COPY nope /", "not found"),
            ("COPY secret/key /", ".dockerignore"),
            ("COPY src/*.c /file", "must be a directory"),
            ("COPY out/hostname /x", "not found"),
            ("ADD https://example.org/x /", "only local files"),
            ("COPY --chown=nobody src /x", "nobody"),
            ("COPY --chmod=u+x src /x", "octal"),
        ] {
            let e = b
                .build(&format!("FROM scratch\n\n{line}\n"))
                .unwrap_err()
                .to_string();
            assert!(e.contains("Dockerfile:3: ") && e.contains(want), "{e}");
        }
    }

    #[test]
    fn add_extracts_tars_and_refuses_hostile_ones() {
        let b = Bench::new(&[("plain", "text")]);
        let mut t = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        let mut h = tar::Header::new_gnu();
        h.set_size(2);
        h.set_mode(0o600);
        t.append_data(&mut h, "in/side", &b"ok"[..]).unwrap();
        fs::write(
            b.ctx().join("t.bin"),
            t.into_inner().unwrap().finish().unwrap(),
        )
        .unwrap();
        b.build("FROM scratch\nADD t.bin plain /to/\nCOPY t.bin /as-is\n")
            .unwrap();
        assert_eq!(
            (b.text("to/in/side"), b.text("to/plain")),
            ("ok".into(), "text".into())
        );
        assert!(b.look("as-is").is_file());
        let mut t = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(0);
        h.as_mut_bytes()[..10].copy_from_slice(b"../../evil");
        h.set_cksum();
        t.append(&h, &b""[..]).unwrap();
        fs::write(b.ctx().join("evil.tar"), t.into_inner().unwrap()).unwrap();
        let e = b
            .build("FROM scratch\nADD evil.tar /a/b/\n")
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("Dockerfile:2: ") && e.contains("../../evil"),
            "{e}"
        );
    }

    #[test]
    fn a_failing_run_names_its_line_and_shows_its_output() {
        let b = Bench::new(&[]);
        let (r, said) = b.build_with(
            &format!("{BASE}RUN echo to stdout; echo to stderr >&2; \\\n exit 7\n"),
            |_| {},
        );
        let e = r.unwrap_err().to_string();
        assert!(
            e.contains("Dockerfile:4: ") && e.contains("non-zero code: 7"),
            "{e}"
        );
        assert!(
            said.contains("\nto stdout\n") && said.contains("\nto stderr\n"),
            "{said}"
        );
        let e = b
            .build(&format!("{BASE}RUN [\"/no/such\"]\n"))
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("Dockerfile:4: ") && e.contains("/no/such"),
            "{e}"
        );
        let e = b.build("FROM no.such/image:1\n").unwrap_err().to_string();
        assert!(
            e.contains("Dockerfile:1: ") && e.contains("no.such/image:1"),
            "{e}"
        );
        let e = b
            .build(&format!("{BASE}WORKDIR /w\nUSER ghost\nRUN true\n"))
            .unwrap_err()
            .to_string();
        assert!(e.contains("Dockerfile:6: ") && e.contains("ghost"), "{e}");
        assert!(
            b.store.images().unwrap().is_empty(),
            "nothing half-built is left"
        );
        b.store.collect().unwrap();
        assert_eq!(
            fs::read_dir(b.store.root().join("layers")).unwrap().count(),
            0
        );
    }

    #[test]
    fn a_step_cannot_see_or_change_the_machine() {
        let b = Bench::new(&[]);
        let witness = b.dir.path().join("witness");
        fs::write(&witness, "w").unwrap();
        fs::set_permissions(&witness, fs::Permissions::from_mode(0o666)).unwrap();
        let (r, _) = b.build_with(
            &format!(
                "{BASE}RUN --network=none test ! -e {0} && ps | wc -l > /procs && ip link | grep -c : > /links; \
                 ! mount -t tmpfs x /tmp; ! echo 1 > /proc/sys/vm/drop_caches; ! mknod /d b 8 0 || ! cat /d; \
                 ls /dev > /devs; true\n",
                witness.display()
            ),
            |_| {},
        );
        r.unwrap();
        assert!(
            b.text("procs").trim().parse::<u32>().unwrap() < 6,
            "{}",
            b.text("procs")
        );
        assert!(b.text("links").trim().parse::<u32>().unwrap() < 8);
        assert!(!b.text("devs").contains("vda"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(b.dir.path().to_str().unwrap()),
            "no mount is left"
        );
    }

    #[test]
    fn build_arguments_reach_their_arg_and_unused_ones_warn() {
        let b = Bench::new(&[("f", "1")]);
        let text = "ARG TAG=none\nFROM scratch\nARG TAG\nARG MODE=a\nENV M=$MODE T=${TAG} P=$TARGETARCH\nARG TARGETARCH\nENV Q=$TARGETARCH\nCOPY f /\n";
        let (r, said) = b.build_with(text, |o| {
            o.build_args =
                BTreeMap::from([("MODE".into(), "b".into()), ("NOPE".into(), "x".into())]);
        });
        let c = b.store.config(&r.unwrap()).unwrap();
        assert_eq!(
            c.config.env,
            ["M=b", "T=none", "P=", &format!("Q={}", this_architecture())]
        );
        assert!(said.contains("\"NOPE\" is not used"), "{said}");
    }

    #[test]
    fn paths_are_joined_as_go_joins_them() {
        for (base, path, want) in [
            ("", "a", "/a"),
            ("/a", "b/../c", "/a/c"),
            ("/a", "/b", "/b"),
            ("/", "../..", "/"),
            ("/x/", "./", "/x"),
        ] {
            assert_eq!(join(base, path), want);
        }
    }
}
