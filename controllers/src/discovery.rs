//! Which resources the API serves, for controllers that work on all of them (namespace, garbage collector).

use crate::action::Kind;
use kube::Client;
use parking_lot::Mutex;
use std::collections::HashSet;

/// A resource that can be listed and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Deletable {
    /// How paths name it.
    pub kind: Kind,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// Has the deletecollection verb.
    pub collection: bool,
}

/// A string that lives for ever. Kinds' names are few and come back at every discovery, so each is kept once.
pub fn intern(text: &str) -> &'static str {
    static KNOWN: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    let known = known.get_or_insert_default();
    if let Some(s) = known.get(text) {
        return s;
    }
    let s: &'static str = Box::leak(text.to_string().into_boxed_str());
    known.insert(s);
    s
}

/// What the API serves, as far as it can be known.
#[derive(Debug, Clone, Default)]
pub struct Discovered {
    /// Every resource with the verbs list, watch and delete, in the preferred version of its group.
    pub kinds: Vec<Deletable>,
    /// Groups that did not tell what they serve, and why: there may be more resources than `kinds`.
    pub failed: Vec<String>,
}

impl Discovered {
    /// Takes a newer answer. What a group that fails now served before, it is taken to serve still.
    pub fn learn(&mut self, newer: Discovered) {
        let fails = |d: &Deletable| {
            let gv = format!("{}/{}: ", d.kind.group, d.kind.version);
            newer.failed.iter().any(|f| f.starts_with(&gv))
        };
        let mut kinds = newer.kinds.clone();
        kinds.extend(self.kinds.iter().filter(|d| fails(d)));
        *self = Discovered {
            kinds,
            failed: newer.failed,
        };
    }
}

/// Asks what the API serves.
///
/// # Errors
/// The API did not answer. A group that fails by itself is in the answer.
pub async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let mut lists = vec![client.list_core_api_resources("v1").await?];
    let mut failed = Vec::new();
    for group in client.list_api_groups().await?.groups {
        let version = group.preferred_version.as_ref().or(group.versions.first());
        let Some(gv) = version.map(|v| v.group_version.clone()) else {
            continue;
        };
        match client.list_api_group_resources(&gv).await {
            Ok(l) => lists.push(l),
            Err(e) => {
                tracing::warn!(group_version = %gv, error = %e, "discovery of a group failed");
                failed.push(format!("{gv}: {}", crate::action::text(&e)));
            }
        }
    }
    let mut kinds = Vec::new();
    for list in lists {
        let (group, version) = list
            .group_version
            .split_once('/')
            .unwrap_or(("", &list.group_version));
        for r in &list.resources {
            let has = |verb: &str| r.verbs.iter().any(|v| v == verb);
            if r.name.contains('/') || !has("list") || !has("watch") || !has("delete") {
                continue;
            }
            kinds.push(Deletable {
                kind: Kind {
                    group: intern(group),
                    version: intern(version),
                    plural: intern(&r.name),
                    kind: intern(&r.kind),
                },
                namespaced: r.namespaced,
                collection: has("deletecollection"),
            });
        }
    }
    Ok(Discovered { kinds, failed })
}
