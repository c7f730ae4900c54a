//! What a process has, and what others see of it, on its way to its program: each test fails on a runtime that lets
//! something of the node be there for a moment.

use super::harness::*;
use k8s_cri::v1::*;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_starts_with_its_standard_descriptors_only() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    // What a server was started with, or forgot to mark.
    let held = std::fs::File::open(n.dir.path()).unwrap();
    let leak = rustix::io::dup(&held).unwrap();
    let list = "for f in /proc/self/fd/*; do busybox readlink $f; done | grep -v '^/proc/' | grep -vE '^(pipe:|/dev/null|/dev/pts/0)'; echo end";
    let pod = n.sandbox("fds");
    let sandbox = n.run(&pod).await;
    for tty in [false, true] {
        let name = format!("fds{tty}");
        let mut c = shell(&name, &format!("{list}; sleep 1000"));
        c.tty = tty;
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        assert_eq!(n.out(&id, list).await, "end");
        for _ in 0..200 {
            if n.log("fds", &name).contains("end") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = n.log("fds", &name);
        assert_eq!(log.trim().trim_end_matches('\r'), "stdout F end");
    }
    drop(leak);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_working_directory_is_inside_of_the_root_or_the_start_fails() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("cwd");
    let sandbox = n.run(&pod).await;
    let mut refused = 0;
    let descriptors = (0..24).map(|i| format!("/proc/self/fd/{i}"));
    let others = [
        "/proc/self/fd/9/../../..",
        "/proc/self/cwd/..",
        "/proc/1/root",
        "/proc/thread-self/fd/7",
        "/link",
        "/etc/passwd",
    ];
    for (i, cwd) in descriptors.chain(others.map(String::from)).enumerate() {
        let name = format!("cwd{i}");
        let mut c = shell(&name, "pwd; ls -di / . | busybox tr '\\n' ' '");
        c.working_dir = cwd.clone();
        let id = n.create(&sandbox, &pod, c).await;
        symlink("/proc/self/fd/8", upper(&n, &id).join("link")).unwrap();
        let e = n.start_container(&id).await.expect_err(&cwd);
        assert!(e.message().contains("chdir to cwd"), "{cwd}: {e}");
        refused += 1;
    }
    assert_eq!(refused, 30);
    for (name, cwd, want) in [
        ("made", "/made/here", "/made/here"),
        ("up", "/tmp/../../../etc", "/etc"),
        ("linked", "/l/x", "/tmp/x"),
    ] {
        let mut c = shell(name, "pwd");
        c.working_dir = cwd.into();
        let id = n.create(&sandbox, &pod, c).await;
        symlink("/tmp", upper(&n, &id).join("l")).unwrap();
        n.start_container(&id).await.unwrap();
        n.ended(&id).await;
        assert_eq!(n.log("cwd", name), format!("stdout F {want}\n"));
    }
    n.finish().await;
}

/// Looks at every process it can see, over and over, for one that is less confined than the container: another root, a
/// capability that the container lacks, or no filter. Prints one line for each, and `looking` once it is at it.
///
/// With `quiet`, nobody in the container opens a directory but the runtime, and that would be seen too.
fn spy(mark: &Path, quiet: bool) -> String {
    let look = "for f in $p/fd/*; do [ -d $f ] && echo DIR $p $f; done;";
    format!(
        "echo looking; while :; do for p in /proc/[0-9]*; do \
           [ -e $p/root{0} ] && echo ROOT $p; {1} \
           while read k v; do case \"$k $v\" in \
             'Seccomp: 0') echo BARE $p;; \
             *:*0000000000000000|Cap*:*00000000a80425fb|Cap*:*00000000a80c25fb) ;; \
             CapEff:*|CapBnd:*) echo CAPS $p $k $v;; esac; done < $p/status; \
         done 2>/dev/null; done",
        mark.display(),
        if quiet { look } else { "" }
    )
}

