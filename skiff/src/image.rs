//! `skiff image`: the command's face over the runtime's image store. Prints; decides nothing.

use crate::cli::{ImageArgs, ImageCommand};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use skiff_runtime::images::build::BuildOptions;
use skiff_runtime::images::pull::Credentials;
use skiff_runtime::images::registries::Registries;
use skiff_runtime::images::{ImageRecord, cmd};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
            context,
        } => {
            let options = BuildOptions {
                dockerfile: file,
                tags: vec![tag.clone()],
                build_args: pairs(&build_arg)?,
                context,
                target: None,
                epoch: None,
            };
            let (bar, progress) = progress();
            let built = cmd::build(
                &dir,
                options,
                Registries::load(&args.private_registry)?,
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
        ImageCommand::Rm { images } => {
            for gone in cmd::rm(&dir, &images)? {
                println!("removed {gone}");
            }
        }
    }
    Ok(())
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
    fn an_empty_store_is_a_header() {
        assert_eq!(table(&[], 0), "IMAGE   ID   SIZE   AGE\n");
    }
}
