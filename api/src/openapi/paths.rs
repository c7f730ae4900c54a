//! The `paths` of both documents, out of the resource table: what kubectl looks up there is the kind of an operation and
//! its query parameters.

use super::{Dialect, META, list_definition};
use crate::resource::{Resource, Subresource};
use crate::schema;
use serde_json::{Map, Value, json};

/// A query parameter of an operation.
fn query(name: &str, kind: &str, description: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => {
            json!({"name": name, "in": "query", "type": kind, "uniqueItems": true, "description": description})
        }
        Dialect::V3 => {
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}, "description": description})
        }
    }
}

fn path_parameter(name: &str, description: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => {
            json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true, "description": description})
        }
        Dialect::V3 => {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}, "description": description})
        }
    }
}

const DRY_RUN: &str =
    "When present, indicates that modifications should not be persisted. Valid values are: All.";
const FIELD_MANAGER: &str = "A name for the actor or entity that is making these changes, at most 128 printable characters.";
const FIELD_VALIDATION: &str = "How unknown and duplicate fields are treated: Ignore drops them, Warn drops them with a warning, Strict refuses the request.";
const FORCE: &str = "Apply requests only: take over fields that other managers own.";

fn write_parameters(dialect: Dialect) -> Vec<Value> {
    vec![
        query("dryRun", "string", DRY_RUN, dialect),
        query("fieldManager", "string", FIELD_MANAGER, dialect),
        query("fieldValidation", "string", FIELD_VALIDATION, dialect),
    ]
}

fn list_parameters(dialect: Dialect) -> Vec<Value> {
    [
        (
            "allowWatchBookmarks",
            "boolean",
            "Ask for events of type BOOKMARK.",
        ),
        (
            "continue",
            "string",
            "The token of a list that was limited.",
        ),
        ("fieldSelector", "string", "Restrict the list by fields."),
        ("labelSelector", "string", "Restrict the list by labels."),
        (
            "limit",
            "integer",
            "The most objects to return in one answer.",
        ),
        (
            "resourceVersion",
            "string",
            "Which resource versions a request may be served from.",
        ),
        (
            "resourceVersionMatch",
            "string",
            "How resourceVersion is applied to lists.",
        ),
        (
            "sendInitialEvents",
            "boolean",
            "Begin a watch with events for the objects that exist.",
        ),
        (
            "timeoutSeconds",
            "integer",
            "Limits the duration of the call.",
        ),
        (
            "watch",
            "boolean",
            "Watch for changes, and return them as a stream.",
        ),
    ]
    .iter()
    .map(|(n, k, d)| query(n, k, d, dialect))
    .collect()
}

fn delete_parameters(dialect: Dialect) -> Vec<Value> {
    vec![
        query("dryRun", "string", DRY_RUN, dialect),
        query(
            "gracePeriodSeconds",
            "integer",
            "Seconds before the object is deleted.",
            dialect,
        ),
        query(
            "orphanDependents",
            "boolean",
            "Deprecated: use propagationPolicy.",
            dialect,
        ),
        query(
            "propagationPolicy",
            "string",
            "Orphan, Background or Foreground.",
            dialect,
        ),
    ]
}

/// Group, version and kind of an operation.
struct Gvk<'a>(&'a str, &'a str, &'a str);

struct Operation<'a> {
    action: &'a str,
    verb: &'a str,
    id: String,
    description: String,
    gvk: Gvk<'a>,
    parameters: Vec<Value>,
    body: Option<&'a str>,
    media: &'a [&'a str],
    response: Option<&'a str>,
}

const JSON: &[&str] = &["application/json", "application/yaml"];
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

fn operation(op: Operation<'_>, tag: &str, dialect: Dialect) -> (String, Value) {
    let response_schema = match op.response {
        Some(name) => dialect.reference(name),
        None => json!({"type": "string"}),
    };
    let mut parameters = op.parameters;
    let mut v = json!({
        "description": op.description,
        "operationId": op.id,
        "tags": [tag],
    });
    match dialect {
        Dialect::V2 => {
            if let Some(body) = op.body {
                parameters.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": dialect.reference(body)}));
            }
            v["consumes"] = op.media.into();
            v["produces"] = JSON.into();
            v["schemes"] = json!(["https"]);
            v["responses"] = json!({"200": {"description": "OK", "schema": response_schema}, "401": {"description": "Unauthorized"}});
        }
        Dialect::V3 => {
            let content = |schema: &Value, media: &[&str]| -> Value {
                Value::Object(
                    media
                        .iter()
                        .map(|m| ((*m).to_string(), json!({"schema": schema})))
                        .collect(),
                )
            };
            if let Some(body) = op.body {
                let schema = dialect.reference(body);
                v["requestBody"] = json!({"required": op.action != "delete" && op.action != "deletecollection", "content": content(&schema, op.media)});
            }
            v["responses"] = json!({"200": {"description": "OK", "content": content(&response_schema, JSON)}, "401": {"description": "Unauthorized"}});
        }
    }
    if !parameters.is_empty() {
        v["parameters"] = parameters.into();
    }
    v["x-kubernetes-action"] = op.action.into();
    v["x-kubernetes-group-version-kind"] =
        json!({"group": op.gvk.0, "version": op.gvk.1, "kind": op.gvk.2});
    (op.verb.to_string(), v)
}

