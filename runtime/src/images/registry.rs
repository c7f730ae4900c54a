//! Owns pulling an image from one endpoint: credentials, manifests, blobs with their digests, resuming. Must not choose
//! endpoints ([`super::pull`] does) nor unpack by itself ([`super::layer`] does).
//!
//! Nothing is believed that a digest does not confirm: the manifest (when asked for by digest), the platform's
//! manifest of an index, the config, every compressed layer, and every layer's diffID.

use super::config::{
    Index, MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST, MEDIA_OCI_INDEX, MEDIA_OCI_MANIFEST, Manifest,
    choose_platform, this_architecture,
};
use super::digest::Digest;
use super::error::IoContext;
use super::ingest::{Ingest, NewImage};
use super::layer::{LayerSource, add_layer, check_config};
use super::pull::{Credentials, PullEvent, PullSink};
use super::registries::Endpoint;
use super::store::{ImageRecord, ImageStore, parse_config};
use super::{ImageError, Reference, Result};
use base64::Engine;
use futures::StreamExt;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// A manifest is small; one that is not is an attack (distribution's own limit is 4 MiB).
const MAX_MANIFEST: usize = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;
/// Layers fetched at once; containerd's default.
const CONCURRENT_LAYERS: usize = 3;
/// How often a broken download is taken up again.
const RETRIES: u32 = 4;

/// One attempt at one endpoint.
pub(super) struct OnePull {
    store: ImageStore,
    image: Reference,
    shown: String,
    endpoint: String,
    client: Client,
    auth: RegistryAuth,
    /// How oci-client calls the image.
    remote: oci_client::Reference,
    sink: Option<PullSink>,
}

impl OnePull {
    pub(super) fn new(
        store: ImageStore,
        image: Reference,
        endpoint: &Endpoint,
        credentials: &Credentials,
        sink: Option<PullSink>,
    ) -> Result<Self> {
        let shown = image.to_string();
        let mut roots = Vec::new();
        let tls = endpoint.config.tls.clone().unwrap_or_default();
        if let Some(ca) = &tls.ca_file {
            let data = std::fs::read(ca).what(|| {
                format!(
                    "read ca_file {} of registry {}",
                    ca.display(),
                    endpoint.host
                )
            })?;
            // Both reqwest and oci-client take one certificate at a time.
            for pem in split_pem(&data) {
                roots.push(Certificate {
                    encoding: CertificateEncoding::Pem,
                    data: pem,
                });
            }
            if roots.is_empty() {
                return Err(ImageError::Invalid(format!(
                    "ca_file {} of registry {} holds no certificate",
                    ca.display(),
                    endpoint.host
                )));
            }
        }
        let config = ClientConfig {
            protocol: if endpoint.https {
                ClientProtocol::Https
            } else {
                ClientProtocol::Http
            },
            accept_invalid_certificates: tls.insecure_skip_verify,
            extra_root_certificates: roots,
            read_timeout: Some(Duration::from_secs(60)),
            connect_timeout: Some(Duration::from_secs(15)),
            user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        };
        let client = Client::try_from(config).map_err(|e| ImageError::RegistryUnavailable {
            image: shown.clone(),
            message: format!("client for registry {}: {}", endpoint.host, root_cause(&e)),
        })?;
        let mut remote = match &image.digest {
            Some(d) => oci_client::Reference::with_digest(
                image.domain.clone(),
                image.path.clone(),
                d.to_string(),
            ),
            None => oci_client::Reference::with_tag(
                image.domain.clone(),
                image.path.clone(),
                image.tag.clone().unwrap_or_else(|| "latest".into()),
            ),
        };
        if endpoint.host != image.domain {
            remote.set_mirror_registry(endpoint.host.clone());
        }
        let auth = choose_auth(endpoint, credentials, &image).map_err(|message| {
            ImageError::Unauthorized {
                image: shown.clone(),
                message,
            }
        })?;
        let scheme = if endpoint.https { "https" } else { "http" };
        Ok(OnePull {
            store,
            shown,
            endpoint: format!("{scheme}://{}", endpoint.host),
            client,
            auth,
            remote,
            sink,
            image,
        })
    }

    fn tell(&self, e: PullEvent) {
        if let Some(s) = &self.sink {
            s(e);
        }
    }

