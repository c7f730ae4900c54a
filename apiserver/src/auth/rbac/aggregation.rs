//! Fills the objects of aggregating cluster roles (upstream's clusterroleaggregation controller): their rules are those of
//! the roles they select, whenever these come, change or go. For those who read the objects; what is allowed does not wait
//! for it. Writes those rules and nothing else.

use super::Rule;
use crate::App;
use crate::auth::UserInfo;
use crate::auth::authorization::list;
use crate::registry::{self, Target};
use crate::store::{Entry, Error, Event, Range};
use serde_json::Value;
use skiff_api::selector::Selector;
use skiff_api::status::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const PREFIX: &str = "/rbac.authorization.k8s.io/clusterroles/";

/// The selectors of the roles that aggregate, by name.
type Sums = BTreeMap<String, Vec<Selector>>;

fn selectors(e: &Entry) -> Vec<Selector> {
    let v: Value = serde_json::from_slice(&e.value).unwrap_or_default();
    let rule = v.get("aggregationRule").unwrap_or(&Value::Null);
    list(rule, "clusterRoleSelectors")
        .iter()
        .filter_map(|s| Selector::from_value(s).ok())
        .collect()
}

fn selected(by: &[Selector], e: &Entry) -> bool {
    by.iter().any(|s| s.matches_by(|k| e.attributes.label(k)))
}

fn note(sums: &mut Sums, e: &Entry, deleted: bool) {
    let by = if deleted { Vec::new() } else { selectors(e) };
    if by.is_empty() {
        sums.remove(e.name());
    } else {
        sums.insert(e.name().to_string(), by);
    }
}

/// The aggregating roles that an event concerns.
fn concerned(sums: &mut Sums, event: &Event, dirty: &mut BTreeSet<String>) {
    note(sums, &event.entry, event.deleted);
    let previous = event.previous.as_deref();
    for (name, by) in &*sums {
        let touched = selected(by, &event.entry) || previous.is_some_and(|p| selected(by, p));
        if touched || *name == event.entry.name() {
            dirty.insert(name.clone());
        }
    }
}

/// Follows the roles until the store closes.
///
/// # Errors
/// When the store cannot be read or a role cannot be written; to be called again.
pub async fn follow(app: Arc<App>) -> Result<(), Status> {
    let page = app
        .store
        .range(&Range {
            prefix: PREFIX,
            ..Range::default()
        })
        .map_err(|e| e.status())?;
    let mut watch = app
        .store
        .watch(PREFIX, page.revision)
        .map_err(|e| e.status())?;
    let mut sums = Sums::new();
    for e in &page.entries {
        note(&mut sums, e, false);
    }
    let mut dirty: BTreeSet<String> = sums.keys().cloned().collect();
    drop(page);
    loop {
        for name in std::mem::take(&mut dirty) {
            if let Some(by) = sums.get(&name) {
                fill(&app, &name, by).await?;
            }
        }
        match watch.next().await {
            Ok(events) => {
                for e in &events {
                    concerned(&mut sums, e, &mut dirty);
                }
            }
            Err(Error::Closed) => return Ok(()),
            Err(e) => return Err(e.status()),
        }
    }
}

/// The rules of the roles that are selected, in the order of their names, each once.
fn sum(app: &App, name: &str, by: &[Selector]) -> Result<Vec<Value>, Status> {
    let filter = |e: &Entry| e.name() != name && selected(by, e);
    let page = app
        .store
        .range(&Range {
            prefix: PREFIX,
            filter: Some(&filter),
            ..Range::default()
        })
        .map_err(|e| e.status())?;
    let mut rules: Vec<Value> = Vec::new();
    let mut seen: Vec<Rule> = Vec::new();
    for e in &page.entries {
        let v: Value = serde_json::from_slice(&e.value).unwrap_or_default();
        for rule in list(&v, "rules") {
            let meaning = Rule::of(rule);
            if !seen.contains(&meaning) {
                seen.push(meaning);
                rules.push(rule.clone());
            }
        }
    }
    Ok(rules)
}

async fn fill(app: &Arc<App>, name: &str, by: &[Selector]) -> Result<(), Status> {
    let row = app
        .table
        .stored("rbac.authorization.k8s.io/clusterroles")
        .ok_or_else(Status::no_route)?;
    let user = UserInfo::apiserver();
    let target = Target {
        app,
        row: &row,
        namespace: "",
        name,
        subresource: "",
        user: &user,
        dry_run: false,
    };
    let rules = sum(app, name, by)?;
    let filled = registry::update::update_object(&target, &mut Vec::new(), false, |current| {
        let mut new = current.clone();
        let aggregates = new.get("aggregationRule").is_some_and(|a| !a.is_null());
        if aggregates && list(current, "rules") != rules.as_slice() {
            new["rules"] = rules.clone().into();
        }
        Ok(new)
    })
    .await;
    match filled {
        // It went away meanwhile.
        Err(e) if e.code == 404 => Ok(()),
        other => other.map(drop),
    }
}
