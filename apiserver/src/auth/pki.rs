//! Keys and certificates below `<data-dir>/server/tls/`, under k3s's file names. Owns the two authorities (`server-ca`,
//! `client-ca`), what they issue, and the TLS configuration. Certificates are renewed at start and while running.

mod ca;
mod serving;

pub use ca::Pair;

use crate::{Config, Error};
use ca::{Ca, DAY, LEAF_DAYS, RENEW_DAYS, Use, broken, make_dir, now, read, write};
use parking_lot::RwLock;
use rcgen::KeyPair;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serving::Serving;
use skiff_https::{AnyCertificate, ClientCa};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The user that the API server is to kubelets (kubeadm's name).
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The cluster's keys and certificates.
pub struct Pki {
    dir: PathBuf,
    server_ca: Ca,
    client_ca: Ca,
    names: Vec<String>,
    ips: Vec<IpAddr>,
    serving: Arc<Serving>,
    clients: ClientCa,
    provider: Arc<CryptoProvider>,
}

/// The secret of `--token`, else of `<data-dir>/server/token`, else a new one written there.
///
/// # Errors
/// When the file cannot be read or written.
pub fn server_token(config: &Config) -> Result<String, Error> {
    let path = config.data_dir.join("server/token");
    if let Some(t) = config.token.as_ref().filter(|t| !t.is_empty()) {
        return Ok(t.clone());
    }
    if let Some(t) = read(&path)?
        .map(|t| t.trim().to_string())
        .filter(|t| !t.is_empty())
    {
        return Ok(t);
    }
    make_dir(&config.data_dir.join("server"))?;
    let token: String = (0..4)
        .map(|_| format!("{:016x}", rand::random::<u64>()))
        .collect();
    write(&path, &token)?;
    Ok(token)
}

impl Pki {
    /// Opens or makes everything for a server of this configuration.
    ///
    /// # Errors
    /// When a file cannot be read, written or understood.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let mut names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ]
        .map(String::from)
        .into();
        names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
        let mut ips = vec![
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
            config.advertise_address,
        ];
        if !config.bind_address.is_unspecified() {
            ips.push(config.bind_address);
        }
        ips.extend(first_address(&config.service_cidr));
        for san in &config.tls_san {
            match san.parse::<IpAddr>() {
                Ok(ip) => ips.push(ip),
                Err(_) => names.push(san.clone()),
            }
        }
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase();
        if !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        {
            names.push(host);
        }
        let mut seen = std::collections::BTreeSet::new();
        ips.retain(|ip| seen.insert(*ip));
        names.sort();
        names.dedup();
        Self::open_at(&config.data_dir.join("server/tls"), names, ips, now())
    }

    fn open_at(dir: &Path, names: Vec<String>, ips: Vec<IpAddr>, at: u64) -> Result<Self, Error> {
        make_dir(dir)?;
        let server_ca = Ca::open(dir, "server-ca", at)?;
        let client_ca = Ca::open(dir, "client-ca", at)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let wanted = Use::Server {
            names: names.clone(),
            ips: ips.clone(),
        };
        let pair =
            server_ca.ensure(dir, "serving-kube-apiserver", "kube-apiserver", &wanted, at)?;
        let key = certified(&pair, &provider)?;
        // A second handle on the authority for renewal from inside of a handshake.
        let renew = Ca::open(dir, "server-ca", at)?;
        let serving = Serving {
            current: RwLock::new((Arc::new(key), at + (LEAF_DAYS - RENEW_DAYS) * DAY)),
            ca: renew,
            wanted,
            dir: dir.into(),
            provider: provider.clone(),
        };
        serving.current.write().1 = until(&pair).saturating_sub(RENEW_DAYS * DAY);
        let clients = ClientCa::new(client_ca.cert_pem.as_bytes(), provider.clone())
            .map_err(|e| broken(&dir.join("client-ca.crt"), e))?;
        let pki = Self {
            dir: dir.into(),
            server_ca,
            client_ca,
            names,
            ips,
            serving: Arc::new(serving),
            clients,
            provider,
        };
        pki.client("client-admin", "system:admin", &["system:masters"])?;
        pki.kubelet_client()?;
        pki.service_key()?;
        Ok(pki)
    }

    /// The directory of all files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// The authority of serving certificates (API server, kubelets): what clients trust.
    pub fn server_ca_pem(&self) -> &str {
        &self.server_ca.cert_pem
    }
    /// The authority of client certificates: what the API server and kubelets trust.
    pub fn client_ca_pem(&self) -> &str {
        &self.client_ca.cert_pem
    }
    /// DNS names of the serving certificate.
    pub fn names(&self) -> &[String] {
        &self.names
    }
    /// Addresses of the serving certificate.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// A serving certificate, not kept. A kubelet's has the CN `system:node:<name>` and the node's names and addresses.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn issue_server(&self, cn: &str, names: &[String], ips: &[IpAddr]) -> Result<Pair, Error> {
        self.server_ca.issue(
            cn,
            &Use::Server {
                names: names.to_vec(),
                ips: ips.to_vec(),
            },
            now(),
        )
    }

    /// A client certificate, not kept; `organizations` (at most two) are its groups.
    ///
    /// # Errors
    /// When the names cannot be in a certificate.
    pub fn issue_client(&self, cn: &str, organizations: &[&str]) -> Result<Pair, Error> {
        let organizations = organizations.iter().map(ToString::to_string).collect();
        self.client_ca
            .issue(cn, &Use::Client { organizations }, now())
    }

    /// A client certificate that is kept in `<file>.crt` and `<file>.key` and renewed when it is asked for near its end.
    ///
    /// # Errors
    /// As [`Pki::issue_client`], and when files cannot be used.
    pub fn client(&self, file: &str, cn: &str, organizations: &[&str]) -> Result<Pair, Error> {
        let organizations = organizations.iter().map(ToString::to_string).collect();
        self.client_ca
            .ensure(&self.dir, file, cn, &Use::Client { organizations }, now())
    }

    /// A serving certificate that is kept likewise.
    ///
    /// # Errors
    /// As [`Pki::issue_server`], and when files cannot be used.
    pub fn server(
        &self,
        file: &str,
        cn: &str,
        names: &[String],
        ips: &[IpAddr],
    ) -> Result<Pair, Error> {
        self.server_ca.ensure(
            &self.dir,
            file,
            cn,
            &Use::Server {
                names: names.to_vec(),
                ips: ips.to_vec(),
            },
            now(),
        )
    }

    /// The certificate with which the API server talks to kubelets: a user of its own, bound to the role
    /// `system:kubelet-api-admin` (kubeadm has it so since 1.36) and to nothing else.
    ///
    /// # Errors
    /// When files cannot be used.
    pub fn kubelet_client(&self) -> Result<Pair, Error> {
        self.client("client-kube-apiserver", KUBELET_CLIENT, &[])
    }

    /// The admin's kubeconfig for a server URL like `https://127.0.0.1:6443`, certificates inside.
    ///
    /// # Errors
    /// When files cannot be used.
    pub fn admin_kubeconfig(&self, url: &str) -> Result<String, Error> {
        let pair = self.client("client-admin", "system:admin", &["system:masters"])?;
        Ok(self.kubeconfig(url, &pair))
    }

    /// A kubeconfig with any client certificate.
    pub fn kubeconfig(&self, url: &str, pair: &Pair) -> String {
        use base64::Engine;
        let b64 = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: default\n  cluster:\n    certificate-authority-data: {}\n    server: {url}\n\
             users:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
             contexts:\n- name: default\n  context:\n    cluster: default\n    user: default\ncurrent-context: default\npreferences: {{}}\n",
            b64(self.server_ca_pem()),
            b64(&pair.cert_pem),
            b64(&pair.key_pem),
        )
    }

    /// The key that signs service account tokens (`service.key`, P-256, PKCS#8 PEM).
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn service_key(&self) -> Result<KeyPair, Error> {
        let path = self.dir.join("service.key");
        if let Some(pem) = read(&path)? {
            return KeyPair::from_pem(&pem).map_err(|e| broken(&path, e));
        }
        let key = KeyPair::generate().map_err(|e| Error::Pki(e.to_string()))?;
        write(&path, &key.serialize_pem())?;
        Ok(key)
    }

    /// TLS of the API server: our certificate, HTTP/2 and 1.1, any client certificate (whose key the client has; the
    /// chain is looked at when a request is authenticated, so that a foreign one gets a 401 and not a broken connection).
    ///
    /// # Errors
    /// When the protocol versions are not to be had, which they are.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let mut c = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Pki(e.to_string()))?
            .with_client_cert_verifier(Arc::new(AnyCertificate(self.clients.clone())))
            .with_cert_resolver(self.serving.clone());
        c.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(c))
    }

    /// Is this chain (end entity first) of our client authority, for clients, and valid now?
    ///
    /// # Errors
    /// Why not.
    pub fn verify_client(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        self.clients.verify(chain)
    }

    /// Who holds a certificate of our client authority.
    ///
    /// # Errors
    /// Why it is not valid, or names nobody.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<skiff_https::Identity, String> {
        self.clients.identify(chain)
    }

    /// What rustls computes with.
    pub fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.clone()
    }

    /// The serving authority for verifying kubelets.
    pub fn server_ca_der(&self) -> CertificateDer<'static> {
        self.server_ca.der.clone()
    }
}

