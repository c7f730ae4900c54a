//! An authority: its files, what it issues, when what it issued will do no more. Owns the files below `server/tls/` and the
//! shape of certificates; who gets one is `pki`'s.

use crate::Error;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const DAY: u64 = 86_400;
/// Validity of authorities.
pub(super) const CA_DAYS: u64 = 3650;
/// Validity of what they issue (k3s's).
pub(super) const LEAF_DAYS: u64 = 365;
/// Renewed when less than this is left (k3s's).
pub(super) const RENEW_DAYS: u64 = 120;

/// A certificate with its key, both PEM. The chain is the certificate followed by its authority's.
#[derive(Clone)]
pub struct Pair {
    /// Certificate chain.
    pub cert_pem: String,
    /// PKCS#8 key.
    pub key_pem: String,
}

/// What a certificate is for.
pub(super) enum Use {
    Server {
        names: Vec<String>,
        ips: Vec<IpAddr>,
    },
    Client {
        organizations: Vec<String>,
    },
}

/// An authority.
pub(super) struct Ca {
    pub(super) cert_pem: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

pub(super) fn broken(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Pki(format!(
        "{}: {why}; put back a copy of it, or remove it to have a new one made",
        path.display()
    ))
}

pub(super) fn io(path: &Path, source: std::io::Error) -> Error {
    Error::DataDir {
        path: path.into(),
        source,
    }
}

/// Reads a text file; none when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(s) => Ok(Some(s)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path, e)),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let go = || {
        let mut f = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        f.write_all(text.as_bytes())?;
        f.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The name must survive a power cut, too: with another authority nobody would get in any more.
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    go().map_err(|e| io(path, e))
}

pub(super) fn make_dir(dir: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| io(dir, e))
}

pub(super) fn offset(at: u64) -> impl Fn(&mut CertificateParams, u64) {
    move |p, seconds| {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        // An hour of tolerance for clocks that go differently.
        p.not_before = epoch + Duration::from_secs(at.saturating_sub(3600));
        p.not_after = epoch + Duration::from_secs(at + seconds);
    }
}

pub(super) fn serial() -> SerialNumber {
    let mut b = rand::random::<[u8; 16]>();
    // Positive and without a leading zero.
    b[0] = b[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&b)
}