    /// Put an error of the protocol into words: image, registry, thing, cause.
    fn error(&self, what: &str, e: OciDistributionError) -> ImageError {
        use OciDistributionError as E;
        let image = self.shown.clone();
        let at = format!("registry {}: {what}", self.endpoint);
        let detail = |m: &str| {
            let m = m.trim();
            if m.is_empty() {
                String::new()
            } else {
                format!(": {}", m.chars().take(300).collect::<String>())
            }
        };
        match e {
            E::RegistryError { envelope, .. } => {
                let said = envelope
                    .errors
                    .iter()
                    .map(|e| e.message.as_str())
                    .collect::<Vec<_>>()
                    .join("; ");
                let has = |codes: &[OciErrorCode]| {
                    envelope.errors.iter().any(|e| codes.contains(&e.code))
                };
                use OciErrorCode as C;
                if has(&[
                    C::ManifestUnknown,
                    C::NameUnknown,
                    C::BlobUnknown,
                    C::ManifestBlobUnknown,
                    C::NotFound,
                ]) {
                    ImageError::RegistryNotFound {
                        image,
                        message: format!("{at}: not found{}", detail(&said)),
                    }
                } else if has(&[C::Unauthorized, C::Denied]) {
                    ImageError::Unauthorized {
                        image,
                        message: format!("{at}: not authorized{}", detail(&said)),
                    }
                } else {
                    ImageError::RegistryUnavailable {
                        image,
                        message: format!("{at}: refused{}", detail(&said)),
                    }
                }
            }
            E::ServerError {
                code: 404, message, ..
            } => ImageError::RegistryNotFound {
                image,
                message: format!("{at}: not found{}", detail(&message)),
            },
            E::ServerError {
                code: code @ (401 | 403),
                message,
                ..
            } => ImageError::Unauthorized {
                image,
                message: format!("{at}: not authorized (HTTP {code}){}", detail(&message)),
            },
            E::ServerError { code, message, .. } => ImageError::RegistryUnavailable {
                image,
                message: format!("{at}: HTTP {code}{}", detail(&message)),
            },
            E::ImageManifestNotFoundError(m) => ImageError::RegistryNotFound {
                image,
                message: format!("{at}: not found{}", detail(&m)),
            },
            E::UnauthorizedError { .. } => ImageError::Unauthorized {
                image,
                message: format!(
                    "{at}: not authorized; check the imagePullSecrets or registries.yaml"
                ),
            },
            E::AuthenticationFailure(m) => ImageError::Unauthorized {
                image,
                message: format!("{at}: authentication failed{}", detail(&m)),
            },
            E::DigestError(oci_client::errors::DigestError::VerificationError {
                expected,
                actual,
            }) => ImageError::DigestMismatch {
                what: format!("image {image}: {at}"),
                expected,
                actual,
            },
            e @ (E::RequestError(_) | E::IoError(_)) => ImageError::RegistryUnavailable {
                image,
                message: format!("{at}: {}", root_cause(&e)),
            },
            e => ImageError::Invalid(format!("failed to pull image {image:?}: {at}: {e}")),
        }
    }

    pub(super) async fn run(self) -> Result<Arc<ImageRecord>> {
        self.tell(PullEvent::Resolving {
            image: self.shown.clone(),
            endpoint: self.endpoint.clone(),
        });
        self.client
            .auth(&self.remote, &self.auth, RegistryOperation::Pull)
            .await
            .map_err(|e| self.error("log in", e))?;
        let (top, manifest) = self.manifest().await?;
        let config_bytes = self
            .small_blob(&manifest.config.digest, manifest.config.size)
            .await?;
        let id = manifest.config.digest.clone();
        let config = parse_config(&id, &config_bytes)?;
        check_config(&config, manifest.layers.len(), &self.shown)?;
        let mut ingest = self.store.ingest()?;
        // Which layers are missing? All below the first missing one are there.
        let mut chain: Vec<Digest> = Vec::new();
        let mut have = 0;
        for d in &config.rootfs.diff_ids {
            let c = Digest::chain(chain.last(), d);
            if !ingest.has_layer(&c)? {
                break;
            }
            self.tell(PullEvent::LayerDone {
                digest: manifest.layers[have].digest.clone(),
            });
            chain.push(c);
            have += 1;
        }
        let mut wanted = Vec::new();
        for l in &manifest.layers[have..] {
            wanted.push((l.digest.clone(), l.size, ingest.temp_path("blob")));
        }
        let mut downloads = futures::stream::iter(wanted)
            .map(|(digest, size, path)| {
                let this = &self;
                async move {
                    this.download(&digest, size, &path)
                        .await
                        .map(|()| (digest, path))
                }
            })
            .buffered(CONCURRENT_LAYERS);
        let mut diff_ids = config.rootfs.diff_ids[have..].iter().cloned();
        while let Some(got) = downloads.next().await {
            let (blob, path) = got?;
            let Some(diff_id) = diff_ids.next() else {
                break;
            };
            self.tell(PullEvent::Unpacking {
                digest: blob.clone(),
            });
            let parents = chain.clone();
            let shown = self.shown.clone();
            let told = blob.clone();
            let (back, added) = blocking(move || {
                let r = unpack_blob(&mut ingest, &parents, &blob, &diff_id, &path, &shown);
                (ingest, r)
            })
            .await?;
            ingest = back;
            chain.push(added?);
            self.tell(PullEvent::LayerDone { digest: told });
        }
        drop(downloads);
        let names = NewImage {
            repo_tags: if self.image.tag.is_some() {
                vec![self.shown.clone()]
            } else {
                Vec::new()
            },
            repo_digests: vec![self.image.with_digest(&top)],
            pinned: false,
        };
        blocking(move || {
            let id = ingest.put_blob(&config_bytes)?;
            ingest.finish(&id, names, super::store::now())
        })
        .await?
    }

