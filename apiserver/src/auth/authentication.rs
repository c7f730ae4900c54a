//! Who sends a request. Owns the order of the ways (client certificate, bearer token, anonymous) and impersonation; decides
//! nothing about what the user may do, but for whether somebody may be impersonated.

use super::authorization::{Attributes, Decision, forbidden};
use super::credential::Credential;
use super::tokens::Tokens;
use super::{AUTHENTICATED, Auth, UNAUTHENTICATED, UserInfo};
use crate::App;
use crate::http::path::unescape;
use crate::http::serve::Peer;
use http::request::Parts;
use http::{HeaderMap, header};
use skiff_api::bearer;
use skiff_api::status::Status;
use std::borrow::Cow;
use std::sync::Arc;

pub(super) fn authenticate(
    auth: &Auth,
    app: &App,
    parts: &Parts,
) -> Result<Arc<Credential>, Status> {
    let peer = parts.extensions.get::<Arc<Peer>>();
    let certificate = peer
        .and_then(|p| p.identity.get_or_init(|| of_certificate(auth, p)).clone())
        // Verified when the connection began; it may have expired since.
        .filter(|c| auth.still_valid(app, c));
    if let Some(credential) = certificate {
        return Ok(credential);
    }
    if let Some(token) = token(&parts.headers)? {
        return of_token(auth, app, &token).map(Arc::new).map_err(|why| {
            tracing::debug!(why, "a bearer token was refused");
            Status::unauthorized()
        });
    }
    if peer.is_some_and(|p| !p.certificates.is_empty()) {
        // Somebody with a certificate that is none of ours and nothing else to show.
        return Err(Status::unauthorized());
    }
    Ok(Credential::lasting(Arc::new(UserInfo::anonymous())))
}

fn of_certificate(auth: &Auth, peer: &Peer) -> Option<Arc<Credential>> {
    if peer.certificates.is_empty() {
        return None;
    }
    let who = match auth.pki.identify(&peer.certificates) {
        Ok(who) => who,
        Err(why) => {
            tracing::debug!(why, address = %peer.address, "a client certificate was refused");
            return None;
        }
    };
    let mut groups = who.groups;
    groups.push(AUTHENTICATED.into());
    let user = Arc::new(UserInfo {
        name: who.name,
        groups,
        ..UserInfo::default()
    });
    Some(Arc::new(Credential {
        user,
        expires: Some(who.until),
        rests_on: Vec::new(),
    }))
}

/// The token that a request carries: in `Authorization`, or as browsers send it with a WebSocket.
fn token(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Status> {
    let texts = |name| headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    if let Some(token) = texts(header::AUTHORIZATION).find_map(bearer::of_authorization) {
        return Ok(Some(token.into()));
    }
    if !texts(header::UPGRADE).any(|u| u.eq_ignore_ascii_case("websocket")) {
        return Ok(None);
    }
    let token = bearer::of_protocols(texts(header::SEC_WEBSOCKET_PROTOCOL)).map_err(|why| {
        tracing::debug!(why, "a token was refused");
        Status::unauthorized()
    })?;
    Ok(token.map(Cow::Owned))
}

fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// Who a bearer token is, for the API server's own audience.
pub(super) fn of_token(auth: &Auth, app: &App, token: &str) -> Result<Credential, String> {
    if Tokens::is_ours(token) {
        return review(auth, app, token, &[]).map(|(c, _)| c);
    }
    if same(token, &auth.server_token) {
        // Nodes join with it; it is no admin's key. As k3s's user `server`, renamed.
        return Ok(Credential {
            user: Arc::new(UserInfo::new("server", &["skiff:server"])),
            expires: None,
            rests_on: Vec::new(),
        });
    }
    Err("an unknown token".into())
}

/// Who a service account token is and for which audiences it is good.
pub(super) fn review(
    auth: &Auth,
    app: &App,
    token: &str,
    audiences: &[String],
) -> Result<(Credential, Vec<String>), String> {
    let now = jiff::Timestamp::now().as_second();
    let lookup = |key: &str| app.store.get(key).map(|e| e.value.clone());
    auth.tokens.check(token, audiences, now, &lookup)
}

fn value(v: &http::HeaderValue) -> Result<String, Status> {
    String::from_utf8(v.as_bytes().to_vec())
        .map_err(|_| Status::bad_request("an Impersonate header is not UTF-8"))
}

pub(super) fn impersonate(
    auth: &Auth,
    app: &App,
    user: Arc<UserInfo>,
    parts: &Parts,
) -> Result<Arc<UserInfo>, Status> {
    // Go takes the bytes as they are; what is no text names nobody, and must not be as if it had not been there.
    let text = |name: &str| -> Result<Vec<String>, Status> {
        parts.headers.get_all(name).iter().map(value).collect()
    };
    let first = |l: Vec<String>| l.into_iter().next().unwrap_or_default();
    let (name, mut groups, uid) = (
        first(text("impersonate-user")?),
        text("impersonate-group")?,
        first(text("impersonate-uid")?),
    );
    let mut extra: Vec<(String, String)> = Vec::new();
    for (k, v) in &parts.headers {
        if let Some(k) = k.as_str().strip_prefix("impersonate-extra-") {
            extra.push((unescape(k, false).to_lowercase(), value(v)?));
        }
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        return Err(Status::internal(
            "requested groups, UID or extra without impersonating a user",
        ));
    }
    let check = |group: &str,
                 version: &str,
                 resource: &str,
                 namespace: &str,
                 subresource: &str,
                 name: &str|
     -> Result<(), Status> {
        let a = Attributes {
            user: &user,
            verb: "impersonate",
            namespace,
            group,
            version,
            resource,
            subresource,
            name,
            path: "",
            is_resource: true,
            fields: &[],
        };
        match auth.decide(app, &a) {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(why) => Err(forbidden(&a, &why)),
        }
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|r| r.split_once(':'));
    match account {
        Some((ns, n)) => check("", "v1", "serviceaccounts", ns, "", n)?,
        None => check("", "v1", "users", "", "", &name)?,
    }
    for g in &groups {
        check("", "v1", "groups", "", "", g)?;
    }
    if !uid.is_empty() {
        check("authentication.k8s.io", "v1", "uids", "", "", &uid)?;
    }
    for (k, v) in &extra {
        check("authentication.k8s.io", "v1", "userextras", "", k, v)?;
    }
    if let (Some((ns, _)), true) = (account, groups.is_empty()) {
        groups = vec![
            super::tokens::ALL_GROUP.into(),
            format!("{}:{ns}", super::tokens::ALL_GROUP),
        ];
    }
    let everybody = if name == "system:anonymous" {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !groups
        .iter()
        .any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED)
    {
        groups.push(everybody.into());
    }
    let mut who = UserInfo {
        name,
        uid,
        groups,
        ..UserInfo::default()
    };
    for (k, v) in extra {
        who.extra.entry(k).or_default().push(v);
    }
    tracing::debug!(user = user.name, impersonated = who.name, "impersonation");
    Ok(Arc::new(who))
}
