//! The RuntimeService as the kubelet uses it.

use super::harness::*;
use k8s_cri::v1::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_logs_takes_commands_and_ends_with_its_code() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut events = n
        .client
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let pod = n.sandbox("web");
    let sandbox = n.run(&pod).await;
    assert_eq!(sandbox.len(), 64);
    let script =
        "echo out; echo err >&2; hostname; id -u; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let id = n.sh(&sandbox, &pod, "main", script).await;
    assert_eq!(
        n.out(
            &id,
            "echo $FROM_IMAGE $HOSTNAME; cat /etc/resolv.conf | head -1; [ $(ps | wc -l) -le 8 ] && echo alone"
        )
        .await,
        // How many there are depends on the moment; on the host there are many more.
        "1 web\nsearch svc\nalone"
    );
    assert_eq!(n.exec(&id, "exit 3").await.exit_code, 3);
    n.client
        .stop_container(StopContainerRequest {
            container_id: id.clone(),
            timeout: 10,
        })
        .await
        .unwrap();
    let s = n.status(&id).await;
    assert_eq!(
        (s.exit_code, s.reason.as_str(), s.state),
        (7, "Error", ContainerState::ContainerExited as i32)
    );
    assert!(s.started_at > s.created_at && s.finished_at > s.started_at);
    let log = n.log("web", "main");
    for line in [
        "stdout F out\n",
        "stderr F err\n",
        "stdout F web\n",
        "stdout F 0\n",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
    n.client
        .remove_container(RemoveContainerRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    n.client
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        })
        .await
        .unwrap();
    n.client
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        })
        .await
        .unwrap();
    let mut seen = Vec::new();
    while let Ok(Ok(Some(e))) =
        tokio::time::timeout(Duration::from_millis(200), events.message()).await
    {
        seen.push((
            e.container_id == id,
            e.container_event_type().as_str_name().to_string(),
        ));
    }
    let names: Vec<String> = seen
        .into_iter()
        .map(|(c, n)| format!("{} {n}", if c { "container" } else { "sandbox" }))
        .collect();
    assert_eq!(
        names,
        [
            "sandbox CONTAINER_CREATED_EVENT",
            "sandbox CONTAINER_STARTED_EVENT",
            "container CONTAINER_CREATED_EVENT",
            "container CONTAINER_STARTED_EVENT",
            "container CONTAINER_STOPPED_EVENT",
            "container CONTAINER_DELETED_EVENT",
            "sandbox CONTAINER_STOPPED_EVENT",
            "sandbox CONTAINER_DELETED_EVENT",
        ]
    );
    drop(events);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_a_start_error_with_upstream_s_words() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("bad");
    let sandbox = n.run(&pod).await;
    let id = n
        .create(
            &sandbox,
            &pod,
            ContainerConfig {
                command: vec!["foo".into()],
                ..shell("bad", "")
            },
        )
        .await;
    let e = n.start_container(&id).await.unwrap_err();
    assert!(
        e.message()
            .contains("exec: \"foo\": executable file not found in $PATH"),
        "{e}"
    );
    let s = n.status(&id).await;
    assert_eq!((s.exit_code, s.reason.as_str()), (128, "StartError"));
    assert!(s.message.contains("executable file not found"));
    let r = n.client.create_container(CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(ContainerConfig {
            image: Some(ImageSpec {
                image: "nowhere:1".into(),
                ..Default::default()
            }),
            ..shell("x", "")
        }),
        sandbox_config: None,
    });
    assert_eq!(r.await.unwrap_err().code(), tonic::Code::NotFound);
    n.finish().await;
}