    /// The digest the image is known by (of the index, if there is one) and this platform's manifest.
    async fn manifest(&self) -> Result<(Digest, Manifest)> {
        let (bytes, media_type) = self.manifest_bytes(&self.remote).await?;
        let top = Digest::of(&bytes);
        if let Some(want) = &self.image.digest {
            want.check(&top, || {
                format!("image {}: manifest from {}", self.shown, self.endpoint)
            })?;
        }
        let invalid = |d: &Digest, e: &dyn std::fmt::Display| {
            ImageError::Invalid(format!(
                "failed to pull image {:?}: manifest {d} is not valid: {e}",
                self.shown
            ))
        };
        if !is_index(&bytes, media_type.as_deref()) {
            return Ok((
                top.clone(),
                parse_manifest(&bytes).map_err(|e| invalid(&top, &e))?,
            ));
        }
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| invalid(&top, &e))?;
        let chosen = choose_platform(&index).ok_or_else(|| ImageError::RegistryNotFound {
            image: self.shown.clone(),
            message: format!(
                "no match for platform linux/{} in index {top}; it has {}",
                this_architecture(),
                index
                    .manifests
                    .iter()
                    .filter_map(|m| m
                        .platform
                        .as_ref()
                        .map(|p| format!("{}/{}", p.os, p.architecture)))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })?;
        let remote = self.remote.clone_with_digest(chosen.digest.to_string());
        let (bytes, _) = self.manifest_bytes(&remote).await?;
        chosen.digest.check(&Digest::of(&bytes), || {
            format!("image {}: manifest from {}", self.shown, self.endpoint)
        })?;
        Ok((
            top,
            parse_manifest(&bytes).map_err(|e| invalid(&chosen.digest, &e))?,
        ))
    }

    async fn manifest_bytes(
        &self,
        remote: &oci_client::Reference,
    ) -> Result<(Vec<u8>, Option<String>)> {
        const ACCEPT: [&str; 4] = [
            MEDIA_OCI_INDEX,
            MEDIA_DOCKER_LIST,
            MEDIA_OCI_MANIFEST,
            MEDIA_DOCKER_MANIFEST,
        ];
        let (bytes, _) = self
            .client
            .pull_manifest_raw(remote, &self.auth, &ACCEPT)
            .await
            .map_err(|e| {
                self.error(
                    &format!(
                        "manifest {}",
                        remote.digest().or(remote.tag()).unwrap_or("latest")
                    ),
                    e,
                )
            })?;
        if bytes.len() > MAX_MANIFEST {
            return Err(ImageError::Invalid(format!(
                "failed to pull image {:?}: the manifest is larger than {MAX_MANIFEST} bytes",
                self.shown
            )));
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            media_type: Option<String>,
        }
        let kind: Option<Kind> = serde_json::from_slice(&bytes).ok();
        Ok((bytes.to_vec(), kind.and_then(|k| k.media_type)))
    }

