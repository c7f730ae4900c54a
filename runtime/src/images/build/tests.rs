//! Builds without RUN; those with it need shims, and are in the crate's integration tests.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

/// For files without RUN.
struct NoRun;

impl StepRunner for NoRun {
    fn run(&self, step: &RunStep<'_>, _: &dyn Fn(&str)) -> Result<()> {
        let text = format!("RUN {:?} {:?}", step.argv, step.network);
        Err(ImageError::Invalid(text))
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

/// What becomes of a line.
enum Fate {
    /// It changes the image, as the function sees.
    Handled(fn(&ImageConfig) -> bool),
    /// It comes to the one who runs steps, with this in its text.
    Runs(&'static str),
    /// It is an error that says this.
    Refused(&'static str),
    /// The result is the same without it, for this reason.
    Nothing(&'static str),
}

/// Every instruction, flag and directive of Docker's reference of the Dockerfile (frontend 1.x), by name.
const FIELDS: [&str; 44] = [
    "FROM",
    "FROM --platform",
    "RUN",
    "RUN --mount",
    "RUN --network",
    "RUN --security",
    "RUN --device",
    "RUN <<",
    "CMD",
    "LABEL",
    "MAINTAINER",
    "EXPOSE",
    "ENV",
    "ADD",
    "ADD --keep-git-dir",
    "ADD --checksum",
    "ADD --chown",
    "ADD --chmod",
    "ADD --link",
    "ADD --exclude",
    "ADD --unpack",
    "ADD url",
    "COPY",
    "COPY --from",
    "COPY --chown",
    "COPY --chmod",
    "COPY --link",
    "COPY --parents",
    "COPY --exclude",
    "ENTRYPOINT",
    "VOLUME",
    "USER",
    "WORKDIR",
    "ARG",
    "ONBUILD",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "HEALTHCHECK --interval",
    "HEALTHCHECK --retries",
    "SHELL",
    "# syntax",
    "# escape",
    "# check",
    "unknown",
];

#[test]
fn every_instruction_and_flag_of_a_dockerfile_is_handled_refused_or_needs_nothing() {
    use Fate::{Handled, Nothing, Refused, Runs};
    let one_layer: fn(&ImageConfig) -> bool = |c| c.rootfs.diff_ids.len() == 1;
    let table: Vec<(&str, &str, Fate)> = vec![
        (
            "FROM",
            "FROM scratch",
            Handled(|c| c.rootfs.diff_ids.is_empty()),
        ),
        (
            "FROM --platform",
            "FROM --platform=linux/s390x scratch",
            Refused("--platform=linux/s390x"),
        ),
        (
            "FROM --platform",
            "FROM --platform=$TARGETPLATFORM scratch",
            Handled(|c| c.os == "linux"),
        ),
        (
            "FROM --platform",
            "FROM --platform=windows/amd64 scratch",
            Refused("only images for linux/"),
        ),
        (
            "RUN",
            "RUN a b",
            Runs("RUN [\"/bin/sh\", \"-c\", \"a b\"] Default"),
        ),
        ("RUN --network", "RUN --network=none a", Runs("None")),
        (
            "RUN --network",
            "RUN --network=host a",
            Refused("--network host"),
        ),
        (
            "RUN --network",
            "RUN --network=other a",
            Refused("--network=other"),
        ),
        (
            "RUN --mount",
            "RUN --mount=type=secret,id=x a",
            Refused("RUN --mount"),
        ),
        (
            "RUN --security",
            "RUN --security=insecure a",
            Refused("RUN --security"),
        ),
        ("RUN --device", "RUN --device=x a", Refused("RUN --device")),
        ("RUN <<", "RUN <<EOF\na\nEOF", Refused("here-document")),
        ("CMD", "CMD [\"x\"]", Handled(|c| c.config.cmd == ["x"])),
        (
            "LABEL",
            "LABEL a=b",
            Handled(|c| c.config.labels["a"] == "b"),
        ),
        (
            "MAINTAINER",
            "MAINTAINER me",
            Handled(|c| c.author.as_deref() == Some("me")),
        ),
        (
            "EXPOSE",
            "EXPOSE 80",
            Handled(|c| c.config.exposed_ports.contains_key("80/tcp")),
        ),
        ("ENV", "ENV a=b", Handled(|c| c.config.env == ["a=b"])),
        ("ADD", "ADD f /", Handled(one_layer)),
        (
            "ADD --keep-git-dir",
            "ADD --keep-git-dir=true f /",
            Refused("ADD --keep-git-dir"),
        ),
        (
            "ADD --checksum",
            "ADD --checksum=sha256:00 f /",
            Refused("ADD --checksum"),
        ),
        ("ADD --chown", "ADD --chown=1:2 f /", Handled(one_layer)),
        ("ADD --chmod", "ADD --chmod=600 f /", Handled(one_layer)),
        (
            "ADD --chmod",
            "ADD --chmod= f /",
            Refused("a value is missing"),
        ),
        (
            "ADD --link",
            "ADD --link f /",
            Nothing("layers depend on no others here"),
        ),
        (
            "ADD --exclude",
            "ADD --exclude=x f /",
            Refused("ADD --exclude"),
        ),
        (
            "ADD --unpack",
            "ADD --unpack=false f /",
            Refused("ADD --unpack"),
        ),
        (
            "ADD url",
            "ADD https://example.org/x /",
            Refused("only local files"),
        ),
        ("COPY", "COPY f /", Handled(one_layer)),
        (
            "COPY --from",
            "COPY --from=no.such/image:1 f /",
            Refused("no.such/image:1"),
        ),
        ("COPY --chown", "COPY --chown=1 f /", Handled(one_layer)),
        ("COPY --chmod", "COPY --chmod=600 f /", Handled(one_layer)),
        (
            "COPY --link",
            "COPY --link f /",
            Nothing("layers depend on no others here"),
        ),
        (
            "COPY --link",
            "COPY --link=perhaps f /",
            Refused("--link=perhaps"),
        ),
        (
            "COPY --parents",
            "COPY --parents f /",
            Refused("COPY --parents"),
        ),
        (
            "COPY --exclude",
            "COPY --exclude=x f /",
            Refused("COPY --exclude"),
        ),
        (
            "ENTRYPOINT",
            "ENTRYPOINT [\"x\"]",
            Handled(|c| c.config.entrypoint == ["x"]),
        ),
        (
            "VOLUME",
            "VOLUME /v",
            Handled(|c| c.config.volumes.contains_key("/v")),
        ),
        ("USER", "USER 5", Handled(|c| c.config.user == "5")),
        (
            "WORKDIR",
            "WORKDIR /w",
            Handled(|c| c.config.working_dir == "/w"),
        ),
        (
            "ARG",
            "ARG a=b\nENV c=$a",
            Handled(|c| c.config.env == ["c=b"]),
        ),
        (
            "ONBUILD",
            "ONBUILD ENV a=b",
            Handled(|c| c.config.on_build == ["ENV a=b"]),
        ),
        ("ONBUILD", "ONBUILD RUN --mount=x a", Refused("RUN --mount")),
        (
            "STOPSIGNAL",
            "STOPSIGNAL 9",
            Handled(|c| c.config.stop_signal == "9"),
        ),
        ("STOPSIGNAL", "STOPSIGNAL SIGNOPE", Refused("SIGNOPE")),
        (
            "HEALTHCHECK",
            "HEALTHCHECK CMD x y",
            Handled(|c| {
                c.config
                    .healthcheck
                    .as_ref()
                    .is_some_and(|h| h.test == ["CMD-SHELL", "x y"])
            }),
        ),
        (
            "HEALTHCHECK --interval",
            "HEALTHCHECK --interval=5s CMD [\"x\"]",
            Handled(|c| {
                c.config
                    .healthcheck
                    .as_ref()
                    .is_some_and(|h| h.interval == 5_000_000_000 && h.test == ["CMD", "x"])
            }),
        ),
        (
            "HEALTHCHECK --retries",
            "HEALTHCHECK --retries=2 CMD x",
            Handled(|c| {
                c.config
                    .healthcheck
                    .as_ref()
                    .is_some_and(|h| h.retries == 2)
            }),
        ),
        (
            "HEALTHCHECK --retries",
            "HEALTHCHECK --retries=many CMD x",
            Refused("--retries=many"),
        ),
        (
            "HEALTHCHECK",
            "HEALTHCHECK --nope=1 CMD x",
            Refused("--nope"),
        ),
        (
            "HEALTHCHECK",
            "HEALTHCHECK SOMETIMES x",
            Refused("SOMETIMES"),
        ),
        (
            "SHELL",
            "SHELL [\"/bin/ash\", \"-c\"]",
            Handled(|c| c.config.shell == ["/bin/ash", "-c"]),
        ),
        (
            "# syntax",
            "# syntax=docker/dockerfile:1",
            Nothing("it is the language that is read"),
        ),
        (
            "# syntax",
            "# syntax=example.org/other:1",
            Refused("example.org/other:1"),
        ),
        (
            "# escape",
            "# escape=`",
            Nothing("nothing to escape in this file"),
        ),
        ("# escape", "# escape=x", Refused("invalid escape")),
        ("# check", "# check=skip=all", Nothing("it is for a linter")),
        ("unknown", "CROSS_BUILD x", Refused("CROSS_BUILD")),
    ];
    let b = Bench::new(&[("f", "1")]);
    for field in FIELDS {
        assert!(
            table.iter().any(|(f, ..)| *f == field),
            "{field} is in no list"
        );
    }
    for (field, line, fate) in table {
        assert!(FIELDS.contains(&field), "{field} is not in the reference");
        let text = match line.split(' ').next() {
            Some("FROM") => format!("{line}\n"),
            Some("#") => format!("{line}\nFROM scratch\nCOPY f /\n"),
            _ => format!("FROM scratch\n{line}\n"),
        };
        let built = b.build(&text);
        match fate {
            Handled(seen) => {
                let image = built.unwrap_or_else(|e| panic!("{line}: {e}"));
                assert!(seen(&b.store.config(&image).unwrap()), "{line}");
            }
            Runs(said) | Refused(said) => {
                let e = built.expect_err(line).to_string();
                assert!(e.contains(said), "{line}: {e}");
            }
            Nothing(why) => {
                let plain = match line.split(' ').next() {
                    Some("#") => "FROM scratch\nCOPY f /\n".to_string(),
                    _ => text.replace(" --link", ""),
                };
                let with = b.store.config(&built.unwrap()).unwrap();
                let without = b.store.config(&b.build(&plain).unwrap()).unwrap();
                assert_eq!(with.rootfs, without.rootfs, "{line} ({why})");
                assert_eq!(with.config, without.config, "{line} ({why})");
            }
        }
    }
}
