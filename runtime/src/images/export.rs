//! Owns writing an image of the store as an archive that is both an OCI layout and a docker-archive (what `docker save`
//! writes since 25). Must not change the store.
//!
//! Compressed layers are not kept in the store, so layers are written anew from their directories. For images built
//! here that gives the same bytes and the same image id; a layer made by other tools gets another digest, and then the
//! config is rewritten to match.

use super::config::{
    Descriptor, Index, MEDIA_OCI_CONFIG, MEDIA_OCI_INDEX, MEDIA_OCI_LAYER, MEDIA_OCI_MANIFEST,
    Manifest,
};
use super::diff::{DiffOptions, write_layer};
use super::digest::{Digest, HashingWriter};
use super::error::IoContext;
use super::store::{ImageRecord, ImageStore};
use super::{ImageError, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// Write `image` to `out`; returns the id the image has in the archive.
pub fn export(store: &ImageStore, image: &ImageRecord, out: impl Write) -> Result<Digest> {
    let mut ingest = store.ingest()?; // only for its temporary directory and to hold the layers
    for l in &image.layers {
        if !ingest.has_layer(l)? {
            return Err(ImageError::NotFound(image.id.to_string()));
        }
    }
    let mut config = store.config(image)?;
    let mut tar = tar::Builder::new(out);
    let mut done: Vec<Descriptor> = Vec::new();
    let mut diff_ids = Vec::new();
    for l in &image.layers {
        let dirs = store.lowerdirs(std::slice::from_ref(l));
        let p = ingest.temp_path("export");
        let spool = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&p);
        let spool = HashingWriter::new(BufWriter::new(
            spool.what(|| format!("create {}", p.display()))?,
        ));
        let (w, _) = write_layer(&dirs[0], spool, DiffOptions::default())?;
        let (buffered, digest, size) = w.finish();
        let file = buffered
            .into_inner()
            .map_err(|e| ImageError::io(format!("write {}", p.display()), e.into_error()))?;
        diff_ids.push(digest.clone());
        if !done.iter().any(|d| d.digest == digest) {
            let mut again = File::open(&p).what(|| format!("open {}", p.display()))?;
            append(&mut tar, &blob(&digest), size, &mut again)?;
        }
        drop(file);
        std::fs::remove_file(&p).what(|| format!("remove {}", p.display()))?;
        done.push(descriptor(MEDIA_OCI_LAYER, digest, size));
    }
    let config_bytes = if diff_ids == config.rootfs.diff_ids {
        store.blob(&image.id)?
    } else {
        config.rootfs.diff_ids = diff_ids;
        encode(&config)?
    };
    let id = Digest::of(&config_bytes);
    append(
        &mut tar,
        &blob(&id),
        config_bytes.len() as u64,
        &mut config_bytes.as_slice(),
    )?;
    let docker = serde_json::json!([{
        "Config": blob(&id),
        "RepoTags": image.repo_tags,
        "Layers": done.iter().map(|d| blob(&d.digest)).collect::<Vec<_>>(),
    }]);
    let manifest = encode(&Manifest {
        schema_version: 2,
        media_type: Some(MEDIA_OCI_MANIFEST.into()),
        config: descriptor(MEDIA_OCI_CONFIG, id.clone(), config_bytes.len() as u64),
        layers: done,
    })?;
    let manifest_digest = Digest::of(&manifest);
    append(
        &mut tar,
        &blob(&manifest_digest),
        manifest.len() as u64,
        &mut manifest.as_slice(),
    )?;
    let one = descriptor(MEDIA_OCI_MANIFEST, manifest_digest, manifest.len() as u64);
    let mut manifests: Vec<Descriptor> = image
        .repo_tags
        .iter()
        .map(|t| {
            let tag = t
                .rsplit_once(':')
                .map_or("latest", |(_, tag)| tag)
                .to_owned();
            let annotations = BTreeMap::from([
                ("io.containerd.image.name".to_owned(), t.clone()),
                ("org.opencontainers.image.ref.name".to_owned(), tag),
            ]);
            Descriptor {
                annotations,
                ..one.clone()
            }
        })
        .collect();
    if manifests.is_empty() {
        manifests.push(one);
    }
    let index = encode(&Index {
        schema_version: 2,
        media_type: Some(MEDIA_OCI_INDEX.into()),
        manifests,
    })?;
    append(
        &mut tar,
        "index.json",
        index.len() as u64,
        &mut index.as_slice(),
    )?;
    let docker = encode(&docker)?;
    append(
        &mut tar,
        "manifest.json",
        docker.len() as u64,
        &mut docker.as_slice(),
    )?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    append(
        &mut tar,
        "oci-layout",
        layout.len() as u64,
        &mut layout.as_slice(),
    )?;
    tar.into_inner()
        .and_then(|mut w| w.flush())
        .what(|| "write the archive")?;
    Ok(id)
}

fn blob(d: &Digest) -> String {
    format!("blobs/sha256/{}", d.hex())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn encode(v: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(v).map_err(|e| ImageError::Invalid(format!("encode: {e}")))
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    size: u64,
    data: &mut dyn io::Read,
) -> Result<()> {
    let mut h = tar::Header::new_gnu();
    h.set_size(size);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    tar.append_data(&mut h, path, data)
        .what(|| format!("write {path} to the archive"))
}