fn capitalised(s: &str) -> String {
    let mut c = s.chars();
    c.next()
        .map_or_else(String::new, |f| f.to_uppercase().to_string() + c.as_str())
}

/// The `paths` of the rows.
pub(super) fn paths(rows: &[&Resource], dialect: Dialect) -> Map<String, Value> {
    let mut out = Map::new();
    for row in rows {
        let prefix = if row.group.is_empty() {
            format!("/api/{}", row.version)
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        let tag = if row.group.is_empty() {
            format!("core_{}", row.version)
        } else {
            format!(
                "{}_{}",
                row.group.split('.').next().unwrap_or(""),
                row.version
            )
        };
        let base = if row.namespaced() {
            format!("{prefix}/namespaces/{{namespace}}/{}", row.plural)
        } else {
            format!("{prefix}/{}", row.plural)
        };
        let r = Row {
            row,
            tag: &tag,
            dialect,
        };
        r.add(&mut out, &base, r.collection(), &[]);
        r.add(&mut out, &format!("{base}/{{name}}"), r.item(), &["name"]);
        for s in &row.subresources {
            r.add(
                &mut out,
                &format!("{base}/{{name}}/{}", s.name),
                r.subresource(s),
                &["name"],
            );
        }
        if row.namespaced() && row.verbs.contains(&"list") {
            let ops = vec![r.list(&format!("{}ForAllNamespaces", r.name()))];
            let mut item: Map<String, Value> = ops.into_iter().collect();
            item.insert(
                "parameters".into(),
                vec![query(
                    "pretty",
                    "string",
                    "Pretty print the output.",
                    dialect,
                )]
                .into(),
            );
            out.insert(format!("{prefix}/{}", row.plural), Value::Object(item));
        }
    }
    out
}

struct Row<'a> {
    row: &'a Resource,
    tag: &'a str,
    dialect: Dialect,
}

