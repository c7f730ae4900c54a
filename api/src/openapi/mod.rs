//! The OpenAPI documents that kubectl's explain, apply, diff and validation read: v3 for each group version, v2 for all.
//! Structure and x-kubernetes extensions come from the schema facts, descriptions from k8s-openapi, paths from the
//! resource table. Computed when asked for; nothing stays in memory.

mod descriptions;
mod paths;
pub mod protobuf;

use crate::resource::Resource;
use crate::schema::{self, Field, ListType, Type, TypeDef};
use descriptions::Descriptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The version that the documents name.
const VERSION: &str = "v1.36.0";

/// The document of one group version. `rows` are the rows of that group version.
pub fn v3(rows: &[&Resource]) -> Value {
    let (definitions, paths) = document(rows, Dialect::V3);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        },
    })
}

/// The document of all rows in OpenAPI v2 (swagger).
pub fn v2(rows: &[&Resource]) -> Value {
    let (definitions, paths) = document(rows, Dialect::V2);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    })
}

fn document(rows: &[&Resource], dialect: Dialect) -> (Value, Value) {
    let mut roots: BTreeSet<&'static str> = BTreeSet::new();
    let mut add = |def: Option<&'static TypeDef>| roots.extend(def.map(|d| d.name));
    for name in ["Status", "DeleteOptions", "Patch", "WatchEvent"] {
        add(schema::find(&format!("{META}.{name}")));
    }
    for row in rows {
        add(schema::find(&row.schema));
        add(list_definition(row));
        for s in &row.subresources {
            add(schema::by_gvk(&s.group, &s.version, &s.kind));
        }
    }
    let reachable = reachable(&roots);
    let descriptions = Descriptions::of(reachable.iter().copied());
    let mut definitions = Map::new();
    for name in &reachable {
        if let Some(def) = schema::find(name) {
            definitions.insert((*name).to_string(), definition(def, &descriptions, dialect));
        }
    }
    let paths = paths::paths(rows, dialect);
    (Value::Object(definitions), Value::Object(paths))
}

/// The definition of a row's list, e.g. `io.k8s.api.core.v1.PodList`.
fn list_definition(row: &Resource) -> Option<&'static TypeDef> {
    schema::find(&format!("{}List", row.schema))
}

/// Every definition that the roots refer to, themselves included.
fn reachable(roots: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let mut todo: Vec<&'static str> = roots.iter().copied().collect();
    let mut found = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if !found.insert(name) {
            continue;
        }
        let Some(def) = schema::find(name) else {
            continue;
        };
        for f in def.fields {
            let mut ty = &f.ty;
            while let Some(e) = ty.element() {
                ty = e;
            }
            todo.extend(type_name(ty));
        }
    }
    found
}

/// The definition that a type refers to.
fn type_name(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Ref(id) => Some(id.get().name),
        Type::Quantity => Some(QUANTITY),
        Type::IntOrString => Some(INT_OR_STRING),
        Type::Time => Some("io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
        Type::MicroTime => Some("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
        _ => None,
    }
}

/// A type as a schema; references stand alone.
fn type_schema(ty: &Type, dialect: Dialect) -> Value {
    if let Some(name) = type_name(ty) {
        return dialect.reference(name);
    }
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Object => json!({"type": "object"}),
        Type::Map(t) => json!({"type": "object", "additionalProperties": type_schema(t, dialect)}),
        Type::List(t) => json!({"type": "array", "items": type_schema(t, dialect)}),
        _ => json!({}),
    }
}

