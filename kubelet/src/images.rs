//! Images for containers: pull policies, credentials, one pull of an image at a time (upstream pkg/kubelet/images
//! and pkg/credentialprovider). Owns what is asked of the runtime's image service for pods; collecting unused images
//! is `gc`'s.

use crate::cri::Cri;
use crate::pod::state::StartError;
use base64::Engine;
use k8s_cri::v1::{AuthConfig, ImageSpec, PodSandboxConfig};
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;

/// An image that is there.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// The runtime's reference: what containers are made from.
    pub reference: String,
    /// Who it runs as.
    pub user: crate::kuberuntime::security::ImageUser,
    /// Message for a `Pulled` event.
    pub message: String,
}

/// Gets images. One for the node.
pub struct Images {
    cri: Cri,
    pulls: parking_lot::Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// Adds the tag `latest` to a reference without tag and digest.
///
/// # Errors
/// Text that is no image reference.
pub fn normalize(image: &str) -> Result<String, String> {
    let bad = |why: &str| {
        Err(format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
        ))
    };
    if image.is_empty() || image != image.trim() || image.contains(char::is_whitespace) {
        return bad("invalid reference format");
    }
    let (name, digest) = match image.split_once('@') {
        Some((n, d)) => (n, Some(d)),
        None => (image, None),
    };
    if let Some(d) = digest
        && !d.split_once(':').is_some_and(|(a, h)| {
            !a.is_empty() && h.len() >= 32 && h.bytes().all(|b| b.is_ascii_hexdigit())
        })
    {
        return bad("invalid reference format");
    }
    let slash = name.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[slash..].rfind(':') {
        Some(i) => (&name[..slash + i], Some(&name[slash + i + 1..])),
        None => (name, None),
    };
    let (host, rest) = match path.split_once('/') {
        Some((h, r)) if h.contains(['.', ':']) || h == "localhost" => (Some(h), r),
        _ => (None, path),
    };
    if rest.chars().any(|c| c.is_ascii_uppercase()) {
        return bad("invalid reference format: repository name must be lowercase");
    }
    let part_ok = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
            })
            && p.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && p.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric)
    };
    let host_ok = host.is_none_or(|h| {
        h.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
    });
    let tag_ok = tag.is_none_or(|t| {
        !t.is_empty()
            && t.len() <= 128
            && t.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !t.starts_with(['.', '-'])
    });
    if !host_ok || !tag_ok || !rest.split('/').all(part_ok) {
        return bad("invalid reference format");
    }
    Ok(if tag.is_none() && digest.is_none() {
        format!("{image}:latest")
    } else {
        image.to_string()
    })
}

