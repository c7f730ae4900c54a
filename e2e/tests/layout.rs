//! The dependency rule of ARCHITECTURE.md: which crate of ours may use which. A new arrow is a decision: change the
//! table here and the page there together.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const ALLOWED: &[(&str, &[&str])] = &[
    ("skiff-supervise", &[]),
    ("skiff-beneath", &[]),
    ("skiff-api", &[]),
    ("skiff-https", &[]),
    ("skiff-client", &["skiff-api", "skiff-supervise"]),
    (
        "skiff-apiserver",
        &["skiff-api", "skiff-https", "skiff-supervise"],
    ),
    (
        "skiff-scheduler",
        &["skiff-api", "skiff-client", "skiff-supervise"],
    ),
    (
        "skiff-controllers",
        &["skiff-api", "skiff-client", "skiff-supervise"],
    ),
    (
        "skiff-kubelet",
        &[
            "skiff-api",
            "skiff-beneath",
            "skiff-cgroup",
            "skiff-client",
            "skiff-https",
            "skiff-supervise",
        ],
    ),
    (
        "skiff-network",
        &["skiff-api", "skiff-client", "skiff-supervise"],
    ),
    ("skiff-cgroup", &[]),
    (
        "skiff-runtime",
        &["skiff-beneath", "skiff-cgroup", "skiff-supervise"],
    ),
    (
        "skiff",
        &[
            "skiff-api",
            "skiff-cgroup",
            "skiff-client",
            "skiff-apiserver",
            "skiff-scheduler",
            "skiff-controllers",
            "skiff-kubelet",
            "skiff-network",
            "skiff-runtime",
            "skiff-supervise",
        ],
    ),
    ("skiff-e2e", &[]),
];

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo metadata");
    serde_json::from_slice(&out.stdout).expect("cargo metadata's JSON")
}

#[test]
fn crates_use_only_the_crates_they_may() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ALLOWED
        .iter()
        .map(|(k, v)| (*k, v.iter().copied().collect()))
        .collect();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(
        packages.len(),
        ALLOWED.len(),
        "a crate is missing from the table, or gone"
    );
    for p in packages {
        let name = p["name"].as_str().expect("a name");
        let may = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the table"));
        for d in p["dependencies"].as_array().expect("dependencies") {
            let dep = d["name"].as_str().expect("a name");
            let ours = dep == "skiff" || dep.starts_with("skiff-");
            assert!(!ours || may.contains(dep), "{name} must not use {dep}");
        }
    }
}

#[test]
fn no_crate_of_the_tree_brings_a_second_tls_provider() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))
        .expect("Cargo.lock");
    for forbidden in [
        "name = \"openssl\"",
        "name = \"native-tls\"",
        "name = \"serde_yml\"",
    ] {
        assert!(!lock.contains(forbidden), "{forbidden}");
    }
}
