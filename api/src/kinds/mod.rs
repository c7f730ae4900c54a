//! The built-in rows of the resource table. Each group's `mod.rs` is its table (names, verbs, subresources); a file per
//! kind holds that kind's rules (defaults, preparation, validation, columns). Nothing here does I/O.

use crate::resource::{
    ALL_VERBS, CREATE_ONLY, Column, Resource, Scope, SelectableField, Str, Strategy, Subresource,
};
use std::borrow::Cow;

pub mod apiextensions;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod core;
pub mod networking;
pub mod policy;
pub mod rbac;
pub mod reviews;
pub mod storage;

pub(crate) mod check;
pub(crate) mod util;

/// Every built-in row, in discovery order (core first, then groups in upstream's order of priority).
pub fn builtin() -> Vec<Resource> {
    let mut rows = core::rows();
    rows.extend(apps::rows());
    rows.extend(core::events_k8s_io_rows());
    rows.extend(reviews::rows());
    rows.extend(autoscaling::rows());
    rows.extend(batch::rows());
    rows.extend(networking::rows());
    rows.extend(policy::rows());
    rows.extend(rbac::rows());
    rows.extend(storage::rows());
    rows.extend(networking::discovery_rows());
    rows.extend(apiextensions::rows());
    rows
}

/// Verbs of `status` and `scale`.
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
/// Verbs of exec, attach and portforward.
const CREATE_GET: &[&str] = &["create", "get"];
/// Verbs of the proxies.
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// A row with the usual answers: all verbs, no subresources, stored under its own name.
pub(crate) fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
) -> Resource {
    let package = if group.is_empty() {
        "core"
    } else {
        group.split('.').next().unwrap_or(group)
    };
    let storage_group = if group.is_empty() { "core" } else { group };
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        storage: format!("{storage_group}/{plural}").into(),
        stored: true,
        verbs: ALL_VERBS,
        schema: format!("io.k8s.api.{package}.{version}.{kind}").into(),
        subresources: Vec::new(),
        columns: Vec::new(),
        fields: Vec::new(),
        strategy: Strategy::default(),
        to_stored: |_| {},
        from_stored: |_| {},
    }
}

/// A row that only answers create and stores nothing (reviews, bindings).
pub(crate) fn virtual_row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
) -> Resource {
    let mut r = row(group, version, kind, plural, scope);
    r.verbs = CREATE_ONLY;
    r
}

impl Resource {
    /// Adds a short name (`po`).
    pub(crate) fn short(mut self, name: &'static str) -> Self {
        self.short_names.push(Cow::Borrowed(name));
        self
    }
    /// Puts the kind in the category `all`.
    pub(crate) fn in_all(mut self) -> Self {
        self.categories.push(Cow::Borrowed("all"));
        self
    }
    /// Adds a subresource whose body is of this group, version and kind.
    pub(crate) fn sub(
        mut self,
        name: &'static str,
        (group, version, kind): (&'static str, &'static str, &'static str),
        verbs: &'static [&'static str],
    ) -> Self {
        self.subresources.push(Subresource {
            name: name.into(),
            kind: kind.into(),
            group: group.into(),
            version: version.into(),
            verbs,
        });
        self
    }
    /// Adds `status`, whose body is the object itself.
    pub(crate) fn status(mut self) -> Self {
        let (group, version, kind): (Str, Str, Str) =
            (self.group.clone(), self.version.clone(), self.kind.clone());
        self.subresources.push(Subresource {
            name: "status".into(),
            kind,
            group,
            version,
            verbs: GET_PATCH_UPDATE,
        });
        self
    }
    /// Adds `scale` (autoscaling/v1 Scale).
    pub(crate) fn scale(self) -> Self {
        self.sub("scale", ("autoscaling", "v1", "Scale"), GET_PATCH_UPDATE)
    }
    /// Restricts the verbs of discovery.
    pub(crate) fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    /// Sets the columns of the Table form.
    pub(crate) fn columns(mut self, columns: Vec<Column>) -> Self {
        self.columns = columns;
        self
    }
    /// Sets the fields of field selectors.
    pub(crate) fn fields(mut self, fields: Vec<SelectableField>) -> Self {
        self.fields = fields;
        self
    }
    /// Sets the strategy.
    pub(crate) fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }
}

