//! May a user do something. Owns the order of the authorizers (system:masters, [`super::node`], [`super::rbac`]) and the
//! words of a refusal; holds no rules itself.

use super::node;
use super::rbac::Binding;
use super::{Auth, MASTERS, UserInfo};
use crate::App;
use crate::http::path::RequestInfo;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::sync::Arc;

/// What somebody wants to do (upstream's authorizer.Attributes).
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// e.g. `get`
    pub verb: &'a str,
    /// Empty for all or none.
    pub namespace: &'a str,
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Empty for none.
    pub subresource: &'a str,
    /// Empty for all.
    pub name: &'a str,
    /// Of a request that is for no resource.
    pub path: &'a str,
    /// Whether it is for a resource.
    pub is_resource: bool,
    /// What the field selector of a list, watch or deletecollection asks for exactly: field, value.
    pub fields: &'a [(String, String)],
}

impl<'a> Attributes<'a> {
    /// Of a request.
    pub fn of_request(user: &'a UserInfo, i: &'a RequestInfo) -> Self {
        Self {
            user,
            verb: i.verb,
            namespace: &i.namespace,
            group: &i.group,
            version: &i.version,
            resource: &i.resource,
            subresource: &i.subresource,
            name: i.authorized_name(),
            path: &i.path,
            is_resource: i.is_resource,
            fields: &i.fields,
        }
    }
}

/// Who said yes; its text is made for those alone who read it.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// A member of system:masters.
    Masters,
    /// A node, of what is its own.
    Node,
    /// A binding.
    Rbac(Arc<Binding>),
}

impl std::fmt::Display for Allowed {
    /// The reason as upstream gives it; empty for some.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Masters | Self::Node => Ok(()),
            Self::Rbac(b) => write!(f, "RBAC: allowed by {b}"),
        }
    }
}

/// What an authorizer says.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Yes, and why.
    Allow(Allowed),
    /// Not by any rule; why (usually empty).
    NoOpinion(String),
}

/// 403 in upstream's words (k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go).
pub fn forbidden(a: &Attributes<'_>, why: &str) -> Status {
    let user = &a.user.name;
    let message = if a.is_resource {
        let mut resource = a.resource.to_string();
        if !a.subresource.is_empty() {
            resource = format!("{resource}/{}", a.subresource);
        }
        let wher = if a.namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace {:?}", a.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {wher}",
            a.verb, a.group
        )
    } else {
        format!("User {user:?} cannot {} path {:?}", a.verb, a.path)
    };
    let message = if why.is_empty() {
        message
    } else {
        format!("{message}: {why}")
    };
    if a.is_resource {
        Status::forbidden(a.group, a.resource, a.name, &message)
    } else {
        Status {
            details: json!({}),
            ..Status::new(403, "Forbidden", format!("forbidden: {message}"))
        }
    }
}

pub(super) fn decide(auth: &Auth, app: &App, a: &Attributes<'_>) -> Decision {
    if a.user.in_group(MASTERS) {
        return Decision::Allow(Allowed::Masters);
    }
    let why = match node::decide(auth, app, a) {
        Decision::NoOpinion(why) => why,
        allowed => return allowed,
    };
    match auth.rbac.decide(a) {
        Decision::NoOpinion(_) => Decision::NoOpinion(why),
        allowed => allowed,
    }
}

/// The items of a list; none when there is none.
pub(super) fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// What a user asks of the core group, for tests.
#[cfg(test)]
pub(super) fn ask<'a>(
    user: &'a UserInfo,
    verb: &'a str,
    ns: &'a str,
    resource: &'a str,
    sub: &'a str,
    name: &'a str,
) -> Attributes<'a> {
    Attributes {
        user,
        verb,
        namespace: ns,
        group: "",
        version: "v1",
        resource,
        subresource: sub,
        name,
        path: "",
        is_resource: true,
        fields: &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_upstreams() {
        let u = UserInfo::new("jane", &[]);
        let s = forbidden(&ask(&u, "list", "a", "pods", "", ""), "");
        assert_eq!(
            s.message,
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "a""#
        );
        let s = forbidden(
            &Attributes {
                path: "/metrics",
                is_resource: false,
                ..ask(&u, "get", "", "", "", "")
            },
            "",
        );
        assert_eq!(
            s.message,
            r#"forbidden: User "jane" cannot get path "/metrics""#
        );
    }
}
