//! Shims that are stuck or killed, calls that cross each other, and who may come near: what one pod's trouble may do to
//! others, and what a race may leave behind.

use super::harness::*;
use k8s_cri::v1::*;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// `knock SOCKET`: connects and prints whether the other side keeps the connection open for an answer.
pub fn knock_main(args: &[OsString]) -> ! {
    use std::io::{Read, Write};
    let text = match std::os::unix::net::UnixStream::connect(&args[0]) {
        Err(e) => format!("connect: {e}"),
        Ok(mut s) => {
            let _ = s.set_read_timeout(Some(Duration::from_secs(5)));
            // KillExec of nobody: any shim answers it.
            let message = br#"{"op":"killExec","pid":0,"signal":0}"#;
            let mut wire = (message.len() as u32).to_le_bytes().to_vec();
            wire.extend(message);
            let _ = s.write_all(&wire);
            match s.read(&mut [0; 64]) {
                Ok(0) => "closed".to_string(),
                Ok(_) => "answered".to_string(),
                Err(e) => format!("read: {e}"),
            }
        }
    };
    println!("{text}");
    std::process::exit(0)
}

fn shim_pid(n: &Node, sandbox: &str) -> i32 {
    let dir = n.dir.path().join("state/sandboxes").join(sandbox);
    let shim = skiff_runtime::shim::client::Shim::at(&dir);
    let found = shim.processes();
    assert_eq!(found.len(), 1, "one shim of {}", dir.display());
    found[0]
}

fn signal(pid: i32, signal: i32) {
    skiff_runtime::sys::kill(pid, signal).unwrap();
}

async fn sandbox_state(n: &mut Node, id: &str) -> i32 {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: id.into(),
        verbose: false,
    };
    let r = n.client.pod_sandbox_status(request).await.unwrap();
    r.into_inner().status.unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_shim_stalls_its_own_pod_alone_and_that_pod_can_still_be_ended() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let (a, b) = (n.sandbox("stuck"), n.sandbox("well"));
    let (sa, sb) = (n.run(&a).await, n.run(&b).await);
    let ca = n.sh(&sa, &a, "c", "exec sleep 1000").await;
    let cb = n.sh(&sb, &b, "c", "exec sleep 1000").await;
    let shim = shim_pid(&n, &sa);
    signal(shim, libc::SIGSTOP);
    // More calls than worker threads, and than the queue of the socket, hang on the stuck one.
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (mut client, id) = (n.client.clone(), ca.clone());
        hanging.spawn(async move {
            let request = ExecSyncRequest {
                container_id: id,
                cmd: vec!["/bin/true".into()],
                timeout: 1,
            };
            client.exec_sync(request).await.map(drop)
        });
    }
    tokio::task::yield_now().await;
    let begun = Instant::now();
    assert_eq!(n.out(&cb, "echo ok").await, "ok");
    let second = n.sh(&sb, &b, "second", "exit 4").await;
    assert_eq!(n.ended(&second).await.exit_code, 4);
    for s in [&sa, &sb] {
        let state = sandbox_state(&mut n, s).await;
        assert_eq!(state, PodSandboxState::SandboxReady as i32);
    }
    let all = n.client.list_containers(ListContainersRequest::default());
    assert_eq!(all.await.unwrap().into_inner().containers.len(), 3);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "others waited {took:?}");
    hanging.abort_all();

    // The container is signalled past its shim, and its end is known although the shim says nothing.
    let stop = StopContainerRequest {
        container_id: ca.clone(),
        timeout: 1,
    };
    n.client.stop_container(stop).await.unwrap();
    let s = n.status(&ca).await;
    assert_eq!(
        (s.state, s.exit_code),
        (ContainerState::ContainerExited as i32, 137)
    );
    // The sandbox goes with its shim, by force.
    let remove = RemovePodSandboxRequest { pod_sandbox_id: sa };
    n.client.remove_pod_sandbox(remove).await.unwrap();
    assert!(!Path::new(&format!("/proc/{shim}/ns/net")).exists());
    assert_eq!(n.out(&cb, "echo ok").await, "ok");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_is_killed_is_seen_and_its_containers_end() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let (a, b) = (n.sandbox("a"), n.sandbox("b"));
    let (sa, sb) = (n.run(&a).await, n.run(&b).await);
    let ca = n.sh(&sa, &a, "c", "exec sleep 1000").await;
    let cb = n.sh(&sb, &b, "c", "exec sleep 1000").await;
    // Stopped first: a dead shim must be seen also when it was stuck before.
    let shim = shim_pid(&n, &sa);
    signal(shim, libc::SIGSTOP);
    signal(shim, libc::SIGKILL);
    let s = n.ended(&ca).await;
    assert_eq!((s.exit_code, s.reason.as_str()), (255, "Unknown"));
    for _ in 0..200 {
        if sandbox_state(&mut n, &sa).await == PodSandboxState::SandboxNotready as i32 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let state = sandbox_state(&mut n, &sa).await;
    assert_eq!(state, PodSandboxState::SandboxNotready as i32);
    assert_eq!(n.out(&cb, "echo ok").await, "ok");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_beside_a_stuck_shim_and_hears_it_when_it_goes_on() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let (a, b) = (n.sandbox("a"), n.sandbox("b"));
    let (sa, sb) = (n.run(&a).await, n.run(&b).await);
    let stays = n.sh(&sa, &a, "stays", "exec sleep 1000").await;
    let ends = n
        .sh(
            &sa,
            &a,
            "ends",
            "while [ ! -e /go ]; do sleep 0.02; done; exit 5",
        )
        .await;
    let cb = n.sh(&sb, &b, "c", "exec sleep 1000").await;
    let pid = n.client.container_status(ContainerStatusRequest {
        container_id: ends.clone(),
        verbose: true,
    });
    let info = pid.await.unwrap().into_inner().info["info"].clone();
    let pid = serde_json::from_str::<serde_json::Value>(&info).unwrap()["pid"]
        .as_i64()
        .unwrap();
    n.stop_server().await;
    let shim = shim_pid(&n, &sa);
    signal(shim, libc::SIGSTOP);
    // It ends while nobody listens and the shim does not reap.
    std::fs::write(format!("/proc/{pid}/root/go"), b"").unwrap();
    let begun = Instant::now();
    n.start_server().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(n.out(&cb, "echo ok").await, "ok");
    let running = ContainerState::ContainerRunning as i32;
    assert_eq!(n.status(&stays).await.state, running);
    signal(shim, libc::SIGCONT);
    assert_eq!(n.ended(&ends).await.exit_code, 5);
    assert_eq!(n.status(&stays).await.state, running);
    assert_eq!(n.out(&stays, "echo ok").await, "ok");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_with_less_patience_does_not_wait_for_one_with_more() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("p");
    let sandbox = n.run(&pod).await;
    let deaf = "trap 'touch /told' TERM; touch /ready; while :; do sleep 0.02; done";
    let id = n.sh(&sandbox, &pod, "c", deaf).await;
    // A signal that comes before the trap is none to pid 1.
    n.out(&id, "while [ ! -e /ready ]; do sleep 0.02; done")
        .await;
    let (mut client, slow) = (n.client.clone(), id.clone());
    let patient = tokio::spawn(async move {
        let request = StopContainerRequest {
            container_id: slow,
            timeout: 1000,
        };
        client.stop_container(request).await.map(drop)
    });
    // The patient one is at work once the signal has arrived.
    n.out(&id, "while [ ! -e /told ]; do sleep 0.02; done")
        .await;
    let begun = Instant::now();
    let request = StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    n.client.stop_container(request).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    patient.await.unwrap().unwrap();
    assert_eq!(n.status(&id).await.exit_code, 137);
    n.finish().await;
}

