//! Owns pulling images from registries: endpoints and credentials, manifests, blobs with their digests, resuming.
//! Must not decide when to pull (the kubelet does) and does not unpack by itself ([`super::layer`] does).
//!
//! Nothing is believed that a digest does not confirm: the manifest (when asked for by digest), the platform's
//! manifest of an index, the config, every compressed layer, and every layer's diffID.

use super::config::{
    Index, MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST, MEDIA_OCI_INDEX, MEDIA_OCI_MANIFEST, Manifest,
    choose_platform, this_architecture,
};
use super::digest::Digest;
use super::error::IoContext;
use super::layer::{LayerSource, add_layer, check_config};
use super::registries::{Endpoint, Registries};
use super::store::{ImageRecord, ImageStore, Ingest, NewImage, parse_config};
use super::{ImageError, Reference, Result};
use base64::Engine;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, Shared};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
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

/// Credentials as the CRI gives them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    /// The registry they are for; empty means the image's.
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

/// What a pull is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum PullEvent {
    /// Asking this endpoint for the manifest.
    Resolving { image: String, endpoint: String },
    /// Bytes of a layer that have come, of `total`.
    Layer {
        digest: Digest,
        done: u64,
        total: u64,
    },
    /// All bytes are there and verified; unpacking.
    Unpacking { digest: Digest },
    /// The layer is in the store (or was before).
    LayerDone { digest: Digest },
}

/// Told about progress, from any thread.
pub type PullSink = Arc<dyn Fn(PullEvent) + Send + Sync>;

type PullResult = std::result::Result<Arc<ImageRecord>, Arc<ImageError>>;
type SharedPull = Shared<BoxFuture<'static, PullResult>>;

/// Pulls images into a store. The same image asked for by several at once is pulled once.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<PullerInner>,
}

struct PullerInner {
    store: ImageStore,
    registries: Registries,
    under_way: Mutex<HashMap<(String, Credentials), SharedPull>>,
}

impl Puller {
    /// A puller for this store. Does not touch the network yet.
    pub fn new(store: ImageStore, registries: Registries) -> Self {
        Puller {
            inner: Arc::new(PullerInner {
                store,
                registries,
                under_way: Mutex::default(),
            }),
        }
    }

    /// Pull `image`. The future may be dropped; when nobody waits any more the pull ends and leaves nothing.
    pub async fn pull(
        &self,
        image: &str,
        credentials: Credentials,
        sink: Option<PullSink>,
    ) -> PullResult {
        let reference = Reference::parse(image).map_err(Arc::new)?;
        let key = (reference.to_string(), credentials.clone());
        let job = {
            let mut under_way = self.inner.under_way.lock();
            under_way
                .entry(key.clone())
                .or_insert_with(|| {
                    let inner = self.inner.clone();
                    async move {
                        inner
                            .run(&reference, &credentials, sink)
                            .await
                            .map_err(Arc::new)
                    }
                    .boxed()
                    .shared()
                })
                .clone()
        };
        let mut waiter = Waiter {
            inner: &self.inner,
            key,
            job: Some(job),
        };
        match waiter.job.as_mut() {
            Some(job) => job.await,
            None => Err(Arc::new(ImageError::Invalid("no pull to wait for".into()))),
        }
    }
}

/// One who waits for a pull. The last to go (done or given up) takes the pull out of the map, which drops it.
struct Waiter<'a> {
    inner: &'a PullerInner,
    key: (String, Credentials),
    job: Option<SharedPull>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut under_way = self.inner.under_way.lock();
        self.job = None;
        // One left: the map's own. A finished one has no count.
        if under_way
            .get(&self.key)
            .is_some_and(|j| j.strong_count().is_none_or(|n| n <= 1))
        {
            under_way.remove(&self.key);
        }
    }
}

impl PullerInner {
    async fn run(
        &self,
        image: &Reference,
        credentials: &Credentials,
        sink: Option<PullSink>,
    ) -> Result<Arc<ImageRecord>> {
        let endpoints = self.registries.endpoints(image);
        let mut failures: Vec<ImageError> = Vec::new();
        for e in &endpoints {
            let pull = OnePull::new(
                self.store.clone(),
                image.clone(),
                e,
                credentials,
                sink.clone(),
            );
            let tried = match pull {
                Ok(p) => p.run().await,
                Err(e) => Err(e),
            };
            match tried {
                Ok(record) => return Ok(record),
                // A full disk does not get better at another mirror.
                Err(e @ ImageError::Io { .. }) => return Err(e),
                Err(err) => {
                    if endpoints.len() > 1 {
                        tracing::warn!(image = %image, endpoint = %e.host, error = %err, "endpoint failed");
                    }
                    failures.push(err);
                }
            }
        }
        // The last one is the registry itself, so its word counts; what the mirrors said helps to mend them.
        let last = failures.pop();
        let others: Vec<String> = failures.iter().map(ToString::to_string).collect();
        match last {
            Some(e) if others.is_empty() => Err(e),
            Some(e) => Err(e.with_note(&format!("; and before that: {}", others.join("; ")))),
            None => Err(ImageError::Invalid(format!("image {image}: no endpoint to pull from"))),
        }
    }
}

