//! Owns bringing one image into the store, crash-safely: blobs and layers first, then one flush, the record last.
//! Must not know where the image comes from. What an ingest is working on is spared by collection through its `refs`.

use super::digest::Digest;
use super::error::IoContext;
use super::store::{
    ImageRecord, ImageStore, Usage, parse_config, private_file, read_usage, unmount_below,
    write_durably,
};
use super::{ImageError, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The names and flags an image is stored with.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub pinned: bool,
}

/// Bringing an image in: blobs and layers are put down first, the record last. Dropping it leaves nothing.
pub struct Ingest {
    store: ImageStore,
    dir: PathBuf,
    _owner: File,
    count: u32,
}

/// A layer directory being filled; drop it to give it up.
pub struct StagedLayer {
    dir: PathBuf,
}

impl StagedLayer {
    /// The directory to fill: what becomes the lower directory.
    pub fn fs(&self) -> PathBuf {
        self.dir.join("fs")
    }
}

impl Ingest {
    /// `owner` is `dir`, flocked: others take a directory that nobody has locked for a leftover.
    pub(super) fn new(store: ImageStore, dir: PathBuf, owner: File) -> Self {
        Ingest {
            store,
            dir,
            _owner: owner,
            count: 0,
        }
    }

    /// The store this goes to.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    /// A directory of this ingest's own for temporary files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of [`dir`](Self::dir), which no other ingest has.
    pub fn id(&self) -> String {
        self.dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// A fresh name below [`dir`](Self::dir).
    pub fn temp_path(&mut self, prefix: &str) -> PathBuf {
        self.count += 1;
        self.dir.join(format!("{prefix}{}", self.count))
    }

    fn protect(&self, digest: &Digest) -> Result<()> {
        let p = self.dir.join("refs");
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&p)
            .and_then(|mut f| f.write_all(format!("{digest}\n").as_bytes()))
            .what(|| format!("write {}", p.display()))
    }

    /// Store a small blob (a config). Returns its digest.
    pub fn put_blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let _lock = self.store.lock()?;
        self.protect(&digest)?;
        let to = self.store.path("blobs/sha256").join(digest.hex());
        // Rewritten even when there: the one on disk may have rotted.
        let tmp = self.temp_path("blob");
        write_durably(&tmp, &to, bytes)?;
        Ok(digest)
    }

    /// Is this layer there? If so it stays at least as long as this ingest.
    pub fn has_layer(&self, chain: &Digest) -> Result<bool> {
        let _lock = self.store.lock()?;
        self.protect(chain)?;
        Ok(self.store.layer_path(chain).join("fs").is_dir())
    }

    /// A directory to unpack a layer into.
    pub fn stage_layer(&mut self) -> Result<StagedLayer> {
        let dir = self.temp_path("layer");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .what(|| format!("create {}", dir.display()))?;
        let staged = StagedLayer { dir };
        fs::DirBuilder::new()
            .mode(0o755)
            .create(staged.fs())
            .what(|| format!("create {}", staged.fs().display()))?;
        fs::set_permissions(
            staged.fs(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .what(|| format!("chmod {}", staged.fs().display()))?;
        Ok(staged)
    }

    /// Put a filled layer in its place. When somebody else was faster, theirs stays.
    pub fn commit_layer(
        &mut self,
        staged: StagedLayer,
        chain: &Digest,
        usage: Usage,
    ) -> Result<()> {
        let p = staged.dir.join("usage");
        private_file(&p, format!("{} {}\n", usage.bytes, usage.inodes).as_bytes())
            .what(|| format!("write {}", p.display()))?;
        let _lock = self.store.lock()?;
        self.protect(chain)?;
        let to = self.store.layer_path(chain);
        if to.join("fs").is_dir() {
            return Ok(());
        }
        fs::rename(&staged.dir, &to).what(|| format!("move layer to {}", to.display()))
    }

    /// Write the record: from here on the image exists. `config` must have been given to `put_blob`, the layers to
    /// `commit_layer` (or found by `has_layer`). Names move here from images that had them; an image that loses its
    /// last name this way is removed, as in containerd.
    pub fn finish(
        self,
        config_digest: &Digest,
        names: NewImage,
        now: i64,
    ) -> Result<Arc<ImageRecord>> {
        let store = self.store.clone();
        let config = parse_config(config_digest, &store.blob(config_digest)?)?;
        let mut layers = Vec::with_capacity(config.rootfs.diff_ids.len());
        let mut size = 0;
        for d in &config.rootfs.diff_ids {
            let chain = Digest::chain(layers.last(), d);
            let dir = store.layer_path(&chain);
            if !dir.join("fs").is_dir() {
                return Err(ImageError::Invalid(format!(
                    "image {config_digest}: layer {d} (chain {chain}) was not unpacked"
                )));
            }
            size += read_usage(&dir).bytes;
            layers.push(chain);
        }
        // One flush for all layers, before the record names them: a record never points at files that a power cut
        // can take away.
        let root = File::open(store.root()).what(|| format!("open {}", store.root().display()))?;
        rustix::fs::syncfs(&root).what(|| format!("sync {}", store.root().display()))?;
        let mut garbage = false;
        let record = {
            let _lock = store.lock()?;
            let old = store.images()?;
            let mut record = old
                .iter()
                .find(|i| i.id == *config_digest)
                .map(|i| (**i).clone())
                .unwrap_or(ImageRecord {
                    id: config_digest.clone(),
                    repo_tags: Vec::new(),
                    repo_digests: Vec::new(),
                    layers: Vec::new(),
                    size,
                    pinned: false,
                    user: config.config.user.clone(),
                    added: now,
                });
            record.layers = layers;
            record.size = size;
            record.pinned |= names.pinned;
            for t in names.repo_tags {
                if !record.repo_tags.contains(&t) {
                    record.repo_tags.push(t);
                }
            }
            for d in names.repo_digests {
                if !record.repo_digests.contains(&d) {
                    record.repo_digests.push(d);
                }
            }
            let record = Arc::new(record);
            let mut images = Vec::with_capacity(old.len() + 1);
            for i in old.iter().filter(|i| i.id != *config_digest) {
                if !i.repo_tags.iter().any(|t| record.repo_tags.contains(t)) {
                    images.push(i.clone());
                    continue;
                }
                let mut i = (**i).clone();
                i.repo_tags.retain(|t| !record.repo_tags.contains(t));
                if i.repo_tags.is_empty() && i.repo_digests.is_empty() {
                    garbage = true;
                } else {
                    // Known only by digest from here on: nobody's any more, so the kubelet may collect it.
                    i.pinned &= !i.repo_tags.is_empty();
                    images.push(Arc::new(i));
                }
            }
            images.push(record.clone());
            store.write_index(images)?;
            record
        };
        drop(self);
        if garbage {
            store.collect()?;
        }
        Ok(record)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        unmount_below(&self.dir);
        if let Err(e) = fs::remove_dir_all(&self.dir)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.dir.display(), error = %e, "work directory not removed; it goes at the next start");
        }
    }
}
