//! Owns bringing image archives into the store: docker-archive and OCI layout tars, plain, gzip or zstd, any number
//! of images in each; and the directory of archives that is imported at start. Must not talk to registries.
//!
//! Nothing is held in memory but small JSON: a plain tar is read in place by offset, because layers come before the
//! manifest that orders them; a compressed one is first unpacked to a temporary file beside the store.

use super::config::{Descriptor, Index, Manifest, choose_platform, is_index};
use super::digest::Digest;
use super::error::IoContext;
use super::ingest::{Ingest, NewImage};
use super::layer::{LayerSource, add_layer, check_config, decompress};
use super::store::{ImageRecord, ImageStore, parse_config, write_durably};
use super::{ImageError, Reference, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// What JSON in an archive may be at most; real ones are a few KiB.
const MAX_JSON: u64 = 8 << 20;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Names given in addition to those in the archive (only for archives of one image).
    pub names: Vec<String>,
    /// Never collect.
    pub pinned: bool,
}

/// Import all images of an archive. `progress` is told what is being done, in words.
pub fn import_file(
    store: &ImageStore,
    path: &Path,
    options: &ImportOptions,
    progress: &dyn Fn(&str),
) -> Result<Vec<Arc<ImageRecord>>> {
    let file = File::open(path).what(|| format!("open {}", path.display()))?;
    let shown = path.display().to_string();
    if !file.metadata().what(|| format!("stat {shown}"))?.is_file() {
        // A pipe cannot be read by offset.
        return import_stream(store, file, &shown, options, progress);
    }
    let mut magic = [0u8; 4];
    let n = file
        .read_at(&mut magic, 0)
        .what(|| format!("read {shown}"))?;
    if magic[..n].starts_with(&[0x1f, 0x8b]) || magic[..n] == [0x28, 0xb5, 0x2f, 0xfd] {
        return import_stream(store, file, &shown, options, progress);
    }
    Importer {
        store,
        archive: Archive::scan(file, &shown)?,
        options,
        progress,
    }
    .run()
}

/// Import from a stream (standard input, or compressed): it goes through a temporary file.
pub fn import_stream(
    store: &ImageStore,
    input: impl Read,
    shown: &str,
    options: &ImportOptions,
    progress: &dyn Fn(&str),
) -> Result<Vec<Arc<ImageRecord>>> {
    let mut spool_area = store.ingest()?;
    let p = spool_area.temp_path("archive");
    let mut spool = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&p)
        .what(|| format!("create {}", p.display()))?;
    progress(&format!("decompressing {shown}"));
    let mut plain = decompress(input).what(|| format!("read {shown}"))?;
    let mut buf = vec![0u8; 256 * 1024];
    let mut total = 0u64;
    let room = super::limits::Limits::of(&spool).bytes;
    loop {
        match plain.read(&mut buf) {
            Ok(0) => break,
            Ok(n) if total + n as u64 > room => {
                return Err(ImageError::io(
                    format!("decompress {shown}: it has more than {} MiB", room >> 20),
                    io::Error::from_raw_os_error(libc::ENOSPC),
                ));
            }
            Ok(n) => {
                io::Write::write_all(&mut spool, &buf[..n])
                    .what(|| format!("write {}", p.display()))?;
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                // Say how far the tar was readable: the entry is what a user can look for.
                let entry = Archive::last_entry(&spool);
                return Err(archive_error(
                    shown,
                    format!(
                        "the compressed data is damaged after {total} bytes, in entry {entry}: {e}"
                    ),
                ));
            }
        }
    }
    spool
        .seek(SeekFrom::Start(0))
        .what(|| format!("seek {}", p.display()))?;
    Importer {
        store,
        archive: Archive::scan(spool, shown)?,
        options,
        progress,
    }
    .run()
}

fn archive_error(file: &str, message: impl Into<String>) -> ImageError {
    ImageError::Archive {
        file: file.to_owned(),
        message: message.into(),
    }
}

/// A plain tar with the places of its files.
struct Archive {
    file: File,
    shown: String,
    /// Path without leading `./` -> offset and size.
    files: HashMap<String, (u64, u64)>,
    /// Links to other entries: old `docker save` shares layers this way.
    links: HashMap<String, String>,
}

