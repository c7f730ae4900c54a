//! Owns pulling as the CRI asks for it: one pull for all who want the same image, mirrors in their order, progress.
//! Must not decide when to pull (the kubelet does); [`super::registry`] speaks to one endpoint.

use super::digest::Digest;
use super::registries::Registries;
use super::registry::OnePull;
use super::store::{ImageRecord, ImageStore};
use super::{ImageError, Reference, Result};
use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

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
            None => Err(ImageError::Invalid(format!(
                "image {image}: no endpoint to pull from"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{
        MEDIA_DOCKER_MANIFEST, MEDIA_OCI_INDEX, MEDIA_OCI_MANIFEST, this_architecture,
    };
    use super::super::registry::basic;
    use super::*;
    use base64::Engine;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::{Request, Response};
    use oci_client::secrets::RegistryAuth;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

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
        assert_eq!(got.repo_tags, std::slice::from_ref(&name));
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