/// The policy in force when none is said: Always for `:latest`, otherwise IfNotPresent (the API defaults it too).
pub fn pull_policy<'a>(policy: Option<&'a str>, image: &str) -> &'a str {
    match policy {
        Some(p) if !p.is_empty() => p,
        _ if image.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

impl Images {
    /// Images of one runtime.
    pub fn new(cri: Cri) -> Self {
        Self {
            cri,
            pulls: parking_lot::Mutex::new(HashMap::new()),
        }
    }

    async fn lookup(&self, spec: &ImageSpec) -> Result<Option<Present>, String> {
        let image = self
            .cri
            .image_status(spec.clone())
            .await
            .map_err(|e| e.message)?;
        Ok(image.map(|i| Present {
            reference: i.id,
            user: crate::kuberuntime::security::ImageUser {
                uid: i.uid.map(|u| u.value),
                username: i.username,
            },
            message: String::new(),
        }))
    }

    /// Makes sure that an image is there as its policy wants. `note` is called with reason and message when a pull
    /// begins.
    ///
    /// # Errors
    /// Upstream's reasons: InvalidImageName, ErrImageNeverPull, ErrImagePull, ImageInspectError.
    pub async fn ensure(
        &self,
        image: &str,
        policy: Option<&str>,
        secrets: &[Arc<Secret>],
        sandbox: Option<PodSandboxConfig>,
        note: impl Fn(&'static str, String),
    ) -> Result<Present, StartError> {
        let error = |reason: &str, message: String| StartError {
            reason: reason.into(),
            message,
            image: Some(image.to_string()),
        };
        let name = normalize(image).map_err(|m| {
            note("InspectFailed", m.clone());
            error("InvalidImageName", m)
        })?;
        let spec = ImageSpec {
            image: name.clone(),
            ..ImageSpec::default()
        };
        let policy = pull_policy(policy, &name);
        let have = self.lookup(&spec).await.map_err(|m| {
            let m = format!("Failed to inspect image \"{image}\": {m}");
            note("InspectFailed", m.clone());
            error("ImageInspectError", m)
        })?;
        match (have, policy) {
            (Some(mut present), "IfNotPresent" | "Never") => {
                present.message = format!(
                    "Container image \"{image}\" already present on machine and can be accessed by the pod"
                );
                return Ok(present);
            }
            (None, "Never") => {
                let m =
                    format!("Container image \"{image}\" is not present with pull policy of Never");
                note("ErrImageNeverPull", m.clone());
                return Err(error("ErrImageNeverPull", m));
            }
            _ => {}
        }
        let lock = self.pulls.lock().entry(name.clone()).or_default().clone();
        let waiting = Instant::now();
        let guard = lock.lock().await;
        // Another pod may have pulled it meanwhile.
        if policy == "IfNotPresent"
            && let Ok(Some(mut present)) = self.lookup(&spec).await
        {
            present.message = format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            );
            return Ok(present);
        }
        note("Pulling", format!("Pulling image \"{image}\""));
        let begun = Instant::now();
        let mut last = String::new();
        let mut pulled = None;
        let mut tries = credentials(&name, secrets);
        tries.push(None);
        for auth in tries {
            match self
                .cri
                .pull_image(spec.clone(), auth, sandbox.clone())
                .await
            {
                Ok(reference) => {
                    pulled = Some(reference);
                    break;
                }
                Err(e) => last = e.message,
            }
        }
        drop(guard);
        self.pulls.lock().retain(|_, l| Arc::strong_count(l) > 1);
        let Some(reference) = pulled else {
            note(
                "Failed",
                format!("Failed to pull image \"{image}\": {last}"),
            );
            return Err(error("ErrImagePull", last));
        };
        let size = self
            .cri
            .image_status(spec.clone())
            .await
            .ok()
            .flatten()
            .map_or(0, |i| i.size);
        let mut present = self
            .lookup(&spec)
            .await
            .map_err(|m| {
                error(
                    "ImageInspectError",
                    format!("Failed to inspect image \"{image}\": {m}"),
                )
            })?
            .unwrap_or_default();
        if present.reference.is_empty() {
            present.reference = reference;
        }
        present.message = format!(
            "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
            go_duration(begun.elapsed().as_millis()),
            go_duration(waiting.elapsed().as_millis())
        );
        Ok(present)
    }
}

fn go_duration(ms: u128) -> String {
    if ms < 1000 {
        format!("{ms}ms")
    } else {
        format!("{}.{:03}s", ms / 1000, ms % 1000)
    }
}

/// Credentials for an image from pull secrets (types dockerconfigjson and dockercfg), in order.
pub fn credentials(image: &str, secrets: &[Arc<Secret>]) -> Vec<Option<AuthConfig>> {
    let registry = registry_of(image);
    let mut out = Vec::new();
    for secret in secrets {
        let data = secret.data.clone().unwrap_or_default();
        let auths: Option<Value> = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => data
                .get(".dockerconfigjson")
                .and_then(|b| serde_json::from_slice::<Value>(&b.0).ok())
                .and_then(|v| v.get("auths").cloned()),
            Some("kubernetes.io/dockercfg") => data
                .get(".dockercfg")
                .and_then(|b| serde_json::from_slice(&b.0).ok()),
            _ => None,
        };
        for (host, entry) in auths
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if !host_matches(host, &registry, image) {
                continue;
            }
            let text = |k: &str| {
                entry
                    .get(k)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_string()
            };
            let mut auth = AuthConfig {
                username: text("username"),
                password: text("password"),
                identity_token: text("identitytoken"),
                registry_token: text("registrytoken"),
                ..AuthConfig::default()
            };
            if auth.username.is_empty()
                && let Ok(raw) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
                && let Some((user, password)) = String::from_utf8_lossy(&raw).split_once(':')
            {
                auth.username = user.into();
                auth.password = password.trim_end_matches('\0').into();
            }
            out.push(Some(auth));
        }
    }
    out
}

fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((h, _)) if h.contains(['.', ':']) || h == "localhost" => h.to_string(),
        _ => "docker.io".into(),
    }
}

fn host_matches(entry: &str, registry: &str, image: &str) -> bool {
    let entry = entry
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let entry = entry
        .strip_suffix("/v1/")
        .or(entry.strip_suffix("/v2/"))
        .unwrap_or(entry);
    let entry = entry.trim_end_matches('/');
    let (host, path) = entry.split_once('/').unwrap_or((entry, ""));
    let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let same = host == registry
        || (hub(host) && hub(registry))
        || host
            .strip_prefix("*.")
            .is_some_and(|tail| registry.split_once('.').is_some_and(|(_, t)| t == tail));
    let rest = image.strip_prefix(&format!("{registry}/")).unwrap_or(image);
    same && (path.is_empty() || path == "v1" || path == "v2" || rest.starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_a_tag_or_are_refused() {
        for (image, want) in [
            ("busybox", Ok("busybox:latest")),
            ("busybox:1", Ok("busybox:1")),
            ("reg:5000/a/b", Ok("reg:5000/a/b:latest")),
            ("localhost/skiff/hello:dev", Ok("localhost/skiff/hello:dev")),
            (
                "a@sha256:0123456789012345678901234567890123456789012345678901234567890123",
                Ok("a@sha256:0123456789012345678901234567890123456789012345678901234567890123"),
            ),
            ("", Err(())),
            ("Busybox", Err(())),
            ("a b", Err(())),
            ("a:", Err(())),
            ("a//b", Err(())),
            ("a@sha256:xyz", Err(())),
        ] {
            assert_eq!(
                normalize(image).map_err(|_| ()),
                want.map(Into::into),
                "{image}"
            );
        }
        assert_eq!(pull_policy(None, "a:latest"), "Always");
        assert_eq!(pull_policy(None, "a:1"), "IfNotPresent");
        assert_eq!(pull_policy(Some("Never"), "a:latest"), "Never");
    }

    #[test]
    fn pull_secrets_give_credentials_of_their_registry_only() {
        let config = serde_json::json!({"auths": {
            "https://reg.example/v1/": {"auth": base64::engine::general_purpose::STANDARD.encode("me:secret:x")},
            "other.example": {"username": "you", "password": "p"}}});
        let mut secret = Secret {
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            ..Secret::default()
        };
        secret.data = Some(
            [(
                ".dockerconfigjson".to_string(),
                k8s_openapi::ByteString(config.to_string().into_bytes()),
            )]
            .into(),
        );
        let got = credentials("reg.example/a:1", &[Arc::new(secret)]);
        assert_eq!(got.len(), 1);
        let auth = got[0].clone().unwrap();
        assert_eq!(
            (auth.username.as_str(), auth.password.as_str()),
            ("me", "secret:x")
        );
    }

    proptest::proptest! {
        #[test]
        fn a_reference_that_is_accepted_once_is_accepted_again(text in "[a-zA-Z0-9./:@_-]{0,40}") {
            if let Ok(name) = normalize(&text) {
                proptest::prop_assert_eq!(normalize(&name), Ok(name));
            }
        }
    }
}
