//! Owns building an image from a Dockerfile: stages, variables, one layer for each COPY, ADD, RUN and new WORKDIR.
//! Must not parse (see [`super::dockerfile`]) nor run anything itself: that is the [`StepRunner`]'s.
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
    /// What RUN has where the line says nothing.
    pub network: Network,
}

/// The network of a RUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// One of its own, with a way out.
    #[default]
    Default,
    /// The machine's. Only by whoever builds, not by the Dockerfile.
    Host,
    /// Loopback alone.
    None,
}

impl Network {
    /// `default`, `host` or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "default" => Some(Self::Default),
            "host" => Some(Self::Host),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}

/// One RUN.
pub struct RunStep<'a> {
    /// Unique, and a file name. It begins with the name of the build's work directory in the store, and a dash.
    pub id: String,
    /// The files below, topmost layer first.
    pub layers: Vec<PathBuf>,
    /// An empty directory that takes what the step writes, as an overlay's upper directory.
    pub upper: PathBuf,
    /// A name on the same file system, below the build's work directory, for the step's own files.
    pub scratch: PathBuf,
    pub argv: &'a [String],
    pub env: &'a [(String, String)],
    /// Absolute, in the container.
    pub workdir: &'a str,
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
    pub network: Network,
}

/// Runs the steps of a build as containers.
pub trait StepRunner: Send + Sync {
    /// Runs it to its end. Output goes to `output` line by line; an end with another code than 0 is an error.
    fn run(&self, step: &RunStep<'_>, output: &dyn Fn(&str)) -> Result<()>;
    /// True when whoever builds wants no more of it.
    fn cancelled(&self) -> bool;
}

/// What a build asks of its surroundings.
pub struct BuildContext<'a> {
    /// Told each line of progress.
    pub progress: &'a dyn Fn(&str),
    /// Get an image of a FROM that is not in the store.
    pub fetch: &'a dyn Fn(&str) -> Result<Arc<ImageRecord>>,
    pub runner: &'a dyn StepRunner,
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
        if around.runner.cancelled() {
            return Err(ImageError::Invalid("the build was interrupted".into()));
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
            Instruction::From {
                platform,
                image,
                name,
            } => {
                if let Some(p) = platform {
                    self.check_platform(p)?;
                }
                self.from(image, name.clone())?;
                return self.triggers(line.number);
            }
            Instruction::Arg(list) => self.arg(list)?,
            Instruction::Healthcheck(h) => {
                (self.around.progress)(&format!(
                    "warning: {}:{}: HEALTHCHECK is kept in the image for Docker and has no effect in Kubernetes; write a livenessProbe or readinessProbe into the pod",
                    self.file.file, line.number
                ));
                self.stage()?.config.config.healthcheck = Some(h.clone());
            }
            Instruction::Onbuild(text) => self.stage()?.config.config.on_build.push(text.clone()),
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

    /// There is one platform here; another one that is asked for must not become it in silence.
    fn check_platform(&self, platform: &str) -> Result<()> {
        let wanted =
            expand(platform, self.file.escape, &|n| self.global(n)).map_err(ImageError::Invalid)?;
        let arch = this_architecture();
        let mut parts = wanted.split('/');
        let (os, machine) = (parts.next().unwrap_or_default(), parts.next());
        let same = os.eq_ignore_ascii_case("linux")
            && machine.is_none_or(|m| {
                let m = m.to_ascii_lowercase();
                m == arch
                    || (arch == "amd64" && m == "x86_64")
                    || (arch == "arm64" && m == "aarch64")
            });
        if same {
            return Ok(());
        }
        Err(ImageError::Invalid(format!(
            "FROM --platform={wanted}: only images for linux/{arch} are built on this machine"
        )))
    }

    /// Carries out what the base image asks of builds on it. It is not handed on.
    fn triggers(&mut self, number: usize) -> Result<()> {
        let texts = std::mem::take(&mut self.stage()?.config.config.on_build);
        for text in texts {
            let line = self.file.trigger(number, &text)?;
            (self.around.progress)(&format!("ONBUILD {}", line.text));
            self.step(&line)?;
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
        drop(view);
        let network = match flags.get("network").map(|n| Network::parse(n)) {
            None => self.options.network,
            // A Dockerfile must not come nearer to the machine than whoever builds it wants.
            Some(Some(Network::Host)) if self.options.network != Network::Host => {
                return Err(ImageError::Invalid(
                    "RUN --network=host must be allowed by building with --network host".into(),
                ));
            }
            Some(wanted) => wanted.unwrap_or_default(),
        };
        let staged = self.ingest.stage_layer()?;
        let scratch = self.ingest.temp_path("run");
        let number = scratch
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let step = RunStep {
            id: format!("{}-{number}", self.ingest.id()),
            layers: self.store.lowerdirs(&chain),
            upper: staged.fs(),
            scratch: scratch.clone(),
            argv: &argv,
            env: &env,
            workdir: if config.working_dir.is_empty() {
                "/"
            } else {
                &config.working_dir
            },
            uid: user.uid,
            gid: user.gid,
            groups: &user.additional_gids,
            network,
        };
        self.around.runner.run(&step, self.around.progress)?;
        std::fs::remove_dir_all(&scratch).what(|| format!("remove {}", scratch.display()))?;
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
mod tests;
