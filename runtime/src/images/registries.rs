//! Owns `registries.yaml` (k3s' format): which endpoints to ask for a registry, with which credentials and TLS.
//! Must not talk to anything; [`super::pull`] does.

use super::reference::is_loopback_host;
use super::{ImageError, Reference, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file. Unknown keys are errors: a misspelt mirror that is silently ignored costs hours.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    /// By registry host; `*` is for all that have no entry of their own.
    #[serde(default)]
    pub mirrors: BTreeMap<String, Mirror>,
    /// By endpoint host[:port].
    #[serde(default)]
    pub configs: BTreeMap<String, RegistryConfig>,
}

/// Where to look before (and instead of) the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// URLs, tried in order; the registry itself comes last.
    #[serde(default)]
    pub endpoint: Vec<String>,
    #[serde(default)]
    pub rewrite: BTreeMap<String, String>,
}

/// How to speak to one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    #[serde(default)]
    pub auth: Option<AuthEntry>,
    #[serde(default)]
    pub tls: Option<TlsEntry>,
}

/// Credentials. `auth` is base64 of `user:password`, as in Docker's config.json.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthEntry {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
    #[serde(default)]
    pub auth: String,
    #[serde(default)]
    pub identity_token: String,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthEntry {{ username: {:?}, .. }}", self.username)
    }
}

/// TLS of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsEntry {
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// host[:port][/prefix]; `/v2/` follows it.
    pub host: String,
    pub https: bool,
    pub config: RegistryConfig,
    /// Is this the registry the image's name says, and not a mirror?
    pub own: bool,
}

impl Registries {
    /// Read the file; a missing file is an empty configuration.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(ImageError::io(format!("read {}", path.display()), e)),
        };
        Self::parse(&text).map_err(|e| ImageError::Invalid(format!("{}: {e}", path.display())))
    }

    /// Parse and check the text.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        if text
            .lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
        {
            return Ok(Self::default());
        }
        let r: Registries = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        for (host, m) in &r.mirrors {
            if !m.rewrite.is_empty() {
                return Err(format!(
                    "mirrors.{host}.rewrite: rewrites are not supported; name the mirror's path in endpoint"
                ));
            }
            for e in &m.endpoint {
                parse_endpoint(e).map_err(|why| format!("mirrors.{host}.endpoint {e:?}: {why}"))?;
            }
        }
        for (host, c) in &r.configs {
            if let Some(t) = &c.tls
                && (t.cert_file.is_some() || t.key_file.is_some())
            {
                return Err(format!(
                    "configs.{host}.tls.cert_file: client certificates for registries are not supported; use auth"
                ));
            }
            if let Some(a) = &c.auth
                && !a.identity_token.is_empty()
            {
                return Err(format!(
                    "configs.{host}.auth.identity_token: identity tokens are not supported; use username and password"
                ));
            }
        }
        Ok(r)
    }

    /// The endpoints for an image, in the order to try them.
    pub fn endpoints(&self, image: &Reference) -> Vec<Endpoint> {
        let mut out: Vec<Endpoint> = Vec::new();
        let mirror = self
            .mirrors
            .get(&image.domain)
            .or_else(|| self.mirrors.get("*"));
        for url in mirror.into_iter().flat_map(|m| &m.endpoint) {
            if let Ok((host, https)) = parse_endpoint(url) {
                let own = host == image.domain;
                out.push(Endpoint {
                    config: self.config(&host),
                    own,
                    host,
                    https,
                });
            }
        }
        if !out.iter().any(|e| e.own) {
            let config = self.config(&image.domain);
            // Docker's and containerd's default: a registry on this machine speaks plain HTTP.
            let https = !is_loopback_host(&image.domain) || config.tls.is_some();
            out.push(Endpoint {
                host: image.domain.clone(),
                https,
                config,
                own: true,
            });
        }
        out
    }

    fn config(&self, host: &str) -> RegistryConfig {
        let bare = host.split('/').next().unwrap_or(host);
        let docker = ["docker.io", "index.docker.io", "registry-1.docker.io"];
        self.configs
            .get(bare)
            .or_else(|| {
                docker
                    .contains(&bare)
                    .then(|| docker.iter().find_map(|d| self.configs.get(*d)))
                    .flatten()
            })
            .cloned()
            .unwrap_or_default()
    }
}

/// Split a mirror's URL into host with path prefix, and whether it is https.
fn parse_endpoint(s: &str) -> std::result::Result<(String, bool), String> {
    let full = if s.contains("://") {
        s.to_owned()
    } else {
        format!("https://{s}")
    };
    let u = url::Url::parse(&full).map_err(|e| e.to_string())?;
    let https = match u.scheme() {
        "https" => true,
        "http" => false,
        other => return Err(format!("unknown scheme {other:?}; use http or https")),
    };
    let host = u.host_str().ok_or("it names no host")?;
    let mut out = host.to_owned();
    if let Some(p) = u.port() {
        out.push_str(&format!(":{p}"));
    }
    let path = u.path().trim_end_matches('/');
    let path = path.strip_suffix("/v2").unwrap_or(path);
    if path.starts_with("/v2/") {
        return Err("a path after /v2 is not supported; put the prefix before it".into());
    }
    out.push_str(path);
    Ok((out, https))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
mirrors:
  docker.io:
    endpoint:
      - "https://mirror.example.org:5000"
      - http://10.0.0.9/prefix/v2
  "*":
    endpoint: ["https://cache.example.org"]
configs:
  "mirror.example.org:5000":
    auth: { username: u, password: p }
    tls: { insecure_skip_verify: true }
  registry-1.docker.io:
    auth: { auth: dTpw }
"#;

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let r = Registries::parse(TEXT).unwrap();
        let hosts = |n: &str| {
            let e = r.endpoints(&Reference::parse(n).unwrap());
            e.iter()
                .map(|e| format!("{}{}", if e.https { "https://" } else { "http://" }, e.host))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            hosts("busybox"),
            [
                "https://mirror.example.org:5000",
                "http://10.0.0.9/prefix",
                "https://docker.io"
            ]
        );
        assert_eq!(
            hosts("ghcr.io/a/b"),
            ["https://cache.example.org", "https://ghcr.io"]
        );
        assert_eq!(
            hosts("localhost:5000/a"),
            ["https://cache.example.org", "http://localhost:5000"]
        );
        let e = r.endpoints(&Reference::parse("busybox").unwrap());
        assert_eq!(e[0].config.auth.as_ref().unwrap().username, "u");
        assert_eq!(e[2].config.auth.as_ref().unwrap().auth, "dTpw");
        assert!(!e[0].own && e[2].own);
    }

    #[test]
    fn mistakes_in_the_file_are_said_with_their_place() {
        for (text, want) in [
            ("mirror: {}", "mirror"),
            ("mirrors: { a.io: { endpoint: [\"ftp://x\"] } }", "ftp"),
            (
                "mirrors: { a.io: { rewrite: { a: b } } }",
                "mirrors.a.io.rewrite",
            ),
            (
                "configs: { a.io: { tls: { cert_file: /x } } }",
                "configs.a.io.tls.cert_file",
            ),
            ("mirrors: [", ""),
        ] {
            let e = Registries::parse(text).expect_err(text);
            assert!(e.contains(want), "{e}");
        }
        assert_eq!(
            Registries::parse("# nothing\n\n").unwrap(),
            Registries::default()
        );
        assert_eq!(
            Registries::load(Path::new("/nonexistent/registries.yaml")).unwrap(),
            Registries::default()
        );
    }
}
