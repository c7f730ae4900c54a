//! Owns image names: parsing and normalising them as Docker and containerd do (distribution/reference). Pure.

use super::ImageError;
use super::digest::Digest;
use std::fmt;

/// A normalised image name: `domain/path` with a tag or a digest (a digest wins over a tag, as in containerd's CRI).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry host with port, `docker.io` when the user names none.
    pub domain: String,
    /// Repository below the registry, `library/` added for Docker Hub's own.
    pub path: String,
    /// Tag, when there is no digest: `latest` when the user gives neither.
    pub tag: Option<String>,
    /// Digest the image is asked for by.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parse what a user writes: `busybox`, `user/app:v1`, `host:5000/app@sha256:...`.
    pub fn parse(s: &str) -> Result<Self, ImageError> {
        let bad = |why: &str| ImageError::Invalid(format!("invalid image name {s:?}: {why}"));
        if s.is_empty() {
            return Err(bad("it is empty"));
        }
        if s.len() == 64
            && s.bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        {
            // distribution/reference refuses these: they would be taken for image ids.
            return Err(bad("a name must not look like an image id"));
        }
        let (rest, digest) = match s.split_once('@') {
            Some((r, d)) => (
                r,
                Some(
                    Digest::parse(d)
                        .map_err(|_| bad("the digest after @ is not sha256: and 64 hex digits"))?,
                ),
            ),
            None => (s, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((n, t)) if !t.contains('/') => (n, Some(t)),
            _ => (rest, None),
        };
        if let Some(t) = tag
            && !valid_tag(t)
        {
            return Err(bad(
                "a tag is 1 to 128 of letters, digits, '_', '.', '-', not starting with '.' or '-'",
            ));
        }
        let (domain, path) = match name.split_once('/') {
            // Docker's rule for telling a host from a user's namespace.
            Some((d, p))
                if d.contains(['.', ':'])
                    || d == "localhost"
                    || d.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                (d, p.to_owned())
            }
            _ => ("docker.io", name.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            "docker.io"
        } else {
            domain
        };
        let path = if domain == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        if !valid_domain(domain) {
            return Err(bad("the registry's host is not a valid host[:port]"));
        }
        if !path.split('/').all(valid_component) {
            return Err(bad(
                "a repository's path is lower case letters and digits, separated by '/', and inside by '.', '_', '__' or '-'",
            ));
        }
        if domain.len() + path.len() + 1 > 255 {
            return Err(bad("it is longer than 255 characters"));
        }
        let tag = match (&digest, tag) {
            (Some(_), _) => None,
            (None, Some(t)) => Some(t.to_owned()),
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference {
            domain: domain.to_owned(),
            path,
            tag,
            digest,
        })
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path@digest`, the form of CRI's RepoDigests.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }

    /// Is the registry on this machine's loopback? Such registries are spoken to over plain HTTP first, as Docker does.
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(&self.domain)
    }
}

/// Is `host[:port]` a loopback address or `localhost`?
pub fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => host.rsplit_once(':').map_or(host, |(h, _)| h),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(t) = &self.tag {
            write!(f, ":{t}")?;
        }
        if let Some(d) = &self.digest {
            write!(f, "@{d}")?;
        }
        Ok(())
    }
}

fn valid_tag(t: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let b = t.as_bytes();
    !b.is_empty()
        && b.len() <= 128
        && word(b[0])
        && b.iter().all(|&c| word(c) || c == b'.' || c == b'-')
}

fn valid_component(c: &str) -> bool {
    // [a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)*
    let b = c.as_bytes();
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let (Some(&first), Some(&last)) = (b.first(), b.last()) else {
        return false;
    };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    b.split(|&c| alnum(c)).all(|sep| {
        sep.is_empty()
            || sep == b"."
            || sep == b"_"
            || sep == b"__"
            || sep.iter().all(|&c| c == b'-')
    })
}

fn valid_domain(d: &str) -> bool {
    let (host, port) = if let Some(v6) = d.strip_prefix('[') {
        match v6.split_once(']') {
            Some((addr, port)) if addr.parse::<std::net::Ipv6Addr>().is_ok() => {
                return port.is_empty() || port.strip_prefix(':').is_some_and(valid_port);
            }
            _ => return false,
        }
    } else {
        match d.split_once(':') {
            Some((h, p)) => (h, Some(p)),
            None => (d, None),
        }
    };
    let label = |l: &str| {
        let b = l.as_bytes();
        !b.is_empty()
            && b[0] != b'-'
            && b[b.len() - 1] != b'-'
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
    };
    host.split('.').all(label) && port.is_none_or(valid_port)
}

fn valid_port(p: &str) -> bool {
    !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (given, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
            ("user/app", "docker.io/user/app:latest".into()),
            (
                "index.docker.io/library/a",
                "docker.io/library/a:latest".into(),
            ),
            ("docker.io/a", "docker.io/library/a:latest".into()),
            ("localhost/app:v1", "localhost/app:v1".into()),
            ("localhost:5000/app", "localhost:5000/app:latest".into()),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c".into()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".into()),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10".into(),
            ),
            ("HOST/app", "HOST/app:latest".into()),
            (&format!("a@{d}"), format!("docker.io/library/a@{d}")),
            (&format!("x.io/a:v1@{d}"), format!("x.io/a@{d}")),
        ] {
            assert_eq!(
                Reference::parse(given).map(|r| r.to_string()).unwrap(),
                want,
                "{given}"
            );
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let id = "a".repeat(64);
        for bad in [
            "",
            ":tag",
            "a:",
            "A",
            "a//b",
            "/a",
            "a/",
            "a@sha256:12",
            "a b",
            "a:-x",
            "-a",
            "x.io/",
            "x_.io/a",
            "a..b",
            &id,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn loopback_registries_are_recognised() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.3.2.1",
            "[::1]:5000",
        ] {
            assert!(is_loopback_host(yes), "{yes}");
        }
        for no in ["docker.io", "10.0.0.1:5000", "localhost.example.org"] {
            assert!(!is_loopback_host(no), "{no}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_what_parses_is_stable(s in "\\PC{0,80}") {
            if let Ok(r) = Reference::parse(&s) {
                prop_assert_eq!(Reference::parse(&r.to_string()).unwrap(), r);
            }
        }

        #[test]
        fn well_formed_names_round_trip(
            host in "([a-z][a-z0-9]{0,8}\\.){1,3}[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}(([._-]|__)[a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,8}){0,2}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let s = format!("{host}/{path}:{tag}");
            let r = Reference::parse(&s).unwrap();
            prop_assert_eq!(&r.domain, &host);
            prop_assert_eq!(&r.path, &path);
            prop_assert_eq!(r.to_string(), s);
        }
    }
}
