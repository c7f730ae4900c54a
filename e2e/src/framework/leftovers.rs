//! What a cluster left on the machine: processes, mounts, cgroups, interfaces, tables. Only looks.

use std::path::Path;
use std::process::Command;

/// Processes whose command line names a data directory: (pid, command line).
pub fn processes(data_dir: &Path) -> Vec<(u32, String)> {
    let needle = data_dir.to_string_lossy().into_owned();
    let mut out = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if line.contains(&needle) {
            out.push((pid, line.trim().to_string()));
        }
    }
    out
}

/// Everything of a data directory and a network namespace that should be gone after a reset.
pub fn of(data_dir: &Path, netns: &str) -> Vec<String> {
    let mut left: Vec<String> = processes(data_dir)
        .into_iter()
        .map(|(pid, line)| format!("process {pid}: {line}"))
        .collect();
    let needle = data_dir.to_string_lossy().into_owned();
    for line in std::fs::read_to_string("/proc/mounts")
        .unwrap_or_default()
        .lines()
    {
        if line.contains(&needle) {
            left.push(format!("mount {line}"));
        }
    }
    let digest = Command::new("sh")
        .arg("-c")
        .arg(format!("printf %s '{needle}' | sha256sum | cut -c1-8"))
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string())
        .unwrap_or_default();
    for entry in std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path().join(format!("skiff-{digest}"));
        if path.exists() {
            left.push(format!("cgroup {}", path.display()));
        }
    }
    if data_dir.exists() {
        left.push(format!("directory {}", data_dir.display()));
    }
    let inside = |program: &str, args: &[&str]| {
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .arg(program)
            .args(args)
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default()
    };
    for line in inside("ip", &["-br", "link"]).lines() {
        if !line.starts_with("lo ") {
            left.push(format!("interface {line}"));
        }
    }
    for line in inside("nft", &["list", "tables"]).lines() {
        left.push(format!("nftables {line}"));
    }
    left
}
