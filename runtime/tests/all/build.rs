//! Image builds with RUN: the real shim, the real set-up, on this machine.

use super::harness::*;
use skiff_runtime::build_step::{self, Runner};
use skiff_runtime::images::build::{BuildContext, BuildOptions, Network, build};
use skiff_runtime::images::{ImageError, ImageRecord, ImageStore};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

type Built = Result<Arc<ImageRecord>, ImageError>;

struct Bench {
    dir: tempfile::TempDir,
    store: ImageStore,
    cgroup: String,
    memory: i64,
    cancel: CancellationToken,
    _rt: tokio::runtime::Runtime,
}

const BASE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

fn runner(
    cgroup: &str,
    memory: i64,
    cancel: &CancellationToken,
    rt: &tokio::runtime::Runtime,
) -> Runner {
    Runner {
        cgroups: skiff_runtime::cgroup::Hierarchies::detect().unwrap(),
        cgroup_parent: cgroup.into(),
        shim_exe: PathBuf::from("/proc/self/exe"),
        network: Arc::new(skiff_runtime::NoNetwork),
        memory_limit: memory,
        cancel: cancel.clone(),
        runtime: rt.handle().clone(),
    }
}

fn new_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// `imagebuild DIR CGROUP`: builds DIR/ctx into DIR/store in a process of its own; says each line of progress.
pub fn imagebuild_main(args: &[OsString]) -> ! {
    let dir = Path::new(&args[0]);
    let rt = new_runtime();
    let store = ImageStore::open(&dir.join("store")).unwrap();
    let runner = runner(
        args[1].to_str().unwrap(),
        1 << 30,
        &CancellationToken::new(),
        &rt,
    );
    let options = BuildOptions {
        context: dir.join("ctx"),
        tags: vec!["test/killed:1".into()],
        ..Default::default()
    };
    let around = BuildContext {
        progress: &|l| println!("{l}"),
        fetch: &|n| Err(ImageError::NotFound(n.to_owned())),
        runner: &runner,
    };
    match build(&store, &options, &around) {
        Ok(_) => println!("BUILT"),
        Err(e) => println!("FAILED {e}"),
    }
    std::process::exit(0)
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("skiff-build-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let store = ImageStore::open(&dir.path().join("store")).unwrap();
        let ctx = dir.path().join("ctx");
        fs::create_dir(&ctx).unwrap();
        for (name, text) in files {
            let p = ctx.join(name);
            fs::create_dir_all(p.parent().unwrap()).unwrap();
            fs::write(p, text).unwrap();
        }
        fs::copy("/bin/busybox", ctx.join("busybox")).unwrap();
        Bench {
            dir,
            store,
            cgroup: format!("/skiff-test-{}", &skiff_runtime::state::new_id()[..8]),
            memory: 1 << 30,
            cancel: CancellationToken::new(),
            _rt: new_runtime(),
        }
    }

    fn ctx(&self) -> PathBuf {
        self.dir.path().join("ctx")
    }

    fn build(&self, dockerfile: &str) -> Built {
        self.build_with(dockerfile, |_| {}).0
    }

    fn build_with(
        &self,
        dockerfile: &str,
        change: impl FnOnce(&mut BuildOptions),
    ) -> (Built, String) {
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
        let runner = runner(&self.cgroup, self.memory, &self.cancel, &self._rt);
        let around = BuildContext {
            progress: &progress,
            fetch: &|n| Err(ImageError::NotFound(n.to_owned())),
            runner: &runner,
        };
        let r = build(&self.store, &options, &around);
        self.nothing_is_left();
        let said = lines.lock().unwrap().clone();
        (r, said)
    }

    /// Work directories, mounts, cgroups and processes.
    fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        let tmp = self.store.root().join("tmp");
        for e in fs::read_dir(&tmp).unwrap().flatten() {
            found.push(e.path().display().to_string());
        }
        let dir = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|l| l.contains(dir)).map(String::from));
        let cgroups = skiff_runtime::cgroup::Hierarchies::detect().unwrap();
        for f in cgroups.procs_files(&format!("{}/builds", self.cgroup)) {
            for e in fs::read_dir(f.parent().unwrap())
                .into_iter()
                .flatten()
                .flatten()
            {
                if e.path().is_dir() {
                    found.push(e.path().display().to_string());
                }
            }
        }
        for e in fs::read_dir("/proc").unwrap().flatten() {
            let text = fs::read(e.path().join("cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            if text.starts_with("skiff\0shim\0") && text.contains(dir) {
                found.push(text);
            }
        }
        found
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
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

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(cgroups) = skiff_runtime::cgroup::Hierarchies::detect() {
            cgroups.kill_tree(&self.cgroup);
            let _ = cgroups.remove(&self.cgroup);
        }
    }
}