impl Archive {
    fn scan(file: File, shown: &str) -> Result<Self> {
        let len = file.metadata().what(|| format!("stat {shown}"))?.len();
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut last = "(the first)".to_owned();
        {
            let mut tar = tar::Archive::new(&file);
            let entries = tar
                .entries_with_seek()
                .map_err(|e| archive_error(shown, format!("not a tar: {e}")))?;
            for e in entries {
                let e = e.map_err(|e| match files.is_empty() && links.is_empty() {
                    // The library quotes the header it could not read, which is then anything.
                    true => archive_error(
                        shown,
                        "it is not a tar: not a docker-archive or OCI layout tar",
                    ),
                    false => archive_error(
                        shown,
                        format!(
                            "damaged after entry {last}: {}",
                            super::unpack::one_line(&e)
                        ),
                    ),
                })?;
                let name = normal(&String::from_utf8_lossy(&e.path_bytes()));
                match e.header().entry_type() {
                    tar::EntryType::Regular | tar::EntryType::Continuous => {
                        let (at, size) = (e.raw_file_position(), e.size());
                        if at.checked_add(size).is_none_or(|end| end > len) {
                            return Err(archive_error(
                                shown,
                                format!("it ends in the middle of entry {name}"),
                            ));
                        }
                        files.insert(name.clone(), (at, size));
                    }
                    tar::EntryType::Symlink | tar::EntryType::Link => {
                        let target =
                            String::from_utf8_lossy(&e.link_name_bytes().unwrap_or_default())
                                .into_owned();
                        let hard = e.header().entry_type() == tar::EntryType::Link;
                        let to = match name.rsplit_once('/') {
                            Some((dir, _)) if !hard => normal(&format!("{dir}/{target}")),
                            _ => normal(&target),
                        };
                        links.insert(name.clone(), to);
                    }
                    _ => {}
                }
                last = name;
            }
        }
        if files.is_empty() {
            return Err(archive_error(
                shown,
                "it holds no files: not a docker-archive or OCI layout tar",
            ));
        }
        Ok(Archive {
            file,
            shown: shown.to_owned(),
            files,
            links,
        })
    }

    /// The entry a truncated tar ends in.
    fn last_entry(file: &File) -> String {
        let mut last = "(the first)".to_owned();
        let Ok(mut again) = file.try_clone() else {
            return last;
        };
        if again.seek(SeekFrom::Start(0)).is_err() {
            return last;
        }
        if let Ok(entries) = tar::Archive::new(again).entries_with_seek() {
            for e in entries.map_while(|e| e.ok()) {
                last = String::from_utf8_lossy(&e.path_bytes()).into_owned();
            }
        }
        last
    }

    fn error(&self, message: impl Into<String>) -> ImageError {
        archive_error(&self.shown, message)
    }

    fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut p = normal(path);
        for _ in 0..10 {
            if let Some(at) = self.files.get(&p) {
                return Some(*at);
            }
            p = self.links.get(&p)?.clone();
        }
        None
    }

    fn reader(&self, path: &str) -> Result<Section<'_>> {
        let (at, size) = self
            .find(path)
            .ok_or_else(|| self.error(format!("entry {path} is missing")))?;
        Ok(Section {
            file: &self.file,
            at,
            end: at + size,
        })
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let mut r = self.reader(path)?;
        if r.end - r.at > MAX_JSON {
            return Err(self.error(format!(
                "entry {path} is larger than any image document ({} bytes)",
                r.end - r.at
            )));
        }
        let mut out = Vec::new();
        r.read_to_end(&mut out)
            .what(|| format!("read {}", self.shown))?;
        Ok(out)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(path)?)
            .map_err(|e| self.error(format!("entry {path} is not valid: {e}")))
    }

    /// A small blob of an OCI layout, verified.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = blob_path(digest);
        let bytes = self.bytes(&path)?;
        digest.check(&Digest::of(&bytes), || {
            format!("archive {}: entry {path}", self.shown)
        })?;
        Ok(bytes)
    }
}

