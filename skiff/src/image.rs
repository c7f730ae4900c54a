//! `skiff image`: the command's face over the runtime's image store. Prints; decides nothing.

use crate::cli::{ImageArgs, ImageCommand};
use crate::glue::BuildNetwork;
use crate::paths;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use skiff_runtime::build_step::{self, Runner};
use skiff_runtime::images::build::{BuildOptions, Network};
use skiff_runtime::images::pull::Credentials;
use skiff_runtime::images::registries::Registries;
use skiff_runtime::images::{ImageError, ImageRecord, cmd};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Runs the command.
///
/// # Errors
/// What went wrong, naming the file, line, image or digest.
pub async fn run(args: ImageArgs) -> Result<()> {
    let dir = crate::config::data_dir(&args.data_dir)?;
    crate::config::private_agent(&dir)?;
    match args.command {
        ImageCommand::Build {
            tag,
            file,
            build_arg,
            network,
            memory,
            allow_missing_isolation,
            context,
        } => {
            let network = Network::parse(&network).with_context(|| {
                format!("--network {network:?} is not known; use default, none or host")
            })?;
            let options = BuildOptions {
                dockerfile: file,
                tags: vec![tag.clone()],
                build_args: pairs(&build_arg)?,
                context,
                target: None,
                epoch: None,
                network,
            };
            crate::server::holds_containers_back(allow_missing_isolation)?;
            let memory = memory.as_deref().map(bytes).transpose()?;
            let runner = runner(&dir, memory, allow_missing_isolation)?;
            let (bar, progress) = progress();
            let built = cmd::build(
                &dir,
                options,
                Registries::load(&args.private_registry)?,
                runner,
                progress,
            )
            .await;
            bar.finish_and_clear();
            let built = built?;
            println!(
                "built {tag} ({}, {} layers, {})",
                short(&built),
                built.layers.len(),
                size(built.size)
            );
        }
        ImageCommand::Import { files } => {
            for file in files {
                let (bar, progress) = progress();
                let imported = cmd::import(&dir, &file, Vec::new(), progress).await;
                bar.finish_and_clear();
                for image in imported? {
                    let names = if image.repo_tags.is_empty() {
                        "<none>".into()
                    } else {
                        image.repo_tags.join(", ")
                    };
                    println!("imported {names} ({}, {})", short(&image), size(image.size));
                }
            }
        }
        ImageCommand::Pull { images } => {
            for name in images {
                let (bar, progress) = progress();
                let registries = Registries::load(&args.private_registry)?;
                let pulled =
                    cmd::pull(&dir, &name, Credentials::default(), registries, progress).await;
                bar.finish_and_clear();
                let image = pulled?;
                println!("pulled {name} ({}, {})", short(&image), size(image.size));
            }
        }
        ImageCommand::Save { image, file } => {
            cmd::save(&dir, &image, &file).await?;
            eprintln!("saved {image} to {}", file.display());
        }
        ImageCommand::Ls => print!(
            "{}",
            table(&cmd::ls(&dir)?, jiff::Timestamp::now().as_second())
        ),
        ImageCommand::Rm { force, images } => {
            let state = paths::runtime(&dir).join("state");
            for gone in cmd::rm(&dir, &images, force).map_err(|e| in_use(&state, e))? {
                println!("removed {gone}");
            }
        }
    }
    Ok(())
}

/// Names the containers in the way.
fn in_use(state: &Path, e: ImageError) -> anyhow::Error {
    match e {
        ImageError::InUse { image, by } => {
            let mut names: Vec<String> = by
                .iter()
                .map(|h| skiff_runtime::describe_holder(state, h))
                .collect();
            names.dedup();
            anyhow::anyhow!(
                "image {image} is in use by container {}: remove it first, or give --force",
                names.join(", ")
            )
        }
        e => e.into(),
    }
}

/// What runs the RUN steps: containers on this machine, whether a server runs or not.
fn runner(dir: &Path, memory: Option<i64>, lenient: bool) -> Result<Arc<Runner>> {
    let cgroups = skiff_cgroup::Hierarchies {
        lenient,
        ..skiff_cgroup::Hierarchies::detect()?
    };
    let cgroup_parent = paths::cgroup(dir);
    // Steps whose build was killed; opening the store tells which builds are alive.
    let images = cmd::root(dir);
    skiff_runtime::images::ImageStore::open(&images)?;
    build_step::sweep(&cgroups, &cgroup_parent, &images);
    skiff_network::egress::heal(&paths::network(dir))?;
    Ok(Arc::new(Runner {
        cgroups,
        cgroup_parent,
        shim_exe: PathBuf::from("/proc/self/exe"),
        network: Arc::new(BuildNetwork::new(paths::network(dir))),
        memory_limit: memory.unwrap_or_else(build_step::default_memory_limit),
        cancel: interrupted()?,
        runtime: tokio::runtime::Handle::current(),
    }))
}

