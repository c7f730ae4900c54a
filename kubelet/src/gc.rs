//! Images that nobody uses go when the disk fills up (upstream pkg/kubelet/images image_gc_manager). Owns only that;
//! dead containers and sandboxes are their pods' workers'.

use crate::kubelet::Kubelet;
use k8s_cri::v1::Image;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the disk is looked at (upstream: five minutes).
const INTERVAL: Duration = Duration::from_secs(300);
/// An image younger than this is not collected (imageMinimumGCAge).
const MINIMUM_AGE: Duration = Duration::from_secs(120);

/// When each image was used last, as far as this process saw.
#[derive(Default)]
pub struct LastUsed(Mutex<HashMap<String, Instant>>);

/// Looks after the images until the kubelet stops.
pub async fn run(k: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = k.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if let Err(e) = collect(&k, false).await {
            tracing::debug!(error = %e, "images could not be collected");
        }
    }
}

/// Removes every image that nothing uses, whatever the disk has left (the node is about to evict pods).
///
/// # Errors
/// The runtime does not answer.
pub async fn delete_unused(k: &Kubelet) -> Result<(), String> {
    collect(k, true).await
}

/// Percentage of a file system that is used, and its size in bytes.
pub fn usage(path: &Path) -> Option<(u64, u64)> {
    let s = rustix::fs::statvfs(path).ok()?;
    let total = s.f_blocks.saturating_mul(s.f_frsize);
    let free = s.f_bavail.saturating_mul(s.f_frsize);
    (total > 0).then(|| (100 - free.saturating_mul(100) / total, total))
}

/// Which images to remove, longest unused first, until `bytes` are free. Pure.
pub fn choose<'a>(
    images: &'a [Image],
    in_use: &HashSet<String>,
    used_at: &HashMap<String, Instant>,
    now: Instant,
    bytes: u64,
) -> Vec<&'a Image> {
    let mut spare: Vec<&Image> = images
        .iter()
        .filter(|i| !i.pinned && !in_use.contains(&i.id))
        .filter(|i| {
            used_at
                .get(&i.id)
                .is_some_and(|t| now.duration_since(*t) >= MINIMUM_AGE)
        })
        .collect();
    spare.sort_by_key(|i| used_at.get(&i.id).copied());
    let mut freed = 0;
    spare
        .into_iter()
        .take_while(|i| {
            let more = freed < bytes;
            freed = i.size.saturating_add(freed);
            more
        })
        .collect()
}

async fn collect(k: &Kubelet, all: bool) -> Result<(), String> {
    let now = Instant::now();
    let images = k.cri.list_images().await.map_err(|e| e.to_string())?;
    let containers = k
        .cri
        .list_containers(HashMap::new())
        .await
        .map_err(|e| e.to_string())?;
    let in_use: HashSet<String> = containers
        .iter()
        .flat_map(|c| {
            [
                c.image_id.clone(),
                c.image_ref.clone(),
                c.image.clone().unwrap_or_default().image,
            ]
        })
        .collect();
    let used_at = {
        let mut used_at = k.image_use.0.lock();
        used_at.retain(|id, _| images.iter().any(|i| i.id == *id));
        for i in &images {
            let used = in_use.contains(&i.id)
                || i.repo_tags
                    .iter()
                    .chain(&i.repo_digests)
                    .any(|n| in_use.contains(n));
            if used || !used_at.contains_key(&i.id) {
                used_at.insert(i.id.clone(), now);
            }
        }
        used_at.clone()
    };
    let in_use: HashSet<String> = images
        .iter()
        .filter(|i| {
            in_use.contains(&i.id)
                || i.repo_tags
                    .iter()
                    .chain(&i.repo_digests)
                    .any(|n| in_use.contains(n))
        })
        .map(|i| i.id.clone())
        .collect();
    let info = k.cri.image_fs_info().await.map_err(|e| e.to_string())?;
    let Some(point) = info.image_filesystems.first().and_then(|f| f.fs_id.clone()) else {
        return Ok(());
    };
    let Some((percent, total)) = usage(Path::new(&point.mountpoint)) else {
        return Ok(());
    };
    if !all && percent < u64::from(k.config.image_gc_high_percent) {
        return Ok(());
    }
    let low = u64::from(k.config.image_gc_low_percent);
    let bytes = if all {
        u64::MAX
    } else {
        total / 100 * percent.saturating_sub(low)
    };
    for image in choose(&images, &in_use, &used_at, now, bytes) {
        tracing::info!(image = %image.id, size = image.size, "removing an unused image: the disk is {percent} % full");
        if let Err(e) = k.cri.remove_image(&image.id).await {
            tracing::warn!(image = %image.id, error = %e, "image could not be removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_images_go_first_and_only_as_many_as_needed() {
        let start = Instant::now();
        let now = start + Duration::from_secs(1000);
        let image = |id: &str, size: u64, pinned: bool| Image {
            id: id.into(),
            size,
            pinned,
            ..Image::default()
        };
        let images = [
            image("used", 5, false),
            image("old", 5, false),
            image("older", 5, false),
            image("new", 5, false),
            image("pinned", 5, true),
        ];
        let used_at = HashMap::from([
            ("used".to_string(), start),
            ("old".into(), start + Duration::from_secs(10)),
            ("older".into(), start),
            ("new".into(), now),
            ("pinned".into(), start),
        ]);
        let in_use = HashSet::from(["used".to_string()]);
        let ids = |bytes| -> Vec<&str> {
            choose(&images, &in_use, &used_at, now, bytes)
                .iter()
                .map(|i| i.id.as_str())
                .collect()
        };
        assert_eq!(ids(5), ["older"]);
        assert_eq!(ids(6), ["older", "old"]);
        assert_eq!(ids(1000), ["older", "old"]);
    }
}