impl Row<'_> {
    /// `CoreV1NamespacedPod`, the middle of operation ids.
    fn name(&self) -> String {
        let scope = if self.row.namespaced() {
            "Namespaced"
        } else {
            ""
        };
        format!("{}{scope}{}", self.group_version(), self.row.kind)
    }
    fn group_version(&self) -> String {
        let g = self.tag.split('_').next().unwrap_or("");
        format!("{}{}", capitalised(g), capitalised(&self.row.version))
    }
    fn gvk(&self) -> Gvk<'_> {
        Gvk(&self.row.group, &self.row.version, &self.row.kind)
    }
    fn schema(&self) -> Option<&str> {
        schema::find(&self.row.schema).map(|d| d.name)
    }
    fn has(&self, verb: &str) -> bool {
        self.row.verbs.contains(&verb)
    }

    fn add(
        &self,
        out: &mut Map<String, Value>,
        path: &str,
        ops: Vec<(String, Value)>,
        names: &[&str],
    ) {
        if ops.is_empty() {
            return;
        }
        let mut item: Map<String, Value> = ops.into_iter().collect();
        let mut parameters = Vec::new();
        for n in names {
            parameters.push(path_parameter(
                n,
                &format!("name of the {}", self.row.kind),
                self.dialect,
            ));
        }
        if self.row.namespaced() {
            parameters.push(path_parameter(
                "namespace",
                "object name and auth scope, such as for teams and projects",
                self.dialect,
            ));
        }
        parameters.push(query(
            "pretty",
            "string",
            "Pretty print the output.",
            self.dialect,
        ));
        item.insert("parameters".into(), parameters.into());
        out.insert(path.to_string(), Value::Object(item));
    }

    fn list(&self, name: &str) -> (String, Value) {
        operation(
            Operation {
                action: "list",
                verb: "get",
                id: format!("list{name}"),
                description: format!("list or watch objects of kind {}", self.row.kind),
                gvk: self.gvk(),
                parameters: list_parameters(self.dialect),
                body: None,
                media: JSON,
                response: list_definition(self.row).map(|d| d.name),
            },
            self.tag,
            self.dialect,
        )
    }

    fn write<'a>(
        &'a self,
        action: &'a str,
        verb: &'a str,
        word: &str,
        name: &str,
        gvk: Gvk<'a>,
        schema: Option<&'a str>,
    ) -> (String, Value) {
        let mut parameters = write_parameters(self.dialect);
        let patch = action == "patch";
        if patch {
            parameters.push(query("force", "boolean", FORCE, self.dialect));
        }
        let patch_schema = format!("{META}.Patch");
        operation(
            Operation {
                action,
                verb,
                id: format!("{word}{name}"),
                description: format!("{word} the specified {}", gvk.2),
                gvk,
                parameters,
                body: if patch { Some(&patch_schema) } else { schema },
                media: if patch { PATCHES } else { JSON },
                response: schema,
            },
            self.tag,
            self.dialect,
        )
    }

    fn delete(&self, action: &str, word: &str, mut parameters: Vec<Value>) -> (String, Value) {
        parameters.extend(delete_parameters(self.dialect));
        let options = format!("{META}.DeleteOptions");
        let status = format!("{META}.Status");
        operation(
            Operation {
                action,
                verb: "delete",
                id: format!("{word}{}", self.name()),
                description: format!("delete {} objects", self.row.kind),
                gvk: self.gvk(),
                parameters,
                body: Some(&options),
                media: JSON,
                response: Some(&status),
            },
            self.tag,
            self.dialect,
        )
    }

    fn collection(&self) -> Vec<(String, Value)> {
        let mut ops = Vec::new();
        if self.has("list") {
            ops.push(self.list(&self.name()));
        }
        if self.has("create") {
            ops.push(self.write(
                "post",
                "post",
                "create",
                &self.name(),
                self.gvk(),
                self.schema(),
            ));
        }
        if self.has("deletecollection") {
            ops.push(
                self.delete(
                    "deletecollection",
                    "deleteCollection",
                    list_parameters(self.dialect)
                        .into_iter()
                        .filter(|p| p["name"] != "watch" && p["name"] != "allowWatchBookmarks")
                        .collect(),
                ),
            );
        }
        ops
    }

    fn get(&self, name: &str, gvk: Gvk<'_>, response: Option<&str>) -> (String, Value) {
        operation(
            Operation {
                action: "get",
                verb: "get",
                id: format!("read{name}"),
                description: format!("read the specified {}", gvk.2),
                gvk,
                parameters: Vec::new(),
                body: None,
                media: JSON,
                response,
            },
            self.tag,
            self.dialect,
        )
    }

    fn item(&self) -> Vec<(String, Value)> {
        let mut ops = Vec::new();
        if self.has("get") {
            ops.push(self.get(&self.name(), self.gvk(), self.schema()));
        }
        if self.has("update") {
            ops.push(self.write(
                "put",
                "put",
                "replace",
                &self.name(),
                self.gvk(),
                self.schema(),
            ));
        }
        if self.has("patch") {
            ops.push(self.write(
                "patch",
                "patch",
                "patch",
                &self.name(),
                self.gvk(),
                self.schema(),
            ));
        }
        if self.has("delete") {
            ops.push(self.delete("delete", "delete", Vec::new()));
        }
        ops
    }

    fn subresource(&self, s: &Subresource) -> Vec<(String, Value)> {
        let name = format!("{}{}", self.name(), capitalised(&s.name));
        let gvk = || Gvk(&s.group, &s.version, &s.kind);
        let body = schema::by_gvk(&s.group, &s.version, &s.kind).map(|d| d.name);
        // Streams and proxies are "connect": no schema, any method.
        if ["exec", "attach", "portforward", "proxy"].contains(&s.name.as_ref()) {
            return ["get", "post"]
                .iter()
                .map(|verb| {
                    operation(
                        Operation {
                            action: "connect",
                            verb,
                            id: format!("connect{}{name}", capitalised(verb)),
                            description: format!(
                                "connect {} requests to {}",
                                verb.to_uppercase(),
                                s.name
                            ),
                            gvk: gvk(),
                            parameters: Vec::new(),
                            body: None,
                            media: &["*/*"],
                            response: None,
                        },
                        self.tag,
                        self.dialect,
                    )
                })
                .collect();
        }
        let mut ops = Vec::new();
        let has = |v: &str| s.verbs.contains(&v);
        if has("get") {
            ops.push(self.get(&name, gvk(), if s.name == "log" { None } else { body }));
        }
        if has("create") {
            ops.push(self.write("post", "post", "create", &name, gvk(), body));
        }
        if has("update") {
            ops.push(self.write("put", "put", "replace", &name, gvk(), body));
        }
        if has("patch") {
            ops.push(self.write("patch", "patch", "patch", &name, gvk(), body));
        }
        ops
    }
}