/// Whatever of the container could be left.
fn traces(n: &Node, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for d in ["state/containers", "containers"] {
        let p = n.dir.path().join(d).join(id);
        if p.exists() {
            found.push(p.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn starts_stops_and_removes_of_one_container_never_cross() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("p");
    let sandbox = n.run(&pod).await;
    for round in 0..25u64 {
        let name = format!("c{round}");
        let id = n
            .create(&sandbox, &pod, shell(&name, "exec sleep 1000"))
            .await;
        let mut calls = tokio::task::JoinSet::new();
        for k in 0..6u64 {
            let (mut client, id) = (n.client.clone(), id.clone());
            calls.spawn(async move {
                // Different meetings in different rounds; none of them may decide about the result.
                tokio::time::sleep(Duration::from_micros((round * 7 + k * 13) % 50 * 300)).await;
                let container_id = id;
                let r = match k % 3 {
                    0 => client
                        .start_container(StartContainerRequest { container_id })
                        .await
                        .map(drop),
                    1 => {
                        let timeout = (k / 3) as i64;
                        client
                            .stop_container(StopContainerRequest {
                                container_id,
                                timeout,
                            })
                            .await
                            .map(drop)
                    }
                    _ => client
                        .remove_container(RemoveContainerRequest { container_id })
                        .await
                        .map(drop),
                };
                (k, r)
            });
        }
        while let Some(done) = calls.join_next().await {
            let (k, r) = done.unwrap();
            // A start may find it stopped or removed; nobody else may fail.
            assert!(r.is_ok() || k % 3 == 0, "round {round}, call {k}: {r:?}");
        }
        assert_eq!(traces(&n, &id), Vec::<String>::new(), "round {round}");
        let info = n.client.list_containers(ListContainersRequest::default());
        assert_eq!(info.await.unwrap().into_inner().containers.len(), 0);
    }
    // Nothing runs that no record knows.
    let held = std::fs::read_to_string(format!(
        "/proc/{0}/task/{0}/children",
        shim_pid(&n, &sandbox)
    ));
    assert_eq!(held.unwrap().trim(), "");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sandbox_that_is_removed_takes_along_what_is_made_in_it_meanwhile() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    for round in 0..12u64 {
        let pod = n.sandbox(&format!("p{round}"));
        let sandbox = n.run(&pod).await;
        let mut calls = tokio::task::JoinSet::new();
        for k in 0..4u64 {
            let (mut client, sandbox, pod) = (n.client.clone(), sandbox.clone(), pod.clone());
            calls.spawn(async move {
                let request = CreateContainerRequest {
                    pod_sandbox_id: sandbox,
                    config: Some(shell(&format!("c{k}"), "exec sleep 1000")),
                    sandbox_config: Some(pod),
                };
                if let Ok(r) = client.create_container(request).await {
                    let container_id = r.into_inner().container_id;
                    let _ = client
                        .start_container(StartContainerRequest { container_id })
                        .await;
                }
            });
        }
        tokio::time::sleep(Duration::from_micros(round * 1500)).await;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        };
        // Twice at once: both succeed.
        let mut again = n.client.clone();
        let (one, two) = tokio::join!(
            n.client.remove_pod_sandbox(request.clone()),
            again.remove_pod_sandbox(request)
        );
        one.unwrap();
        two.unwrap();
        while calls.join_next().await.is_some() {}
        let left = n.client.list_containers(ListContainersRequest::default());
        assert_eq!(
            left.await.unwrap().into_inner().containers.len(),
            0,
            "round {round}"
        );
        for d in ["state/sandboxes", "state/containers", "containers"] {
            let left = std::fs::read_dir(n.dir.path().join(d)).unwrap().count();
            assert_eq!(left, 0, "{d} in round {round}");
        }
    }
    n.finish().await;
}

/// Every directory and file below that others than root have a right on, without the file systems of containers.
fn open_to_others(dir: &Path, found: &mut Vec<String>) {
    let device = std::fs::metadata(dir).unwrap().dev();
    for e in std::fs::read_dir(dir).unwrap().flatten() {
        let m = std::fs::symlink_metadata(e.path()).unwrap();
        let name = e.file_name();
        let name = name.to_str().unwrap();
        // Content of images and of writable layers has the modes it has; what counts is that no way leads there.
        if ["fs", "upper", "work", "rootfs", "empty"].contains(&name) || m.dev() != device {
            continue;
        }
        let seen = ["hostname", "resolv.conf", "hosts"].contains(&name);
        let link = m.file_type().is_symlink();
        // CRI's log files are root's and the group root's, as containerd's.
        let allowed = if name.ends_with(".log") { 0o040 } else { 0 };
        if !seen && !link && m.permissions().mode() & 0o077 & !allowed != 0 {
            found.push(format!(
                "{:o} {}",
                m.permissions().mode() & 0o7777,
                e.path().display()
            ));
        }
        if m.is_dir() {
            open_to_others(&e.path(), found);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_runtime_s_state_is_open_to_other_users_also_not_what_was_before() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("p");
    let sandbox = n.run(&pod).await;
    let id = n
        .sh(&sandbox, &pod, "c", "echo hello; exec sleep 1000")
        .await;
    let mut found = Vec::new();
    open_to_others(n.dir.path(), &mut found);
    assert_eq!(found, Vec::<String>::new());
    // A non-root process of the container reads what is for everybody inside.
    assert!(
        n.out(&id, "cat /etc/hostname /etc/resolv.conf")
            .await
            .starts_with("p\n")
    );

    // As an older version left it.
    n.stop_server().await;
    let wide = [
        "containers",
        "trash",
        "state",
        "state/sandboxes",
        "state/containers",
        "images",
        "images/layers",
    ];
    for d in wide {
        let p = n.dir.path().join(d);
        std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let record = n.dir.path().join("state/containers").join(&id);
    for p in [
        &record,
        &record.join("container.json"),
        &n.dir.path().join("containers").join(&id),
    ] {
        std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    n.start_server().await;
    let mut found = Vec::new();
    open_to_others(n.dir.path(), &mut found);
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(n.out(&id, "echo ok").await, "ok");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_are_turned_away_from_the_sockets_whatever_their_modes_are() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("p");
    let sandbox = n.run(&pod).await;
    let state = n.dir.path().join("state");
    let shim = state.join("sandboxes").join(&sandbox);
    // All doors open: what is left is the peer's identity.
    for p in [n.dir.path(), &state, &state.join("sandboxes"), &shim] {
        std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let knock = |socket: &Path, uid: u32| {
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        let dir = socket.parent().unwrap();
        // The program is below a directory that only root can enter: it is opened before the user changes.
        let exe = std::fs::File::open("/proc/self/exe").unwrap();
        use std::os::fd::AsRawFd;
        let out = std::process::Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
            .arg("knock")
            .arg(socket.file_name().unwrap())
            .current_dir(dir)
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    };
    assert_eq!(knock(&shim.join("s"), 0), "answered");
    // What was sent and not read is answered with a reset.
    for socket in [&shim.join("s"), &n.config.socket] {
        let refused = knock(socket, 65534);
        let words = ["closed", "reset", "Broken pipe"];
        assert!(words.iter().any(|w| refused.contains(w)), "{refused}");
    }
    // The server and the shim still speak to each other.
    let id = n.sh(&sandbox, &pod, "c", "exec sleep 1000").await;
    assert_eq!(n.out(&id, "echo ok").await, "ok");
    n.finish().await;
}
