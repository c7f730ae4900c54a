//! What a container can reach of the node's files and settings, tried from inside: each test fails on a runtime that
//! trusts a path or a request too much.

use super::harness::*;
use k8s_cri::v1::*;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_sysctls_of_its_own_namespaces_and_no_others() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let read = |p: &str| std::fs::read_to_string(Path::new("/proc/sys").join(p)).unwrap();
    let watched = [
        "kernel/core_pattern",
        "kernel/shmmax",
        "kernel/sem",
        "fs/mqueue/msg_max",
        "net/core/somaxconn",
        "vm/swappiness",
    ];
    let before: Vec<String> = watched.iter().map(|p| read(p)).collect();
    for (name, value) in [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel/core_pattern", "|/bin/evil"),
        ("net/../kernel/core_pattern", "|/bin/evil"),
        ("net/ipv4/../../kernel/core_pattern", "|/bin/evil"),
        ("kernel/../net/core/somaxconn", "77"),
        ("kernel.shmmax/../core_pattern", "|/bin/evil"),
        ("vm.swappiness", "1"),
        ("net", "1"),
        ("/net/core/somaxconn", "77"),
        ("../sys/net/core/somaxconn", "77"),
        ("kernel.hostname", "evil"),
        ("net.core.somaxconn\n", "77"),
    ] {
        let mut pod = n.sandbox("sysctl");
        linux(&mut pod).sysctls.insert(name.into(), value.into());
        let e = sandbox_refused(&mut n, &pod).await;
        assert!(
            e.contains("not in a separate kernel namespace") || e.contains("not the name of a"),
            "{name}: {e}"
        );
    }
    type Change = fn(&mut NamespaceOption);
    let network: Change = |o| o.network = NamespaceMode::Node as i32;
    let ipc: Change = |o| o.ipc = NamespaceMode::Node as i32;
    for (name, shared) in [
        ("net.core.somaxconn", network),
        ("net/core/somaxconn", network),
        ("kernel.shmmax", ipc),
        ("kernel/sem", ipc),
        ("fs.mqueue.msg_max", ipc),
    ] {
        let mut pod = n.sandbox("sysctl");
        shared(sandbox_namespaces(&mut pod));
        linux(&mut pod).sysctls.insert(name.into(), "77".into());
        let e = sandbox_refused(&mut n, &pod).await;
        assert!(e.contains("is not allowed in the host's"), "{name}: {e}");
    }
    let mut pod = n.sandbox("sysctl");
    for (name, value) in [
        ("net/core/somaxconn", "77"),
        ("net.ipv4.conf.lo.forwarding", "1"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel/sem", "100 200 30 40"),
        ("fs.mqueue.msg_max", "7"),
    ] {
        linux(&mut pod).sysctls.insert(name.into(), value.into());
    }
    let sandbox = n.run(&pod).await;
    let id = n.sh(&sandbox, &pod, "main", "sleep 1000").await;
    let script = "cd /proc/sys; cat net/core/somaxconn net/ipv4/conf/lo/forwarding kernel/shm_rmid_forced kernel/sem fs/mqueue/msg_max net/ipv4/ip_unprivileged_port_start";
    assert_eq!(
        n.out(&id, script).await.replace('\t', " "),
        "77\n1\n1\n100 200 30 40\n7\n0"
    );
    let after: Vec<String> = watched.iter().map(|p| read(p)).collect();
    assert_eq!(before, after, "the node's own settings");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_security_module_or_a_user_namespace_would_do_is_refused_by_name() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let selinux = || {
        Some(SeLinuxOption {
            level: "s0:c1,c2".into(),
            ..Default::default()
        })
    };
    let profile = |t: security_profile::ProfileType| {
        Some(SecurityProfile {
            profile_type: t as i32,
            localhost_ref: "locked".into(),
        })
    };
    use security_profile::ProfileType::*;
    let mut pod = n.sandbox("modules");
    let mut with = pod.clone();
    let s = linux(&mut with).security_context.as_mut().unwrap();
    s.selinux_options = selinux();
    let e = sandbox_refused(&mut n, &with).await;
    assert!(e.contains("selinux_options"), "{e}");
    let s = linux(&mut pod).security_context.as_mut().unwrap();
    s.apparmor = profile(Unconfined);
    s.privileged = true;
    let sandbox = n.run(&pod).await;
    for privileged in [false, true] {
        let c = with_security(shell("x", ""), |s| {
            s.privileged = privileged;
            s.selinux_options = selinux();
        });
        let e = create_refused(&mut n, &sandbox, c).await;
        assert!(e.contains("selinux_options"), "{e}");
        for t in [RuntimeDefault, Localhost] {
            let c = with_security(shell("x", ""), |s| {
                s.privileged = privileged;
                s.apparmor = profile(t);
            });
            let e = create_refused(&mut n, &sandbox, c).await;
            assert!(e.contains("AppArmor"), "{e}");
        }
    }
    let mut mapped = shell("x", "");
    mapped.mounts = vec![Mount {
        uid_mappings: vec![IdMapping {
            host_id: 0,
            container_id: 1000,
            length: 1,
        }],
        ..volume(n.dir.path(), "/v")
    }];
    let e = create_refused(&mut n, &sandbox, mapped).await;
    assert!(e.contains("uid_mappings"), "{e}");
    let mut cdi = shell("x", "");
    cdi.cdi_devices = vec![CdiDevice {
        name: "vendor.com/gpu=0".into(),
    }];
    let e = create_refused(&mut n, &sandbox, cdi).await;
    assert!(e.contains("vendor.com/gpu=0"), "{e}");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_can_ask_for_an_unmasked_proc() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("unmasked");
    let sandbox = n.run(&pod).await;
    let swappiness = std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    let lists: [(&str, Vec<String>); 3] = [
        ("none", vec![]),
        ("other", vec!["/home".into()]),
        ("proc", vec!["/proc".into()]),
    ];
    for (name, list) in lists {
        let c = with_security(shell(name, "sleep 1000"), |s| {
            s.masked_paths = if name == "proc" { vec![] } else { list.clone() };
            s.readonly_paths = list;
            s.seccomp = None;
            s.capabilities = Some(Capability {
                add_capabilities: vec!["ALL".into()],
                drop_capabilities: vec!["SYS_ADMIN".into()],
                ..Default::default()
            });
        });
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        for write in [
            "echo 1 > /proc/sys/vm/swappiness",
            "echo x > /proc/sysrq-trigger",
            "chmod 777 /proc/interrupts",
            "chmod 000 /proc/keys",
        ] {
            assert_eq!(n.exec(&id, write).await.exit_code, 1, "{name}: {write}");
        }
        let script = "wc -c < /proc/interrupts; wc -c < /proc/timer_list; ls /sys/firmware | wc -l";
        assert_eq!(n.out(&id, script).await, "0\n0\n0", "{name}");
    }
    assert_eq!(
        std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap(),
        swappiness
    );
    let null = std::fs::metadata("/dev/null").unwrap();
    assert_eq!(null.permissions().mode() & 0o777, 0o666);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_name_is_masked_and_not_what_its_link_points_to() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("links");
    let sandbox = n.run(&pod).await;
    // Every command of the image is a link to one program (as critest's case over /bin/ls has it).
    let c = with_security(shell("ls", "sleep 1000"), |s| {
        s.masked_paths = ["/bin/ls", "/etc", "/not/there", "/out", "/self"]
            .map(String::from)
            .to_vec();
    });
    let id = n.create(&sandbox, &pod, c).await;
    let outside = n.dir.path().join("outside");
    std::fs::write(&outside, "node").unwrap();
    let to_node = format!("/../../../..{}", outside.display());
    symlink(&to_node, upper(&n, &id).join("out")).unwrap();
    symlink("/proc/self/exe", upper(&n, &id).join("self")).unwrap();
    n.start_container(&id).await.unwrap();
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["/bin/ls".into(), "/".into()],
        timeout: 10,
    };
    let e = n.client.exec_sync(request).await.expect_err("it ran");
    assert!(
        e.message().contains("\"/bin/ls\": permission denied"),
        "{e}"
    );
    // The sh it runs in is the same program.
    let script = "busybox ls /etc | wc -l; test -c /bin/ls && wc -c < /out && wc -c < /self";
    assert_eq!(n.out(&id, script).await, "0\n0\n0");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "node");
    n.finish().await;
}

