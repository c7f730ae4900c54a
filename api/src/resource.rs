//! The resource table: what the API server knows of a kind is one row. Owns the row's shape and look-up; the rows
//! themselves live in [`crate::kinds`]. No I/O.

use crate::field::FieldError;
use crate::names::{NameRule, name_is_dns_subdomain};
use serde_json::Value;
use std::borrow::Cow;

/// A string that is static for built-in rows and owned for rows made at run time.
pub type Str = Cow<'static, str>;

/// Whether objects live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `/namespaces/{ns}/{plural}`
    Namespaced,
    /// `/{plural}`
    Cluster,
}

/// One kind served under one group and version.
#[derive(Clone)]
pub struct Resource {
    /// API group, empty for core.
    pub group: Str,
    /// API version, e.g. `v1`.
    pub version: Str,
    /// Kind, e.g. `Pod`.
    pub kind: Str,
    /// Plural resource name in paths, e.g. `pods`.
    pub plural: Str,
    /// Singular name for discovery.
    pub singular: Str,
    /// e.g. `po`.
    pub short_names: Vec<Str>,
    /// e.g. `all`.
    pub categories: Vec<Str>,
    /// Namespaced or cluster wide.
    pub scope: Scope,
    /// Where objects are stored: rows with the same value share their objects (events of both groups). Form
    /// `group/plural`, `core/events`.
    pub storage: Str,
    /// True on the row whose version is stored; the others convert on the way.
    pub stored: bool,
    /// Verbs of discovery: create, delete, deletecollection, get, list, patch, update, watch. Virtual kinds (reviews) have `create` alone.
    pub verbs: &'static [&'static str],
    /// Definition name in the schema facts, e.g. `io.k8s.api.core.v1.Pod`.
    pub schema: Str,
    /// Subresources, e.g. `status`, `scale`, `log`.
    pub subresources: Vec<Subresource>,
    /// Columns of the Table form, beyond none; upstream's names, types, priorities (pkg/printers/internalversion).
    pub columns: Vec<Column>,
    /// Field selectors beyond metadata.name and metadata.namespace.
    pub fields: Vec<SelectableField>,
    /// What happens to an object of this kind on its way into the store.
    pub strategy: Strategy,
    /// This version's JSON to the stored version's (apiVersion and kind included); nothing on stored rows. Runs after
    /// defaulting and validation of this row; the stored row's strategy is then not run again.
    pub to_stored: fn(&mut Value),
    /// The stored version's JSON to this version's; nothing on stored rows.
    pub from_stored: fn(&mut Value),
}

/// A subresource served under an object.
#[derive(Clone)]
pub struct Subresource {
    /// Path element, e.g. `status`.
    pub name: Str,
    /// Kind of its body, e.g. `Scale` of `autoscaling/v1`.
    pub kind: Str,
    /// Group of its body (empty for core).
    pub group: Str,
    /// Version of its body.
    pub version: Str,
    /// Verbs of discovery.
    pub verbs: &'static [&'static str],
}

/// A column of the Table form.
#[derive(Clone)]
pub struct Column {
    /// Header, e.g. `Ready`.
    pub name: Str,
    /// OpenAPI type: string, integer, date...
    pub kind: &'static str,
    /// OpenAPI format: `name` for the first column, else usually empty.
    pub format: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: i32,
    /// Cell of an object; `now` is seconds since the epoch, for ages.
    pub cell: Cell,
}

/// How a cell is computed.
#[derive(Clone)]
pub enum Cell {
    /// A function of the whole object.
    Fn(fn(&Value, now: i64) -> Value),
    /// A JSONPath (CRD additionalPrinterColumns).
    JsonPath(String),
}

/// A field usable in field selectors.
#[derive(Clone)]
pub struct SelectableField {
    /// Name in the selector, e.g. `spec.nodeName`.
    pub name: Str,
    /// Its value in an object (empty string when unset, defaults applied as upstream: e.g. status.phase).
    pub get: fn(&Value) -> String,
}

/// What the server knows when it prepares an object; everything that is not pure comes in here.
#[derive(Debug, Clone)]
pub struct Context {
    /// Now, RFC 3339 in UTC with seconds.
    pub now: String,
    /// User name of the request.
    pub user: String,
}

/// The rules of a kind (upstream's rest.Create/UpdateStrategy). All pure; generic metadata rules (name, namespace,
/// labels, uid, generation zero to one, ownerReferences...) are applied by the registry and are not repeated here.
#[derive(Clone)]
pub struct Strategy {
    /// What names of this kind may be (upstream's ValidateNameFunc).
    pub name: NameRule,
    /// Fills defaults (upstream's SetDefaults_*), on create, update and patch alike. Idempotent.
    pub default: fn(&mut Value),
    /// Clears what a client may not set on create (status, for most kinds), sets server-made fields.
    pub prepare_create: fn(&Context, &mut Value),
    /// Restores what an update of the main resource may not change (status). Arguments: context, new, old.
    pub prepare_update: fn(&Context, &mut Value, &Value),
    /// For the status subresource: takes status (and allowed metadata) from new, the rest from old.
    pub prepare_status_update: fn(&Context, &mut Value, &Value),
    /// Errors of an object to be created.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// Errors of an update (immutable fields...) beyond what `validate` finds; new, old.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Warnings for the `Warning:` response header on create and update.
    pub warnings: fn(&Value) -> Vec<String>,
    /// PUT on a name that does not exist creates it.
    pub allow_create_on_update: bool,
    /// An update without resourceVersion is allowed.
    pub allow_unconditional_update: bool,
    /// True when metadata.generation counts changes of the spec (all but a few old kinds).
    pub generation: bool,
}

/// Status comes from the old object on an update of the main resource.
pub fn keep_status(_: &Context, new: &mut Value, old: &Value) {
    let Some(map) = new.as_object_mut() else {
        return;
    };
    match old.get("status") {
        Some(s) => {
            map.insert("status".into(), s.clone());
        }
        None => {
            map.remove("status");
        }
    }
}

/// Status given on create is dropped.
pub fn drop_status(_: &Context, new: &mut Value) {
    if let Some(map) = new.as_object_mut() {
        map.remove("status");
    }
}

/// Everything but status, labels, annotations, finalizers... of the new object comes from the old one.
pub fn only_status(_: &Context, new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let metadata = new.get("metadata").cloned();
    *new = old.clone();
    if let Some(map) = new.as_object_mut() {
        match status {
            Some(s) => {
                map.insert("status".into(), s);
            }
            None => {
                map.remove("status");
            }
        }
        if let Some(m) = metadata {
            map.insert("metadata".into(), m);
        }
    }
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            name: name_is_dns_subdomain,
            default: |_| {},
            prepare_create: drop_status,
            prepare_update: keep_status,
            prepare_status_update: only_status,
            validate: |_| Vec::new(),
            validate_update: |_, _| Vec::new(),
            warnings: |_| Vec::new(),
            allow_create_on_update: false,
            allow_unconditional_update: true,
            generation: false,
        }
    }
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
    /// Is it served below a namespace?
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Verbs of an ordinary kind.
pub const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of a review.
pub const CREATE_ONLY: &[&str] = &["create"];
