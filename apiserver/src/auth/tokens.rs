//! Service account tokens: JWTs signed with `service.key`, made and checked as upstream's pkg/serviceaccount does. Owns the
//! claims; whether the objects named in them exist is asked of the caller's [`Lookup`], so everything here is pure.

use super::UserInfo;
use super::credential::{Credential, Rest, Standing};
use super::pki::Pki;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// Issuer of all tokens and the API server's own audience.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Group of all service accounts.
pub const ALL_GROUP: &str = "system:serviceaccounts";
/// Shortest life that can be asked for.
pub const MIN_SECONDS: i64 = 600;
/// Longest life.
pub const MAX_SECONDS: i64 = 1 << 32;
/// The life kubelets ask for; such tokens live a year so that pods which never read them again go on (upstream's
/// --service-account-extend-token-expiration), with a warning time inside.
pub const EXTENDABLE_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// A minute of tolerance for clocks that differ, as go-jose has.
const EXPIRY_LEEWAY: i64 = 60;
/// How long objects that are being deleted still count (upstream's 60 s of leeway).
pub const DELETION_LEEWAY: i64 = 60;
/// Tokens whose signature was checked, kept so that it need not be done on every request.
const REMEMBERED: usize = 1024;

/// An object a token names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ref {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Of the service account.
    pub namespace: String,
    /// A node the token is bound to, or on which its pod runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Ref>,
    /// A pod the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Ref>,
    /// A secret the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Ref>,
    /// The service account.
    pub serviceaccount: Ref,
    /// When the holder should have fetched another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Unique id of this token.
    pub jti: String,
    /// Kubernetes' claims.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    /// Not before.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
}

/// What a token is bound to.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// The pod.
    pub pod: Option<Ref>,
    /// The secret.
    pub secret: Option<Ref>,
    /// The node (of the pod, or itself bound to).
    pub node: Option<Ref>,
}

/// How the objects named in a token are found: the store's key (`/core/pods/ns/name`). Gives the stored bytes.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<Bytes>;

