//! Owns the image store on disk: config blobs, unpacked layers, the index of images, holds and garbage collection.
//! Must not know where images come from (pull, import, build) nor how containers are made.
//!
//! Below the root:
//! - `index.json`: every image record; replaced whole (temporary file, fsync, rename, fsync of the directory).
//! - `blobs/sha256/<hex>`: image configs, verified when written and when read.
//! - `layers/<chain id>/fs`: one unpacked layer, an overlay lower directory; `layers/<chain id>/usage`: "bytes inodes".
//!   The key is the chain id, not the diffID alone: directories a layer only passes through get the attributes they
//!   have in the layers below (as containerd does), so a layer's directory depends on what is under it.
//! - `tmp/<id>/`: work in progress of one [`Ingest`], flocked by its owner. Whoever opens the store removes those that
//!   nobody has locked any more. `refs` in it names layers that collection must spare.
//! - `holds/<name>`: chain ids a container uses, one per line.
//! - `lock`: flocked while index, holds and refs change.
//!
//! Several processes may work on one store (`skiff image import` while the server runs): everything that counts is on
//! disk under the lock, and the cached index is checked against the file's inode and time at every use. So the server
//! sees an image the moment the command has finished, and the commands work when no server runs.

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::IoContext;
pub use super::ingest::{Ingest, NewImage, StagedLayer};
use super::reference::Reference;
use super::rootfs::ImageRootfs;
use super::{ImageError, Result};
use crate::state;
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One image: a config with its layers, under any number of names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Digest of the config: CRI's image id.
    pub id: Digest,
    /// Normalised `domain/path:tag`.
    #[serde(default)]
    pub repo_tags: Vec<String>,
    /// Normalised `domain/path@sha256:...` of the manifests it was pulled by.
    #[serde(default)]
    pub repo_digests: Vec<String>,
    /// Chain ids, bottom first.
    pub layers: Vec<Digest>,
    /// Bytes of the unpacked layers.
    pub size: u64,
    /// Never collected: imported, built, or pinned by hand. CRI's `pinned` keeps the kubelet's collection away.
    #[serde(default)]
    pub pinned: bool,
    /// The config's user, copied here because CRI's list wants it for every image.
    #[serde(default)]
    pub user: String,
    /// Seconds since the epoch at which it came into the store.
    #[serde(default)]
    pub added: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    version: u32,
    images: Vec<Arc<ImageRecord>>,
}

/// Begins the line of a hold that says of which image it is.
const HELD_IMAGE: &str = "image ";

/// Identity of one version of the index file.
type Stamp = (u64, i64, i64, u64);

#[derive(Default)]
struct Cache {
    stamp: Option<Stamp>,
    images: Arc<Vec<Arc<ImageRecord>>>,
    usage: Option<(Stamp, Usage)>,
}

/// Disk use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The store. Cheap to clone; all methods block on disk for a short time (use `spawn_blocking` for ingests).
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    cache: Mutex<Cache>,
}

