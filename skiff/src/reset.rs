//! `skiff reset`: takes everything of a data directory back. Owns the order; each part knows how to undo itself.

use crate::cli::ResetArgs;
use crate::paths;
use anyhow::{Context, Result, anyhow};

/// Removes containers, mounts, interfaces, tables, cgroups and state.
///
/// # Errors
/// A server still runs there, or something could not be removed; the rest is removed all the same.
pub async fn run(args: ResetArgs) -> Result<()> {
    if !args.data_dir.exists() {
        println!(
            "{} is not there: nothing to remove",
            args.data_dir.display()
        );
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("removing containers needs root: run it again with sudo");
    }
    let dir = crate::config::data_dir(&args.data_dir)?;
    let lock =
        std::fs::File::create(dir.join("lock")).with_context(|| dir.display().to_string())?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow!("a skiff server runs on {}: end it first", dir.display()))?;
    let mut problems = Vec::new();
    let runtime = skiff_runtime::Config::new(&paths::runtime(&dir), &paths::cgroup(&dir));
    if let Err(e) = skiff_runtime::reset(&runtime).await {
        problems.push(format!("containers: {e}"));
    }
    if let Err(e) = skiff_network::pod::cleanup(&paths::network(&dir)) {
        problems.push(format!("pod network: {e}"));
    }
    if let Err(e) = skiff_network::proxy::cleanup("skiff") {
        problems.push(format!("service proxy: {e}"));
    }
    if let Err(e) = unmount_below(&dir) {
        problems.push(format!("mounts: {e}"));
    }
    if problems.is_empty() {
        remove_state(&dir, args.keep_images).context("state")?;
        println!("removed everything of {}", dir.display());
        return Ok(());
    }
    Err(anyhow!("{}", problems.join("; ")))
}

/// Mount points below a directory, deepest first. `/proc/self/mountinfo` writes spaces and such as octal.
fn mounts_below(mountinfo: &str, dir: &str) -> Vec<String> {
    let mut found: Vec<String> = mountinfo
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(unescape)
        .filter(|p| {
            p.strip_prefix(dir)
                .is_some_and(|rest| rest.starts_with('/'))
        })
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.len()));
    found
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[i], octal.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(b)) => {
                out.push(b);
                i += 4;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn unmount_below(dir: &std::path::Path) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    for point in mounts_below(&text, &dir.to_string_lossy()) {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {point}"))?;
    }
    Ok(())
}

fn remove_state(dir: &std::path::Path, keep_images: bool) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if keep_images && path.file_name().is_some_and(|n| n == "agent") {
            for entry in std::fs::read_dir(&path)? {
                let p = entry?.path();
                let name = p
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                if name != "images" && name != "runtime" {
                    remove(&p)?;
                }
            }
            continue;
        }
        remove(&path)?;
    }
    if !keep_images {
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

fn remove(path: &std::path::Path) -> Result<()> {
    let result = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_directory_count_and_the_deepest_come_first() {
        let info = "1 2 0:3 / /d/a rw - overlay o rw\n1 2 0:3 / /d/a/b\\040c rw - tmpfs t rw\n1 2 0:3 / /dd rw - tmpfs t rw\n1 2 0:3 / /d rw - ext4 x rw\n";
        assert_eq!(mounts_below(info, "/d"), ["/d/a/b c", "/d/a"]);
    }
}
