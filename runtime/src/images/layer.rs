//! Owns the step that every road into the store shares: a compressed layer stream becomes a committed layer.
//! Must not fetch anything nor write image records.

use super::Result;
use super::config::ImageConfig;
use super::digest::{Digest, HashingReader};
use super::error::{ImageError, IoContext};
use super::ingest::Ingest;
use super::unpack::unpack_layer;
use std::io::{BufRead, BufReader, Read};

/// Decompress by what the first bytes say, not by the media type: registries and archives are often wrong about it.
/// Knows gzip, zstd and plain.
pub fn decompress<'a>(reader: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
    let mut r = BufReader::with_capacity(128 * 1024, reader);
    // One fill may give a single byte on a slow stream; then the magic is looked for in what a chained reader gives.
    let mut head = Vec::new();
    while head.len() < 4 {
        let got = r.fill_buf()?;
        if got.is_empty() {
            break;
        }
        let n = got.len().min(4 - head.len());
        head.extend_from_slice(&got[..n]);
        r.consume(n);
    }
    let magic = head.clone();
    let whole = BufReader::with_capacity(128 * 1024, std::io::Cursor::new(head).chain(r));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        _ => Box::new(whole),
    })
}

/// A layer of an image in words for errors: which one, and the digests it should have.
pub struct LayerSource<'a> {
    /// What errors call it: a digest, or the entry of an archive.
    pub label: &'a str,
    /// Digest of the stream as it comes (compressed); None when nothing says it.
    pub blob: Option<&'a Digest>,
    pub diff_id: &'a Digest,
}

/// Unpack one layer on top of `parents` (chain ids, bottom first), unless the store has it already. Checks the
/// stream's digest and the diffID; on a mismatch nothing is kept. Returns the layer's chain id.
///
/// `open` is called only if the layer is missing.
pub fn add_layer<R: Read>(
    ingest: &mut Ingest,
    parents: &[Digest],
    source: &LayerSource<'_>,
    open: impl FnOnce() -> Result<R>,
) -> Result<Digest> {
    let chain = Digest::chain(parents.last(), source.diff_id);
    if ingest.has_layer(&chain)? {
        return Ok(chain);
    }
    let lower = if parents.is_empty() {
        Vec::new()
    } else {
        ingest.store().lowerdirs(parents)
    };
    let staged = ingest.stage_layer()?;
    let mut blob = HashingReader::new(open()?);
    let unpacked = {
        let plain = decompress(&mut blob).what(|| format!("layer {}: read", source.label))?;
        unpack_layer(plain, &staged.fs(), &lower, source.label)
    };
    // A wrong blob digest explains every other fault, so it is looked at first. Only a reader that fails itself
    // (network, disk) has nothing to compare.
    let digest = blob.finish().map(|(d, _)| d);
    if let (Some(want), Ok(got)) = (source.blob, &digest) {
        want.check(got, || format!("layer {}", source.label))?;
    }
    let unpacked = unpacked?;
    digest.what(|| format!("layer {}: read", source.label))?;
    source.diff_id.check(&unpacked.diff_id, || {
        format!("layer {}: diffID of the uncompressed tar", source.label)
    })?;
    ingest.commit_layer(staged, &chain, unpacked.usage)?;
    Ok(chain)
}

/// Refuse an image this machine cannot run, or whose manifest and config disagree.
pub fn check_config(config: &ImageConfig, layers: usize, name: &str) -> Result<()> {
    if config.rootfs.diff_ids.len() != layers {
        return Err(ImageError::Invalid(format!(
            "image {name}: the manifest has {layers} layers, the config {} diffIDs",
            config.rootfs.diff_ids.len()
        )));
    }
    // overlayfs stacks 500; a container's own and a build's are among them.
    const MAX_LAYERS: usize = 400;
    if layers > MAX_LAYERS {
        return Err(ImageError::Invalid(format!(
            "image {name} has {layers} layers; more than {MAX_LAYERS} cannot be stacked"
        )));
    }
    let arch = super::config::this_architecture();
    if !config.os.is_empty() && config.os != "linux"
        || !config.architecture.is_empty() && config.architecture != arch
    {
        return Err(ImageError::Invalid(format!(
            "image {name} is for {}/{}; this machine is linux/{arch}",
            config.os, config.architecture
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() || buf.is_empty() {
                return Ok(0);
            }
            buf[0] = self.0[0];
            self.0 = &self.0[1..];
            Ok(1)
        }
    }

    #[test]
    fn gzip_zstd_and_plain_are_told_apart_by_their_bytes() {
        let text = b"some text that is long enough to be compressed, compressed, compressed";
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::stream::encode_all(&text[..], 1).unwrap();
        for bytes in [&text[..], &gz, &zst] {
            let mut out = Vec::new();
            decompress(Slow(bytes))
                .unwrap()
                .read_to_end(&mut out)
                .unwrap();
            assert_eq!(out, text);
        }
        let mut out = Vec::new();
        decompress(&b""[..]).unwrap().read_to_end(&mut out).unwrap();
        assert!(out.is_empty());
    }
}