/// Signs and checks.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    /// x and y of the public key.
    point: (String, String),
    checked: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl Tokens {
    /// Tokens signed with the pki's `service.key`.
    ///
    /// # Errors
    /// When the key cannot be used for ES256.
    pub fn new(pki: &Pki) -> Result<Self, String> {
        let key = pki.service_key().map_err(|e| e.to_string())?;
        let bad = |e: jsonwebtoken::errors::Error| {
            format!(
                "{}: {e}; only P-256 keys sign tokens, remove the file to have a new one made",
                pki.dir().join("service.key").display()
            )
        };
        let public = key.public_key_pem();
        let der: String = public.lines().filter(|l| !l.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD
            .decode(der)
            .map_err(|e| e.to_string())?;
        let raw = key.public_key_raw();
        let point = match raw {
            [4, xy @ ..] if xy.len() == 64 => (
                URL_SAFE_NO_PAD.encode(&xy[..32]),
                URL_SAFE_NO_PAD.encode(&xy[32..]),
            ),
            _ => {
                return Err(format!(
                    "{}: only P-256 keys sign tokens",
                    pki.dir().join("service.key").display()
                ));
            }
        };
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).map_err(bad)?,
            decoding: DecodingKey::from_ec_pem(public.as_bytes()).map_err(bad)?,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(&der)),
            point,
            checked: Mutex::default(),
        })
    }

    /// Makes a token; also gives the expiry to tell the client (seconds since the epoch).
    ///
    /// # Errors
    /// When it cannot be signed.
    #[allow(clippy::too_many_arguments)]
    pub fn issue(
        &self,
        namespace: &str,
        account: Ref,
        bound: Bound,
        audiences: Vec<String>,
        seconds: i64,
        now: i64,
        id: String,
    ) -> Result<(String, i64), String> {
        let mut life = seconds;
        let mut warnafter = None;
        if seconds == EXTENDABLE_SECONDS && bound.pod.is_some() && audiences == [ISSUER] {
            life = EXTENDED_SECONDS;
            warnafter = Some(now + seconds);
        }
        let claims = Claims {
            aud: audiences,
            exp: now + life,
            iat: now,
            iss: ISSUER.into(),
            jti: id,
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            kubernetes: Private {
                namespace: namespace.into(),
                node: bound.node,
                pod: bound.pod,
                secret: bound.secret,
                serviceaccount: account,
                warnafter,
            },
            nbf: now,
        };
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let head = part(&json!({"alg": "ES256", "kid": self.key_id}));
        let body = part(&serde_json::to_value(&claims).map_err(|e| e.to_string())?);
        let message = format!("{head}.{body}");
        let signature = crypto::sign(message.as_bytes(), &self.encoding, Algorithm::ES256)
            .map_err(|e| e.to_string())?;
        Ok((format!("{message}.{signature}"), now + seconds))
    }

    /// Is this a token of ours, going by its looks? Others are then tried.
    pub fn is_ours(token: &str) -> bool {
        let Some(body) = token.split('.').nth(1) else {
            return false;
        };
        URL_SAFE_NO_PAD
            .decode(body)
            .ok()
            .and_then(|b| serde_json::from_slice::<Value>(&b).ok())
            .is_some_and(|v| v.get("iss").and_then(Value::as_str) == Some(ISSUER))
    }

    /// Who a token is, and for which of the audiences it is good. `audiences` empty: the API server's own.
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn check(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
        lookup: Lookup<'_>,
    ) -> Result<(Credential, Vec<String>), String> {
        let claims = self.verify(token)?;
        if claims.iss != ISSUER {
            return Err("token is of another issuer".into());
        }
        if now > claims.exp + EXPIRY_LEEWAY {
            return Err("service account token has expired".into());
        }
        if now + EXPIRY_LEEWAY < claims.nbf {
            return Err("service account token is not valid yet".into());
        }
        let own = [ISSUER.to_string()];
        let wanted = if audiences.is_empty() {
            &own[..]
        } else {
            audiences
        };
        let good: Vec<String> = wanted
            .iter()
            .filter(|a| claims.aud.contains(a))
            .cloned()
            .collect();
        if good.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud
            ));
        }
        let k = &claims.kubernetes;
        let ns = &k.namespace;
        let mut rests_on = Vec::new();
        let mut rest = |storage: &str, namespace: &str, wanted: &Ref| {
            let slash = if namespace.is_empty() { "" } else { "/" };
            let key = format!("/{storage}/{namespace}{slash}{}", wanted.name);
            valid(lookup, &key, wanted, now)?;
            rests_on.push(Rest {
                key: key.into(),
                uid: wanted.uid.as_str().into(),
            });
            Ok::<(), String>(())
        };
        rest("core/serviceaccounts", ns, &k.serviceaccount)?;
        if let Some(s) = &k.secret {
            rest("core/secrets", ns, s)?;
        }
        if let Some(p) = &k.pod {
            rest("core/pods", ns, p)?;
        } else if let Some(n) = &k.node {
            rest("core/nodes", "", n)?;
        }
        let mut user = UserInfo {
            name: format!("system:serviceaccount:{ns}:{}", k.serviceaccount.name),
            uid: k.serviceaccount.uid.clone(),
            groups: vec![
                ALL_GROUP.into(),
                format!("{ALL_GROUP}:{ns}"),
                super::AUTHENTICATED.into(),
            ],
            ..UserInfo::default()
        };
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.into()],
            );
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        if let Some(p) = &k.pod {
            extra("pod-name", &p.name);
            extra("pod-uid", &p.uid);
        }
        if let Some(n) = &k.node {
            extra("node-name", &n.name);
            extra("node-uid", &n.uid);
        }
        let credential = Credential {
            user: Arc::new(user),
            expires: Some(claims.exp + EXPIRY_LEEWAY),
            rests_on,
        };
        Ok((credential, good))
    }

    /// The claims if the signature is ours.
    fn verify(&self, token: &str) -> Result<Arc<Claims>, String> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(c) = self.checked.lock().get(&hash) {
            return Ok(c.clone());
        }
        let (message, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (head, body) = message.split_once('.').ok_or("not a token")?;
        let decode = |s: &str| {
            URL_SAFE_NO_PAD
                .decode(s)
                .map_err(|_| "not a token".to_string())
        };
        let head: Value = serde_json::from_slice(&decode(head)?).map_err(|e| e.to_string())?;
        if head.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err("token is signed with an unknown algorithm".into());
        }
        match crypto::verify(
            signature,
            message.as_bytes(),
            &self.decoding,
            Algorithm::ES256,
        ) {
            Ok(true) => {}
            Ok(false) => return Err("token's signature is not valid".into()),
            Err(e) => return Err(e.to_string()),
        }
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|e| e.to_string())?;
        let claims = Arc::new(claims);
        let mut checked = self.checked.lock();
        if checked.len() >= REMEMBERED {
            checked.clear();
        }
        checked.insert(hash, claims.clone());
        Ok(claims)
    }

    /// `/.well-known/openid-configuration`
    pub fn openid_configuration() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": self.point.0, "y": self.point.1,
        }]})
    }
}