/// Is cancelled when somebody wants the command to end; a second signal ends it at once.
fn interrupted() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        for code in [0, 130] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if code != 0 {
                std::process::exit(code);
            }
            token.cancel();
        }
    });
    Ok(cancel)
}

/// A size with Docker's suffixes: b, k, m, g.
fn bytes(text: &str) -> Result<i64> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.find(|c: char| !c.is_ascii_digit()) {
        Some(i) => lower.split_at(i),
        None => (lower.as_str(), "b"),
    };
    let shift = match unit {
        "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => 64,
    };
    digits
        .parse::<i64>()
        .ok()
        .and_then(|n| n.checked_mul(1i64.checked_shl(shift)?))
        // Less than this no program starts in (Docker's limit too).
        .filter(|n| *n >= 6 << 20)
        .with_context(|| {
            format!("--memory {text:?} is not a size of at least 6m, such as 512m or 2g")
        })
}

fn pairs(args: &[String]) -> Result<BTreeMap<String, String>> {
    args.iter()
        .map(|a| {
            let (k, v) = a
                .split_once('=')
                .with_context(|| format!("--build-arg {a:?} is not NAME=value"))?;
            Ok((k.to_string(), v.to_string()))
        })
        .collect()
}

/// Lines of progress: above a spinner on a terminal, plain elsewhere.
fn progress() -> (ProgressBar, cmd::Progress) {
    if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        return (
            ProgressBar::hidden(),
            Arc::new(|line: &str| eprintln!("{line}")),
        );
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    let told = bar.clone();
    (
        bar,
        Arc::new(move |line: &str| {
            told.println(line);
            told.set_message(line.to_string());
        }),
    )
}

fn short(image: &ImageRecord) -> String {
    let id = image.id.to_string();
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

#[allow(clippy::cast_precision_loss)]
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// A line for each name, as `docker images` has it.
fn table(images: &[Arc<ImageRecord>], now: i64) -> String {
    let mut rows = vec![[
        "IMAGE".to_string(),
        "ID".into(),
        "SIZE".into(),
        "AGE".into(),
    ]];
    for image in images {
        let mut names = image.repo_tags.clone();
        if names.is_empty() {
            names.push(
                image
                    .repo_digests
                    .first()
                    .cloned()
                    .unwrap_or_else(|| "<none>".into()),
            );
        }
        for name in names {
            rows.push([name, short(image), size(image.size), age(now - image.added)]);
        }
    }
    rows[1..].sort();
    let width = |i: usize| rows.iter().map(|r| r[i].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    rows.iter()
        .map(|r| {
            format!(
                "{:<a$}   {:<b$}   {:<c$}   {}\n",
                r[0],
                r[1],
                r[2],
                r[3],
                a = widths[0],
                b = widths[1],
                c = widths[2]
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!(
            (
                size(999).as_str(),
                size(1_500).as_str(),
                size(2_500_000).as_str()
            ),
            ("999 B", "1.5 kB", "2.5 MB")
        );
        assert_eq!(
            (age(-1).as_str(), age(119).as_str(), age(7_200).as_str()),
            ("0s", "119s", "2h")
        );
    }

    #[test]
    fn memory_has_docker_s_suffixes_and_is_enough_for_a_program() {
        assert_eq!(bytes("512m").expect("ok"), 512 << 20);
        assert_eq!(bytes("2G").expect("ok"), 2 << 30);
        assert_eq!(bytes("8388608").expect("ok"), 8 << 20);
        for bad in ["", "m", "1m", "-5g", "2x", "2gb", "99999999999g"] {
            let e = bytes(bad).expect_err(bad).to_string();
            assert!(e.contains("--memory"), "{e}");
        }
    }

    #[test]
    fn an_empty_store_is_a_header() {
        assert_eq!(table(&[], 0), "IMAGE   ID   SIZE   AGE\n");
    }
}
