//! The Table form (`meta.k8s.io/v1`) that kubectl asks for: columns of a row, cells of objects. Pure; `now` comes in.

use crate::resource::{Cell, Resource};
use serde_json::{Map, Value, json};

/// What a table's rows carry beside their cells (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A PartialObjectMetadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Of the query parameter; none when it is no such word.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// `columnDefinitions` of a row; kinds without columns of their own get Name and Created At, as upstream.
pub fn columns(row: &Resource) -> Value {
    if row.columns.is_empty() {
        return json!([
            {"name": "Name", "type": "string", "format": "name", "description": NAME_DESCRIPTION, "priority": 0},
            {"name": "Created At", "type": "date", "format": "", "description": CREATED_DESCRIPTION, "priority": 0},
        ]);
    }
    row.columns
        .iter()
        .map(|c| {
            let description = if c.format == "name" { NAME_DESCRIPTION } else { "" };
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": description, "priority": c.priority})
        })
        .collect()
}

const NAME_DESCRIPTION: &str = "Name must be unique within a namespace.";
const CREATED_DESCRIPTION: &str =
    "CreationTimestamp is the server's time when the object was made.";

/// The cells of one object.
pub fn cells(row: &Resource, object: &Value, now: i64) -> Value {
    if row.columns.is_empty() {
        let m = &object["metadata"];
        return json!([m["name"], m["creationTimestamp"]]);
    }
    row.columns
        .iter()
        .map(|c| match &c.cell {
            Cell::Fn(f) => f(object, now),
            Cell::JsonPath(path) => crate::jsonpath::cell(path, object, c.kind, now),
        })
        .collect()
}

/// One `TableRow`.
pub fn table_row(row: &Resource, object: &Value, include: IncludeObject, now: i64) -> Value {
    let mut r = Map::new();
    r.insert("cells".into(), cells(row, object, now));
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            r.insert("object".into(), partial_object_metadata(object));
        }
        IncludeObject::Object => {
            r.insert("object".into(), object.clone());
        }
    }
    Value::Object(r)
}

/// The object's metadata as a `PartialObjectMetadata`.
pub fn partial_object_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A whole Table. `list_meta` is the list's metadata (resourceVersion, continue, remainingItemCount); `headers` false
/// leaves the column definitions out (watch events after the first, and `noHeaders`).
pub fn table<'a>(
    row: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    list_meta: Value,
    include: IncludeObject,
    headers: bool,
    now: i64,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|o| table_row(row, o, include, now))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": if headers { columns(row) } else { Value::Null },
        "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Column;

    fn row() -> Resource {
        let mut r = crate::kinds::builtin()
            .into_iter()
            .find(|r| r.kind == "ConfigMap")
            .expect("configmaps");
        r.columns = vec![Column {
            name: "Name".into(),
            kind: "string",
            format: "name",
            priority: 0,
            cell: Cell::JsonPath(".metadata.name".into()),
        }];
        r
    }

    #[test]
    fn a_table_has_columns_cells_and_metadata() {
        let o = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {}});
        let t = table(
            &row(),
            [&o],
            json!({"resourceVersion": "7"}),
            IncludeObject::Metadata,
            true,
            0,
        );
        assert_eq!(t["columnDefinitions"][0]["format"], "name");
        assert_eq!(t["rows"][0]["cells"], json!(["a"]));
        assert_eq!(t["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(t["metadata"]["resourceVersion"], "7");
        let none = table_row(&row(), &o, IncludeObject::None, 0);
        assert!(none.get("object").is_none());
    }
}
