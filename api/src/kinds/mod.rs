//! The built-in rows of the resource table. Each group's `mod.rs` is its table (names, verbs, subresources); a file per
//! kind holds that kind's rules (defaults, preparation, validation, columns). Nothing here does I/O.

use crate::resource::{ALL_VERBS, CREATE_ONLY, Resource, Scope, Str, Strategy, Subresource};
use std::borrow::Cow;

pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod core;
pub mod networking;
pub mod policy;
pub mod rbac;
pub mod reviews;
pub mod storage;

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
    /// Sets the strategy.
    pub(crate) fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