/// Chain and key for rustls.
///
/// # Errors
/// When the PEM is not a chain and a key.
pub fn parse(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Pki(format!("certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|e| Error::Pki(format!("key: {e}")))?;
    Ok((chain, key))
}

fn certified(pair: &Pair, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let (chain, key) = parse(pair)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| Error::Pki(e.to_string()))
}

fn until(pair: &Pair) -> u64 {
    let der = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).ok();
    der.and_then(|d| {
        x509_parser::parse_x509_certificate(&d)
            .ok()
            .map(|(_, c)| c.validity().not_after.timestamp())
    })
    .and_then(|t| u64::try_from(t).ok())
    .unwrap_or(0)
}

/// The first address of a network that a service can have: `10.43.0.0/16` -> `10.43.0.1`.
pub fn first_address(cidr: &str) -> Option<IpAddr> {
    let (net, bits) = cidr.split_once('/')?;
    let _: u8 = bits.parse().ok()?;
    match net.parse().ok()? {
        IpAddr::V4(a) => Some(IpAddr::V4((u32::from(a) + 1).into())),
        IpAddr::V6(a) => Some(IpAddr::V6((u128::from(a) + 1).into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, extra: &str, at: u64) -> Pki {
        let names = vec!["kubernetes".to_string(), extra.to_string()];
        Pki::open_at(dir, names, vec![IpAddr::from([127, 0, 0, 1])], at).expect("pki")
    }

    #[test]
    fn certificates_are_kept_over_restarts_and_renewed_for_new_names_or_age() {
        let dir = tempfile::tempdir().expect("dir");
        let read =
            || std::fs::read_to_string(dir.path().join("serving-kube-apiserver.crt")).expect("crt");
        open(dir.path(), "a", now());
        let first = read();
        open(dir.path(), "a", now());
        assert_eq!(read(), first, "kept");
        open(dir.path(), "b", now());
        let second = read();
        assert_ne!(second, first, "a new name");
        open(dir.path(), "b", now() + (LEAF_DAYS - RENEW_DAYS + 1) * DAY);
        assert_ne!(read(), second, "old age");
        let mode = std::os::unix::fs::MetadataExt::mode(
            &std::fs::metadata(dir.path().join("client-ca.key")).expect("key"),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_for_kubelets_that_was_a_masters_is_made_anew() {
        let dir = tempfile::tempdir().expect("dir");
        let pki = open(dir.path(), "a", now());
        pki.client(
            "client-kube-apiserver",
            "kube-apiserver",
            &["system:masters"],
        )
        .expect("as it was");
        let pki = open(dir.path(), "a", now());
        let (chain, _) = parse(&pki.kubelet_client().expect("pair")).expect("parse");
        let who = pki.identify(&chain).expect("identity");
        assert_eq!((who.name.as_str(), who.groups.len()), (KUBELET_CLIENT, 0));
        // The same name with another group is somebody else, too.
        pki.client("client-kube-apiserver", KUBELET_CLIENT, &["system:masters"])
            .expect("pair");
        let (chain, _) = parse(&pki.kubelet_client().expect("pair")).expect("parse");
        assert_eq!(pki.identify(&chain).expect("identity").groups.len(), 0);
    }

    #[test]
    fn clients_are_verified_against_the_client_authority_only() {
        let dir = tempfile::tempdir().expect("dir");
        let pki = open(dir.path(), "a", now());
        let (mine, _) =
            parse(&pki.issue_client("jane", &["dev", "ops"]).expect("issue")).expect("parse");
        assert_eq!(pki.verify_client(&mine), Ok(()));
        let (server, _) =
            parse(&pki.issue_server("x", &["x".into()], &[]).expect("issue")).expect("parse");
        assert!(pki.verify_client(&server).is_err());
        let other = tempfile::tempdir().expect("dir");
        let (foreign, _) = parse(
            &open(other.path(), "a", now())
                .issue_client("jane", &[])
                .expect("issue"),
        )
        .expect("parse");
        assert!(pki.verify_client(&foreign).is_err());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        open(dir.path(), "a", now());
        std::fs::write(dir.path().join("client-ca.crt"), "garbage").expect("write");
        let e = Pki::open_at(dir.path(), vec![], vec![], now())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(
            e.contains("client-ca.crt") && e.contains("remove it"),
            "{e}"
        );
    }

    #[test]
    fn the_first_service_address_is_one_after_the_network() {
        assert_eq!(
            first_address("10.43.0.0/16"),
            Some(IpAddr::from([10, 43, 0, 1]))
        );
        assert_eq!(first_address("nonsense"), None);
    }
}