#[test]
fn an_image_is_built_run_and_configured() {
    if skip() {
        return;
    }
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
        b.text("data/caps").contains("CapBnd:\t00000000a00425fb"),
        "Docker's default set without MKNOD"
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
    for p in [
        "proc",
        "dev",
        "sys",
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
    ] {
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
fn a_failing_run_names_its_line_and_shows_its_output() {
    if skip() {
        return;
    }
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
    if skip() {
        return;
    }
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
}

#[test]
fn a_step_is_confined_like_a_pod_s_container() {
    if skip() {
        return;
    }
    let b = Bench::new(&[]);
    let image = b.build(&format!(
        "{BASE}RUN grep -E 'Seccomp:|CapEff' /proc/self/status > /status; cat /proc/self/cgroup > /cgroup; \
         mknod /null c 1 3 && echo made > /device; mount -t tmpfs t /tmp && echo mounted > /device; \
         echo 1 > /proc/sys/kernel/printk && echo wrote > /device; unshare -m true && echo unshared > /device; \
         ls -l /proc/keys /proc/kcore > /masked; grep ' /dev/shm ' /proc/mounts > /shm; \
         cat /proc/self/oom_score_adj > /oom; true\n"
    ));
    image.unwrap();
    // Docker's set without MKNOD, and a filter.
    assert_eq!(b.text("status"), "CapEff:\t00000000a00425fb\nSeccomp:\t2\n");
    assert!(!b.look("device").exists(), "{}", b.text("device"));
    // Those of them that this kernel has.
    for line in b.text("masked").lines() {
        assert!(line.starts_with('c') && line.contains("1,   3"), "{line}");
    }
    assert!(b.text("shm").starts_with("shm /dev/shm tmpfs") || b.text("shm").contains("tmpfs"));
    assert_eq!(b.text("oom"), "1000\n");
    // A cgroup namespace of its own: it does not see where it is.
    assert!(
        !b.text("cgroup").contains(&b.cgroup),
        "{}",
        b.text("cgroup")
    );
}

#[test]
fn a_step_has_limits() {
    if skip() {
        return;
    }
    let mut b = Bench::new(&[]);
    b.memory = 32 << 20;
    let eats = format!(
        "{BASE}RUN [\"/bin/dd\", \"if=/dev/zero\", \"of=/dev/null\", \"bs=200M\", \"count=1\"]\n"
    );
    let e = b.build(&eats).unwrap_err().to_string();
    assert!(
        e.contains("Dockerfile:4: ") && e.contains("ran out of memory (limit 32 MiB"),
        "{e}"
    );
    b.memory = 1 << 30;
    let cgroup = b.cgroup.clone();
    let pids = if v2() {
        format!("/sys/fs/cgroup{cgroup}/builds")
    } else {
        format!("/sys/fs/cgroup/pids{cgroup}/builds")
    };
    // Looked at from outside, while it runs.
    let (stop, found) = (
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
        Arc::new(Mutex::new(String::new())),
    );
    let (s, f) = (stop.clone(), found.clone());
    let watcher = std::thread::spawn(move || {
        while !s.load(std::sync::atomic::Ordering::Relaxed) {
            for e in fs::read_dir(&pids).into_iter().flatten().flatten() {
                let procs = fs::read_to_string(e.path().join("cgroup.procs")).unwrap_or_default();
                if let (false, Ok(max)) = (
                    procs.trim().is_empty(),
                    fs::read_to_string(e.path().join("pids.max")),
                ) {
                    *f.lock().unwrap() = max.trim().to_string();
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    b.build(&format!("{BASE}RUN sleep 0.3\n")).unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    watcher.join().unwrap();
    assert_eq!(*found.lock().unwrap(), "4096");
}

#[test]
fn what_is_mounted_for_a_step_never_lands_in_its_layer_whatever_links_the_image_has() {
    if skip() {
        return;
    }
    let b = Bench::new(&[]);
    let outside = b.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("witness"), "w").unwrap();
    // Links as distributions have them, and as an attacker would make them.
    let root = b.ctx().join("root");
    for d in ["etc", "bin"] {
        fs::create_dir_all(root.join(d)).unwrap();
    }
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        root.join("etc/resolv.conf"),
    )
    .unwrap();
    symlink(outside.join("hosts"), root.join("etc/hosts")).unwrap();
    symlink("../../../../../..", root.join("up")).unwrap();
    let text = "FROM scratch\nCOPY root /\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                RUN cat /etc/resolv.conf /etc/hosts > /seen; echo 192.0.2.1 other >> /etc/hosts; echo x > /up/etc/new; \
                umount /etc/hosts; rm -f /etc/hostname; ls /dev | wc -l > /devices\n";
    b.build(text).unwrap();
    assert!(b.text("seen").contains("localhost"));
    for p in ["run", "proc", "var", "tmp"] {
        assert!(!b.look(p).exists(), "{p} is not part of the image");
    }
    let link = |p: &str| fs::read_link(b.look(p)).unwrap();
    assert_eq!(
        link("etc/resolv.conf"),
        Path::new("../run/systemd/resolve/stub-resolv.conf")
    );
    assert_eq!(link("etc/hosts"), outside.join("hosts"));
    assert_eq!(b.text("etc/new"), "x\n");
    // Where the kernel's own file systems go: mounted inside or refused, never outside.
    for place in ["dev", "sys", "proc"] {
        symlink(&outside, root.join(place)).unwrap();
        let _ = b.build(&format!("{text}RUN echo x > /{place}/new\n"));
        fs::remove_file(root.join(place)).unwrap();
    }
    symlink("/proc/1/root/etc/hostname", root.join("etc/hostname")).unwrap();
    let e = b.build(text).unwrap_err().to_string();
    assert!(e.contains("/etc/hostname"), "{e}");
    // Nothing came out of the image.
    let seen: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(seen, ["witness"]);
    assert!(!Path::new("/etc/new").exists());
}

#[test]
fn the_network_of_a_step_is_its_own_and_the_machine_s_only_if_the_builder_says_so() {
    if skip() {
        return;
    }
    let b = Bench::new(&[]);
    let me = |ns: &str| {
        fs::read_link(format!("/proc/self/ns/{ns}"))
            .unwrap()
            .display()
            .to_string()
    };
    let shows = format!(
        "{BASE}RUN readlink /proc/self/ns/net > /net; readlink /proc/self/ns/uts > /uts; hostname > /host\n"
    );
    b.build(&shows).unwrap();
    assert_ne!(b.text("net").trim(), me("net"));
    assert_ne!(b.text("uts").trim(), me("uts"));
    let host = |o: &mut BuildOptions| o.network = Network::Host;
    b.build_with(&shows, host).0.unwrap();
    assert_eq!(b.text("net").trim(), me("net"));
    // None by flag of the command, and of the line against the command's.
    let links = "ip -o link | wc -l > /links; cat /etc/resolv.conf > /resolv";
    b.build_with(&format!("{BASE}RUN {links}\n"), |o| {
        o.network = Network::None
    })
    .0
    .unwrap();
    assert_eq!(
        (b.text("links"), b.text("resolv")),
        ("1\n".into(), String::new())
    );
    b.build_with(&format!("{BASE}RUN --network=none {links}\n"), host)
        .0
        .unwrap();
    assert_eq!(b.text("links"), "1\n");
    // A Dockerfile does not take the machine's network by itself.
    for o in [Network::Default, Network::None] {
        let (r, _) = b.build_with(&format!("{BASE}RUN --network=host {links}\n"), |w| {
            w.network = o
        });
        let e = r.unwrap_err().to_string();
        assert!(
            e.contains("Dockerfile:4: ") && e.contains("--network host"),
            "{e}"
        );
    }
}

#[test]
fn a_build_that_is_killed_leaves_nothing_that_the_next_opening_does_not_remove() {
    if skip() {
        return;
    }
    use std::io::{BufRead, BufReader};
    let b = Bench::new(&[]);
    fs::write(
        b.ctx().join("Dockerfile"),
        format!("{BASE}RUN echo READY; sleep 1000\n"),
    )
    .unwrap();
    for round in 0..4u64 {
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("imagebuild")
            .arg(b.dir.path())
            .arg(&b.cgroup)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = if round % 2 == 0 { "READY" } else { "[4/4]" };
        assert!(
            lines.any(|l| l.unwrap().starts_with(wanted)),
            "round {round}"
        );
        // In the odd rounds somewhere between the line and its program.
        if round % 2 == 1 {
            std::thread::sleep(std::time::Duration::from_millis(round * 7));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The shim ends by itself; then the next one who opens the store cleans up.
        for _ in 0..2000 {
            let shims = b.left().iter().filter(|l| l.starts_with("skiff\0")).count();
            if shims == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let store = ImageStore::open(b.store.root()).unwrap();
        let cgroups = skiff_runtime::cgroup::Hierarchies::detect().unwrap();
        build_step::sweep(&cgroups, &b.cgroup, b.store.root());
        b.nothing_is_left();
        assert!(store.images().unwrap().is_empty());
        assert_eq!(
            fs::read_dir(store.root().join("layers")).unwrap().count(),
            0
        );
    }
}

#[test]
fn an_interrupted_build_ends_its_step_and_leaves_nothing() {
    if skip() {
        return;
    }
    let b = Bench::new(&[]);
    let cancel = b.cancel.clone();
    let stop = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        cancel.cancel();
    });
    let e = b
        .build(&format!("{BASE}RUN sleep 1000\n"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("interrupted"), "{e}");
    stop.join().unwrap();
}

#[test]
fn what_a_base_image_asks_of_builds_on_it_is_done_once() {
    if skip() {
        return;
    }
    let b = Bench::new(&[("app", "code")]);
    let (r, _) = b.build_with(
        &format!("{BASE}ONBUILD COPY app /app\nONBUILD RUN cp /app /copied\n"),
        |o| o.tags = vec!["base:1".into()],
    );
    let base = r.unwrap();
    assert_eq!(
        b.store.config(&base).unwrap().config.on_build,
        ["COPY app /app", "RUN cp /app /copied"]
    );
    let image = b.build("FROM base:1\nENV A=1\n").unwrap();
    assert_eq!(
        (b.text("app"), b.text("copied")),
        ("code".into(), "code".into())
    );
    assert!(b.store.config(&image).unwrap().config.on_build.is_empty());
    for bad in ["ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "ONBUILD NOPE x"] {
        assert!(b.build(&format!("{BASE}{bad}\n")).is_err(), "{bad}");
    }
}
