//! Discovery: `/api`, `/apis` (old and aggregated forms), `/apis/{group}`, `/apis/{group}/{version}`. Made from the resource
//! table, nothing else.

use crate::registry::table::{Row, Table};
use ::http::HeaderMap;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Which aggregated version a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    /// `apidiscovery.k8s.io/v2`
    V2,
    /// `apidiscovery.k8s.io/v2beta1`
    V2beta1,
}

impl Aggregated {
    /// Reads the Accept header; the first clause that names a known form decides.
    pub fn asked(headers: &HeaderMap) -> Option<Self> {
        let accept = headers.get(http::header::ACCEPT)?.to_str().ok()?;
        for clause in accept.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            let params: Vec<&str> = parts.collect();
            if media == "application/json"
                && params.contains(&"g=apidiscovery.k8s.io")
                && params.contains(&"as=APIGroupDiscoveryList")
            {
                if params.contains(&"v=v2") {
                    return Some(Self::V2);
                }
                if params.contains(&"v=v2beta1") {
                    return Some(Self::V2beta1);
                }
            } else if media == "application/json" && params.is_empty() {
                return None;
            }
        }
        None
    }

    fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2beta1 => "v2beta1",
        }
    }

    /// The answer's Content-Type.
    pub fn content_type(self) -> String {
        format!(
            "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList",
            self.name()
        )
    }
}

/// A group's versions in order, each with its rows.
type Versions = Vec<(String, Vec<Arc<Row>>)>;

/// Groups in order, with their versions.
fn groups(table: &Table) -> Vec<(String, Versions)> {
    let mut groups: Vec<(String, Versions)> = Vec::new();
    for row in table.rows() {
        let g = match groups.iter().position(|(g, _)| *g == row.group) {
            Some(i) => i,
            None => {
                groups.push((row.group.to_string(), Vec::new()));
                groups.len() - 1
            }
        };
        let versions = &mut groups[g].1;
        match versions.iter_mut().find(|(v, _)| *v == row.version) {
            Some((_, rows)) => rows.push(row),
            None => versions.push((row.version.to_string(), vec![row])),
        }
    }
    for (_, versions) in &mut groups {
        for (_, rows) in versions {
            rows.sort_by(|a, b| a.plural.cmp(&b.plural));
        }
    }
    groups
}

/// `/api`
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_value(name: &str, versions: &[(String, Vec<Arc<Row>>)]) -> Map<String, Value> {
    let list: Vec<Value> = versions
        .iter()
        .map(|(v, _)| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    let mut m = Map::new();
    m.insert("name".into(), name.into());
    m.insert(
        "preferredVersion".into(),
        list.first().cloned().unwrap_or_default(),
    );
    m.insert("versions".into(), list.into());
    m
}

/// `/apis`
pub fn api_groups(table: &Table) -> Value {
    let list: Vec<Value> = groups(table)
        .iter()
        .filter(|(g, _)| !g.is_empty())
        .map(|(g, versions)| Value::Object(group_value(g, versions)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/apis/{group}`; None when there is no such group.
pub fn api_group(table: &Table, group: &str) -> Option<Value> {
    let all = groups(table);
    let (name, versions) = all.iter().find(|(g, _)| g == group && !g.is_empty())?;
    let mut m = Map::new();
    m.insert("kind".into(), "APIGroup".into());
    m.insert("apiVersion".into(), "v1".into());
    m.extend(group_value(name, versions));
    Some(Value::Object(m))
}

/// `/api/v1` and `/apis/{group}/{version}`; None when there is no such version.
pub fn api_resources(table: &Table, group: &str, version: &str) -> Option<Value> {
    let all = groups(table);
    let (_, versions) = all.iter().find(|(g, _)| g == group)?;
    let (_, rows) = versions.iter().find(|(v, _)| v == version)?;
    let mut resources = Vec::new();
    for row in rows {
        let mut r = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced(),
            "kind": row.kind,
            "verbs": row.verbs,
        });
        names(row, &mut r);
        resources.push(r);
        let mut subs: Vec<_> = row.subresources.iter().collect();
        subs.sort_by(|a, b| a.name.cmp(&b.name));
        for s in subs {
            let mut r = json!({"name": format!("{}/{}", row.plural, s.name), "singularName": "", "namespaced": row.namespaced()});
            if (s.group.as_ref(), s.version.as_ref()) != (row.group.as_ref(), row.version.as_ref())
            {
                r["group"] = s.group.as_ref().into();
                r["version"] = s.version.as_ref().into();
            }
            r["kind"] = s.kind.as_ref().into();
            r["verbs"] = s.verbs.iter().copied().collect();
            resources.push(r);
        }
    }
    let gv = if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    };
    let mut list = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    list["groupVersion"] = gv.into();
    list["resources"] = resources.into();
    Some(list)
}

/// The aggregated form of `/api` (core alone) or `/apis` (everything else).
pub fn aggregated(table: &Table, core: bool, version: Aggregated) -> Value {
    let items: Vec<Value> = groups(table)
        .iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(g, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|(v, rows)| {
                    let resources: Vec<Value> =
                        rows.iter().map(|r| aggregated_resource(r)).collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if g.is_empty() {
                json!({})
            } else {
                json!({"name": g})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", version.name()),
        "metadata": {},
        "items": items,
    })
}

/// The short names and categories, where a row has any.
fn names(row: &Row, r: &mut Value) {
    for (field, list) in [
        ("shortNames", &row.short_names),
        ("categories", &row.categories),
    ] {
        if !list.is_empty() {
            r[field] = list.iter().map(|s| Value::from(s.as_ref())).collect();
        }
    }
}

fn aggregated_resource(row: &Row) -> Value {
    let mut r = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    names(row, &mut r);
    if !row.subresources.is_empty() {
        let mut subs: Vec<_> = row.subresources.iter().collect();
        subs.sort_by(|a, b| a.name.cmp(&b.name));
        r["subresources"] = subs
            .iter()
            .map(|s| {
                json!({
                    "subresource": s.name,
                    "responseKind": {"group": s.group, "version": s.version, "kind": s.kind},
                    "verbs": s.verbs,
                })
            })
            .collect();
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new(skiff_api::kinds::builtin())
    }

    #[test]
    fn every_group_version_lists_its_resources() {
        let t = table();
        let apps = api_resources(&t, "apps", "v1").expect("apps/v1");
        let names: Vec<&str> = apps["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["name"].as_str())
            .collect();
        assert!(names.contains(&"deployments/scale"), "{names:?}");
        let core = api_resources(&t, "", "v1").expect("v1");
        assert_eq!(core["groupVersion"], "v1");
        assert!(core.get("apiVersion").is_none());
        let eviction = core["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|r| r["name"] == "pods/eviction")
            .expect("eviction");
        assert_eq!(
            (&eviction["group"], &eviction["kind"]),
            (&"policy".into(), &"Eviction".into())
        );
        assert!(api_resources(&t, "apps", "v9").is_none());
    }

    #[test]
    fn the_aggregated_form_is_given_when_it_is_asked_first() {
        let mut h = HeaderMap::new();
        let v = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        h.insert("accept", v.parse().expect("header"));
        assert_eq!(Aggregated::asked(&h), Some(Aggregated::V2));
        h.insert("accept", "application/json".parse().expect("header"));
        assert_eq!(Aggregated::asked(&h), None);
        let core = aggregated(&table(), true, Aggregated::V2);
        assert_eq!(core["items"].as_array().map(Vec::len), Some(1));
    }
}
