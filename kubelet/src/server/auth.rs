//! Who asks the node's server, and may they (upstream pkg/kubelet/server/auth.go): client certificates and bearer tokens,
//! authorized by the API server's SubjectAccessReview as subresources of this node. Nobody is anonymous. Owns the reading
//! of paths as rights and short memories of the API's answers; knows no rules.

use super::Failure;
use axum::http::{HeaderMap, Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use skiff_api::bearer;
use skiff_api::node_api::{acts, below};
use skiff_https::{ClientCa, Identity, Peer};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// How long an answer of the API is remembered. Upstream: 2 minutes for tokens, 5 for rights, and so long a revocation is
/// not noticed; here the API is near.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How many of each.
const MEMORY: usize = 1024;
/// Questions to the API at once: who sends many bad tokens waits for themselves.
const QUESTIONS: usize = 16;
/// How often a token is looked at again while a stream that it opened lives.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// e.g. `kube-apiserver-kubelet-client`
    pub name: String,
    /// Empty for certificates.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What they showed.
#[derive(Debug, Clone)]
enum Proof {
    /// Good until then, seconds since the epoch.
    Certificate(i64),
    Token(String),
}

/// Somebody who was authenticated.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub user: Arc<User>,
    proof: Proof,
}

/// A connection and whose certificate it has.
#[derive(Debug)]
pub struct Connection {
    /// The other end.
    pub peer: Peer,
    identity: OnceLock<Option<(Arc<User>, Identity)>>,
}

impl Connection {
    /// Of a connection that was just made.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            identity: OnceLock::new(),
        }
    }
}

/// Answers that are good for a while, and not more than [`MEMORY`] of them.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }
    fn get(&self, key: &K) -> Option<V> {
        let held = self.0.lock();
        held.get(key)
            .filter(|(_, at)| at.elapsed() < REMEMBERED)
            .map(|(v, _)| v.clone())
    }
    fn put(&self, key: K, value: V) {
        let mut held = self.0.lock();
        if held.len() >= MEMORY {
            held.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        }
        if held.len() >= MEMORY {
            held.clear();
        }
        held.insert(key, (value, Instant::now()));
    }
}

type Question = (Arc<User>, &'static str, &'static str);

/// Authentication and authorization of the node's server.
pub struct Auth {
    client: kube::Client,
    node: String,
    ca: ClientCa,
    tokens: Memory<[u8; 32], Option<Arc<User>>>,
    rights: Memory<Question, bool>,
    questions: Semaphore,
    look_again: Duration,
}

fn unauthorized() -> Failure {
    Failure(StatusCode::UNAUTHORIZED, "Unauthorized".into())
}