impl ImageStore {
    /// Open or create the store; removes leftovers of work that died and layers nothing refers to.
    pub fn open(root: &Path) -> Result<Self> {
        for d in ["", "blobs/sha256", "layers", "tmp", "holds", "empty"] {
            let p = root.join(d);
            state::private_dir(&p).what(|| {
                format!(
                    "create {} (does the data directory belong to root?)",
                    p.display()
                )
            })?;
        }
        // Setuid programs of images must not be within reach of the machine's users.
        for (d, levels) in [("blobs", 2), ("layers", 1), ("tmp", 1), ("holds", 1)] {
            let p = root.join(d);
            state::narrow(&p, levels).what(|| format!("close {} to others", p.display()))?;
        }
        for f in ["index.json", "lock"] {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            match fs::set_permissions(root.join(f), private) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io(
                        format!("close {} to others", root.join(f).display()),
                        e,
                    ));
                }
                _ => {}
            }
        }
        // Non-root users of containers walk through the overlay, not through these directories, except that the
        // empty lower directory is a root directory itself.
        fs::set_permissions(
            root.join("empty"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .what(|| format!("chmod {}", root.join("empty").display()))?;
        let root = root
            .canonicalize()
            .what(|| format!("resolve {}", root.display()))?;
        let store = ImageStore {
            inner: Arc::new(Inner {
                root,
                cache: Mutex::default(),
            }),
        };
        store.remove_dead_work();
        store.images()?; // a damaged index is said at start, not at the first pod
        store.collect()?;
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(super) fn path(&self, rel: &str) -> PathBuf {
        self.inner.root.join(rel)
    }

    pub(super) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.path("layers").join(chain.hex())
    }

    /// Blocks until this process (or thread) alone may change the store.
    pub(super) fn lock(&self) -> Result<File> {
        let p = self.path("lock");
        let f = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&p)
            .what(|| format!("open {}", p.display()))?;
        rustix::fs::flock(&f, FlockOperation::LockExclusive)
            .what(|| format!("lock {}", p.display()))?;
        Ok(f)
    }

    fn stamp(&self) -> Result<Option<Stamp>> {
        match fs::metadata(self.path("index.json")) {
            Ok(m) => Ok(Some((m.ino(), m.mtime(), m.mtime_nsec(), m.size()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::io(
                format!("stat {}", self.path("index.json").display()),
                e,
            )),
        }
    }

    /// All images, in the order they came.
    pub fn images(&self) -> Result<Arc<Vec<Arc<ImageRecord>>>> {
        let stamp = self.stamp()?;
        let mut cache = self.inner.cache.lock();
        if cache.stamp != stamp || stamp.is_none() {
            cache.images = Arc::new(match stamp {
                None => Vec::new(),
                Some(_) => {
                    let p = self.path("index.json");
                    let bytes = fs::read(&p).what(|| format!("read {}", p.display()))?;
                    let index: Index = serde_json::from_slice(&bytes).map_err(|e| {
                        ImageError::Invalid(format!(
                            "the image index {} is damaged ({e}); move it away and import or pull the images again",
                            p.display()
                        ))
                    })?;
                    if index.version > 1 {
                        return Err(ImageError::Invalid(format!(
                            "the image index {} was written by a newer skiff (version {})",
                            p.display(),
                            index.version
                        )));
                    }
                    index.images
                }
            });
            // If the file was replaced between stat and read we hold newer data under the old stamp: read again next
            // time, which is right.
            cache.stamp = stamp;
        }
        Ok(cache.images.clone())
    }

    /// Find an image by name (completed as Docker does), by `sha256:` id, or by the first digits of an id.
    pub fn resolve(&self, name: &str) -> Result<Option<Arc<ImageRecord>>> {
        let images = self.images()?;
        if let Ok(id) = Digest::parse(name) {
            return Ok(images.iter().find(|i| i.id == id).cloned());
        }
        if let Ok(r) = Reference::parse(name) {
            let full = r.to_string();
            if let Some(i) = images
                .iter()
                .find(|i| i.repo_tags.contains(&full) || i.repo_digests.contains(&full))
            {
                return Ok(Some(i.clone()));
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() >= 3 && prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut found = images.iter().filter(|i| i.id.hex().starts_with(prefix));
            if let (Some(one), None) = (found.next(), found.next()) {
                return Ok(Some(one.clone()));
            }
        }
        Ok(None)
    }

    /// Like [`resolve`](Self::resolve), with an error for what is not there.
    pub fn get(&self, name: &str) -> Result<Arc<ImageRecord>> {
        self.resolve(name)?
            .ok_or_else(|| ImageError::NotFound(name.to_owned()))
    }

    /// The config of an image, verified against its digest.
    pub fn config(&self, image: &ImageRecord) -> Result<ImageConfig> {
        parse_config(&image.id, &self.blob(&image.id)?)
    }

    /// A blob's bytes, verified.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let p = self.path("blobs/sha256").join(digest.hex());
        let bytes = fs::read(&p).what(|| format!("read {}", p.display()))?;
        digest.check(&Digest::of(&bytes), || {
            format!("blob {} on disk", p.display())
        })?;
        Ok(bytes)
    }

    /// Lower directories of an image, top first.
    pub fn lowerdirs(&self, layers: &[Digest]) -> Vec<PathBuf> {
        if layers.is_empty() {
            return vec![self.path("empty")];
        }
        layers
            .iter()
            .rev()
            .map(|l| self.layer_path(l).join("fs"))
            .collect()
    }

    /// Resolve an image for a container and keep its layers on disk until [`release`](Self::release) of the same
    /// `holder` (a container id), also over restarts. Holding again under the same name replaces the hold.
    pub fn hold(&self, image: &str, holder: &str) -> Result<ImageRootfs> {
        check_holder(holder)?;
        let lock = self.lock()?;
        let image = self.get(image)?;
        let mut lines: String = image.layers.iter().map(|l| format!("{l}\n")).collect();
        lines.push_str(&format!("{HELD_IMAGE}{}\n", image.id));
        let p = self.path("holds").join(holder);
        let tmp = self.path("holds").join(format!(".{holder}"));
        // No fsync: after a crash of the machine there is no container left that could use the layers.
        private_file(&tmp, lines.as_bytes())
            .and_then(|()| fs::rename(&tmp, &p))
            .what(|| format!("write {}", p.display()))?;
        drop(lock);
        let config = self.config(&image)?;
        let lowerdirs = self.lowerdirs(&image.layers);
        Ok(ImageRootfs {
            image,
            config,
            lowerdirs,
        })
    }

    /// End a hold; unknown holders are fine. Layers that nothing uses any more are removed.
    pub fn release(&self, holder: &str) -> Result<()> {
        check_holder(holder)?;
        let p = self.path("holds").join(holder);
        let held = match fs::read_to_string(&p) {
            Ok(t) => t,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(ImageError::io(format!("read {}", p.display()), e)),
        };
        {
            let _lock = self.lock()?;
            match fs::remove_file(&p) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io(format!("remove {}", p.display()), e));
                }
                _ => {}
            }
        }
        // The usual case by far: the image is still there, and nothing can have become garbage.
        let images = self.images()?;
        let live: HashSet<&str> = images
            .iter()
            .flat_map(|i| i.layers.iter().map(Digest::as_str))
            .collect();
        let mut layers = held.lines().filter(|l| !l.starts_with(HELD_IMAGE));
        if layers.all(|l| live.contains(l)) {
            Ok(())
        } else {
            self.collect()
        }
    }

    /// Names of all holds, for reconciliation at start.
    pub fn holders(&self) -> Result<Vec<String>> {
        let dir = self.path("holds");
        let mut out = Vec::new();
        for e in fs::read_dir(&dir).what(|| format!("list {}", dir.display()))? {
            let e = e.what(|| format!("list {}", dir.display()))?;
            if let Ok(n) = e.file_name().into_string()
                && !n.starts_with('.')
            {
                out.push(n);
            }
        }
        Ok(out)
    }

    /// Who holds the image. A hold of an older version names no image: it is of every one with its layers.
    fn holders_of(&self, image: &ImageRecord) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for holder in self.holders()? {
            let p = self.path("holds").join(&holder);
            let text = match fs::read_to_string(&p) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                t => t.what(|| format!("read {}", p.display()))?,
            };
            let held = match text.lines().find_map(|l| l.strip_prefix(HELD_IMAGE)) {
                Some(id) => id == image.id.as_str(),
                None => text.lines().eq(image.layers.iter().map(Digest::as_str)),
            };
            if held {
                found.push(holder);
            }
        }
        Ok(found)
    }

    fn check_unused(&self, name: &str, image: &ImageRecord) -> Result<()> {
        let by = self.holders_of(image)?;
        if by.is_empty() {
            return Ok(());
        }
        Err(ImageError::InUse {
            image: name.to_owned(),
            by,
        })
    }

    /// Remove an image with all its names; false when there was none. One that is held is refused, unless `force`: then
    /// its layers stay until the last hold ends.
    pub fn remove(&self, name: &str, force: bool) -> Result<bool> {
        let removed = {
            let _lock = self.lock()?;
            match self.resolve(name)? {
                None => false,
                Some(image) => {
                    if !force {
                        self.check_unused(name, &image)?;
                    }
                    let mut images = (*self.images()?).clone();
                    images.retain(|i| i.id != image.id);
                    self.write_index(images)?;
                    true
                }
            }
        };
        if removed {
            self.collect()?;
        }
        Ok(removed)
    }

    /// Take one tag away; the image goes with its last name, as [`remove`](Self::remove) takes it. Ids remove the whole
    /// image. True when the image is gone.
    pub fn untag(&self, name: &str, force: bool) -> Result<bool> {
        {
            let _lock = self.lock()?;
            let image = self.get(name)?;
            let full = Reference::parse(name)
                .map(|r| r.to_string())
                .unwrap_or_default();
            if image.repo_tags.len() > 1 && image.repo_tags.contains(&full) {
                let mut changed = (*image).clone();
                changed.repo_tags.retain(|t| *t != full);
                let images = self.images()?;
                let images = images
                    .iter()
                    .map(|i| {
                        if i.id == image.id {
                            Arc::new(changed.clone())
                        } else {
                            i.clone()
                        }
                    })
                    .collect();
                self.write_index(images)?;
                return Ok(false);
            }
        }
        self.remove(name, force)
    }

    /// Disk use of all layers, from what was counted when they were unpacked.
    pub fn usage(&self) -> Result<Usage> {
        let stamp = self.stamp()?;
        if let (Some(s), Some((at, u))) = (stamp, self.inner.cache.lock().usage)
            && s == at
        {
            return Ok(u);
        }
        let mut total = Usage::default();
        let dir = self.path("layers");
        for e in fs::read_dir(&dir)
            .what(|| format!("list {}", dir.display()))?
            .flatten()
        {
            let u = read_usage(&e.path());
            total.bytes += u.bytes;
            total.inodes += u.inodes;
        }
        if let Some(s) = stamp {
            self.inner.cache.lock().usage = Some((s, total));
        }
        Ok(total)
    }

    /// Start bringing something in. The work directory disappears with the value, or at the next open.
    pub fn ingest(&self) -> Result<Ingest> {
        let _lock = self.lock()?;
        let dir = self
            .path("tmp")
            .join(uuid::Uuid::new_v4().simple().to_string());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .what(|| format!("create {}", dir.display()))?;
        let owner = File::open(&dir).what(|| format!("open {}", dir.display()))?;
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive)
            .what(|| format!("lock {}", dir.display()))?;
        Ok(Ingest::new(self.clone(), dir, owner))
    }

    /// Needs the lock. Sorts nothing: order is age.
    pub(super) fn write_index(&self, images: Vec<Arc<ImageRecord>>) -> Result<()> {
        let bytes = serde_json::to_vec(&Index { version: 1, images })
            .map_err(|e| ImageError::Invalid(format!("encode the image index: {e}")))?;
        let p = self.path("index.json");
        write_durably(&self.path("index.json.new"), &p, &bytes)
    }

    fn remove_dead_work(&self) {
        let Ok(_lock) = self.lock() else { return };
        let Ok(entries) = fs::read_dir(self.path("tmp")) else {
            return;
        };
        for e in entries.flatten() {
            let p = e.path();
            let dead = File::open(&p).is_ok_and(|f| {
                rustix::fs::flock(&f, FlockOperation::NonBlockingLockExclusive).is_ok()
            });
            if dead {
                unmount_below(&p);
                if let Err(e) = fs::remove_dir_all(&p).or_else(|_| fs::remove_file(&p)) {
                    tracing::warn!(path = %p.display(), error = %e, "leftover of the image store not removed");
                }
            }
        }
    }

    /// Remove layers and blobs that no image, no hold and no ingest under way refers to.
    pub fn collect(&self) -> Result<()> {
        let mut grave = Vec::new();
        {
            let _lock = self.lock()?;
            let images = self.images()?;
            let mut layers: HashSet<String> = HashSet::new();
            let mut blobs: HashSet<String> = HashSet::new();
            for i in images.iter() {
                blobs.insert(i.id.hex().to_owned());
                layers.extend(i.layers.iter().map(|l| l.hex().to_owned()));
            }
            for h in self.holders()? {
                refs_of(&self.path("holds").join(h), &mut layers)?;
            }
            let tmp = self.path("tmp");
            for e in fs::read_dir(&tmp)
                .what(|| format!("list {}", tmp.display()))?
                .flatten()
            {
                let f = e.path().join("refs");
                refs_of(&f, &mut layers)?;
                refs_of(&f, &mut blobs)?;
            }
            for (dir, live) in [("layers", &layers), ("blobs/sha256", &blobs)] {
                let dir = self.path(dir);
                for e in fs::read_dir(&dir)
                    .what(|| format!("list {}", dir.display()))?
                    .flatten()
                {
                    if !live.contains(&*e.file_name().to_string_lossy()) {
                        let to = tmp.join(format!("dead-{}", uuid::Uuid::new_v4().simple()));
                        fs::rename(e.path(), &to)
                            .what(|| format!("remove {}", e.path().display()))?;
                        grave.push(to);
                    }
                }
            }
            if !grave.is_empty() {
                self.inner.cache.lock().usage = None;
            }
        }
        for p in grave {
            let gone = if p.is_dir() {
                fs::remove_dir_all(&p)
            } else {
                fs::remove_file(&p)
            };
            if let Err(e) = gone
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %p.display(), error = %e, "dead layer not removed; it goes at the next start");
            }
        }
        Ok(())
    }
}

