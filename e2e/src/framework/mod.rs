//! Clusters for tests and benchmarks: start, ask through kubectl, kill, restart, and leave nothing behind.

pub mod leftovers;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The binary under test: `SKIFF_BIN`, else what cargo built beside this.
pub fn skiff() -> Result<PathBuf> {
    if let Some(p) = std::env::var_os("SKIFF_BIN") {
        return Ok(PathBuf::from(p));
    }
    let me = std::env::current_exe()?;
    me.ancestors()
        .map(|d| d.join("skiff"))
        .find(|p| p.is_file())
        .context("the skiff binary is not built: cargo build -p skiff, or set SKIFF_BIN")
}

/// kubectl: `KUBECTL`, else the one on PATH.
pub fn kubectl_path() -> PathBuf {
    std::env::var_os("KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

/// Runs a command and gives its standard output.
///
/// # Errors
/// It could not be run, or ended with a failure: the text has what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let o = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| shown.clone())?;
    text(&shown, o)
}

fn text(shown: &str, o: Output) -> Result<String> {
    let (out, err) = (
        String::from_utf8_lossy(&o.stdout),
        String::from_utf8_lossy(&o.stderr),
    );
    if !o.status.success() {
        bail!("{shown}: {}\n{out}{err}", o.status);
    }
    Ok(out.into_owned())
}

/// Tries until it succeeds or the time is over; the last failure is the error.
///
/// # Errors
/// The last failure.
pub fn eventually<T>(limit: Duration, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match f() {
            Ok(v) => return Ok(v),
            Err(e) if Instant::now() > end => {
                return Err(e.context(format!("not within {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A cluster of one server in a network namespace. Dropping it takes everything down.
pub struct Cluster {
    /// Name of the network namespace.
    pub netns: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    work: PathBuf,
    server: Option<Child>,
    arguments: Vec<String>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// Starts a server with further arguments and waits until its node is Ready.
    ///
    /// # Errors
    /// What hindered it; the server's log is in the text.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut c = Self::prepare(arguments)?;
        c.launch()?;
        c.wait_ready()?;
        Ok(c)
    }

    /// A namespace and directories, no server yet.
    ///
    /// # Errors
    /// No root, or no `ip`.
    pub fn prepare(arguments: &[&str]) -> Result<Self> {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("skiff-e2e-{}-{n}", std::process::id());
        let work = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&work)?;
        output(Command::new("ip").args(["netns", "add", &name]))?;
        output(
            Command::new("nsenter")
                .arg(format!("--net=/run/netns/{name}"))
                .args(["ip", "link", "set", "lo", "up"]),
        )?;
        Ok(Self {
            netns: name,
            data_dir: work.join("d"),
            kubeconfig: work.join("kubeconfig"),
            work,
            server: None,
            arguments: arguments.iter().map(ToString::to_string).collect(),
        })
    }

    /// A command inside the cluster's network namespace.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{}", self.netns))
            .arg(program);
        c
    }

    /// Starts the server's process without waiting for anything.
    ///
    /// # Errors
    /// It could not be run.
    pub fn launch(&mut self) -> Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = self
            .inside(skiff()?)
            .args(["server", "--config", "/dev/null", "--data-dir"])
            .arg(&self.data_dir)
            .arg("--write-kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--node-name", "node-1"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start of the server")?;
        self.server = Some(child);
        Ok(())
    }

    /// Where the server logs to.
    pub fn log_path(&self) -> PathBuf {
        self.work.join("server.log")
    }

    /// The server's process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Waits until the API answers.
    ///
    /// # Errors
    /// It did not within 60 s, or the server ended: the text has its log.
    pub fn wait_api(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if self.kubeconfig.exists() && self.kubectl(&["get", "--raw", "/readyz"]).is_ok() {
                return Ok(());
            }
            let ended = self
                .server
                .as_mut()
                .and_then(|s| s.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > end {
                let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
                bail!("the server does not answer ({ended:?}); its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the API answers, the node is Ready and the default ServiceAccount is there.
    ///
    /// # Errors
    /// One of them did not come about.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_api()?;
        let ready = eventually(Duration::from_secs(60), || {
            let node = self.json(&["get", "node", "node-1"])?;
            let ok = node["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            if !ok {
                bail!("the node is not Ready: {}", node["status"]["conditions"]);
            }
            self.json(&["-n", "default", "get", "serviceaccount", "default"])
                .map(|_| ())
        });
        ready.map_err(|e| {
            let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            e.context(format!("the server's log:\n{log}"))
        })
    }

    /// The port of the API, as the kubeconfig has it.
    ///
    /// # Errors
    /// There is no kubeconfig yet.
    pub fn api_port(&self) -> Result<u16> {
        let text = std::fs::read_to_string(&self.kubeconfig)?;
        let server = text
            .lines()
            .find_map(|l| l.trim().strip_prefix("server: "))
            .context("no server in the kubeconfig")?;
        let port = server.rsplit(':').next().context("no port")?;
        Ok(port.parse()?)
    }

    /// Runs kubectl and gives its standard output.
    ///
    /// # Errors
    /// kubectl failed: the text has what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(args))
    }

    /// kubectl with this cluster's kubeconfig, inside its namespace, with a cache of its own.
    pub fn kubectl_command(&self) -> Command {
        let mut c = self.inside(kubectl_path());
        c.arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(self.work.join("cache"));
        c
    }

    /// kubectl's output as JSON.
    ///
    /// # Errors
    /// kubectl failed, or printed no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Runs kubectl with something on its standard input.
    ///
    /// # Errors
    /// kubectl failed: the text has what it said.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.kubectl_command();
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = format!("{command:?}");
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        text(&shown, child.wait_with_output()?)
    }

    /// `kubectl apply -f -`
    ///
    /// # Errors
    /// kubectl failed.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], yaml)
    }

    /// A namespace for one test, deleted by [`Scratch`]'s drop.
    ///
    /// # Errors
    /// It could not be made.
    pub fn scratch(&self, name: &str) -> Result<Scratch<'_>> {
        self.kubectl(&["create", "namespace", name])?;
        eventually(Duration::from_secs(20), || {
            self.kubectl(&["-n", name, "get", "serviceaccount", "default"])
        })?;
        Ok(Scratch {
            cluster: self,
            name: name.into(),
        })
    }

    /// Builds the test image (busybox and its links, and curl) under this name.
    ///
    /// # Errors
    /// busybox-static is not installed, or the build failed.
    pub fn build_busybox(&self, name: &str) -> Result<()> {
        let context = self
            .work
            .join(format!("image-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&context)?;
        std::fs::copy("/bin/busybox", context.join("busybox"))
            .context("busybox-static is not installed")?;
        // curl with the libraries it needs: a real dynamically linked program, with a real resolver.
        output(Command::new("sh").current_dir(&context).args([
            "-c",
            "mkdir -p curl/usr/bin && cp \"$(command -v curl)\" curl/usr/bin/ && ldd curl/usr/bin/curl | \
             grep -o '/[^ ]*' | sort -u | xargs -I{} cp -L --parents {} curl/",
        ]))?;
        std::fs::write(
            context.join("Dockerfile"),
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY curl /\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
             RUN mkdir -p /tmp /etc /root && chmod 1777 /tmp && echo 'root:x:0:0:root:/root:/bin/sh' > /etc/passwd\n\
             ENV PATH=/bin:/usr/bin\nCMD [\"sh\"]\n",
        )?;
        output(
            Command::new(skiff()?)
                .args(["image", "build", "--data-dir"])
                .arg(&self.data_dir)
                .args(["--network", "none", "-t", name])
                .arg(&context),
        )?;
        Ok(())
    }

    /// How the server ended by itself; None while it runs.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        let Some(s) = &mut self.server else {
            bail!("no server was started");
        };
        let status = s.try_wait()?;
        if status.is_some() {
            self.server = None;
        }
        Ok(status)
    }

    /// Ends the server by SIGKILL.
    pub fn kill_9(&mut self) {
        if let Some(mut s) = self.server.take() {
            let _ = s.kill();
            let _ = s.wait();
        }
    }

    /// Ends the server by SIGTERM, and waits.
    ///
    /// # Errors
    /// It did not end within 20 s.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut s) = self.server.take() else {
            return Ok(());
        };
        output(Command::new("kill").args(["-TERM", &s.id().to_string()]))?;
        let end = Instant::now() + Duration::from_secs(20);
        while s.try_wait()?.is_none() {
            if Instant::now() > end {
                let _ = s.kill();
                let _ = s.wait();
                bail!("the server did not end within 20 s of SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Takes everything down and says what was left behind.
    ///
    /// # Errors
    /// Something was left behind, or could not be removed.
    pub fn finish(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if self.work.as_os_str().is_empty() {
            return Ok(());
        }
        let ended = self.terminate();
        let reset = skiff().and_then(|s| {
            output(
                self.inside(s)
                    .args(["reset", "--data-dir"])
                    .arg(&self.data_dir),
            )
        });
        let left = leftovers::of(&self.data_dir, &self.netns);
        let _ = output(Command::new("ip").args(["netns", "delete", &self.netns]));
        let work = std::mem::take(&mut self.work);
        if std::env::var_os("KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&work);
        }
        ended?;
        reset?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(anyhow!("left behind: {}", left.join("; ")))
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            eprintln!("taking a cluster down: {e:#}");
        }
    }
}

/// A namespace that goes with the test.
pub struct Scratch<'a> {
    /// The cluster it is in.
    pub cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Scratch<'_> {
    /// kubectl in this namespace.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        self.cluster.kubectl(&all)
    }
    /// kubectl's JSON in this namespace.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        self.cluster.json(&all)
    }
    /// Applies objects to this namespace.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.cluster
            .kubectl_with(&["-n", &self.name, "apply", "-f", "-"], yaml)
    }
    /// Waits for a pod to be Ready.
    ///
    /// # Errors
    /// It is not within a minute; the text describes it.
    pub fn wait_pod(&self, pod: &str) -> Result<()> {
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{pod}"),
            "--timeout=60s",
        ])
        .map(|_| ())
        .map_err(|e| e.context(self.kubectl(&["describe", "pod", pod]).unwrap_or_default()))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = self
            .cluster
            .kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// The files of a directory, for tests that look at what is on disk.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect()
}