/// The API's verb for a method; empty for those that have none.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The subresources of the node of which one must be allowed, the finer first (KubeletFineGrainedAuthz).
fn subresources(path: &str) -> &'static [&'static str] {
    const RIGHTS: &[(&str, &[&str])] = &[
        ("/pods", &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/configz", &["configz", "proxy"]),
        ("/statusz", &["statusz"]),
        ("/flagz", &["flagz"]),
        ("/stats", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/logs", &["log"]),
        ("/checkpoint", &["checkpoint"]),
    ];
    RIGHTS
        .iter()
        .find(|(top, _)| below(path, top))
        .map_or(&["proxy"], |(_, s)| s)
}

/// The verbs that are all needed.
fn verbs(method: &Method, path: &str) -> Vec<&'static str> {
    let v = verb(method);
    if v != "create" && acts(path) {
        return vec![v, "create"];
    }
    vec![v]
}

impl Auth {
    /// Asks this API about callers of this node's server.
    pub fn new(client: kube::Client, node: &str, ca: ClientCa) -> Self {
        Self {
            client,
            node: node.into(),
            ca,
            tokens: Memory::new(),
            rights: Memory::new(),
            questions: Semaphore::new(QUESTIONS),
            look_again: LOOK_AGAIN,
        }
    }

    /// Who asks: by certificate, else by token.
    ///
    /// # Errors
    /// 401.
    pub async fn authenticate(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
    ) -> Result<Caller, Failure> {
        let known = connection
            .identity
            .get_or_init(|| self.of_certificate(&connection.peer));
        // On every request: the connection outlives the certificate.
        if let Some((user, identity)) = known
            && identity.valid_now()
        {
            return Ok(Caller {
                user: user.clone(),
                proof: Proof::Certificate(identity.until),
            });
        }
        let token = token(headers).ok_or_else(unauthorized)?;
        let user = self.of_token(&token).await.ok_or_else(unauthorized)?;
        Ok(Caller {
            user,
            proof: Proof::Token(token),
        })
    }

    fn of_certificate(&self, peer: &Peer) -> Option<(Arc<User>, Identity)> {
        if peer.certificates.is_empty() {
            return None;
        }
        match self.ca.identify(&peer.certificates) {
            Ok(identity) => {
                let mut groups = identity.groups.clone();
                groups.push("system:authenticated".into());
                let user = User {
                    name: identity.name.clone(),
                    uid: String::new(),
                    groups,
                    extra: BTreeMap::new(),
                };
                Some((Arc::new(user), identity))
            }
            Err(why) => {
                tracing::debug!(why, address = %peer.address, "a client certificate was refused");
                None
            }
        }
    }

    async fn of_token(&self, token: &str) -> Option<Arc<User>> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(answer) = self.tokens.get(&key) {
            return answer;
        }
        let answer = self.review(token).await?;
        self.tokens.put(key, answer.clone());
        answer
    }

    /// Asks the API whose token it is; None when the API did not answer.
    async fn review(&self, token: &str) -> Option<Option<Arc<User>>> {
        let _place = self.questions.acquire().await.ok()?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.into(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let answer = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await;
        let status = match answer {
            Ok(r) => r.status.unwrap_or_default(),
            Err(e) => {
                tracing::warn!(error = %e, "the API could not be asked about a token");
                return None;
            }
        };
        if status.authenticated != Some(true) {
            tracing::debug!(error = ?status.error, "a bearer token was refused");
            return Some(None);
        }
        let user = status.user.unwrap_or_default();
        Some(Some(Arc::new(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        })))
    }

    /// May the caller do this?
    ///
    /// # Errors
    /// 403 in upstream's words, 500 when the API cannot be asked.
    pub async fn authorize(
        &self,
        user: &Arc<User>,
        method: &Method,
        path: &str,
    ) -> Result<(), Failure> {
        let subresources = subresources(path);
        for verb in verbs(method, path) {
            let mut allowed = false;
            for subresource in subresources {
                if self.allowed(user, verb, subresource).await? {
                    allowed = true;
                    break;
                }
            }
            if !allowed {
                let message = format!(
                    "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                    user.name,
                    subresources.join(" ")
                );
                return Err(Failure(StatusCode::FORBIDDEN, message));
            }
        }
        Ok(())
    }

    async fn allowed(
        &self,
        user: &Arc<User>,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Failure> {
        let key = (user.clone(), verb, subresource);
        if let Some(answer) = self.rights.get(&key) {
            return Ok(answer);
        }
        let failed = || {
            let message = format!(
                "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                user.name
            );
            Failure(StatusCode::INTERNAL_SERVER_ERROR, message)
        };
        let _place = self.questions.acquire().await.map_err(|_| failed())?;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await;
        match answer {
            Ok(r) => {
                let allowed = r
                    .status
                    .is_some_and(|s| s.allowed && s.denied != Some(true));
                self.rights.put(key, allowed);
                Ok(allowed)
            }
            Err(e) => {
                tracing::warn!(error = %e, "the API could not be asked about rights");
                Err(failed())
            }
        }
    }

    /// Comes back when what the caller showed is no longer good. Costs nothing for certificates; a token is looked at again
    /// every few seconds, as long as somebody waits here.
    pub async fn ended(&self, caller: &Caller) {
        match &caller.proof {
            Proof::Certificate(until) => loop {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
                let left = until.saturating_sub(now);
                if left < 0 {
                    return;
                }
                // A day at most: the clock may be set.
                let left = left.saturating_add(1).clamp(1, 86_400).unsigned_abs();
                tokio::time::sleep(Duration::from_secs(left)).await;
            },
            Proof::Token(token) => loop {
                tokio::time::sleep(self.look_again).await;
                // An API that does not answer ends nobody's stream.
                if let Some(user) = self.review(token).await
                    && user.as_ref() != Some(&caller.user)
                {
                    return;
                }
            },
        }
    }
}

/// The token that a request carries.
fn token(headers: &HeaderMap) -> Option<String> {
    let texts = |name| headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    if let Some(t) = texts(header::AUTHORIZATION).find_map(bearer::of_authorization) {
        return Some(t.to_string());
    }
    let websocket = texts(header::UPGRADE).any(|u| u.eq_ignore_ascii_case("websocket"));
    if !websocket {
        return None;
    }
    bearer::of_protocols(texts(header::SEC_WEBSOCKET_PROTOCOL))
        .inspect_err(|why| tracing::debug!(why, "a token was refused"))
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests;