fn lines(s: &str) -> Vec<&str> {
    s.lines().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_adopts_containers_and_reports_ends_that_it_missed() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("keep");
    let sandbox = n.run(&pod).await;
    let stays = n
        .sh(
            &sandbox,
            &pod,
            "stays",
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done",
        )
        .await;
    let leaves = n.sh(&sandbox, &pod, "leaves", "sleep 0.5; exit 42").await;
    let lost_pod = n.sandbox("lost");
    let lost_sandbox = n.run(&lost_pod).await;
    let lost = n.sh(&lost_sandbox, &lost_pod, "lost", "sleep 1000").await;
    let made = n.create(&sandbox, &pod, shell("made", "exit 0")).await;
    let before = n.status(&stays).await;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: lost_sandbox.clone(),
        verbose: true,
    };
    let info = n
        .client
        .pod_sandbox_status(request.clone())
        .await
        .unwrap()
        .into_inner()
        .info;
    let pid: i32 = serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["pid"]
        .as_i64()
        .unwrap() as i32;
    n.stop_server().await;
    // A shim that is killed takes its containers with it.
    skiff_runtime::sys::kill(pid, 9).unwrap();
    // Half-made things of a server that was killed between two steps.
    let half = n.config.state.join("sandboxes").join("f".repeat(64));
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("sandbox.json"), "{\"id\":").unwrap();
    let orphan = n.config.root.join("containers").join("e".repeat(64));
    std::fs::create_dir_all(orphan.join("upper")).unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    n.start_server().await;
    assert!(!half.exists() && !orphan.exists());
    let after = n.status(&stays).await;
    assert_eq!(
        (after.state, after.started_at),
        (ContainerState::ContainerRunning as i32, before.started_at)
    );
    let s = n.status(&leaves).await;
    assert_eq!(
        (s.state, s.exit_code),
        (ContainerState::ContainerExited as i32, 42)
    );
    let s = n.status(&lost).await;
    assert_eq!(
        (s.state, s.exit_code, s.reason.as_str()),
        (ContainerState::ContainerExited as i32, 255, "Unknown")
    );
    let status = n
        .client
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(status.state, PodSandboxState::SandboxNotready as i32);
    assert_eq!(
        n.status(&made).await.state,
        ContainerState::ContainerCreated as i32
    );
    n.start_container(&made).await.unwrap();
    assert_eq!(n.ended(&made).await.reason, "Completed");
    assert_eq!(n.out(&stays, "echo alive").await, "alive");
    let logged = n.log("keep", "stays");
    let numbers: Vec<u32> = logged
        .lines()
        .map(|l| l.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        numbers.iter().zip(1..).all(|(a, b)| *a == b),
        "no line is lost while nobody serves"
    );
    // The name is still taken.
    let again = n
        .client
        .run_pod_sandbox(RunPodSandboxRequest {
            config: Some(pod),
            runtime_handler: String::new(),
        })
        .await;
    assert_eq!(again.unwrap_err().code(), tonic::Code::AlreadyExists);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_confined_as_a_plain_pod_s_are() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("plain");
    let sandbox = n.run(&pod).await;
    let id = n.sh(&sandbox, &pod, "plain", "sleep 1000").await;
    let text = n
        .out(
            &id,
            "grep -E '^(Cap|NoNew|Seccomp:)' /proc/1/status | tr -d '\\t'",
        )
        .await;
    assert_eq!(
        lines(&text),
        [
            "CapInh:0000000000000000",
            "CapPrm:00000000a80425fb",
            "CapEff:00000000a80425fb",
            "CapBnd:00000000a80425fb",
            "CapAmb:0000000000000000",
            "NoNewPrivs:0",
            "Seccomp:2"
        ]
    );
    // An exec'd process is confined in the same way (libcontainer's was not).
    let own = n
        .out(
            &id,
            "grep -E '^(CapEff|Seccomp:)' /proc/self/status | tr -d '\\t'",
        )
        .await;
    assert_eq!(lines(&own), ["CapEff:00000000a80425fb", "Seccomp:2"]);
    assert_eq!(
        n.exec(&id, "mount -t tmpfs x /tmp").await.exit_code,
        1,
        "mount is refused"
    );
    assert_eq!(
        n.exec(&id, "echo 1 > /proc/sys/kernel/panic")
            .await
            .exit_code,
        1,
        "/proc/sys is read-only"
    );
    assert_eq!(
        n.exec(
            &id,
            "mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x"
        )
        .await
        .exit_code,
        1,
        "cgroups are read-only"
    );
    assert_eq!(
        n.exec(
            &id,
            "cd /sys/fs/cgroup; f=memory.max; [ -e $f ] || f=memory/memory.limit_in_bytes; echo 99999999999 > $f"
        )
        .await
        .exit_code,
        1
    );
    assert_eq!(
        n.out(&id, "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l")
            .await,
        "0\n0"
    );
    assert_eq!(
        n.exec(&id, "mknod /tmp/sda b 8 0 && cat /tmp/sda")
            .await
            .exit_code,
        1,
        "disks cannot be read"
    );
    assert_eq!(
        n.out(&id, "ls /dev | tr '\\n' ' '").await,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
            .replace("core ", "")
    );
    assert_eq!(
        n.out(
            &id,
            "cat /proc/1/oom_score_adj; grep -cE '^(0:|[0-9]+:memory:/$)' /proc/self/cgroup"
        )
        .await,
        if v2() { "900\n1" } else { "900\n2" }
    );
    assert_eq!(
        n.out(
            &id,
            "echo ok > /dev/null; echo x > /dev/shm/a; cat /dev/shm/a"
        )
        .await,
        "x"
    );
    assert_eq!(n.exec(&id, "cat /proc/1/environ").await.exit_code, 0);
    assert_eq!(
        n.out(
            &id,
            "ip link | grep -c UP; readlink /proc/self/ns/net > /tmp/n; ls /home"
        )
        .await,
        "1\napp"
    );
    // Nothing of the node shows in the descriptors of an exec'd process.
    assert_eq!(n.out(&id, "ls /proc/self/fd | wc -l").await, "4");
    let exe = n
        .exec(
            &id,
            "cat /proc/1/exe | head -c 4; (echo x >> /proc/1/exe) 2>&1",
        )
        .await;
    assert!(
        String::from_utf8_lossy(&exe.stdout).contains("Text file busy"),
        "the program is the container's own busybox"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_groups_capabilities_and_read_only_roots_are_as_asked() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("users");
    let sandbox = n.run(&pod).await;
    let config = with_security(
        shell(
            "user",
            "id; echo $HOME; touch /x; grep -E 'CapEff|CapBnd|NoNew|Seccomp:' /proc/self/status | tr -d '\\t'; echo hi > /dev/stdout",
        ),
        |s| {
            s.run_as_username = "app".into();
            s.supplemental_groups = vec![3000];
            s.no_new_privs = true;
            s.readonly_rootfs = true;
            s.capabilities = Some(Capability {
                drop_capabilities: vec!["ALL".into()],
                ..Default::default()
            });
        },
    );
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    let log = n.log("users", "user");
    let want = [
        "stdout F uid=1000(app) gid=1000(app) groups=1000(app),2000(extra),3000",
        "stdout F /home/app",
        "stderr F touch: /x: Read-only file system",
        "stdout F CapEff:0000000000000000",
        "stdout F CapBnd:0000000000000000",
        "stdout F NoNewPrivs:1",
        "stdout F Seccomp:2",
        "stdout F hi",
    ];
    for w in want {
        assert!(log.lines().any(|l| l == w), "{w:?} in {log}");
    }
    let ambient = with_security(
        shell(
            "ambient",
            "grep -E 'CapEff|CapAmb' /proc/self/status | tr -d '\\t'",
        ),
        |s| {
            s.run_as_user = Some(Int64Value { value: 1000 });
            s.capabilities = Some(Capability {
                add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
                ..Default::default()
            });
            s.seccomp = None;
        },
    );
    let id = n.create(&sandbox, &pod, ambient).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    assert_eq!(
        n.log("users", "ambient"),
        "stdout F CapEff:0000000000000400\nstdout F CapAmb:0000000000000400\n"
    );
    assert_eq!(n.status(&id).await.user.unwrap().linux.unwrap().uid, 1000);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_mounted_with_their_flags_and_a_link_in_the_image_reaches_nothing_outside() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("vol");
    let sandbox = n.run(&pod).await;
    let v = n.dir.path().join("v");
    std::fs::create_dir_all(v.join("rw/sub")).unwrap();
    std::fs::write(v.join("hosts"), "1.2.3.4 x\n").unwrap();
    std::os::unix::fs::symlink(v.join("rw"), v.join("link")).unwrap();
    let m = |host: &str, inside: &str, readonly| Mount {
        host_path: v.join(host).display().to_string(),
        container_path: inside.into(),
        readonly,
        ..Default::default()
    };
    let mut config = shell(
        "vol",
        "cat /etc/hosts; echo a > /rw/a; echo b > /ro/b; echo c > /rw/sub/c; echo d > /var/run/x/d; cat /made/no 2>/dev/null; ls -d /made",
    );
    config.mounts = vec![
        m("hosts", "/etc/hosts", false),
        m("link", "/rw", false),
        m("rw", "/ro", true),
        m("rw/sub", "/var/run/x", false),
        m("not-there", "/made", false),
    ];
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    let log = n.log("vol", "vol");
    assert!(
        log.contains("stdout F 1.2.3.4 x\n")
            && log.contains("can't create /ro/b: Read-only file system")
            && log.contains("stdout F /made\n"),
        "{log}"
    );
    assert!(
        v.join("rw/a").exists()
            && v.join("rw/sub/c").exists()
            && v.join("rw/sub/d").exists()
            && v.join("not-there").is_dir()
    );

    // The writable layer of the next container gets hostile links before its mounts are made.
    let mut config = shell("evil", "true");
    config.mounts = vec![m("rw", "/tmp/evil/target", false)];
    let id = n.create(&sandbox, &pod, config).await;
    let upper = n.config.root.join("containers").join(&id).join("upper");
    std::fs::create_dir_all(upper.join("tmp")).unwrap();
    std::os::unix::fs::symlink(
        "/../../../../../../../../../..".to_string() + &v.display().to_string(),
        upper.join("tmp/evil"),
    )
    .unwrap();
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    assert!(
        !v.join("target").exists()
            && upper
                .join(v.strip_prefix("/").unwrap())
                .join("target")
                .is_dir(),
        "the link led out of the container"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_are_updated_and_an_out_of_memory_kill_is_told() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("limits");
    let sandbox = n.run(&pod).await;
    let mut config = shell("oom", "x=a; while :; do x=$x$x; done");
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    });
    let id = n.create(&sandbox, &pod, config.clone()).await;
    n.start_container(&id).await.unwrap();
    let s = n.ended(&id).await;
    assert_eq!((s.exit_code, s.reason.as_str()), (137, "OOMKilled"));

    config.metadata.as_mut().unwrap().attempt = 1;
    config.args = vec!["while :; do :; done".into()];
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    let (files, before, after) = if v2() {
        let files = "cpu.weight cpu.max memory.max memory.oom.group";
        (
            files,
            "59\n50000 100000\n16777216\n1",
            "59\n20000 100000\n33554432\n1",
        )
    } else {
        let files = "cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes";
        (files, "512\n50000\n16777216", "512\n20000\n33554432")
    };
    let read = format!("cd /sys/fs/cgroup; cat {files}");
    assert_eq!(n.out(&id, &read).await, before);
    let linux = LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        cpu_quota: 20_000,
        ..Default::default()
    };
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    n.client.update_container_resources(update).await.unwrap();
    assert_eq!(n.out(&id, &read).await, after);
    let r = n.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((r.memory_limit_in_bytes, r.cpu_shares), (32 << 20, 512));
    let stats = n
        .client
        .container_stats(ContainerStatsRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let pods = n
        .client
        .pod_sandbox_stats(PodSandboxStatsRequest {
            pod_sandbox_id: sandbox,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(pods.stats.unwrap().linux.unwrap().containers.len(), 1);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_shared_as_the_pod_says() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let node_net = std::fs::read_link("/proc/self/ns/net")
        .unwrap()
        .display()
        .to_string();
    // Host network, pid and ipc.
    let mut pod = n.sandbox("host");
    let all_node = NamespaceOption {
        network: NamespaceMode::Node as i32,
        pid: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        ..Default::default()
    };
    let ns = |pod: &mut PodSandboxConfig, o: &NamespaceOption| {
        pod.linux
            .as_mut()
            .unwrap()
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options = Some(o.clone());
    };
    ns(&mut pod, &all_node);
    let sandbox = n.run(&pod).await;
    let config = with_security(shell("host", "sleep 1000 & sleep 1000"), |s| {
        s.namespace_options = Some(all_node.clone())
    });
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    assert_eq!(n.out(&id, "readlink /proc/self/ns/net").await, node_net);
    let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(
        n.out(&id, "hostname; cat /etc/hostname").await,
        format!("{0}\n{0}", node.trim())
    );
    let pids = n
        .out(
            &id,
            "cd /sys/fs/cgroup; cat pids/cgroup.procs || cat cgroup.procs",
        )
        .await;
    assert!(lines(&pids).len() >= 3, "shell, sleep, cat");
    let child = lines(&pids)[1].to_string();
    n.client
        .stop_container(StopContainerRequest {
            container_id: id.clone(),
            timeout: 0,
        })
        .await
        .unwrap();
    assert!(
        !std::path::Path::new(&format!("/proc/{child}/root")).exists(),
        "the rest of the container was killed too"
    );

    // One process namespace for the pod.
    let shared = NamespaceOption {
        pid: NamespaceMode::Pod as i32,
        ..Default::default()
    };
    let mut pod = n.sandbox("shared");
    ns(&mut pod, &shared);
    let sandbox = n.run(&pod).await;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let config = with_security(shell(name, "exec sleep 1001"), |s| {
            s.namespace_options = Some(shared.clone())
        });
        let id = n.create(&sandbox, &pod, config).await;
        n.start_container(&id).await.unwrap();
        ids.push(id);
    }
    assert_eq!(n.out(&ids[0], "ps | grep -c 'slee[p] 1001'").await, "2");
    assert_eq!(
        n.out(&ids[0], "ps -o pid,comm | grep ' 1 '").await,
        "1 skiff"
    );
    n.out(&ids[0], "echo x > /dev/shm/f").await;
    assert_eq!(n.out(&ids[1], "cat /dev/shm/f").await, "x");

    // A debug container in the process namespace of another.
    let mut pod = n.sandbox("target");
    pod.linux
        .as_mut()
        .unwrap()
        .sysctls
        .insert("net.ipv4.ip_forward".into(), "1".into());
    let sandbox = n.run(&pod).await;
    let app = n.sh(&sandbox, &pod, "app", "exec sleep 1002").await;
    let target = NamespaceOption {
        pid: NamespaceMode::Target as i32,
        target_id: app.clone(),
        ..Default::default()
    };
    let config = with_security(
        shell("debug", "ps; cat /proc/sys/net/ipv4/ip_forward; kill -9 -1"),
        |s| s.namespace_options = Some(target),
    );
    let debug = n.create(&sandbox, &pod, config).await;
    n.start_container(&debug).await.unwrap();
    n.ended(&debug).await;
    let log = n.log("target", "debug");
    assert!(
        log.contains(" 1 root     sleep 1002") && log.contains("stdout F 1\n"),
        "{log}"
    );
    assert_eq!(
        n.status(&app).await.state,
        ContainerState::ContainerRunning as i32,
        "pid 1 is not hit by kill -1"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_containers_have_everything_and_need_a_privileged_sandbox() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut pod = n.sandbox("priv");
    let refused = n.run(&pod).await;
    let config = with_security(shell("priv", "sleep 1000"), |s| s.privileged = true);
    let request = CreateContainerRequest {
        pod_sandbox_id: refused,
        config: Some(config.clone()),
        sandbox_config: None,
    };
    assert!(
        n.client
            .create_container(request)
            .await
            .unwrap_err()
            .message()
            .contains("no privileged container allowed")
    );
    pod.linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .privileged = true;
    pod.metadata.as_mut().unwrap().attempt = 1;
    let sandbox = n.run(&pod).await;
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    assert_eq!(n.out(&id, "mount -t tmpfs x /tmp && mkdir /tmp/ok && ls /tmp; test -c /dev/kmsg && echo kmsg; grep Seccomp: /proc/self/status").await, "ok\nkmsg\nSeccomp:\t0");
    assert_eq!(
        n.exec(
            &id,
            "cd /sys/fs/cgroup; cd pids || true; mkdir skiff-x && rmdir skiff-x"
        )
        .await
        .exit_code,
        0
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_split_reopened_and_complete_and_exec_output_is_cut_at_its_limit() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("logs");
    let sandbox = n.run(&pod).await;
    let id = n
        .sh(
            &sandbox,
            &pod,
            "big",
            "head -c 20000 /dev/zero | tr '\\0' x; echo; printf end",
        )
        .await;
    n.ended(&id).await;
    let log = n.log("logs", "big");
    let got: Vec<(String, usize)> = log
        .lines()
        .map(|l| (l[..8].to_string(), l.len() - 9))
        .collect();
    assert_eq!(
        got,
        [
            ("stdout P".to_string(), 16384),
            ("stdout F".into(), 3616),
            ("stdout P".into(), 3)
        ]
    );

    let id = n
        .sh(
            &sandbox,
            &pod,
            "tick",
            "while :; do echo t; sleep 0.02; done",
        )
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let path = n.dir.path().join("logs/logs/tick/0.log");
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    n.client
        .reopen_container_log(ReopenContainerLogRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(std::fs::metadata(&path).unwrap().len() > 0);
    let r = n.exec(&id, "head -c 20000000 /dev/zero").await;
    assert_eq!((r.stdout.len(), r.exit_code), (16 << 20, 0));
    let cmd = ["sleep", "100"].map(String::from).to_vec();
    let e = n
        .client
        .exec_sync(ExecSyncRequest {
            container_id: id.clone(),
            cmd,
            timeout: 1,
        })
        .await
        .unwrap_err();
    assert_eq!(e.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(
        n.out(&id, "ps | grep -c 'slee[p] 100' || true").await,
        "0",
        "the command was killed"
    );
    let cmd = vec!["no-such-program".to_string()];
    let e = n
        .client
        .exec_sync(ExecSyncRequest {
            container_id: id,
            cmd,
            timeout: 1,
        })
        .await
        .unwrap_err();
    assert!(
        e.message().contains("executable file not found in $PATH"),
        "{e}"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(unused_assignments)] // the last lap starts no other
async fn making_and_ending_pods_is_quick() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut times = [Duration::ZERO; 6];
    let rounds = 10;
    for i in 0..rounds {
        let pod = n.sandbox(&format!("q{i}"));
        let t = std::time::Instant::now();
        let mut last = t;
        macro_rules! lap {
            ($k:expr) => {
                times[$k] += last.elapsed();
                last = std::time::Instant::now();
            };
        }
        let sandbox = n.run(&pod).await;
        lap!(0);
        let id = n
            .create(
                &sandbox,
                &pod,
                shell("q", "while :; do echo; sleep 0.5; done"),
            )
            .await;
        lap!(1);
        n.start_container(&id).await.unwrap();
        lap!(2);
        if i == rounds - 1 {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: sandbox.clone(),
                verbose: true,
            };
            let info = n
                .client
                .pod_sandbox_status(request)
                .await
                .unwrap()
                .into_inner()
                .info;
            let pid = serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["pid"]
                .as_i64()
                .unwrap();
            tokio::time::sleep(Duration::from_millis(2200)).await;
            let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            eprintln!(
                "shim: {}",
                smaps
                    .lines()
                    .filter(|l| l.starts_with("Rss") || l.starts_with("Pss"))
                    .collect::<Vec<_>>()
                    .join("; ")
            );
            last = std::time::Instant::now();
        }
        n.client
            .stop_container(StopContainerRequest {
                container_id: id.clone(),
                timeout: 0,
            })
            .await
            .unwrap();
        lap!(3);
        n.client
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: sandbox.clone(),
            })
            .await
            .unwrap();
        lap!(4);
        n.client
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: sandbox,
            })
            .await
            .unwrap();
        lap!(5);
    }
    let begun = std::time::Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for i in 0..20 {
        let pod = n.sandbox(&format!("at-once-{i}"));
        let mut client = n.client.clone();
        all.spawn(async move {
            let run = RunPodSandboxRequest {
                config: Some(pod.clone()),
                runtime_handler: String::new(),
            };
            let id = client
                .run_pod_sandbox(run)
                .await
                .unwrap()
                .into_inner()
                .pod_sandbox_id;
            let config = Some(shell("q", "exec sleep 1000"));
            let create = CreateContainerRequest {
                pod_sandbox_id: id,
                config,
                sandbox_config: Some(pod),
            };
            let container_id = client
                .create_container(create)
                .await
                .unwrap()
                .into_inner()
                .container_id;
            client
                .start_container(StartContainerRequest { container_id })
                .await
                .unwrap();
        });
    }
    while let Some(r) = all.join_next().await {
        r.unwrap();
    }
    eprintln!(
        "20 pods at once: {:.1} ms",
        begun.elapsed().as_secs_f64() * 1000.0
    );
    let names = [
        "run sandbox",
        "create",
        "start",
        "stop",
        "stop sandbox",
        "remove sandbox",
    ];
    for (name, t) in names.iter().zip(times) {
        eprintln!(
            "{name}: {:.1} ms",
            t.as_secs_f64() * 1000.0 / f64::from(rounds)
        );
    }
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_propagate_as_asked_and_recursive_read_only_reaches_what_is_below() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut pod = n.sandbox("prop");
    let security = pod
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    security.privileged = true;
    let sandbox = n.run(&pod).await;
    let shared = n.dir.path().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let mount = |at: &std::path::Path, flags: u64| {
        skiff_runtime::sys::mount("tmpfs", at, "tmpfs", flags, "")
    };
    mount(&shared, 0).unwrap();
    mount(&shared, libc::MS_SHARED).unwrap();
    for d in ["early", "late", "made"] {
        std::fs::create_dir(shared.join(d)).unwrap();
    }
    mount(&shared.join("early"), 0).unwrap();
    let m = |inside: &str, propagation: MountPropagation| Mount {
        host_path: shared.display().to_string(),
        container_path: inside.into(),
        propagation: propagation as i32,
        ..Default::default()
    };
    let mut config = with_security(
        shell("prop", "mount -t tmpfs inner /both/made && sleep 1000"),
        |s| s.privileged = true,
    );
    config.mounts = vec![
        m("/none", MountPropagation::PropagationPrivate),
        m("/from", MountPropagation::PropagationHostToContainer),
        m("/both", MountPropagation::PropagationBidirectional),
        Mount {
            readonly: true,
            recursive_read_only: true,
            ..m("/rro", MountPropagation::PropagationPrivate)
        },
        Mount {
            readonly: true,
            ..m("/ro", MountPropagation::PropagationPrivate)
        },
    ];
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    mount(&shared.join("late"), 0).unwrap();
    std::fs::write(shared.join("late/file"), "").unwrap();
    assert_eq!(
        n.out(&id, "ls /none/late /from/late /both/late | tr '\\n' ' '")
            .await,
        "/both/late: file  /from/late: file  /none/late:"
    );
    assert_eq!(n.exec(&id, "touch /ro/x").await.exit_code, 1);
    assert_eq!(
        n.exec(&id, "touch /ro/early/x").await.exit_code,
        0,
        "plain readOnly is not recursive"
    );
    assert_eq!(n.exec(&id, "touch /rro/early/x").await.exit_code, 1);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let made = shared.join("made").display().to_string();
    assert!(
        mounts.contains(&format!("inner {made} tmpfs")),
        "the container's mount is seen by the node"
    );
    n.client
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: sandbox,
        })
        .await
        .unwrap();
    for d in ["made", "late", "early", ""] {
        skiff_runtime::sys::umount_detach(&shared.join(d)).unwrap();
    }
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_volumes_devices_and_profiles_of_the_node_are_usable() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("extra");
    let sandbox = n.run(&pod).await;
    let profile = n.dir.path().join("no-chmod.json");
    std::fs::write(&profile, r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}"#).unwrap();
    let script = "ls /img/etc; touch /img/x; chmod 700 /tmp; exec 9</dev/mydev && echo opened; ls -l /dev/mydev | cut -c1-10; mkdir -p /w";
    let mut config = with_security(shell("extra", script), |s| {
        let profile_type = security_profile::ProfileType::Localhost as i32;
        s.seccomp = Some(SecurityProfile {
            profile_type,
            localhost_ref: profile.display().to_string(),
        });
    });
    config.working_dir = "/made/by/runtime".into();
    config.devices = vec![Device {
        container_path: "/dev/mydev".into(),
        host_path: "/dev/cpu_dma_latency".into(),
        permissions: "rw".into(),
    }];
    let image = Some(ImageSpec {
        image: "busybox:test".into(),
        ..Default::default()
    });
    config.mounts = vec![Mount {
        container_path: "/img".into(),
        image,
        readonly: true,
        ..Default::default()
    }];
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    let log = n.log("extra", "extra");
    for line in [
        "stdout F passwd",
        "stderr F touch: /img/x: Read-only file system",
        "stderr F chmod: /tmp: Operation not permitted",
        "stdout F opened",
        "stdout F crw",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
    let e = n.client.create_container(CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(with_security(shell("x", ""), |s| {
            let profile_type = security_profile::ProfileType::Localhost as i32;
            s.seccomp = Some(SecurityProfile {
                profile_type,
                localhost_ref: "/no/such/profile.json".into(),
            });
        })),
        sandbox_config: None,
    });
    assert!(
        e.await
            .unwrap_err()
            .message()
            .contains("/no/such/profile.json")
    );
    let filter = ListContainersRequest {
        filter: Some(ContainerFilter {
            pod_sandbox_id: sandbox,
            ..Default::default()
        }),
    };
    let all = n
        .client
        .list_containers(filter)
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(
        all.len(),
        1,
        "a container that could not be made leaves nothing"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_use_is_not_removed_and_whose_it_is_is_known_without_a_server() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("p");
    let sandbox = n.run(&pod).await;
    let mut config = shell("main", "exit 0");
    for (k, v) in [("namespace", "team"), ("name", "web-0")] {
        config
            .labels
            .insert(format!("io.kubernetes.pod.{k}"), v.into());
    }
    let id = n.create(&sandbox, &pod, config).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    let remove = || RemoveImageRequest {
        image: Some(ImageSpec {
            image: "busybox:test".into(),
            ..Default::default()
        }),
    };
    // Also by one that has ended: it can be looked at, and its logs name the image.
    let e = n.images.remove_image(remove()).await.unwrap_err();
    assert_eq!(e.code(), tonic::Code::FailedPrecondition, "{e}");
    assert!(e.message().contains(&id), "{e}");
    n.stop_server().await;
    let state = n.dir.path().join("state");
    let store = skiff_runtime::images::ImageStore::open(&n.dir.path().join("images")).unwrap();
    let skiff_runtime::images::ImageError::InUse { by, .. } =
        store.untag("busybox:test", false).unwrap_err()
    else {
        panic!("another error");
    };
    assert_eq!(
        skiff_runtime::describe_holder(&state, &by[0]),
        format!("team/web-0/main ({})", &id[..12])
    );
    n.start_server().await;
    let request = RemoveContainerRequest { container_id: id };
    n.client.remove_container(request).await.unwrap();
    n.images.remove_image(remove()).await.unwrap();
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_asks_and_nothing_carries_out_is_refused_by_name() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let cidr = |pod_cidr: &str| UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(NetworkConfig {
                pod_cidr: pod_cidr.into(),
            }),
        }),
    };
    n.client.update_runtime_config(cidr("")).await.unwrap();
    let e = n.client.update_runtime_config(cidr("10.9.0.0/24")).await;
    let e = e.unwrap_err();
    assert!(
        e.message().contains("pod_cidr") && e.message().contains("10.9.0.0/24"),
        "{e}"
    );
    let mut pod = n.sandbox("p");
    pod.port_mappings = vec![PortMapping {
        host_ip: "everywhere".into(),
        host_port: 80,
        ..Default::default()
    }];
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: String::new(),
    };
    let e = n.client.run_pod_sandbox(request).await.unwrap_err();
    assert!(e.message().contains("port_mappings.host_ip"), "{e}");
    pod.port_mappings.clear();
    let sandbox = n.run(&pod).await;
    let mut config = shell("c", "true");
    config.cdi_devices = vec![CdiDevice {
        name: "vendor/class=x".into(),
    }];
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox,
        config: Some(config),
        sandbox_config: Some(pod),
    };
    let e = n.client.create_container(request).await.unwrap_err();
    assert!(e.message().contains("vendor/class=x"), "{e}");
    n.finish().await;
}
