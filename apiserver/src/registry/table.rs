//! The resource table at run time: look-up of rows by group, version and plural, and what is derived of a row once (the
//! bytes around objects and lists). Rows may be added and removed while running (CRDs later). Holds no objects.

use bytes::Bytes;
use parking_lot::RwLock;
use skiff_api::resource::Resource;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// A row and what is derived of it.
pub struct Row {
    resource: Resource,
    /// `{"kind":"Pod","apiVersion":"v1",` : put before a stored object (less its first brace) it makes the full object.
    pub head: Bytes,
    /// `{"kind":"PodList","apiVersion":"v1",`
    pub list_head: Bytes,
    /// Where objects of this kind live in the store: `/registry/pods/`-like prefix, with a slash at the end.
    pub prefix: String,
}

impl Deref for Row {
    type Target = Resource;
    fn deref(&self) -> &Resource {
        &self.resource
    }
}

impl Row {
    fn new(resource: Resource) -> Self {
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
            resource.kind,
            resource.api_version()
        );
        let list_head = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",",
            resource.kind,
            resource.api_version()
        );
        let prefix = format!("/{}/", resource.storage);
        Self {
            resource,
            head: head.into(),
            list_head: list_head.into(),
            prefix,
        }
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let mut k = self.collection(namespace);
        k.push_str(name);
        k
    }

    /// The store's prefix of a namespace's objects (all namespaces when empty).
    pub fn collection(&self, namespace: &str) -> String {
        let mut k = String::with_capacity(self.prefix.len() + namespace.len() + 64);
        k.push_str(&self.prefix);
        if !namespace.is_empty() && self.namespaced() {
            k.push_str(namespace);
            k.push('/');
        }
        k
    }

    /// True when this row answers this verb of the main resource.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

type ByName = BTreeMap<String, Arc<Row>>;

#[derive(Default)]
struct Inner {
    rows: Vec<Arc<Row>>,
    by_group: BTreeMap<String, BTreeMap<String, ByName>>,
    /// By storage name, the row whose version is stored.
    stored: BTreeMap<String, Arc<Row>>,
}

/// The table. Reading takes a lock for a look-up's time only.
pub struct Table(RwLock<Arc<Inner>>);

impl Table {
    /// A table of these rows, in discovery order.
    pub fn new(resources: Vec<Resource>) -> Self {
        let mut inner = Inner::default();
        for r in resources {
            let row = Arc::new(Row::new(r));
            inner
                .by_group
                .entry(row.group.to_string())
                .or_default()
                .entry(row.version.to_string())
                .or_default()
                .insert(row.plural.to_string(), row.clone());
            if row.stored {
                inner.stored.insert(row.storage.to_string(), row.clone());
            }
            inner.rows.push(row);
        }
        Self(RwLock::new(Arc::new(inner)))
    }

    /// The row of a resource path.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Row>> {
        self.0
            .read()
            .by_group
            .get(group)?
            .get(version)?
            .get(plural)
            .cloned()
    }

    /// The row whose version is stored for a storage name (`core/pods`).
    pub fn stored(&self, storage: &str) -> Option<Arc<Row>> {
        self.0.read().stored.get(storage).cloned()
    }

    /// All rows in discovery order.
    pub fn rows(&self) -> Vec<Arc<Row>> {
        self.0.read().rows.clone()
    }

    /// Is this group and version served?
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.0
            .read()
            .by_group
            .get(group)
            .is_some_and(|v| v.contains_key(version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_namespace_and_name() {
        let t = Table::new(skiff_api::kinds::builtin());
        let pods = t.get("", "v1", "pods").expect("pods");
        assert_eq!(pods.key("a", "b"), "/core/pods/a/b");
        assert_eq!(pods.collection(""), "/core/pods/");
        let nodes = t.get("", "v1", "nodes").expect("nodes");
        assert_eq!(nodes.key("", "n"), "/core/nodes/n");
        assert_eq!(&pods.head[..], br#"{"kind":"Pod","apiVersion":"v1","#);
    }
}