/// Places of mounts that an image or a volume sends elsewhere by a link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_mounted_at_proc_or_through_links_that_lead_there() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("over");
    let sandbox = n.run(&pod).await;
    let v = n.dir.path().join("v");
    std::fs::create_dir_all(v.join("sys/kernel")).unwrap();
    std::fs::write(v.join("file"), "mine\n").unwrap();
    for path in [
        "/proc",
        "/proc/",
        "/proc/sys",
        "/proc/sys/kernel",
        "/proc/self/attr",
        "/x/../proc/1",
        "//proc",
        "/",
        "/..",
    ] {
        let mut c = shell("x", "");
        c.mounts = vec![volume(&v, path)];
        let e = create_refused(&mut n, &sandbox, c).await;
        assert!(
            e.contains("inside /proc") || e.contains("root directory"),
            "{path}: {e}"
        );
    }
    // (link in the image, what it points to, where the volume goes, its source)
    let cases = [
        ("data", "/proc", "/data", &v),
        ("data", "proc/sys", "/data/kernel", &v),
        ("data", "/proc/self/attr", "/data", &v),
        (
            "data",
            "/proc/sys/kernel/core_pattern",
            "/data",
            &v.join("file"),
        ),
        ("data", "/", "/data", &v),
        ("data", "/proc/1/root", "/data", &v),
        ("proc", "/tmp", "/unrelated", &v),
        ("sys", "tmp", "/unrelated", &v),
        ("dev", "/tmp", "/unrelated", &v),
    ];
    for (i, (link, to, at, source)) in cases.iter().enumerate() {
        let mut c = shell(&format!("link{i}"), "sleep 1000");
        c.mounts = vec![volume(source, at)];
        let id = n.create(&sandbox, &pod, c).await;
        symlink(to, upper(&n, &id).join(link)).unwrap();
        let e = n.start_container(&id).await;
        let e = e.expect_err("started").message().to_string();
        assert!(
            [
                "inside /proc",
                "root directory",
                "symbolic link",
                "symbolic links"
            ]
            .iter()
            .any(|w| e.contains(w)),
            "{link} -> {to}, {at}: {e}"
        );
    }
    // The same by a link inside of a volume.
    symlink("../proc", v.join("p")).unwrap();
    let mut c = shell("nested", "sleep 1000");
    c.mounts = vec![volume(&v, "/vol"), volume(&v, "/vol/p")];
    let id = n.create(&sandbox, &pod, c).await;
    let e = n.start_container(&id).await.expect_err("started");
    assert!(e.message().contains("inside /proc"), "{e}");
    // LXCFS may show single files of /proc.
    let mut c = shell("lxcfs", "cat /proc/uptime");
    c.mounts = vec![volume(&v.join("file"), "/proc/uptime")];
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    assert_eq!(n.log("over", "lxcfs"), "stdout F mine\n");
    let names: Vec<_> = std::fs::read_dir(&v)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 3, "nothing was made in the volume: {names:?}");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_at_dev_gets_no_devices_and_its_null_makes_no_mask() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("dev");
    let sandbox = n.run(&pod).await;
    let v = n.dir.path().join("devvol");
    std::fs::create_dir_all(&v).unwrap();
    let secret = n.dir.path().join("secret");
    std::fs::write(&secret, "of the node").unwrap();
    symlink("/etc/passwd", v.join("null")).unwrap();
    for tty in [false, true] {
        let script = "wc -c < /proc/interrupts; wc -c < /proc/keys; busybox ls /dev | tr '\\n' ' '; sleep 1000";
        let mut c = shell(&format!("dev{tty}"), script);
        c.tty = tty;
        c.mounts = vec![volume(&v, "/dev")];
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        let text = n
            .out(
                &id,
                "stat -c '%t:%T' /proc/interrupts /proc/keys; wc -c < /proc/interrupts; ls /dev | tr '\\n' ' '",
            )
            .await;
        assert_eq!(text, "1:3\n1:3\n0\nmqueue null pts shm");
        assert_eq!(n.exec(&id, "chmod 777 /proc/interrupts").await.exit_code, 1);
    }
    for e in std::fs::read_dir(&v).unwrap() {
        let e = e.unwrap();
        let t = e.file_type().unwrap();
        assert!(!t.is_char_device() && !t.is_block_device(), "{e:?}");
    }
    // A fifo, a file, another device, or nothing in the place of /dev/null.
    for (i, kind) in ["fifo", "file", "zero", "nothing"].iter().enumerate() {
        let v = n.dir.path().join(format!("dev{i}"));
        std::fs::create_dir_all(&v).unwrap();
        let null = v.join("null");
        match *kind {
            "fifo" => rustix::fs::mkfifoat(
                rustix::fs::CWD,
                &null,
                rustix::fs::Mode::from_raw_mode(0o666),
            )
            .unwrap(),
            "file" => std::fs::write(&null, "not null").unwrap(),
            "zero" => rustix::fs::mknodat(
                rustix::fs::CWD,
                &null,
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::from_raw_mode(0o666),
                rustix::fs::makedev(1, 5),
            )
            .unwrap(),
            _ => {}
        }
        let mut c = shell(
            kind,
            "stat -c '%t:%T' /proc/interrupts; busybox ls / | wc -l",
        );
        c.mounts = vec![volume(&v, "/dev")];
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        n.ended(&id).await;
        let log = n.log("dev", kind);
        assert!(log.starts_with("stdout F 1:3\n"), "{kind}: {log}");
        assert!(!log.ends_with(" 1\n"), "{kind}: the root is there: {log}");
    }
    // A device of the request in the place of /dev/null.
    let mut c = shell("device", "stat -c '%t:%T' /dev/null /proc/interrupts");
    c.devices = vec![Device {
        container_path: "/dev/null".into(),
        host_path: "/dev/zero".into(),
        permissions: "rw".into(),
    }];
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    assert_eq!(n.log("dev", "device"), "stdout F 1:5\nstdout F 1:3\n");
    assert_eq!(
        std::fs::metadata("/dev/null").unwrap().mode() & 0o777,
        0o666
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_takes_the_place_of_nothing_that_is_something_else() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("node");
    let sandbox = n.run(&pod).await;
    let device = |at: &str| {
        vec![Device {
            container_path: at.into(),
            host_path: "/dev/zero".into(),
            permissions: "rw".into(),
        }]
    };
    let mut c = shell("file", "sleep 1000");
    c.devices = device("/etc/passwd");
    let id = n.create(&sandbox, &pod, c).await;
    let e = n.start_container(&id).await.expect_err("started");
    assert!(e.message().contains("/etc/passwd"), "{e}");
    let mut c = shell("deep", "stat -c '%t:%T %a' /opt/a/zero /dev/x/zero");
    c.devices = [device("/opt/a/zero"), device("/dev/x/zero")].concat();
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    assert_eq!(
        n.log("node", "deep"),
        "stdout F 1:5 666\nstdout F 1:5 666\n"
    );
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_s_null_device_is_not_a_container_s_to_change() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mut pod = n.sandbox("null");
    sandbox_namespaces(&mut pod).pid = NamespaceMode::Pod as i32;
    let sandbox = n.run(&pod).await;
    let state = || {
        let m = std::fs::metadata("/dev/null").unwrap();
        (m.mode() & 0o7777, m.uid(), m.gid())
    };
    let before = state();
    let change = "for f in /dev/stdin /proc/self/fd/0 /proc/interrupts /dev/null /proc/1/fd/0; do chmod 640 $f; chown 7:8 $f; done; stat -Lc %a /dev/stdin";
    let c = with_security(tracer("null", &format!("{change}; sleep 1000")), |s| {
        s.namespace_options = Some(NamespaceOption {
            pid: NamespaceMode::Pod as i32,
            ..Default::default()
        })
    });
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    let own = n.out(&id, &format!("({change}) 2>&1 | tail -1")).await;
    let after = state();
    // Whatever comes out, the machine must go on.
    std::fs::set_permissions("/dev/null", std::fs::Permissions::from_mode(before.0)).unwrap();
    std::os::unix::fs::chown("/dev/null", Some(before.1), Some(before.2)).unwrap();
    assert_eq!((before, own.as_str()), (after, "640"));
    n.finish().await;
}