/// Seconds since the epoch, for records.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

/// Parse a config blob with an error that names it.
pub fn parse_config(id: &Digest, bytes: &[u8]) -> Result<ImageConfig> {
    serde_json::from_slice(bytes)
        .map_err(|e| ImageError::Invalid(format!("image config {id} is not valid: {e}")))
}

/// Write, fsync, rename over `to`, fsync the directory.
pub fn write_durably(tmp: &Path, to: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut f = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(tmp)?;
        f.write_all(bytes)?;
        f.sync_all()?;
        fs::rename(tmp, to)?;
        match to.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(tmp)))
        .what(|| format!("write {}", to.display()))
}

/// A file for this user alone.
pub(super) fn private_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

/// Unmount everything at or below `dir`, so that removing the directory never walks into a mount.
pub fn unmount_below(dir: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| {
            PathBuf::from(
                p.replace("\\040", " ")
                    .replace("\\011", "\t")
                    .replace("\\134", "\\"),
            )
        })
        .filter(|p| p.starts_with(dir))
        .collect();
    for p in points.iter().rev() {
        if let Err(e) = rustix::mount::unmount(p, rustix::mount::UnmountFlags::DETACH) {
            tracing::warn!(path = %p.display(), error = %e, "unmount");
        }
    }
}