impl Ca {
    pub(super) fn open(dir: &Path, name: &str, at: u64) -> Result<Self, Error> {
        let (cert_path, key_path) = (
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        );
        let (cert_pem, key_pem) = match (read(&cert_path)?, read(&key_path)?) {
            (Some(c), Some(k)) => (c, k),
            (Some(_), None) => {
                return Err(broken(
                    &key_path,
                    "the authority's certificate is there but its key is missing",
                ));
            }
            (None, key) => {
                let key = match key {
                    Some(k) => KeyPair::from_pem(&k).map_err(|e| broken(&key_path, e))?,
                    None => KeyPair::generate().map_err(|e| Error::Pki(e.to_string()))?,
                };
                let mut p = CertificateParams::default();
                p.distinguished_name = DistinguishedName::new();
                p.distinguished_name
                    .push(DnType::CommonName, format!("skiff-{name}@{at}"));
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                p.key_usages = vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyEncipherment,
                    KeyUsagePurpose::KeyCertSign,
                ];
                p.serial_number = Some(serial());
                offset(at)(&mut p, CA_DAYS * DAY);
                let cert = p.self_signed(&key).map_err(|e| Error::Pki(e.to_string()))?;
                write(&key_path, &key.serialize_pem())?;
                write(&cert_path, &cert.pem())?;
                (cert.pem(), key.serialize_pem())
            }
        };
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| broken(&cert_path, e))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| broken(&key_path, e))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| broken(&cert_path, e))?;
        Ok(Self {
            cert_pem,
            der,
            issuer,
        })
    }

    pub(super) fn issue(&self, cn: &str, wanted: &Use, at: u64) -> Result<Pair, Error> {
        let bad = |e: rcgen::Error| Error::Pki(format!("certificate for {cn}: {e}"));
        let key = KeyPair::generate().map_err(bad)?;
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        p.serial_number = Some(serial());
        p.use_authority_key_identifier_extension = true;
        p.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        match wanted {
            Use::Server { names, ips } => {
                for n in names {
                    p.subject_alt_names
                        .push(SanType::DnsName(n.as_str().try_into().map_err(bad)?));
                }
                p.subject_alt_names
                    .extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Use::Client { organizations } => {
                // rcgen holds one value for each type; the same type by its number makes room for a second.
                for (i, o) in organizations.iter().enumerate() {
                    let kind = match i {
                        0 => DnType::OrganizationName,
                        1 => DnType::CustomDnType(vec![2, 5, 4, 10]),
                        _ => {
                            return Err(Error::Pki(format!(
                                "certificate for {cn}: at most two organizations can be issued"
                            )));
                        }
                    };
                    p.distinguished_name.push(kind, o.as_str());
                }
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        p.distinguished_name.push(DnType::CommonName, cn);
        offset(at)(&mut p, LEAF_DAYS * DAY);
        let cert = p.signed_by(&key, &self.issuer).map_err(bad)?;
        Ok(Pair {
            cert_pem: format!("{}{}", cert.pem(), self.cert_pem),
            key_pem: key.serialize_pem(),
        })
    }

    /// The pair in the directory if it will do for a while, else a new one.
    pub(super) fn ensure(
        &self,
        dir: &Path,
        file: &str,
        cn: &str,
        wanted: &Use,
        at: u64,
    ) -> Result<Pair, Error> {
        let (cert_path, key_path) = (
            dir.join(format!("{file}.crt")),
            dir.join(format!("{file}.key")),
        );
        if let (Some(cert_pem), Some(key_pem)) = (read(&cert_path)?, read(&key_path)?)
            && self.will_do(&cert_pem, &key_pem, cn, wanted, at)
        {
            return Ok(Pair { cert_pem, key_pem });
        }
        let pair = self.issue(cn, wanted, at)?;
        write(&key_path, &pair.key_pem)?;
        write(&cert_path, &pair.cert_pem)?;
        Ok(pair)
    }

    pub(super) fn will_do(
        &self,
        cert_pem: &str,
        key_pem: &str,
        cn: &str,
        wanted: &Use,
        at: u64,
    ) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else {
            return false;
        };
        let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else {
            return false;
        };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&self.der) else {
            return false;
        };
        let Ok(key) = KeyPair::from_pem(key_pem) else {
            return false;
        };
        if cert.verify_signature(Some(ca.public_key())).is_err()
            || *cert.public_key().subject_public_key.data != *key.public_key_raw()
        {
            return false;
        }
        let until = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        if until < at + RENEW_DAYS * DAY {
            return false;
        }
        // Whose it is must be as wanted, too: rights follow the name and the groups.
        let subject = cert.subject();
        if !subject.iter_common_name().map(|n| n.as_str()).eq([Ok(cn)]) {
            return false;
        }
        let (names, ips) = match wanted {
            Use::Server { names, ips } => (names, ips),
            Use::Client { organizations } => {
                return subject
                    .iter_organization()
                    .map(|o| o.as_str())
                    .eq(organizations.iter().map(|o| Ok(o.as_str())));
            }
        };
        let Ok(Some(san)) = cert.subject_alternative_name() else {
            return false;
        };
        let has_name = |n: &str| {
            san.value
                .general_names
                .iter()
                .any(|g| matches!(g, x509_parser::extensions::GeneralName::DNSName(d) if *d == n))
        };
        let has_ip = |ip: &IpAddr| {
            let octets = match ip {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            san.value.general_names.iter().any(
                |g| matches!(g, x509_parser::extensions::GeneralName::IPAddress(b) if *b == octets),
            )
        };
        names.iter().all(|n| has_name(n)) && ips.iter().all(has_ip)
    }
}