fn blob_path(d: &Digest) -> String {
    format!("blobs/sha256/{}", d.hex())
}

/// Remove `.`, `..` and empty parts: the names are keys of a map here, never paths on disk.
fn normal(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for c in path.split('/') {
        match c {
            "" | "." => {}
            ".." => drop(out.pop()),
            c => out.push(c),
        }
    }
    out.join("/")
}

/// A part of a file, read by offset.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min((self.end - self.at) as usize);
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// One image of a docker-archive's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

struct Importer<'a> {
    store: &'a ImageStore,
    archive: Archive,
    options: &'a ImportOptions,
    progress: &'a dyn Fn(&str),
}

/// An image found in an archive, before its layers are read.
struct Plan {
    config: Vec<u8>,
    /// Entry of each layer and the digest it must have, if the archive says one.
    layers: Vec<(String, Option<Digest>)>,
    names: Vec<Reference>,
    manifest: Option<Digest>,
}

impl Importer<'_> {
    fn run(self) -> Result<Vec<Arc<ImageRecord>>> {
        let mut extra = Vec::new();
        for n in &self.options.names {
            extra.push(Reference::parse(n)?);
        }
        // As containerd: an OCI layout is preferred when an archive is both (docker save since 25).
        let docker: Option<Vec<DockerImage>> = self
            .archive
            .find("manifest.json")
            .map(|_| self.archive.json("manifest.json"))
            .transpose()?;
        let mut plans = match self.archive.find("index.json") {
            Some(_) => self.plan_oci(docker.as_deref())?,
            None => match docker {
                Some(d) => self.plan_docker(&d)?,
                None => {
                    return Err(self.archive.error(
                        "neither manifest.json (docker-archive) nor index.json (OCI layout) is in it: not an image archive",
                    ));
                }
            },
        };
        match plans.as_mut_slice() {
            [] => return Err(self.archive.error("it holds no image for this machine")),
            [one] => one.names.extend(extra),
            _ if extra.is_empty() => {}
            many => {
                let n = many.len();
                return Err(self.archive.error(format!(
                    "it holds {n} images; a name can be given only for one"
                )));
            }
        }
        plans.into_iter().map(|p| self.add(p)).collect()
    }

    fn plan_docker(&self, images: &[DockerImage]) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for image in images {
            let config = self.archive.bytes(&image.config)?;
            // Docker names the config by its digest; other writers need not.
            let stem = image
                .config
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .trim_end_matches(".json");
            if let Ok(d) = Digest::parse(&format!("sha256:{stem}")) {
                d.check(&Digest::of(&config), || {
                    format!("archive {}: entry {}", self.archive.shown, image.config)
                })?;
            }
            let mut names = Vec::new();
            for t in image.repo_tags.iter().flatten() {
                names.push(
                    Reference::parse(t)
                        .map_err(|e| self.archive.error(format!("entry manifest.json: {e}")))?,
                );
            }
            let layers = image
                .layers
                .iter()
                .flatten()
                .map(|l| (l.clone(), None))
                .collect();
            plans.push(Plan {
                config,
                layers,
                names,
                manifest: None,
            });
        }
        Ok(plans)
    }

    fn plan_oci(&self, docker: Option<&[DockerImage]>) -> Result<Vec<Plan>> {
        let index: Index = self.archive.json("index.json")?;
        let mut plans: Vec<Plan> = Vec::new();
        let many = index.manifests.len() > 1;
        for d in &index.manifests {
            // One of several for other machines (or an attestation) is passed over; a lone one is an error below.
            if many && d.platform.is_some() && !is_index(&d.media_type) {
                let one = Index {
                    manifests: vec![d.clone()],
                    ..index.clone()
                };
                if choose_platform(&one).is_none() {
                    continue;
                }
            }
            let manifest_desc = self.resolve_index(d, 0)?;
            let bytes = self.archive.blob(&manifest_desc.digest)?;
            let entry = blob_path(&manifest_desc.digest);
            let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| {
                self.archive
                    .error(format!("entry {entry} is not a manifest: {e}"))
            })?;
            let config = self.archive.blob(&manifest.config.digest)?;
            let layers = manifest
                .layers
                .iter()
                .map(|l| (blob_path(&l.digest), Some(l.digest.clone())))
                .collect::<Vec<_>>();
            let mut names = Vec::new();
            let full = d.annotations.get("io.containerd.image.name");
            let short = d.annotations.get("org.opencontainers.image.ref.name");
            if let Some(n) = full {
                names.push(
                    Reference::parse(n)
                        .map_err(|e| self.archive.error(format!("entry index.json: {e}")))?,
                );
            } else if let Some(n) = short.filter(|n| n.contains([':', '/'])) {
                // A bare "latest" names a tag of nothing.
                names.push(
                    Reference::parse(n)
                        .map_err(|e| self.archive.error(format!("entry index.json: {e}")))?,
                );
            } else {
                let hex = manifest.config.digest.hex();
                for t in docker
                    .into_iter()
                    .flatten()
                    .filter(|i| i.config.contains(hex))
                    .flat_map(|i| &i.repo_tags)
                {
                    names.extend(t.iter().filter_map(|t| Reference::parse(t).ok()));
                }
            }
            // The same image under several names is one plan.
            let id = Some(manifest_desc.digest.clone());
            match plans.iter_mut().find(|p| p.manifest == id) {
                Some(p) => p.names.extend(names),
                None => plans.push(Plan {
                    config,
                    layers,
                    names,
                    manifest: id,
                }),
            }
        }
        Ok(plans)
    }

    fn resolve_index(&self, d: &Descriptor, depth: u32) -> Result<Descriptor> {
        if !is_index(&d.media_type) {
            return Ok(d.clone());
        }
        let entry = blob_path(&d.digest);
        if depth > 4 {
            return Err(self
                .archive
                .error(format!("entry {entry}: indices are nested too deeply")));
        }
        let index: Index = serde_json::from_slice(&self.archive.blob(&d.digest)?).map_err(|e| {
            self.archive
                .error(format!("entry {entry} is not an index: {e}"))
        })?;
        let one = choose_platform(&index).ok_or_else(|| {
            self.archive.error(format!(
                "entry {entry} has no image for linux/{}",
                super::config::this_architecture()
            ))
        })?;
        self.resolve_index(one, depth + 1)
    }

    fn add(&self, plan: Plan) -> Result<Arc<ImageRecord>> {
        let shown = &self.archive.shown;
        let mut ingest = self.store.ingest()?;
        let id = Digest::of(&plan.config);
        let label = plan
            .names
            .first()
            .map_or_else(|| id.to_string(), |n| n.to_string());
        let config =
            parse_config(&id, &plan.config).map_err(|e| self.archive.error(e.to_string()))?;
        check_config(&config, plan.layers.len(), &label)
            .map_err(|e| self.archive.error(e.to_string()))?;
        let mut chain: Vec<Digest> = Vec::new();
        for (n, ((entry, blob), diff_id)) in
            plan.layers.iter().zip(&config.rootfs.diff_ids).enumerate()
        {
            (self.progress)(&format!(
                "{label}: layer {} of {}",
                n + 1,
                plan.layers.len()
            ));
            let layer_label = format!("{} ({entry})", blob.as_ref().unwrap_or(diff_id));
            let source = LayerSource {
                label: &layer_label,
                blob: blob.as_ref(),
                diff_id,
            };
            let added = add_layer(&mut ingest, &chain, &source, || self.archive.reader(entry))
                .map_err(|e| match e {
                    // The disk's faults are not the archive's.
                    e @ (ImageError::Io { .. } | ImageError::Archive { .. }) => e,
                    e => archive_error(shown, e.to_string()),
                })?;
            chain.push(added);
        }
        finish(ingest, plan, self.options.pinned)
    }
}