/// One attempt at one endpoint.
struct OnePull {
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
    fn new(
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

    async fn run(self) -> Result<Arc<ImageRecord>> {
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
                                file.write_all(&c).await.map_err(disk)?;
                                done += c.len() as u64;
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

fn basic(
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
        [first, .., last] => format!("{first}: {last}"),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::{Request, Response};
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

    /// A registry over HTTP on loopback: paths to answers, and a count of requests.
    struct Registry {
        address: String,
        requests: Arc<AtomicUsize>,
        layer_requests: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Registry {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    #[derive(Clone, Default)]
    struct Content {
        files: HashMap<String, (String, Vec<u8>)>,
        /// Demand this user and password.
        login: Option<String>,
        /// The first answer to a blob ends after this many bytes.
        break_after: Option<usize>,
    }

    impl Content {
        fn blob(&mut self, bytes: &[u8]) -> Digest {
            let d = Digest::of(bytes);
            self.files.insert(
                format!("/v2/app/blobs/{d}"),
                ("application/octet-stream".into(), bytes.to_vec()),
            );
            d
        }

        fn manifest(&mut self, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
            let d = Digest::of(bytes);
            for name in [tag.to_owned(), d.to_string()] {
                self.files.insert(
                    format!("/v2/app/manifests/{name}"),
                    (media_type.into(), bytes.to_vec()),
                );
            }
            d
        }
    }

    fn full(bytes: impl Into<Bytes>) -> Body {
        Full::new(bytes.into()).map_err(|e| match e {}).boxed()
    }

    async fn serve(content: Content) -> Registry {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (requests, layer_requests) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (all, layers) = (requests.clone(), layer_requests.clone());
        let task = tokio::spawn(async move {
            let content = Arc::new(content);
            loop {
                let Ok((sock, _)) = listener.accept().await else {
                    return;
                };
                let (content, all, layers) = (content.clone(), all.clone(), layers.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|req: Request<Incoming>| {
                        let r = answer(&content, &all, &layers, &req);
                        async move { Ok::<_, std::convert::Infallible>(r) }
                    });
                    let io = hyper_util::rt::TokioIo::new(sock);
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        Registry {
            address,
            requests,
            layer_requests,
            task,
        }
    }

    fn answer(
        content: &Content,
        all: &AtomicUsize,
        layers: &AtomicUsize,
        req: &Request<Incoming>,
    ) -> Response<Body> {
        all.fetch_add(1, Ordering::SeqCst);
        let reply = Response::builder();
        if let Some(login) = &content.login {
            let want = format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(login)
            );
            if req
                .headers()
                .get("authorization")
                .is_none_or(|h| h.to_str().unwrap_or("") != want)
            {
                return reply
                    .status(401)
                    .header("www-authenticate", "Basic realm=\"test\"")
                    .body(full(
                        r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#,
                    ))
                    .unwrap();
            }
        }
        let path = req.uri().path();
        if path == "/v2/" {
            return reply.body(full("{}")).unwrap();
        }
        let Some((kind, bytes)) = content.files.get(path) else {
            return reply
                .status(404)
                .body(full(
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ))
                .unwrap();
        };
        let reply = reply.header("content-type", kind.as_str());
        if !path.contains("/blobs/") || bytes.len() < 500 {
            return reply.body(full(bytes.clone())).unwrap();
        }
        let nth = layers.fetch_add(1, Ordering::SeqCst);
        if let Some(range) = req.headers().get("range") {
            let from: usize = range
                .to_str()
                .unwrap()
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap();
            return reply
                .status(206)
                .body(full(bytes[from..].to_vec()))
                .unwrap();
        }
        match content.break_after {
            Some(n) if nth == 0 => {
                let parts: Vec<std::io::Result<Frame<Bytes>>> = vec![
                    Ok(Frame::data(Bytes::from(bytes[..n].to_vec()))),
                    Err(std::io::Error::other("the cable was cut")),
                ];
                let body = StreamBody::new(futures::stream::iter(parts));
                reply.body(BodyExt::boxed(body)).unwrap()
            }
            _ => reply.body(full(bytes.clone())).unwrap(),
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn layer(path: &str, bytes: &[u8]) -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(bytes.len() as u64);
        h.set_mode(0o755);
        b.append_data(&mut h, path, bytes).unwrap();
        b.into_inner().unwrap()
    }

    /// An image of a gzip, a zstd and a plain layer; returns its content and the config's digest.
    fn image() -> (Content, Digest) {
        let mut c = Content::default();
        // Not compressible, so that every layer's blob is long enough to be counted.
        let noise: Vec<u8> = (0u32..2000)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let tars = [
            layer("bin/busybox", &std::fs::read("/bin/busybox").unwrap()),
            layer("etc/a", &noise),
            layer("etc/b", &[b'b'; 3000]),
        ];
        let diff_ids: Vec<Digest> = tars.iter().map(|t| Digest::of(t)).collect();
        let config = serde_json::json!({
            "architecture": this_architecture(), "os": "linux",
            "config": {"User": "web:web"}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let blobs = [
            gzip(&tars[0]),
            zstd::stream::encode_all(tars[1].as_slice(), 1).unwrap(),
            tars[2].clone(),
        ];
        let layers: Vec<_> = blobs
            .iter()
            .map(|b| serde_json::json!({"mediaType": "x", "digest": c.blob(b), "size": b.len()}))
            .collect();
        let id = c.blob(config.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MEDIA_DOCKER_MANIFEST, "layers": layers,
            "config": {"mediaType": "x", "digest": id, "size": config.len()},
        })
        .to_string();
        let m = c.manifest("v1", MEDIA_DOCKER_MANIFEST, manifest.as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": MEDIA_OCI_INDEX, "manifests": [
                {"mediaType": MEDIA_OCI_MANIFEST, "digest": Digest::of(b"other"), "size": 1, "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": MEDIA_DOCKER_MANIFEST, "digest": m, "size": manifest.len(), "platform": {"os": "linux", "architecture": this_architecture()}},
            ],
        })
        .to_string();
        c.manifest("multi", MEDIA_OCI_INDEX, index.as_bytes());
        (c, id)
    }

    fn setup() -> (tempfile::TempDir, ImageStore, Puller) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let t = tempfile::tempdir().unwrap();
        let s = ImageStore::open(t.path()).unwrap();
        let p = Puller::new(s.clone(), Registries::default());
        (t, s, p)
    }

    async fn fails(p: &Puller, image: &str) -> String {
        p.pull(image, Credentials::default(), None)
            .await
            .expect_err(image)
            .to_string()
    }

    #[tokio::test]
    async fn an_image_is_pulled_by_tag_index_and_digest_with_progress() {
        let (content, id) = image();
        let r = serve(content).await;
        let (_t, s, p) = setup();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let sink: PullSink = Arc::new(move |e| seen.lock().push(e));
        let name = format!("{}/app:multi", r.address);
        let got = p
            .pull(&name, Credentials::default(), Some(sink))
            .await
            .unwrap();
        assert_eq!(got.id, id);
        assert_eq!(got.repo_tags, [name.clone()]);
        let root = s.hold(&name, "c").unwrap();
        assert_eq!(
            std::fs::read(root.lowerdirs[0].join("etc/b")).unwrap(),
            vec![b'b'; 3000]
        );
        assert!(root.lowerdirs[2].join("bin/busybox").is_file());
        let events = events.lock().clone();
        assert!(matches!(events[0], PullEvent::Resolving { .. }));
        assert!(
            events
                .iter()
                .any(|e| matches!(e, PullEvent::Layer { done, total, .. } if done == total))
        );
        // By digest: all layers are there, so no blob but the config is fetched again.
        let before = r.layer_requests.load(Ordering::SeqCst);
        let by_digest = p
            .pull(&got.repo_digests[0], Credentials::default(), None)
            .await
            .unwrap();
        assert_eq!(by_digest.id, id);
        assert_eq!(r.layer_requests.load(Ordering::SeqCst), before);
        assert_eq!(super::super::cri::to_cri(&by_digest).username, "web");
    }

    #[tokio::test]
    async fn several_who_want_the_same_image_share_one_pull() {
        let (content, _) = image();
        let r = serve(content).await;
        let (_t, _s, p) = setup();
        let name = format!("{}/app:v1", r.address);
        let pulls = (0..5).map(|_| p.pull(&name, Credentials::default(), None));
        for got in futures::future::join_all(pulls).await {
            got.unwrap();
        }
        assert_eq!(r.layer_requests.load(Ordering::SeqCst), 3);
        assert!(p.inner.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn a_pull_nobody_waits_for_leaves_nothing() {
        let (content, _) = image();
        let r = serve(content).await;
        let (_t, s, p) = setup();
        let name = format!("{}/app:v1", r.address);
        let _ = tokio::time::timeout(
            Duration::from_millis(3),
            p.pull(&name, Credentials::default(), None),
        )
        .await;
        assert!(p.inner.under_way.lock().is_empty());
        for _ in 0..100 {
            if std::fs::read_dir(s.root().join("tmp")).unwrap().count() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(std::fs::read_dir(s.root().join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_broken_download_is_taken_up_where_it_broke() {
        let (mut content, id) = image();
        content.break_after = Some(1000);
        let r = serve(content).await;
        let (_t, _s, p) = setup();
        let got = p
            .pull(
                &format!("{}/app:v1", r.address),
                Credentials::default(),
                None,
            )
            .await
            .unwrap();
        assert_eq!(got.id, id);
        assert_eq!(
            r.layer_requests.load(Ordering::SeqCst),
            4,
            "three layers and one continuation"
        );
    }

    #[tokio::test]
    async fn wrong_bytes_name_image_digest_expected_and_got() {
        // Every blob in turn, and the manifest asked for by digest.
        let (good, _) = image();
        for path in good.files.keys() {
            let mut bad = good.clone();
            let bytes = &mut bad.files.get_mut(path).unwrap().1;
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            let wrong = Digest::of(bytes);
            if path.ends_with("/v1") || path.ends_with("/multi") {
                continue;
            }
            let asked = path.rsplit('/').next().unwrap().to_owned();
            let r = serve(bad).await;
            let (_t, s, p) = setup();
            let name = match path.contains("/manifests/") {
                true => format!("{}/app@{asked}", r.address),
                false => format!("{}/app:v1", r.address),
            };
            let e = fails(&p, &name).await;
            for w in [
                r.address.as_str(),
                "mismatch",
                asked.as_str(),
                wrong.as_str(),
            ] {
                assert!(e.contains(w), "{path}: {w} is not in: {e}");
            }
            assert!(s.images().unwrap().is_empty());
            s.collect().unwrap();
            assert_eq!(
                std::fs::read_dir(s.root().join("layers")).unwrap().count(),
                0,
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_pulled_says_why() {
        let (mut content, _) = image();
        content.login = Some("u:secret".into());
        let r = serve(content).await;
        let (_t, _s, p) = setup();
        let name = format!("{}/app:v1", r.address);
        let e = p
            .pull(&name, Credentials::default(), None)
            .await
            .unwrap_err();
        assert!(matches!(*e, ImageError::Unauthorized { .. }), "{e}");
        assert!(
            e.to_string().contains(&name) && e.to_string().contains("not authorized"),
            "{e}"
        );
        let login = |user: &str, password: &str, server: &str| Credentials {
            username: user.into(),
            password: password.into(),
            server_address: server.into(),
            ..Default::default()
        };
        p.pull(&name, login("u", "secret", ""), None).await.unwrap();
        let e = p
            .pull(&name, login("u", "wrong", ""), None)
            .await
            .unwrap_err();
        assert!(
            !e.to_string().contains("wrong"),
            "no password in the text: {e}"
        );
        assert!(
            p.pull(&name, login("u", "secret", "elsewhere.io"), None)
                .await
                .is_err(),
            "not for this registry"
        );
        let e = p
            .pull(
                &format!("{}/app:none", r.address),
                login("u", "secret", ""),
                None,
            )
            .await
            .unwrap_err();
        assert!(matches!(*e, ImageError::RegistryNotFound { .. }), "{e}");
        assert!(
            e.to_string().contains("manifest none") && e.to_string().contains("not found"),
            "{e}"
        );
        let e = fails(&p, "127.0.0.1:1/app:v1").await;
        assert!(e.contains("127.0.0.1:1") && e.contains("refused"), "{e}");
        assert!(fails(&p, "UPPER CASE").await.contains("invalid image name"));
    }

    #[tokio::test]
    async fn mirrors_are_tried_before_the_registry() {
        let (content, id) = image();
        let r = serve(content).await;
        let (_t, s, _) = setup();
        let text = format!(
            "mirrors: {{ nowhere.invalid: {{ endpoint: [\"http://127.0.0.1:1\", \"http://{}\"] }} }}",
            r.address
        );
        let p = Puller::new(s, Registries::parse(&text).unwrap());
        let got = p
            .pull("nowhere.invalid/app:v1", Credentials::default(), None)
            .await
            .unwrap();
        assert_eq!(got.id, id);
        assert_eq!(got.repo_tags, ["nowhere.invalid/app:v1"]);
        assert!(r.requests.load(Ordering::SeqCst) > 3);
    }

    #[test]
    fn credentials_of_docker_configs_are_read() {
        assert_eq!(
            basic("", "", "dTpwOnE=").unwrap(),
            Some(RegistryAuth::Basic("u".into(), "p:q".into()))
        );
        assert!(basic("", "", "!!").is_err());
        assert_eq!(basic("", "", "").unwrap(), None);
    }
}