fn field_schema(field: &Field, description: Option<&str>, dialect: Dialect) -> Value {
    let mut schema = type_schema(&field.ty, dialect);
    // In OpenAPI 3.0 nothing may stand beside $ref, so upstream wraps it.
    if dialect == Dialect::V3 && schema.get("$ref").is_some() && description.is_some() {
        schema = json!({"allOf": [schema]});
    }
    let Some(map) = schema.as_object_mut() else {
        return schema;
    };
    let mut put = |k: &str, v: Value| {
        map.insert(k.to_string(), v);
    };
    if let Some(d) = description {
        put("description", d.into());
    }
    if !field.choices().is_empty() {
        put("enum", field.choices().into());
    }
    if let Some(d) = field
        .default_json()
        .and_then(|d| serde_json::from_str(d).ok())
    {
        put("default", d);
    }
    if field.list_type_given {
        let t = match field.list_type {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        put("x-kubernetes-list-type", t.into());
    }
    if !field.map_keys().is_empty() {
        put("x-kubernetes-list-map-keys", field.map_keys().into());
    }
    if field.atomic {
        put("x-kubernetes-map-type", "atomic".into());
    }
    if !field.patch_strategy().is_empty() {
        put("x-kubernetes-patch-strategy", field.patch_strategy().into());
    }
    if !field.merge_key().is_empty() {
        put("x-kubernetes-patch-merge-key", field.merge_key().into());
    }
    schema
}

fn definition(def: &'static TypeDef, descriptions: &Descriptions, dialect: Dialect) -> Value {
    let mut out = match def.scalar {
        None => json!({"type": "object"}),
        Some(Type::Quantity) if dialect == Dialect::V3 => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        Some(Type::Quantity) => json!({"type": "string"}),
        Some(Type::IntOrString) if dialect == Dialect::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Some(Type::IntOrString) => json!({"type": "string", "format": "int-or-string"}),
        Some(Type::Time | Type::MicroTime) => json!({"type": "string", "format": "date-time"}),
        Some(Type::Object) => json!({"type": "object"}),
        Some(_) => json!({}),
    };
    let Some(map) = out.as_object_mut() else {
        return out;
    };
    if let Some(d) = descriptions.definition(def.name) {
        map.insert("description".into(), d.into());
    }
    if !def.fields.is_empty() {
        let properties: Map<String, Value> = def
            .fields
            .iter()
            .map(|f| {
                let d = descriptions.field(def.name, f.name);
                (f.name.to_string(), field_schema(f, d, dialect))
            })
            .collect();
        map.insert("properties".into(), Value::Object(properties));
        let required: Vec<&str> = def
            .fields
            .iter()
            .filter(|f| f.required)
            .map(|f| f.name)
            .collect();
        if !required.is_empty() {
            map.insert("required".into(), required.into());
        }
    }
    if def.atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if !def.gvks.is_empty() {
        let gvks: Vec<Value> = def
            .gvks
            .iter()
            .map(|g| json!({"group": g.group, "kind": g.kind, "version": g.version}))
            .collect();
        map.insert("x-kubernetes-group-version-kind".into(), gvks.into());
    }
    if !def.unions.is_empty() {
        let unions: Vec<Value> = def
            .unions
            .iter()
            .map(|u| {
                let fields: Map<String, Value> = u
                    .fields
                    .iter()
                    .map(|f| ((*f).to_string(), capital(f).into()))
                    .collect();
                let mut v = json!({"fields-to-discriminateBy": fields});
                if !u.discriminator.is_empty() {
                    v["discriminator"] = u.discriminator.into();
                }
                v
            })
            .collect();
        map.insert("x-kubernetes-unions".into(), unions.into());
    }
    out
}

/// The Go name of a field.
fn capital(s: &str) -> String {
    let mut c = s.chars();
    c.next().map_or_else(String::new, |f| {
        f.to_ascii_uppercase().to_string() + c.as_str()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(group: &str, version: &str) -> Vec<Resource> {
        crate::kinds::builtin()
            .into_iter()
            .filter(|r| r.group == group && r.version == version)
            .collect()
    }

    fn refs(v: &Value, prefix: &str, into: &mut BTreeSet<String>) {
        match v {
            Value::Object(o) => {
                if let Some(r) = o.get("$ref").and_then(Value::as_str) {
                    into.insert(r.strip_prefix(prefix).expect("prefix").to_string());
                }
                o.values().for_each(|x| refs(x, prefix, into));
            }
            Value::Array(a) => a.iter().for_each(|x| refs(x, prefix, into)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_both_forms_is_defined() {
        let all = crate::kinds::builtin();
        let all: Vec<&Resource> = all.iter().collect();
        let doc = v2(&all);
        let mut found = BTreeSet::new();
        refs(&doc, "#/definitions/", &mut found);
        assert!(found.len() > 300);
        for name in found {
            assert!(doc["definitions"].get(&name).is_some(), "{name}");
        }
        for (g, v) in all
            .iter()
            .map(|r| (&r.group, &r.version))
            .collect::<BTreeSet<_>>()
        {
            let own = rows(g, v);
            let doc = v3(&own.iter().collect::<Vec<_>>());
            let mut found = BTreeSet::new();
            refs(&doc, "#/components/schemas/", &mut found);
            for name in found {
                assert!(doc["components"]["schemas"].get(&name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_pods_schema_has_descriptions_and_merge_keys() {
        let own = rows("", "v1");
        let doc = v3(&own.iter().collect::<Vec<_>>());
        let spec = &doc["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(
            spec["properties"]["containers"]["x-kubernetes-patch-merge-key"],
            "name"
        );
        assert!(
            spec["properties"]["containers"]["description"]
                .as_str()
                .is_some_and(|d| d.len() > 20)
        );
        assert!(spec["properties"]["affinity"]["allOf"][0]["$ref"].is_string());
        let pod = &doc["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
    }

    #[test]
    fn every_row_has_a_description() {
        for row in crate::kinds::builtin() {
            let doc = v3(&[&row]);
            let def = &doc["components"]["schemas"][row.schema.as_ref()];
            assert!(
                def["description"].is_string(),
                "{}: add it to openapi/descriptions.rs",
                row.schema
            );
        }
    }

    #[test]
    fn paths_say_what_kubectl_looks_for() {
        let own = rows("apps", "v1");
        let doc = v3(&own.iter().collect::<Vec<_>>());
        let item = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let patch = &item["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "kind": "Deployment", "version": "v1"})
        );
        for name in ["dryRun", "fieldValidation", "fieldManager", "force"] {
            assert!(
                patch["parameters"]
                    .as_array()
                    .is_some_and(|p| p.iter().any(|x| x["name"] == name)),
                "{name}"
            );
        }
        assert_eq!(
            doc["paths"]["/apis/apps/v1/deployments"]["get"]["x-kubernetes-action"],
            "list"
        );
        assert!(
            doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"]
                .is_object()
        );
    }
}