async fn watched_for(n: &mut Node, pod: &str, name: &str) {
    for _ in 0..200 {
        if n.log(pod, name).contains("looking") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the spy does not look");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_is_never_seen_with_the_node_s_root_or_less_confined_than_the_container() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mark = n.dir.path().join("mark");
    std::fs::write(&mark, "").unwrap();
    let pod = n.sandbox("spied");
    let sandbox = n.run(&pod).await;
    for nnp in [false, true] {
        let name = format!("spy{nnp}");
        let c = with_security(tracer(&name, &spy(&mark, true)), |s| s.no_new_privs = nnp);
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        watched_for(&mut n, "spied", &name).await;
        for i in 0..40 {
            assert_eq!(n.exec(&id, &format!("exit {i}")).await.exit_code, i);
        }
        n.client
            .stop_container(StopContainerRequest {
                container_id: id,
                timeout: 0,
            })
            .await
            .unwrap();
        assert_eq!(n.log("spied", &name), "stdout F looking\n");
    }
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_share_processes_see_neither_pid_1_nor_a_start_unconfined() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let mark = n.dir.path().join("mark");
    std::fs::write(&mark, "").unwrap();
    let mut pod = n.sandbox("shared");
    sandbox_namespaces(&mut pod).pid = NamespaceMode::Pod as i32;
    let sandbox = n.run(&pod).await;
    let shared = |c: ContainerConfig, target: Option<&str>| {
        with_security(c, |s| {
            s.namespace_options = Some(NamespaceOption {
                pid: match target {
                    Some(_) => NamespaceMode::Target as i32,
                    None => NamespaceMode::Pod as i32,
                },
                target_id: target.unwrap_or_default().into(),
                ..Default::default()
            });
        })
    };
    let spy_id = n
        .create(
            &sandbox,
            &pod,
            shared(tracer("spy", &spy(&mark, false)), None),
        )
        .await;
    n.start_container(&spy_id).await.unwrap();
    watched_for(&mut n, "shared", "spy").await;
    let ask = "cd /proc/1; grep -E '^(Uid|CapEff|CapBnd|CapPrm|NoNewPrivs|Seccomp):' status | tr -s '\\t' ' '; busybox ls -A root/ | tr '\\n' ' '; busybox ls root/p | wc -l; busybox ls fd | wc -l; ls cwd/ | wc -l; (: > exe) 2>&1 | grep -o 'Read-only file system'";
    assert_eq!(
        n.out(&spy_id, ask).await,
        "Uid: 65535 65535 65535 65535\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\np 0\n3\n1\nRead-only file system"
    );
    // Not by a detour through its /proc either: this one must not be writable.
    for way in ["root/proc", "root/p/sys/vm/swappiness", "root/p/1"] {
        let e = n.exec(&spy_id, &format!("busybox ls /proc/1/{way}")).await;
        assert_ne!(e.exit_code, 0, "{way}");
    }
    for i in 0..10 {
        let c = shared(shell(&format!("c{i}"), "exec sleep 1000"), None);
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        assert_eq!(n.exec(&id, "exit 4").await.exit_code, 4);
        assert_eq!(
            n.exec(&id, "echo 1 > /proc/sys/vm/swappiness")
                .await
                .exit_code,
            1
        );
        assert_eq!(n.out(&id, "stat -c %t:%T /proc/interrupts").await, "1:3");
        assert_eq!(
            n.out(&id, "ps | grep -c 'slee[p] 1000'").await,
            (i + 1).to_string()
        );
    }
    let e = n.exec(&spy_id, "exit 5").await;
    assert_eq!(e.exit_code, 5);
    n.client
        .stop_container(StopContainerRequest {
            container_id: spy_id,
            timeout: 0,
        })
        .await
        .unwrap();
    assert_eq!(n.log("shared", "spy"), "stdout F looking\n");

    // A container whose own processes another one joins.
    let app = n
        .create(&sandbox, &pod, {
            let c = tracer("app", &spy(&mark, false));
            with_security(c, |s| {
                s.namespace_options = Some(NamespaceOption {
                    pid: NamespaceMode::Container as i32,
                    ..Default::default()
                })
            })
        })
        .await;
    n.start_container(&app).await.unwrap();
    watched_for(&mut n, "shared", "app").await;
    for i in 0..5 {
        let c = shared(shell(&format!("debug{i}"), "exec sleep 1001"), Some(&app));
        let id = n.create(&sandbox, &pod, c).await;
        n.start_container(&id).await.unwrap();
        assert!(n.out(&id, "ps").await.contains("sleep 1001"));
        assert_eq!(
            n.out(
                &id,
                "readlink /proc/self/root; stat -c %t:%T /proc/interrupts"
            )
            .await,
            "/\n1:3"
        );
    }
    n.client
        .stop_container(StopContainerRequest {
            container_id: app,
            timeout: 0,
        })
        .await
        .unwrap();
    assert_eq!(n.log("shared", "app"), "stdout F looking\n");
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_the_runtime_cannot_be_written_from_a_container() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    // Without the protected view of the program there is no shim.
    let e = skiff_runtime::shim::client::Shim::spawn(
        n.dir.path(),
        Path::new("/no/such/program"),
        &Default::default(),
    );
    let e = e.expect_err("started").to_string();
    assert!(e.contains("protect the program of the shim"), "{e}");
    let exe = std::env::current_exe().unwrap();
    let size = std::fs::metadata(&exe).unwrap().len();
    let pod = n.sandbox("exe");
    let sandbox = n.run(&pod).await;
    // The program that becomes the container is the runtime's until it has become it.
    let mut c = shell("exe", "");
    c.command = vec!["/proc/self/exe".into(), "--list".into()];
    c.args = vec![];
    let id = n.create(&sandbox, &pod, c).await;
    n.start_container(&id).await.unwrap();
    n.ended(&id).await;
    let mut c = shell("link", "");
    c.command = vec!["/bin/again".into(), "--list".into()];
    c.args = vec![];
    let id = n.create(&sandbox, &pod, c).await;
    std::fs::create_dir_all(upper(&n, &id).join("bin")).unwrap();
    symlink("/proc/self/exe", upper(&n, &id).join("bin/again")).unwrap();
    let _ = n.start_container(&id).await;
    assert_eq!(std::fs::metadata(&exe).unwrap().len(), size);
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seccomp_profile_of_the_node_holds_for_start_and_exec_and_a_bad_one_is_refused() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("seccomp");
    let sandbox = n.run(&pod).await;
    let dir = n.dir.path().join("profiles");
    std::fs::create_dir_all(&dir).unwrap();
    let with = |name: &str, path: &Path, nnp: bool| {
        with_security(
            shell(name, "mkdir /tmp/a; chmod 700 /tmp; sleep 1000"),
            |s| {
                s.no_new_privs = nnp;
                s.seccomp = Some(SecurityProfile {
                    profile_type: security_profile::ProfileType::Localhost as i32,
                    localhost_ref: path.display().to_string(),
                });
            },
        )
    };
    let profile = |name: &str, text: &str| {
        let p = dir.join(name);
        std::fs::write(&p, text).unwrap();
        p
    };
    // Docker's form, with a rule that counts for this container and one that does not.
    let docker = profile(
        "docker.json",
        r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],
           "syscalls":[{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":13,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
                       {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#,
    );
    for nnp in [false, true] {
        let id = n
            .create(&sandbox, &pod, with(&format!("docker{nnp}"), &docker, nnp))
            .await;
        n.start_container(&id).await.unwrap();
        let r = n.exec(&id, "ls -d /tmp/a && chmod 700 /etc").await;
        let said = String::from_utf8_lossy(&r.stderr).into_owned();
        assert_eq!(r.exit_code, 1, "{said}");
        assert!(said.contains("Permission denied"), "{said}");
        assert_eq!(
            n.out(&id, "grep Seccomp: /proc/self/status | tr -d '\\t'")
                .await,
            "Seccomp:2"
        );
    }
    // One that lets nothing be born: started on its own it runs, and an exec gets its filter later or not at all.
    let lonely = profile(
        "lonely.json",
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["setsid"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    for nnp in [false, true] {
        let id = n
            .create(&sandbox, &pod, with(&format!("lonely{nnp}"), &lonely, nnp))
            .await;
        n.start_container(&id).await.unwrap();
        let cmd = ["/bin/sh", "-c", "grep Seccomp: /proc/self/status"]
            .map(String::from)
            .to_vec();
        let r = n
            .client
            .exec_sync(ExecSyncRequest {
                container_id: id,
                cmd,
                timeout: 10,
            })
            .await;
        match r {
            Ok(r) => {
                assert!(nnp);
                assert_eq!(r.into_inner().stdout, b"Seccomp:\t2\n");
            }
            Err(e) => assert!(!nnp && e.message().contains("does not allow clone"), "{e}"),
        }
    }
    let fifo = dir.join("fifo");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    for (path, want) in [
        (fifo, "not a regular file"),
        (dir.clone(), "not a regular file"),
        (dir.join("none.json"), "none.json"),
        (PathBuf::from("relative.json"), "not an absolute path"),
        (profile("big.json", &" ".repeat(2 << 20)), "larger than"),
        (
            profile("notify.json", r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
            "SCMP_ACT_NOTIFY",
        ),
        (
            profile(
                "unknown.json",
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscall":[]}"#,
            ),
            "syscall",
        ),
    ] {
        let e = create_refused(&mut n, &sandbox, with("bad", &path, false)).await;
        assert!(e.contains(want), "{want}: {e}");
    }
    n.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_image_that_an_exec_looks_at_cannot_hold_it_up() {
    if skip() {
        return;
    }
    let mut n = Node::start().await;
    let pod = n.sandbox("passwd");
    let sandbox = n.run(&pod).await;
    let script = "rm /etc/passwd; mkfifo /etc/passwd; echo done; sleep 1000";
    let id = n.sh(&sandbox, &pod, "fifo", script).await;
    for _ in 0..200 {
        if n.log("passwd", "fifo").contains("done") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(n.out(&id, "echo $HOME").await, "/");
    let change = "rm /etc/passwd; ln -s /proc/1/root/etc/group /etc/passwd";
    n.out(&id, change).await;
    assert_eq!(n.out(&id, "echo $HOME").await, "/");
    n.finish().await;
}
