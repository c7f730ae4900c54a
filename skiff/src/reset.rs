//! `skiff reset`: takes everything of a data directory back. Owns the order; each part knows how to undo itself.

use crate::cli::ResetArgs;
use crate::paths;
use anyhow::{Context, Result, anyhow, bail};

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
    let dir = args
        .data_dir
        .canonicalize()
        .with_context(|| args.data_dir.display().to_string())?;
    if !crate::config::is_data_dir(&dir) {
        bail!(
            "{} is no data directory of Skiff's (it has no file {}): nothing is removed",
            dir.display(),
            paths::MARKER
        );
    }
    let lock = crate::config::lock_file(&dir)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow!("a skiff server runs on {}: end it first", dir.display()))?;
    let mut problems = Vec::new();
    let runtime = skiff_runtime::Config::new(&paths::runtime(&dir), &paths::cgroup(&dir));
    if let Err(e) = skiff_runtime::reset(&runtime).await {
        problems.push(format!("containers: {e}"));
    }
    if let Err(e) = skiff_network::egress::heal(&paths::network(&dir)) {
        problems.push(format!("network of image builds: {e}"));
    }
    // The proxy's table is the machine's: it goes with the network that it served.
    let network_is_ours = skiff_network::pod::owns(&paths::network(&dir));
    if let Err(e) = skiff_network::pod::cleanup(&paths::network(&dir)) {
        problems.push(format!("pod network: {e}"));
    }
    match network_is_ours {
        Ok(false) => {}
        Ok(true) => {
            if let Err(e) = skiff_network::proxy::cleanup("skiff") {
                problems.push(format!("service proxy: {e}"));
            }
        }
        Err(e) => problems.push(format!("pod network: {e}")),
    }
    for entry in paths::ENTRIES {
        if let Err(e) = unmount_below(&dir.join(entry)) {
            problems.push(format!("mounts: {e}"));
        }
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

/// Removes what is Skiff's, the mark last: a reset that was cut off can be run again. What others put beside it stays,
/// and is named.
fn remove_state(dir: &std::path::Path, keep_images: bool) -> Result<()> {
    let agent = dir.join("agent");
    if keep_images && agent.is_dir() {
        for entry in std::fs::read_dir(&agent)? {
            let p = entry?.path();
            if !["images", "runtime"]
                .iter()
                .any(|k| p.file_name().is_some_and(|n| n == *k))
            {
                remove(&p)?;
            }
        }
    }
    let kept = |e: &str| keep_images && (e == "agent" || e == paths::MARKER);
    for entry in paths::ENTRIES.iter().filter(|e| !kept(e)) {
        remove(&dir.join(entry))?;
    }
    if keep_images {
        return Ok(());
    }
    let left: Vec<String> = std::fs::read_dir(dir)?
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    if left.is_empty() {
        let _ = std::fs::remove_dir(dir);
    } else {
        println!("left in {}: {}", dir.display(), left.join(", "));
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
    fn only_what_is_skiffs_goes_and_the_rest_stays() {
        let t = tempfile::tempdir().unwrap();
        let dir = crate::config::data_dir(&t.path().join("d")).unwrap();
        for d in ["server/db", "agent/images", "agent/logs", "mine"] {
            std::fs::create_dir_all(dir.join(d)).unwrap();
        }
        std::fs::write(t.path().join("victim"), "v").unwrap();
        std::os::unix::fs::symlink(t.path(), dir.join("server/db/link")).unwrap();
        remove_state(&dir, true).unwrap();
        assert!(dir.join("agent/images").is_dir() && !dir.join("agent/logs").exists());
        assert!(crate::config::is_data_dir(&dir), "it can be reset again");
        remove_state(&dir, false).unwrap();
        assert!(dir.join("mine").is_dir() && !dir.join("agent").exists());
        assert!(t.path().join("victim").exists(), "links are not followed");
        assert!(!crate::config::is_data_dir(&dir));
    }

    #[tokio::test]
    async fn a_folder_that_is_none_of_skiffs_is_refused_and_left_alone() {
        let t = tempfile::tempdir().unwrap();
        for d in ["server/db", "agent/runtime"] {
            std::fs::create_dir_all(t.path().join(d)).unwrap();
        }
        std::fs::write(t.path().join("agent/mine"), "m").unwrap();
        for keep_images in [false, true] {
            let e = run(ResetArgs {
                data_dir: t.path().into(),
                keep_images,
            })
            .await
            .unwrap_err();
            let said = e.to_string();
            assert!(
                said.contains("no data directory") || said.contains("root"),
                "{said}"
            );
        }
        assert!(t.path().join("agent/mine").exists() && !t.path().join("lock").exists());
        std::fs::write(t.path().join("something"), "s").unwrap();
        let e = crate::config::data_dir(t.path()).unwrap_err().to_string();
        assert!(e.contains("something"), "{e}");
    }

    #[test]
    fn only_mounts_below_the_directory_count_and_the_deepest_come_first() {
        let info = "1 2 0:3 / /d/a rw - overlay o rw\n1 2 0:3 / /d/a/b\\040c rw - tmpfs t rw\n1 2 0:3 / /dd rw - tmpfs t rw\n1 2 0:3 / /d rw - ext4 x rw\n";
        assert_eq!(mounts_below(info, "/d"), ["/d/a/b c", "/d/a"]);
    }
}