#[cfg(test)]
mod samples;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Cell;
    use serde_json::Value;

    /// The cells of an object at a time.
    pub fn cells(columns: &[Column], object: &Value, now: i64) -> Vec<Value> {
        columns
            .iter()
            .map(|c| match &c.cell {
                Cell::Fn(f) => f(object, now),
                Cell::JsonPath(_) => Value::Null,
            })
            .collect()
    }

    #[test]
    fn rows_are_unique_by_group_version_and_plural() {
        let mut seen = std::collections::BTreeSet::new();
        for r in builtin() {
            assert!(
                seen.insert((
                    r.group.to_string(),
                    r.version.to_string(),
                    r.plural.to_string()
                )),
                "{}/{} {} is there twice",
                r.group,
                r.version,
                r.plural
            );
        }
    }

    #[test]
    fn every_stored_name_has_exactly_one_stored_row() {
        let mut stored = std::collections::BTreeMap::new();
        for r in builtin() {
            *stored.entry(r.storage.to_string()).or_insert(0) += i32::from(r.stored);
        }
        for (name, n) in stored {
            assert_eq!(n, 1, "{name}");
        }
    }

    /// Keys that the rules of some kind look at, so that random objects reach deep.
    const KEYS: &[&str] = &[
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "initContainers",
        "ephemeralContainers",
        "volumes",
        "ports",
        "name",
        "image",
        "env",
        "valueFrom",
        "fieldRef",
        "fieldPath",
        "resources",
        "limits",
        "requests",
        "cpu",
        "storage",
        "selector",
        "matchLabels",
        "matchExpressions",
        "labels",
        "annotations",
        "rules",
        "subjects",
        "roleRef",
        "data",
        "stringData",
        "type",
        "kind",
        "strategy",
        "rollingUpdate",
        "maxSurge",
        "maxUnavailable",
        "replicas",
        "metrics",
        "jobTemplate",
        "schedule",
        "conditions",
        "containerStatuses",
        "state",
        "terminated",
        "tolerations",
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
        "livenessProbe",
        "httpGet",
        "port",
        "projected",
        "sources",
        "items",
        "behavior",
        "scaleUp",
        "subsets",
        "addresses",
        "endpoints",
        "taints",
        "ingress",
        "http",
        "paths",
        "backend",
        "service",
        "capacity",
        "accessModes",
        "hard",
        "limitRange",
        "min",
        "max",
        "series",
        "restartCount",
        "completions",
        "parallelism",
        "updateStrategy",
        "volumeClaimTemplates",
        "clusterIPs",
    ];

    fn json() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..400).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ -~é]{0,8}".prop_map(Value::from),
            proptest::sample::select(vec![
                "Always",
                "RollingUpdate",
                "Recreate",
                "25%",
                "1Gi",
                "Exists",
                "In",
                "*/5 * * * *",
                "Resource",
                "Container",
                "NodePort",
                "LoadBalancer",
                "2023-11-14T22:13:10Z",
                "10.0.0.1",
                "a.b/c"
            ])
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 80, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((proptest::sample::select(KEYS), inner), 0..6).prop_map(
                    |l| { Value::Object(l.into_iter().map(|(k, v)| (k.to_string(), v)).collect()) }
                ),
            ]
        })
    }

    fn exercise(row: &Resource, object: &Value, old: &Value) {
        let c = crate::resource::Context {
            now: "2023-11-14T22:13:10Z".into(),
            user: "u".into(),
        };
        let s = &row.strategy;
        let mut v = object.clone();
        (s.default)(&mut v);
        let once = v.clone();
        (s.default)(&mut v);
        assert_eq!(
            v, once,
            "{} defaults are not idempotent on {object}",
            row.kind
        );
        (s.validate)(object);
        (s.validate)(&v);
        (s.validate_update)(&v, old);
        (s.warnings)(&v);
        cells(&row.columns, &v, 1_700_000_000);
        cells(&row.columns, object, 1_700_000_000);
        for f in &row.fields {
            (f.get)(&v);
        }
        let mut created = v.clone();
        (s.prepare_create)(&c, &mut created);
        let mut updated = v.clone();
        (s.prepare_update)(&c, &mut updated, old);
        let mut status = v.clone();
        (s.prepare_status_update)(&c, &mut status, old);
        (row.to_stored)(&mut v);
        (row.from_stored)(&mut v);
    }

    #[test]
    fn rules_take_the_barest_objects() {
        for row in builtin() {
            for object in [
                serde_json::json!({}),
                serde_json::json!({"metadata": {"name": "x"}, "spec": {}, "status": {}}),
                serde_json::json!({"spec": {"template": {"spec": {"containers": [{}], "volumes": [{}]}}, "ports": [{}]}}),
            ] {
                exercise(&row, &object, &serde_json::json!({}));
            }
        }
    }

    #[test]
    fn every_row_that_is_read_has_columns_and_a_schema() {
        for row in builtin() {
            if row.verbs.contains(&"list") {
                assert!(!row.columns.is_empty(), "{}", row.kind);
            }
            assert!(
                crate::schema::find(&row.schema).is_some(),
                "{} has no schema",
                row.schema
            );
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]
        #[test]
        fn no_json_makes_a_rule_panic(a in json(), b in json()) {
            for row in builtin() {
                exercise(&row, &a, &b);
            }
        }
    }
}
