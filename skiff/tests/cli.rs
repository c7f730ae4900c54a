//! The command line as users meet it, without a cluster. (That this package has an integration test also makes
//! `cargo test` build the binary, which the end-to-end tests run.)

use std::process::{Command, Output};

fn skiff(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(args)
        .output()
        .expect("skiff runs")
}

fn error_line(o: &Output) -> String {
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    let text = String::from_utf8_lossy(&o.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

#[test]
fn the_version_names_kubernetes() {
    let o = skiff(&["version"]);
    assert!(String::from_utf8_lossy(&o.stdout).contains("Kubernetes v1.36"));
}

#[test]
fn completion_scripts_are_printed() {
    let o = skiff(&["completion", "bash"]);
    assert!(o.status.success() && String::from_utf8_lossy(&o.stdout).contains("_skiff"));
}

#[test]
fn a_bad_configuration_file_is_named_with_its_key() {
    let path = std::env::temp_dir().join(format!("skiff-cli-{}.yaml", std::process::id()));
    std::fs::write(&path, "nonsense: 1\n").expect("a file");
    let o = skiff(&["server", "--config", &path.to_string_lossy()]);
    let _ = std::fs::remove_file(&path);
    let line = error_line(&o);
    assert!(
        line.contains(&*path.to_string_lossy()) && line.contains("nonsense"),
        "{line}"
    );
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() {
    let line = error_line(&skiff(&["server", "--config", "/nowhere/skiff.yaml"]));
    assert!(line.contains("/nowhere/skiff.yaml"), "{line}");
}

#[test]
fn a_build_without_a_dockerfile_names_it() {
    let dir = std::env::temp_dir().join(format!("skiff-cli-build-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let data = dir.join("data");
    let o = skiff(&[
        "image",
        "build",
        "--data-dir",
        &data.to_string_lossy(),
        "-t",
        "x/y:1",
        &dir.to_string_lossy(),
    ]);
    let _ = std::fs::remove_dir_all(&dir);
    let line = error_line(&o);
    assert!(line.contains("Dockerfile"), "{line}");
}

#[test]
fn a_reset_of_nothing_is_no_error() {
    let o = skiff(&["reset", "--data-dir", "/nowhere/skiff"]);
    assert!(o.status.success(), "{o:?}");
}