/// Is the named object there, with that uid, and not on its way out?
fn valid(lookup: Lookup<'_>, key: &str, wanted: &Ref, now: i64) -> Result<(), String> {
    let kind = key.split('/').nth(2).unwrap_or_default();
    let bytes = lookup(key);
    let Some(found) = bytes.as_deref().and_then(Standing::of) else {
        return Err(format!("{kind} {:?} of the token not found", wanted.name));
    };
    match found.until(&wanted.uid) {
        None => Err(format!(
            "{kind} UID ({}) does not match token's claim ({})",
            found.uid, wanted.uid
        )),
        Some(until) if until < now => Err(format!(
            "{kind} {:?} of the token has been deleted",
            wanted.name
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn make() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().expect("dir");
        let pki = Pki::open(&Config::new(dir.path())).expect("pki");
        let t = Tokens::new(&pki).expect("tokens");
        (dir, t)
    }

    fn objects(key: &str) -> Option<Bytes> {
        let v = match key {
            "/core/serviceaccounts/ns/sa" => json!({"metadata": {"uid": "1"}, "secrets": []}),
            "/core/pods/ns/p" => json!({"metadata": {"uid": "2"}, "spec": {}}),
            "/core/pods/ns/gone" => {
                json!({"metadata": {"uid": "3", "deletionTimestamp": "1970-01-01T00:00:10Z"}})
            }
            _ => return None,
        };
        Some(v.to_string().into())
    }

    fn issue(t: &Tokens, pod: Option<(&str, &str)>, aud: &str, seconds: i64) -> String {
        let bound = Bound {
            pod: pod.map(|(n, u)| Ref {
                name: n.into(),
                uid: u.into(),
            }),
            ..Bound::default()
        };
        let sa = Ref {
            name: "sa".into(),
            uid: "1".into(),
        };
        t.issue(
            "ns",
            sa,
            bound,
            vec![aud.into()],
            seconds,
            1000,
            "id".into(),
        )
        .expect("issue")
        .0
    }

    #[test]
    fn a_token_names_its_account_and_pod() {
        let (_d, t) = make();
        let token = issue(&t, Some(("p", "2")), ISSUER, 600);
        let (credential, aud) = t.check(&token, &[], 1100, &objects).expect("valid");
        let user = &credential.user;
        assert_eq!(&*credential.rests_on[1].key, "/core/pods/ns/p");
        assert_eq!(credential.expires, Some(1660));
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(
            user.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                "system:authenticated"
            ]
        );
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(aud, [ISSUER]);
        assert!(Tokens::is_ours(&token));
    }

    #[test]
    fn tokens_are_refused_when_old_foreign_changed_or_of_a_deleted_object() {
        let (_d, t) = make();
        let token = issue(&t, None, ISSUER, 600);
        assert!(t.check(&token, &[], 1661, &objects).is_err(), "expired");
        assert!(
            t.check(&token, &["vault".into()], 1100, &objects).is_err(),
            "audience"
        );
        assert!(
            t.check(&issue(&t, None, "vault", 600), &[], 1100, &objects)
                .is_err(),
            "audience"
        );
        let (_o, other) = make();
        assert!(
            other.check(&token, &[], 1100, &objects).is_err(),
            "another key"
        );
        let mut changed = token.clone().into_bytes();
        let middle = token.find('.').unwrap_or(0) + 10;
        changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
        assert!(
            t.check(&String::from_utf8_lossy(&changed), &[], 1100, &objects)
                .is_err(),
            "changed"
        );
        assert!(
            t.check(
                &issue(&t, Some(("p", "9")), ISSUER, 600),
                &[],
                1100,
                &objects
            )
            .is_err(),
            "another uid"
        );
        assert!(
            t.check(
                &issue(&t, Some(("gone", "3")), ISSUER, 600),
                &[],
                1100,
                &objects
            )
            .is_err(),
            "deleted"
        );
        for junk in ["", ".", "..", "a.b.c", "\u{fffd}.x.y"] {
            assert!(t.check(junk, &[], 1100, &objects).is_err());
        }
    }

    #[test]
    fn the_kubelets_usual_token_lives_longer_than_it_says() {
        let (_d, t) = make();
        let token = issue(&t, Some(("p", "2")), ISSUER, EXTENDABLE_SECONDS);
        assert!(
            t.check(&token, &[], 1000 + 100 * 24 * 3600, &objects)
                .is_ok()
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_a_token_and_none_panics(s in "\\PC{0,40}(\\.\\PC{0,40}){0,3}") {
            use std::sync::OnceLock;
            static MADE: OnceLock<(tempfile::TempDir, Tokens)> = OnceLock::new();
            let (_, t) = MADE.get_or_init(make);
            proptest::prop_assert!(t.check(&s, &[], 0, &objects).is_err());
            proptest::prop_assert!(!Tokens::is_ours(&s));
        }
    }
}