    async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let what = format!("config {digest}");
        let mut stream = self
            .client
            .pull_blob_stream(&self.remote, &descriptor(digest, size))
            .await
            .map_err(|e| self.error(&what, e))?
            .stream;
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(c) => out.extend_from_slice(&c),
                Err(e) => {
                    // The stream checks the digest itself, but says it with less.
                    if out.len() as u64 >= size {
                        break;
                    }
                    return Err(self.error(&what, e.into()));
                }
            }
            if out.len() as u64 > MAX_CONFIG {
                return Err(ImageError::Invalid(format!(
                    "failed to pull image {:?}: {what} is too large",
                    self.shown
                )));
            }
        }
        digest.check(&Digest::of(&out), || {
            format!("image {}: {what} from {}", self.shown, self.endpoint)
        })?;
        Ok(out)
    }

    /// Fetch a layer into a file and verify it; a broken connection is taken up where it broke.
    async fn download(&self, digest: &Digest, size: u64, path: &PathBuf) -> Result<()> {
        let what = format!("layer {digest}");
        let disk = |e: std::io::Error| ImageError::io(format!("write {}", path.display()), e);
        let dir = std::fs::File::open(path.parent().unwrap_or(path)).map_err(disk)?;
        if size > super::limits::Limits::of(&dir).bytes {
            return Err(ImageError::io(
                format!(
                    "failed to pull image {:?}: {what} of {} MiB has no room on this disk",
                    self.shown,
                    size >> 20
                ),
                std::io::Error::from_raw_os_error(libc::ENOSPC),
            ));
        }
        let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
        let mut hasher = Sha256::new();
        let mut done = 0u64;
        let mut attempt = 0;
        loop {
            let desc = descriptor(digest, size);
            let opened = if done == 0 {
                self.client
                    .pull_blob_stream(&self.remote, &desc)
                    .await
                    .map(|s| (s.stream, true))
            } else {
                use oci_client::client::BlobResponse as B;
                match self
                    .client
                    .pull_blob_stream_partial(&self.remote, &desc, done, None)
                    .await
                {
                    Ok(B::Full(s)) => Ok((s.stream, true)),
                    Ok(B::Partial(s)) => Ok((s.stream, false)),
                    Err(e) => Err(e),
                }
            };
            let failure = match opened {
                Err(e) => self.error(&what, e),
                Ok((mut stream, from_start)) => {
                    if from_start && done > 0 {
                        file.set_len(0).await.map_err(disk)?;
                        file.rewind().await.map_err(disk)?;
                        (hasher, done) = (Sha256::new(), 0);
                    }
                    let mut broken = None;
                    while let Some(chunk) = stream.next().await {
                        match chunk {
                            Ok(c) => {
                                hasher.update(&c);
                                done += c.len() as u64;
                                // The digest would be wrong in any case; the disk need not be full by then.
                                if done > size {
                                    return Err(ImageError::Invalid(format!(
                                        "failed to pull image {:?}: registry {}: {what} is longer than the {size} bytes that the manifest says",
                                        self.shown, self.endpoint
                                    )));
                                }
                                file.write_all(&c).await.map_err(disk)?;
                                self.tell(PullEvent::Layer {
                                    digest: digest.clone(),
                                    done,
                                    total: size,
                                });
                            }
                            Err(e) => {
                                broken = Some(e);
                                break;
                            }
                        }
                    }
                    if done >= size {
                        file.flush().await.map_err(disk)?;
                        let got = Digest::from_hasher(hasher);
                        return digest.check(&got, || {
                            format!("image {}: {what} from {}", self.shown, self.endpoint)
                        });
                    }
                    match broken {
                        Some(e) => self.error(&what, e.into()),
                        None => ImageError::RegistryUnavailable {
                            image: self.shown.clone(),
                            message: format!(
                                "registry {}: {what} ended after {done} of {size} bytes",
                                self.endpoint
                            ),
                        },
                    }
                }
            };
            attempt += 1;
            if attempt > RETRIES || !matches!(failure, ImageError::RegistryUnavailable { .. }) {
                return Err(failure);
            }
            tracing::debug!(error = %failure, attempt, "layer download broke; taking it up again");
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
        }
    }
}

fn unpack_blob(
    ingest: &mut Ingest,
    parents: &[Digest],
    blob: &Digest,
    diff_id: &Digest,
    path: &PathBuf,
    image: &str,
) -> Result<Digest> {
    let label = format!("{blob} of image {image}");
    // The blob was verified while it came; reading it once more for its digest would only cost.
    let source = LayerSource {
        label: &label,
        blob: None,
        diff_id,
    };
    let chain = add_layer(ingest, parents, &source, || {
        std::fs::File::open(path).what(|| format!("open {}", path.display()))
    })?;
    std::fs::remove_file(path).what(|| format!("remove {}", path.display()))?;
    Ok(chain)
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|e| {
        ImageError::io(
            "image work was interrupted",
            std::io::Error::other(e.to_string()),
        )
    })
}

fn descriptor(digest: &Digest, size: u64) -> OciDescriptor {
    OciDescriptor {
        digest: digest.to_string(),
        size: size as i64,
        ..Default::default()
    }
}

