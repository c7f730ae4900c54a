//! The server is killed with SIGKILL at random moments while clients make and remove pods; the next server must find
//! everything in order.

use super::harness::*;
use k8s_cri::v1::*;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A server in a process of its own: `serve DIR CGROUP`.
pub fn serve_main(args: &[OsString]) -> ! {
    // Rust's own start-up, which comes after initialisers, would have done this.
    skiff_runtime::sys::ignore_signals(&[libc::SIGPIPE]);
    let config =
        skiff_runtime::Config::new(Path::new(&args[0]), args[1].to_str().expect("a cgroup"));
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    rt.block_on(skiff_runtime::serve(config, CancellationToken::new()))
        .expect("serve");
    std::process::exit(0)
}

/// Makes a pod with one container, then removes it half of the time. Errors are the point.
async fn one_pod(socket: &Path, name: String, remove: bool) -> Result<(), String> {
    let text = |e: tonic::Status| e.message().to_string();
    let mut c = Client::new(try_channel(socket).await.ok_or("no server")?);
    let pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: name.clone(),
            namespace: "d".into(),
            attempt: 0,
        }),
        hostname: name.clone(),
        linux: Some(LinuxPodSandboxConfig {
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
    };
    let run = RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: String::new(),
    };
    let id = c
        .run_pod_sandbox(run)
        .await
        .map_err(text)?
        .into_inner()
        .pod_sandbox_id;
    let create = CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(shell("c", "exec sleep 1000")),
        sandbox_config: Some(pod),
    };
    let container = c
        .create_container(create)
        .await
        .map_err(text)?
        .into_inner()
        .container_id;
    c.start_container(StartContainerRequest {
        container_id: container.clone(),
    })
    .await
    .map_err(text)?;
    if remove {
        c.stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        })
        .await
        .map_err(text)?;
        c.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id })
            .await
            .map_err(text)?;
    }
    Ok(())
}

/// The sandbox ids of the shims of this directory.
fn shims_of(dir: &Path) -> Vec<String> {
    let prefix = format!("skiff\0shim\0{}/state/sandboxes/", dir.display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut out: Vec<String> = entries
        .filter_map(|e| String::from_utf8(std::fs::read(e.path().join("cmdline")).ok()?).ok())
        .filter_map(|c| Some(c.strip_prefix(&prefix)?.trim_end_matches('\0').to_string()))
        .collect();
    // A container's process that has not become its program yet is a copy of its shim.
    out.sort();
    out.dedup();
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_at_any_moment_leaves_nothing_that_the_next_one_does_not_put_in_order()
 {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    n.stop_server().await;
    let dir = n.dir.path().to_path_buf();
    let socket = n.config.socket.clone();
    for round in 0..6u32 {
        let mut server = std::process::Command::new("/proc/self/exe")
            .arg("serve")
            .arg(&dir)
            .arg(&n.config.cgroup_parent)
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if try_channel(&socket).await.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let made = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for k in 0..4 {
            let (socket, made) = (socket.clone(), made.clone());
            clients.spawn(async move {
                for i in 0..100 {
                    if let Err(e) = one_pod(&socket, format!("p{round}-{k}-{i}"), i % 2 == 1).await
                    {
                        eprintln!("round {round}: {e}");
                        break;
                    }
                    made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        // Work is under way on every machine, slow ones too; then a moment that differs from round to round.
        for _ in 0..1000 {
            if made.load(std::sync::atomic::Ordering::Relaxed) > round {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 17)).await;
        assert_eq!(
            server.try_wait().unwrap(),
            None,
            "the server ended by itself in round {round}"
        );
        server.kill().unwrap();
        server.wait().unwrap();
        clients.shutdown().await;
    }
    n.start_server().await;
    let pods = n
        .client
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap()
        .into_inner()
        .items;
    let mut ready: Vec<String> = pods
        .iter()
        .filter(|p| p.state == PodSandboxState::SandboxReady as i32)
        .map(|p| p.id.clone())
        .collect();
    ready.sort();
    assert!(!ready.is_empty(), "some pods were made");
    let shims = shims_of(&dir);
    for id in shims.iter().filter(|id| !ready.contains(id)) {
        let record =
            std::fs::read_to_string(dir.join("state/sandboxes").join(id).join("sandbox.json"));
        eprintln!(
            "shim without a ready sandbox: {id}: {record:?}; listed: {:?}",
            pods.iter().find(|p| p.id == *id).map(|p| p.state)
        );
    }
    assert_eq!(
        shims, ready,
        "one shim for each sandbox that is ready, and no other"
    );
    let containers = n
        .client
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .containers;
    let running: Vec<_> = containers
        .iter()
        .filter(|c| c.state == ContainerState::ContainerRunning as i32)
        .collect();
    for c in &running {
        assert_eq!(n.out(&c.id, "echo ok").await, "ok");
    }
    eprintln!(
        "after 6 kills: {} sandboxes, {} ready, {} containers, {} running",
        pods.len(),
        ready.len(),
        containers.len(),
        running.len()
    );
    for p in pods {
        n.client
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: p.id,
            })
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(shims_of(&dir), Vec::<String>::new());
    for d in ["state/sandboxes", "state/containers", "containers", "trash"] {
        assert_eq!(
            std::fs::read_dir(dir.join(d)).unwrap().count(),
            0,
            "{d} is empty"
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*dir.to_string_lossy()));
    let root = if v2() {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/pids"
    };
    let pods = Path::new(root)
        .join(n.config.cgroup_parent.trim_start_matches('/'))
        .join("pods");
    let left = std::fs::read_dir(pods).map(|d| d.flatten().filter(|e| e.path().is_dir()).count());
    assert_eq!(left.unwrap_or(0), 0, "no cgroup is left");
    n.finish().await;
}