fn finish(mut ingest: Ingest, plan: Plan, pinned: bool) -> Result<Arc<ImageRecord>> {
    let mut names = NewImage {
        pinned,
        ..Default::default()
    };
    for n in &plan.names {
        let digest = match (&n.digest, &plan.manifest) {
            // A name by digest holds only for the manifest that has it.
            (Some(d), Some(m)) if d != m => continue,
            (Some(d), None) => {
                tracing::debug!(name = %n, digest = %d, "archive without manifest digests: name not kept");
                continue;
            }
            (_, m) => m.clone(),
        };
        if n.tag.is_some() {
            names.repo_tags.push(n.to_string());
        }
        if let Some(d) = digest {
            names.repo_digests.push(n.with_digest(&d));
        }
    }
    let id = ingest.put_blob(&plan.config)?;
    ingest.finish(&id, names, super::store::now())
}

/// What [`import_dir`] remembers of a file, so that an unchanged one costs a stat at the next start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    mtime: (i64, i64),
    images: Vec<Digest>,
}

/// Result for one archive of the directory.
pub type DirResult = (std::path::PathBuf, Result<Vec<Arc<ImageRecord>>>);

/// Import every `*.tar`, `*.tar.gz`, `*.tgz`, `*.tar.zst` of `dir` (k3s' agent/images), pinned. A bad archive does not
/// keep the others from being imported. Unchanged archives whose images are still there are passed over.
pub fn import_dir(
    store: &ImageStore,
    dir: &Path,
    progress: &dyn Fn(&str),
) -> Result<Vec<DirResult>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ImageError::io(format!("list {}", dir.display()), e)),
    };
    let mut files: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_file() && is_archive(p))
        .collect();
    files.sort();
    let memory = store.root().join("imported.json");
    let mut seen: BTreeMap<String, Seen> = std::fs::read(&memory)
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok())
        .unwrap_or_default();
    let before = seen.clone();
    seen.retain(|k, _| files.iter().any(|f| f.to_string_lossy() == *k));
    let mut out = Vec::new();
    for f in files {
        let key = f.to_string_lossy().into_owned();
        let meta = std::fs::metadata(&f).what(|| format!("stat {key}"))?;
        let (size, mtime) = (meta.size(), (meta.mtime(), meta.mtime_nsec()));
        if let Some(s) = seen.get(&key)
            && s.size == size
            && s.mtime == mtime
        {
            let images: Result<Vec<_>> = s
                .images
                .iter()
                .filter_map(|i| store.resolve(i.as_str()).transpose())
                .collect();
            let images = images?;
            if images.len() == s.images.len() {
                continue;
            }
        }
        progress(&format!("importing {key}"));
        let r = import_file(
            store,
            &f,
            &ImportOptions {
                pinned: true,
                ..Default::default()
            },
            progress,
        );
        if let Ok(images) = &r {
            seen.insert(
                key,
                Seen {
                    size,
                    mtime,
                    images: images.iter().map(|i| i.id.clone()).collect(),
                },
            );
        }
        out.push((f, r));
    }
    if seen != before {
        let bytes = serde_json::to_vec(&seen).map_err(|e| ImageError::Invalid(e.to_string()))?;
        write_durably(&store.root().join("imported.json.new"), &memory, &bytes)?;
    }
    Ok(out)
}