fn is_index(bytes: &[u8], media_type: Option<&str>) -> bool {
    match media_type {
        Some(m) => super::config::is_index(m),
        // OCI documents may leave the type out; only an index has manifests.
        None => serde_json::from_slice::<serde_json::Value>(bytes)
            .is_ok_and(|v| v.get("manifests").is_some()),
    }
}

fn parse_manifest(bytes: &[u8]) -> std::result::Result<Manifest, String> {
    let m: Manifest = serde_json::from_slice(bytes).map_err(|e| {
        match serde_json::from_slice::<serde_json::Value>(bytes) {
            Ok(v) if v.get("schemaVersion") == Some(&1.into()) => {
                "it has Docker's schema version 1, which was given up in 2015; push the image again"
                    .to_owned()
            }
            _ => e.to_string(),
        }
    })?;
    if m.schema_version != 2 {
        return Err(format!(
            "schema version {} is not supported",
            m.schema_version
        ));
    }
    if let Some(l) = m.layers.iter().find(|l| l.media_type.contains("encrypted")) {
        return Err(format!("layer {} is encrypted", l.digest));
    }
    Ok(m)
}

/// Whose credentials go to this endpoint? Those of the pull (imagePullSecrets) only to the registry they are for, never
/// to a mirror on another host; else those of registries.yaml.
fn choose_auth(
    endpoint: &Endpoint,
    c: &Credentials,
    image: &Reference,
) -> std::result::Result<RegistryAuth, String> {
    let host = |s: &str| {
        let s = s
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let h = s.split('/').next().unwrap_or(s);
        if matches!(h, "index.docker.io" | "registry-1.docker.io") {
            "docker.io".to_owned()
        } else {
            h.to_owned()
        }
    };
    let server = if c.server_address.is_empty() {
        image.domain.clone()
    } else {
        host(&c.server_address)
    };
    if host(&endpoint.host) == server {
        if !c.registry_token.is_empty() {
            return Ok(RegistryAuth::Bearer(c.registry_token.clone()));
        }
        if let Some(a) = basic(&c.username, &c.password, &c.auth)? {
            return Ok(a);
        }
        if !c.identity_token.is_empty() {
            return Err(format!(
                "registry {server}: identity tokens are not supported; use a username and password"
            ));
        }
    }
    match &endpoint.config.auth {
        Some(a) => Ok(basic(&a.username, &a.password, &a.auth)?.unwrap_or(RegistryAuth::Anonymous)),
        None => Ok(RegistryAuth::Anonymous),
    }
}

pub(super) fn basic(
    user: &str,
    password: &str,
    auth: &str,
) -> std::result::Result<Option<RegistryAuth>, String> {
    if !user.is_empty() {
        return Ok(Some(RegistryAuth::Basic(user.into(), password.into())));
    }
    if auth.is_empty() {
        return Ok(None);
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(auth.trim_end_matches('\0').trim())
        .map_err(|_| "the credentials' auth field is not base64".to_owned())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match text.trim_end_matches('\0').split_once(':') {
        Some((u, p)) => Ok(Some(RegistryAuth::Basic(u.into(), p.into()))),
        None => Err("the credentials' auth field is not base64 of user:password".into()),
    }
}

fn split_pem(data: &[u8]) -> Vec<Vec<u8>> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(data);
    text.split_inclusive(END)
        .filter(|c| c.contains("-----BEGIN CERTIFICATE-----"))
        .map(|c| c.as_bytes().to_vec())
        .collect()
}

/// The innermost cause: "Connection refused" says more than "error sending request".
fn root_cause(e: &dyn std::error::Error) -> String {
    let mut texts = vec![e.to_string()];
    let mut cur = e.source();
    while let Some(c) = cur {
        texts.push(c.to_string());
        cur = c.source();
    }
    texts.dedup();
    match texts.as_slice() {
        [only] => only.clone(),
        [first, .., last] => format!("{first}: {}", plain(last)),
        [] => String::new(),
    }
}

/// The resolver's errors are its own structures printed: say what they mean.
fn plain(cause: &str) -> &str {
    if cause.starts_with("no records found for") {
        "the host's name cannot be resolved: no such host"
    } else if cause == "no connections available" {
        "the host's name cannot be resolved: no name server answers (see /etc/resolv.conf)"
    } else {
        cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_resolve_is_said_in_words() {
        #[derive(Debug, thiserror::Error)]
        #[error("error sending request")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error(
            "no records found for Query {{ name: Name(\"nosuch.invalid.\"), query_type: AAAA }}"
        )]
        struct Inner;
        assert_eq!(
            root_cause(&Outer(Inner)),
            "error sending request: the host's name cannot be resolved: no such host"
        );
    }
}
