//! Selectors on stored entries, and the attributes (labels, selectable fields) that the store keeps beside each entry so
//! that selecting decodes nothing.

use super::Call;
use super::table::Row;
use crate::store::{Attributes, AttributesOf, Entry, collection};
use serde::Deserialize;
use serde_json::Value;
use skiff_api::selector::{FieldSelector, Selector as Labels};
use skiff_api::status::Status;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A request's label and field selectors.
pub struct Selector {
    labels: Labels,
    fields: FieldSelector,
}

impl Selector {
    /// Reads the request's selectors; a watch of one name (the deprecated path) selects that name.
    ///
    /// # Errors
    /// 400 when one cannot be read or names a field that the kind does not select by.
    pub fn parse(call: &Call) -> Result<Self, Status> {
        let o = &call.options;
        let labels = if o.label_selector.is_empty() {
            Labels::everything()
        } else {
            Labels::parse(&o.label_selector).map_err(Status::bad_request)?
        };
        let text = if call.name.is_empty() {
            Cow::from(&o.field_selector)
        } else {
            let comma = if o.field_selector.is_empty() { "" } else { "," };
            Cow::from(format!(
                "{}{comma}metadata.name={}",
                o.field_selector, call.name
            ))
        };
        let fields = if text.is_empty() {
            FieldSelector::default()
        } else {
            FieldSelector::parse(&text, &call.row)?
        };
        Ok(Self { labels, fields })
    }

    /// Nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Is this entry selected?
    pub fn matches(&self, entry: &Entry) -> bool {
        self.labels.matches_by(|k| entry.attributes.label(k))
            && self.fields.matches_by(|f| match f {
                "metadata.name" => Cow::from(entry.name()),
                "metadata.namespace" => Cow::from(entry.namespace()),
                f => Cow::from(entry.attributes.field(f).unwrap_or("")),
            })
    }

    /// The key below the collection's prefix when exactly one object can match.
    pub fn exact_name(&self, namespace: &str, namespaced: bool) -> Option<String> {
        let name = self.fields.name().filter(|n| !n.is_empty())?;
        if !namespaced || !namespace.is_empty() {
            return Some(name.to_string());
        }
        let ns = self
            .fields
            .exact("metadata.namespace")
            .filter(|n| !n.is_empty())?;
        Some(format!("{ns}/{name}"))
    }
}

/// Labels alone, borrowed: what most kinds need.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// The store's hook. `rows` are all rows of the table: those that share a storage share its objects, each with its own
/// selectable fields.
pub fn attributes_of(rows: &[Arc<Row>]) -> AttributesOf {
    let mut by_prefix: HashMap<String, Vec<Arc<Row>>> = HashMap::new();
    for row in rows {
        if !row.fields.is_empty() {
            by_prefix
                .entry(row.prefix.clone())
                .or_default()
                .push(row.clone());
        }
    }
    Arc::new(move |key, value| {
        let Some(rows) = by_prefix.get(collection(key)) else {
            let labels = serde_json::from_slice::<Head<'_>>(value)
                .ok()
                .and_then(|h| h.metadata.labels)
                .unwrap_or_default();
            return Attributes::new(
                labels.iter().map(|(k, v)| (k.as_ref(), v.as_ref())),
                std::iter::empty(),
            );
        };
        let Ok(object) = serde_json::from_slice::<Value>(value) else {
            return Attributes::default();
        };
        let mut fields: Vec<(&str, String)> = Vec::new();
        for row in rows {
            let converted = (!row.stored).then(|| {
                let mut v = object.clone();
                (row.from_stored)(&mut v);
                v
            });
            for f in &row.fields {
                if fields.iter().any(|(n, _)| *n == f.name) {
                    continue;
                }
                let text = (f.get)(converted.as_ref().unwrap_or(&object));
                // An empty field and none are the same to a selector.
                if !text.is_empty() {
                    fields.push((&f.name, text));
                }
            }
        }
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object);
        Attributes::new(
            labels
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))),
            fields.iter().map(|(k, v)| (*k, v.as_str())),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::table::Table;

    #[test]
    fn labels_are_found_without_decoding_the_rest() {
        let t = Table::new(skiff_api::kinds::builtin());
        let f = attributes_of(&t.rows());
        let a = f(
            "/core/configmaps/a/b",
            br#"{"metadata":{"name":"b","labels":{"app":"we\"b"}},"data":{"x":"y"}}"#,
        );
        assert_eq!(a.label("app"), Some("we\"b"));
        let a = f("/core/configmaps/a/b", br#"{"metadata":{"name":"b"}}"#);
        assert_eq!(a, Attributes::default());
    }
}