fn check_holder(holder: &str) -> Result<()> {
    let ok = !holder.is_empty()
        && holder.len() <= 128
        && !holder.starts_with('.')
        && holder
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok {
        Ok(())
    } else {
        Err(ImageError::Invalid(format!(
            "{holder:?} is not a name for a hold on an image"
        )))
    }
}

pub(super) fn read_usage(layer: &Path) -> Usage {
    let text = fs::read_to_string(layer.join("usage")).unwrap_or_default();
    let mut n = text.split_whitespace().map(|w| w.parse().unwrap_or(0));
    Usage {
        bytes: n.next().unwrap_or(0),
        inodes: n.next().unwrap_or(0),
    }
}

fn refs_of(file: &Path, into: &mut HashSet<String>) -> Result<()> {
    match fs::read_to_string(file) {
        Ok(t) => into.extend(
            t.lines()
                .filter_map(|l| l.strip_prefix("sha256:"))
                .map(str::to_owned),
        ),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) => {}
        Err(e) => return Err(ImageError::io(format!("read {}", file.display()), e)),
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::images::config::RootFs;

    /// Put an image of one file per layer in; the layers' diffIDs are made up from the contents.
    pub(crate) fn put_image(store: &ImageStore, tag: &str, layers: &[&str]) -> Arc<ImageRecord> {
        let mut ingest = store.ingest().unwrap();
        let mut diff_ids = Vec::new();
        let mut chain: Option<Digest> = None;
        for content in layers {
            let diff = Digest::of(content.as_bytes());
            let c = Digest::chain(chain.as_ref(), &diff);
            if !ingest.has_layer(&c).unwrap() {
                let staged = ingest.stage_layer().unwrap();
                fs::write(staged.fs().join("file"), content).unwrap();
                ingest
                    .commit_layer(
                        staged,
                        &c,
                        Usage {
                            bytes: content.len() as u64,
                            inodes: 2,
                        },
                    )
                    .unwrap();
            }
            chain = Some(c);
            diff_ids.push(diff);
        }
        let config = ImageConfig {
            os: "linux".into(),
            author: Some(tag.into()),
            rootfs: RootFs {
                diff_ids,
                ..Default::default()
            },
            ..Default::default()
        };
        let digest = ingest
            .put_blob(&serde_json::to_vec(&config).unwrap())
            .unwrap();
        let names = NewImage {
            repo_tags: vec![Reference::parse(tag).unwrap().to_string()],
            pinned: true,
            ..Default::default()
        };
        ingest.finish(&digest, names, 7).unwrap()
    }

    fn layers_on_disk(store: &ImageStore) -> usize {
        fs::read_dir(store.root().join("layers")).unwrap().count()
    }

    #[test]
    fn an_image_is_found_by_name_id_and_prefix_also_by_another_opener() {
        let t = tempfile::tempdir().unwrap();
        let a = ImageStore::open(t.path()).unwrap();
        let b = ImageStore::open(t.path()).unwrap();
        assert!(b.images().unwrap().is_empty());
        let image = put_image(&a, "app:v1", &["one", "two"]);
        for name in [
            "app:v1",
            "docker.io/library/app:v1",
            image.id.as_str(),
            image.id.hex(),
            &image.id.hex()[..12],
        ] {
            assert_eq!(
                b.resolve(name).unwrap().map(|i| i.id.clone()),
                Some(image.id.clone()),
                "{name}"
            );
        }
        assert!(b.resolve("app").unwrap().is_none(), "latest is another tag");
        assert_eq!(image.size, 6);
        assert_eq!(
            b.usage().unwrap(),
            Usage {
                bytes: 6,
                inodes: 4
            }
        );
        assert_eq!(b.config(&image).unwrap().author.as_deref(), Some("app:v1"));
    }

    #[test]
    fn layers_are_shared_and_go_with_their_last_user() {
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(t.path()).unwrap();
        put_image(&s, "a", &["base", "a"]);
        put_image(&s, "b", &["base", "b"]);
        assert_eq!(layers_on_disk(&s), 3);
        let root = s.hold("b", "c1").unwrap();
        assert_eq!(root.lowerdirs.len(), 2);
        assert_eq!(
            fs::read_to_string(root.lowerdirs[0].join("file")).unwrap(),
            "b",
            "top first"
        );
        assert!(s.remove("a", false).unwrap());
        assert!(!s.remove("a", false).unwrap(), "removing twice is fine");
        assert_eq!(layers_on_disk(&s), 2);
        let refused = s.remove("b", false).unwrap_err();
        assert!(
            matches!(&refused, ImageError::InUse { by, .. } if by == &["c1"]),
            "{refused}"
        );
        assert!(s.untag("b", false).is_err() && s.resolve("b").unwrap().is_some());
        assert!(s.remove("b", true).unwrap());
        assert_eq!(layers_on_disk(&s), 2, "held by the container");
        let again = ImageStore::open(t.path()).unwrap();
        assert_eq!(layers_on_disk(&again), 2, "the hold outlives the process");
        assert_eq!(again.holders().unwrap(), ["c1"]);
        again.release("c1").unwrap();
        assert_eq!(layers_on_disk(&again), 0);
        again.release("c1").unwrap();
    }

    #[test]
    fn a_rebuilt_tag_replaces_the_old_image_and_untag_keeps_other_names() {
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(t.path()).unwrap();
        let old = put_image(&s, "a", &["old"]);
        let new = put_image(&s, "a", &["new"]);
        assert!(s.resolve(old.id.as_str()).unwrap().is_none());
        assert_eq!(layers_on_disk(&s), 1);
        let mut i = s.ingest().unwrap();
        let config = serde_json::to_vec(&s.config(&new).unwrap()).unwrap();
        let d = i.put_blob(&config).unwrap();
        assert_eq!(d, new.id);
        i.finish(
            &d,
            NewImage {
                repo_tags: vec!["docker.io/library/b:latest".into()],
                ..Default::default()
            },
            0,
        )
        .unwrap();
        assert_eq!(s.get("b").unwrap().repo_tags.len(), 2);
        assert!(!s.untag("a", false).unwrap());
        assert!(s.resolve("a").unwrap().is_none());
        assert!(s.untag("b", false).unwrap());
        assert_eq!(layers_on_disk(&s), 0);
    }

    #[test]
    fn what_a_dead_ingest_left_is_removed_at_open_and_a_live_one_is_spared() {
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(t.path()).unwrap();
        let mut live = s.ingest().unwrap();
        let staged = live.stage_layer().unwrap();
        let chain = Digest::of(b"x");
        live.commit_layer(staged, &chain, Usage::default()).unwrap();
        let dead = s.root().join("tmp/deadbeef");
        fs::create_dir_all(dead.join("layer1/fs/sub")).unwrap();
        fs::create_dir_all(s.root().join("layers/orphan/fs")).unwrap();
        let again = ImageStore::open(t.path()).unwrap();
        assert!(!dead.exists());
        assert!(!s.root().join("layers/orphan").exists());
        assert!(live.dir().exists());
        assert!(
            live.has_layer(&chain).unwrap(),
            "a layer without an image yet stays while its ingest lives"
        );
        drop(live);
        again.collect().unwrap();
        assert_eq!(layers_on_disk(&again), 0);
        assert_eq!(fs::read_dir(again.root().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_config_or_index_is_said_not_used() {
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(t.path()).unwrap();
        let i = put_image(&s, "a", &["x"]);
        let blob = s.root().join("blobs/sha256").join(i.id.hex());
        fs::write(&blob, b"{}").unwrap();
        assert!(matches!(
            s.config(&i),
            Err(ImageError::DigestMismatch { .. })
        ));
        fs::write(s.root().join("index.json"), b"{\"version\":1,").unwrap();
        let e = ImageStore::open(t.path()).err().unwrap().to_string();
        assert!(e.contains("index.json") && e.contains("damaged"), "{e}");
    }

    #[test]
    fn many_who_add_remove_hold_and_collect_never_lose_a_layer_in_use() {
        let t = tempfile::tempdir().unwrap();
        ImageStore::open(t.path()).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..6 {
                let root = t.path();
                scope.spawn(move || {
                    // Each with a store of its own, as processes have.
                    let s = ImageStore::open(root).unwrap();
                    for round in 0..25 {
                        let name = format!("img{}", (worker + round) % 4);
                        match (worker + round) % 3 {
                            0 => drop(put_image(
                                &s,
                                &name,
                                &["base", "middle", &format!("top{}", round % 2)],
                            )),
                            1 => {
                                let holder = format!("c{worker}");
                                if let Ok(held) = s.hold(&name, &holder) {
                                    s.collect().unwrap();
                                    for d in &held.lowerdirs {
                                        assert!(
                                            d.join("file").is_file(),
                                            "{} of {name}",
                                            d.display()
                                        );
                                    }
                                }
                                s.release(&holder).unwrap();
                            }
                            _ => drop(s.remove(&name, true).unwrap()),
                        }
                    }
                });
            }
        });
        let s = ImageStore::open(t.path()).unwrap();
        for i in s.images().unwrap().iter() {
            for d in s.lowerdirs(&i.layers) {
                assert!(d.join("file").is_file());
            }
        }
        assert_eq!(fs::read_dir(s.root().join("tmp")).unwrap().count(), 0);
    }
}
