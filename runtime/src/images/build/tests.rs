//! Builds without RUN; those with it need shims, and are in the crate's integration tests.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

/// For files without RUN.
struct NoRun;

impl StepRunner for NoRun {
    fn run(&self, step: &RunStep<'_>, _: &dyn Fn(&str)) -> Result<()> {
        Err(ImageError::Invalid(format!("RUN {:?}", step.argv)))
    }
    fn cancelled(&self) -> bool {
        false
    }
}

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
                runner: &NoRun,
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

#[test]
fn the_same_files_give_the_same_image() {
    let b = Bench::new(&[("a/b/c", "1")]);
    let text = "FROM scratch\nCOPY a /x\nADD busybox /bin/\nWORKDIR /w\nENV a=b\n";
    let one = b.build(text).unwrap().id.clone();
    b.store.remove("test/app:1", true).unwrap();
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
fn build_arguments_reach_their_arg_and_unused_ones_warn() {
    let b = Bench::new(&[("f", "1")]);
    let text = "ARG TAG=none\nFROM scratch\nARG TAG\nARG MODE=a\nENV M=$MODE T=${TAG} P=$TARGETARCH\nARG TARGETARCH\nENV Q=$TARGETARCH\nCOPY f /\n";
    let (r, said) = b.build_with(text, |o| {
        o.build_args = BTreeMap::from([("MODE".into(), "b".into()), ("NOPE".into(), "x".into())]);
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
