//! Owns what every integration test needs: a runtime in a directory of its own, a client, an image of busybox.

use k8s_cri::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient, *,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub type Client = RuntimeServiceClient<Channel>;

/// A runtime under test. `finish` must be called; it resets the directory.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: skiff_runtime::Config,
    pub client: Client,
    pub images: ImageServiceClient<Channel>,
    cancel: CancellationToken,
    running: Option<skiff_runtime::Running>,
}

/// True (with a message) when the test cannot run here.
pub fn skip() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: integration tests of the runtime need root");
    }
    !root
}

/// True on machines whose controllers are on cgroup v2.
pub fn v2() -> bool {
    skiff_runtime::cgroup::Hierarchies::detect()
        .unwrap()
        .is_v2()
}

/// A connection to the CRI socket, if something answers there.
pub async fn try_channel(socket: &Path) -> Option<Channel> {
    let socket = socket.to_path_buf();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(socket).await?,
            ))
        }
    });
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .ok()
}

/// Puts an image `busybox:test` with the given config into the store.
pub fn add_busybox(store: &skiff_runtime::images::ImageStore) {
    use sha2::Digest as _;
    use skiff_runtime::images::digest::Digest;
    let mut ingest = store.ingest().unwrap();
    let layer = ingest.stage_layer().unwrap();
    let fs = layer.fs();
    for d in ["bin", "etc", "tmp", "home/app", "root"] {
        std::fs::create_dir_all(fs.join(d)).unwrap();
    }
    std::fs::copy("/bin/busybox", fs.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for name in String::from_utf8(list)
        .unwrap()
        .lines()
        .filter(|n| *n != "busybox")
    {
        std::os::unix::fs::symlink("busybox", fs.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        fs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(
        fs.join("etc/group"),
        "root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
    )
    .unwrap();
    let id: Digest = Digest::parse(&format!(
        "sha256:{:x}",
        sha2::Sha256::digest(b"busybox layer of the tests")
    ))
    .unwrap();
    ingest
        .commit_layer(layer, &Digest::chain(None, &id), Default::default())
        .unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=1"], "Entrypoint": ["/bin/sh", "-c"]},
        "rootfs": {"type": "layers", "diff_ids": [id.to_string()]},
    });
    let digest = ingest.put_blob(config.to_string().as_bytes()).unwrap();
    let names = skiff_runtime::images::store::NewImage {
        repo_tags: vec!["docker.io/library/busybox:test".into()],
        ..Default::default()
    };
    ingest.finish(&digest, names, 0).unwrap();
}

impl Drop for Node {
    /// A test that failed must not leave shims, mounts and cgroups on the machine.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cancel.cancel();
            let config = self.config.clone();
            let reset = move || {
                let rt = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                rt.map(|rt| {
                    rt.block_on(skiff_runtime::reset(&config))
                        .map_err(|e| eprintln!("{e}"))
                })
            };
            let _ = std::thread::spawn(reset).join();
        }
    }
}

impl Node {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("skiff-rt-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let cgroup = format!("/skiff-test-{}", &skiff_runtime::state::new_id()[..8]);
        let config = skiff_runtime::Config::new(dir.path(), &cgroup);
        let (client, images, cancel, running) = Self::serve(&config).await;
        add_busybox(running.images());
        Self {
            dir,
            config,
            client,
            images,
            cancel,
            running: Some(running),
        }
    }

    async fn serve(
        config: &skiff_runtime::Config,
    ) -> (
        Client,
        ImageServiceClient<Channel>,
        CancellationToken,
        skiff_runtime::Running,
    ) {
        let cancel = CancellationToken::new();
        let running = skiff_runtime::start(config.clone(), cancel.clone())
            .await
            .unwrap();
        let channel = try_channel(&config.socket)
            .await
            .expect("connect to the CRI socket");
        let client = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        (client, ImageServiceClient::new(channel), cancel, running)
    }

    /// Stops the server as a crash would leave things: containers and shims go on.
    pub async fn stop_server(&mut self) {
        self.cancel.cancel();
        // Streams that are still open would hold a graceful stop.
        if let Some(r) = self.running.take() {
            let _ = tokio::time::timeout(Duration::from_secs(3), r.join()).await;
        }
    }

    pub async fn start_server(&mut self) {
        let (client, images, cancel, running) = Self::serve(&self.config).await;
        (self.client, self.images, self.cancel, self.running) =
            (client, images, cancel, Some(running));
    }