fn is_archive(p: &Path) -> bool {
    let n = p
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    !n.starts_with('.')
        && [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst"]
            .iter()
            .any(|e| n.ends_with(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::export::export;
    use crate::images::store::tests::put_image;
    use std::fs;
    use std::io::Write;

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        for (name, data) in entries {
            let mut h = tar::Header::new_gnu();
            h.set_size(data.len() as u64);
            h.set_mode(0o644);
            b.append_data(&mut h, name, *data).unwrap();
        }
        b.into_inner().unwrap()
    }

    /// A docker-archive of two images that share a layer; the layers come before the manifest, as docker writes them.
    fn docker_archive() -> Vec<u8> {
        let base = tar_of(&[("bin/busybox", &fs::read("/bin/busybox").unwrap())]);
        let top = tar_of(&[("etc/motd", b"hello")]);
        let config = |tops: &[&[u8]]| {
            let ids: Vec<String> = tops
                .iter()
                .map(|t| format!("\"{}\"", Digest::of(t)))
                .collect();
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/busybox"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
                ids.join(",")
            )
        };
        let (one, two) = (config(&[&base]), config(&[&base, &top]));
        let (one_name, two_name) = (
            format!("{}.json", Digest::of(one.as_bytes()).hex()),
            format!("{}.json", Digest::of(two.as_bytes()).hex()),
        );
        let manifest = format!(
            r#"[{{"Config":"{one_name}","RepoTags":["base:1"],"Layers":["a/layer.tar"]}},
               {{"Config":"{two_name}","RepoTags":["app:1","app:2"],"Layers":["a/layer.tar","b/layer.tar"]}}]"#
        );
        tar_of(&[
            ("a/layer.tar", &base),
            ("b/layer.tar", &top),
            (&one_name, one.as_bytes()),
            (&two_name, two.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ])
    }

    fn import(
        bytes: &[u8],
        ext: &str,
    ) -> (tempfile::TempDir, ImageStore, Result<Vec<Arc<ImageRecord>>>) {
        let t = tempfile::tempdir().unwrap();
        let f = t.path().join(format!("archive{ext}"));
        fs::write(&f, bytes).unwrap();
        let s = ImageStore::open(&t.path().join("store")).unwrap();
        let r = import_file(
            &s,
            &f,
            &ImportOptions {
                pinned: true,
                ..Default::default()
            },
            &|_| {},
        );
        (t, s, r)
    }

    fn leftovers(s: &ImageStore) -> (usize, usize, usize) {
        let n = |d: &str| fs::read_dir(s.root().join(d)).unwrap().count();
        (n("tmp"), n("layers"), n("blobs/sha256"))
    }

    #[test]
    fn a_docker_archive_of_two_images_is_imported_plain_gzip_and_zstd() {
        let plain = docker_archive();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        for (bytes, ext) in [
            (plain.clone(), ".tar"),
            (gz.finish().unwrap(), ".tar.gz"),
            (
                zstd::stream::encode_all(plain.as_slice(), 1).unwrap(),
                ".tar.zst",
            ),
        ] {
            let (_t, s, r) = import(&bytes, ext);
            assert_eq!(r.unwrap().len(), 2, "{ext}");
            let app = s.get("app:2").unwrap();
            assert_eq!(
                app.repo_tags,
                ["docker.io/library/app:1", "docker.io/library/app:2"]
            );
            assert!(app.pinned);
            let root = s.hold("app:1", "c").unwrap();
            assert_eq!(
                fs::read(root.lowerdirs[0].join("etc/motd")).unwrap(),
                b"hello"
            );
            assert!(root.lowerdirs[1].join("bin/busybox").is_file());
            assert_eq!(leftovers(&s), (0, 2, 2));
        }
    }

    #[test]
    fn damaged_archives_name_file_and_entry_and_leave_nothing() {
        let good = docker_archive();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&good).unwrap();
        let gz = gz.finish().unwrap();
        let mut flipped = good.clone();
        let at = good.len() / 2;
        flipped[at] ^= 0xff;
        let oci_blob = format!("blobs/sha256/{}", Digest::of(b"x").hex());
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":1}}]}}"#,
            Digest::of(b"x")
        );
        let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
            ("cut", good[..good.len() / 2].to_vec(), vec!["archive.tar", "a/layer.tar"]),
            ("cut gzip", gz[..gz.len() / 2].to_vec(), vec!["archive.tar", "a/layer.tar", "damaged"]),
            ("flipped byte", flipped, vec!["archive.tar", "a/layer.tar", "mismatch", "expected", "got"]),
            ("no tar", b"hello world".to_vec(), vec!["archive.tar"]),
            ("empty", Vec::new(), vec!["archive.tar"]),
            ("no manifest", tar_of(&[("x", b"y")]), vec!["archive.tar", "manifest.json"]),
            ("bad json", tar_of(&[("manifest.json", b"[{")]), vec!["archive.tar", "manifest.json"]),
            (
                "layer missing",
                tar_of(&[
                    ("c.json", br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#),
                    ("manifest.json", br#"[{"Config":"c.json","Layers":["gone/layer.tar"]}]"#),
                ]),
                vec!["archive.tar", "gone/layer.tar"],
            ),
            (
                "blob is something else",
                tar_of(&[(oci_blob.as_str(), b"y"), ("index.json", index.as_bytes())]),
                vec!["archive.tar", "mismatch", oci_blob.as_str()],
            ),
        ];
        for (what, bytes, wants) in cases {
            let (_t, s, r) = import(&bytes, ".tar");
            let e = r
                .err()
                .unwrap_or_else(|| panic!("{what} was taken"))
                .to_string();
            for w in wants {
                assert!(e.contains(w), "{what}: {w:?} is not in: {e}");
            }
            assert!(s.images().unwrap().is_empty());
            assert_eq!(leftovers(&s).0, 0, "{what}");
            s.collect().unwrap();
            assert_eq!(leftovers(&s), (0, 0, 0), "{what}");
        }
    }

    #[test]
    fn an_exported_image_comes_back_the_same() {
        let (_t, s, r) = import(&docker_archive(), ".tar");
        r.unwrap();
        let image = s.get("app:1").unwrap();
        let mut first = Vec::new();
        let id = export(&s, &image, &mut first).unwrap();
        let (_t2, s2, r2) = import(&first, ".tar");
        assert_eq!(r2.unwrap().len(), 1);
        let back = s2.get("app:2").unwrap();
        assert_eq!((&back.id, &back.repo_tags), (&id, &image.repo_tags));
        assert!(back.repo_digests[0].starts_with("docker.io/library/app@sha256:"));
        let mut second = Vec::new();
        assert_eq!(export(&s2, &back, &mut second).unwrap(), id);
        assert_eq!(first, second);
    }

    #[test]
    fn the_start_directory_is_imported_once_and_a_bad_archive_does_not_stop_the_rest() {
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(&t.path().join("store")).unwrap();
        let dir = t.path().join("images");
        assert!(
            import_dir(&s, &dir, &|_| {}).unwrap().is_empty(),
            "no directory is no error"
        );
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.tar"), b"nonsense").unwrap();
        fs::write(
            dir.join("b.tar.zst"),
            zstd::stream::encode_all(docker_archive().as_slice(), 1).unwrap(),
        )
        .unwrap();
        fs::write(dir.join("readme.txt"), b"no").unwrap();
        let first = import_dir(&s, &dir, &|_| {}).unwrap();
        assert_eq!(
            first.iter().map(|(_, r)| r.is_ok()).collect::<Vec<_>>(),
            [false, true]
        );
        assert!(s.get("app:1").unwrap().pinned);
        let again = import_dir(&s, &dir, &|_| {}).unwrap();
        assert_eq!(again.len(), 1, "only the bad one is tried again");
        s.remove("app:1", true).unwrap();
        assert_eq!(
            import_dir(&s, &dir, &|_| {}).unwrap().len(),
            2,
            "a removed image comes back"
        );
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_nothing() {
        let t = tempfile::tempdir().unwrap();
        let small = t.path().join("small");
        fs::create_dir(&small).unwrap();
        let options: Option<&std::ffi::CStr> = Some(c"size=1m");
        rustix::mount::mount(
            "tmpfs",
            &small,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options,
        )
        .unwrap();
        let run = || {
            let f = t.path().join("archive.tar");
            fs::write(&f, docker_archive()).unwrap();
            let s = ImageStore::open(&small).unwrap();
            let e = import_file(&s, &f, &ImportOptions::default(), &|_| {}).unwrap_err();
            s.collect().unwrap();
            (
                e.code(),
                e.to_string(),
                leftovers(&s),
                s.images().unwrap().len(),
            )
        };
        let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
        let (code, text, left, images) = got.unwrap();
        assert_eq!(code, tonic::Code::ResourceExhausted, "{text}");
        assert!(
            text.contains("No space left") && text.contains("bin/busybox"),
            "{text}"
        );
        assert_eq!((left, images), ((0, 0, 0), 0));
    }

    #[test]
    fn a_name_moves_to_the_newer_image() {
        let (t, s, r) = import(&docker_archive(), ".tar");
        r.unwrap();
        put_image(&s, "app:1", &["other"]);
        assert_eq!(
            s.get("app:2").unwrap().repo_tags,
            ["docker.io/library/app:2"]
        );
        drop(t);
    }
}
