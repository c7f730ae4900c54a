//! Who asks ([`authentication`]), may they ([`authorization`]), and the certificates and keys both rest on ([`pki`],
//! [`tokens`]). Owns identities; writes nothing but files below `server/tls/`. Registers no paths: the review kinds are
//! answered by [`reviews`] when `special` hands them over.

pub mod authentication;
pub mod authorization;
pub mod credential;
pub mod escalation;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod reviews;
pub mod tokens;

use crate::http::path::RequestInfo;
use crate::{App, Config, Error};
use credential::Credential;
use http::request::Parts;
use skiff_api::status::Status;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Group of everybody who authenticated.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const MASTERS: &str = "system:masters";

/// An identity (upstream's user.Info).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// e.g. `system:admin`, `system:serviceaccount:default:default`.
    pub name: String,
    /// Unique id; empty for certificates.
    pub uid: String,
    /// e.g. `system:masters`.
    pub groups: Vec<String>,
    /// Further facts, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Somebody of the system, authenticated; e.g. `system:kube-scheduler` without further groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }
    /// Somebody who did not say who they are.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }
    /// The API server itself; may do everything.
    pub fn apiserver() -> Self {
        Self::new("system:apiserver", &[MASTERS])
    }
    /// Is a member of the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Certificates, keys, and the rules in memory.
pub struct Auth {
    /// CAs and certificates.
    pub pki: pki::Pki,
    /// Service account tokens.
    pub tokens: tokens::Tokens,
    /// Decoded RBAC objects.
    pub rbac: rbac::Rbac,
    /// What belongs to which node.
    pub nodes: node::Nodes,
    /// The server token (`--token`).
    pub server_token: String,
    /// Connections that end with their credential.
    pub sessions: credential::Sessions,
}

impl Auth {
    /// Reads or makes the keys and certificates below `<data-dir>/server/tls` and the server token. The rules are read
    /// when [`rbac::Rbac::follow`] is called with the open store.
    ///
    /// # Errors
    /// When files cannot be read or written, or are not what they should be; the text names the file.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let pki = pki::Pki::open(config)?;
        let tokens = tokens::Tokens::new(&pki).map_err(Error::Pki)?;
        let server_token = pki::server_token(config)?;
        Ok(Self {
            pki,
            tokens,
            rbac: rbac::Rbac::default(),
            nodes: node::Nodes::default(),
            server_token,
            sessions: credential::Sessions::default(),
        })
    }

    /// Who sends this request: client certificate, bearer token, or anonymous.
    ///
    /// # Errors
    /// 401 when something was shown that is not valid.
    pub async fn authenticate(&self, app: &App, parts: &Parts) -> Result<Arc<Credential>, Status> {
        authentication::authenticate(self, app, parts)
    }

    /// The user whom the Impersonate headers name, if there are any and the real user may.
    ///
    /// # Errors
    /// 400 on contradictory headers, 403.
    pub async fn impersonate(
        &self,
        app: &App,
        user: Arc<UserInfo>,
        parts: &Parts,
    ) -> Result<Arc<UserInfo>, Status> {
        authentication::impersonate(self, app, user, parts)
    }

    /// May this user do this?
    ///
    /// # Errors
    /// 403 with upstream's text.
    pub async fn authorize(
        &self,
        app: &App,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> Result<(), Status> {
        let attributes = authorization::Attributes::of_request(user, info);
        match self.decide(app, &attributes) {
            authorization::Decision::Allow(_) => Ok(()),
            authorization::Decision::NoOpinion(why) => {
                Err(authorization::forbidden(&attributes, &why))
            }
        }
    }

    /// All authorizers, one after another.
    pub fn decide(
        &self,
        app: &App,
        attributes: &authorization::Attributes<'_>,
    ) -> authorization::Decision {
        authorization::decide(self, app, attributes)
    }
}