    pub async fn finish(mut self) {
        self.stop_server().await;
        skiff_runtime::reset(&self.config).await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(&*self.dir.path().to_string_lossy()),
            "a mount is left behind"
        );
        for controller in ["", "memory", "pids", "unified", "systemd"] {
            let left = Path::new("/sys/fs/cgroup")
                .join(controller)
                .join(self.config.cgroup_parent.trim_start_matches('/'));
            assert!(!left.exists(), "{} is left behind", left.display());
        }
    }

    pub fn sandbox(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .dir
                .path()
                .join("logs")
                .join(name)
                .display()
                .to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.43.0.10".into()],
                searches: vec!["svc".into()],
                options: vec![],
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/kubepods/pod{name}", self.config.cgroup_parent),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run(&mut self, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        self.client
            .run_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner()
            .pod_sandbox_id
    }

    pub async fn create(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        self.client
            .create_container(request)
            .await
            .unwrap()
            .into_inner()
            .container_id
    }

    pub async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.client
            .start_container(StartContainerRequest {
                container_id: id.into(),
            })
            .await
            .map(drop)
    }

    /// Runs `sh -c script` in a new container and returns its id.
    pub async fn sh(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        name: &str,
        script: &str,
    ) -> String {
        let id = self.create(sandbox, pod, shell(name, script)).await;
        self.start_container(&id).await.unwrap();
        id
    }

    pub async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.client
            .container_status(request)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    /// Waits for the end of a container.
    pub async fn ended(&mut self, id: &str) -> v1::ContainerStatus {
        for _ in 0..400 {
            let s = self.status(id).await;
            if s.state == ContainerState::ContainerExited as i32 {
                return s;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("container {id} does not end: {:?}", self.status(id).await);
    }

    pub fn log(&self, pod: &str, name: &str) -> String {
        let path = self
            .dir
            .path()
            .join("logs")
            .join(pod)
            .join(format!("{name}/0.log"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // Without the times: `stdout F text`.
        text.lines()
            .filter_map(|l| l.split_once(' '))
            .map(|(_, r)| format!("{r}\n"))
            .collect()
    }

    pub async fn exec(&mut self, id: &str, script: &str) -> ExecSyncResponse {
        let cmd = ["/bin/sh", "-c", script].map(String::from).to_vec();
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout: 20,
        };
        self.client.exec_sync(request).await.unwrap().into_inner()
    }

    pub async fn out(&mut self, id: &str, script: &str) -> String {
        let r = self.exec(id, script).await;
        assert_eq!(
            r.exit_code,
            0,
            "{script}: {}",
            String::from_utf8_lossy(&r.stderr)
        );
        String::from_utf8(r.stdout).unwrap().trim().to_string()
    }
}

/// A container that runs a shell script, with the security context that the kubelet sends for a plain pod.
pub fn shell(name: &str, script: &str) -> ContainerConfig {
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(NamespaceOption {
            pid: NamespaceMode::Container as i32,
            ..Default::default()
        }),
        masked_paths: [
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/sys/firmware",
            "/proc/scsi",
        ]
        .map(String::from)
        .to_vec(),
        readonly_paths: [
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]
        .map(String::from)
        .to_vec(),
        seccomp: Some(SecurityProfile {
            profile_type: security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: "busybox:test".into(),
            ..Default::default()
        }),
        args: vec![script.into()],
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_shares: 102,
                oom_score_adj: 900,
                ..Default::default()
            }),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}

/// Changes the security context of a container.
pub fn with_security(
    mut c: ContainerConfig,
    f: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    if let Some(s) = c.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        f(s);
    }
    c
}

/// The sandbox's Linux configuration.
pub fn linux(pod: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
    pod.linux.as_mut().unwrap()
}

/// The sandbox's namespaces.
pub fn sandbox_namespaces(pod: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let security = linux(pod).security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap()
}

/// The words of a sandbox's refusal.
pub async fn sandbox_refused(n: &mut Node, pod: &PodSandboxConfig) -> String {
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: String::new(),
    };
    let e = n.client.run_pod_sandbox(request).await;
    e.expect_err("a sandbox that must be refused runs")
        .message()
        .to_string()
}

/// The words of a container's refusal.
pub async fn create_refused(n: &mut Node, sandbox: &str, config: ContainerConfig) -> String {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: None,
    };
    let e = n.client.create_container(request).await;
    e.expect_err("a container that must be refused was made")
        .message()
        .to_string()
}

/// The container's writable layer, before it starts: what an image could hold.
pub fn upper(n: &Node, id: &str) -> PathBuf {
    n.config.root.join("containers").join(id).join("upper")
}

/// A host path in the container.
pub fn volume(host: &Path, inside: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.into(),
        ..Default::default()
    }
}

/// A container whose processes may trace others.
pub fn tracer(name: &str, script: &str) -> ContainerConfig {
    with_security(shell(name, script), |s| {
        s.capabilities = Some(Capability {
            add_capabilities: vec!["SYS_PTRACE".into()],
            ..Default::default()
        });
    })
}
