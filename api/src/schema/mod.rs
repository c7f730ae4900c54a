//! The schema facts: for every upstream definition its fields, types, list types and merge keys. Owns the table and its
//! look-ups; holds no descriptions (those are k8s-openapi's, see [`crate::openapi`]) and decides nothing.
//!
//! The table is text (`facts.txt`, written by `api/xtask/generate.py`), read once on first use: about 3,000 fields in a
//! millisecond or two, a few hundred KiB, alive for the rest of the process.

use std::collections::BTreeMap;
use std::sync::OnceLock;

static FACTS: &str = include_str!("facts.txt");

/// The type of a field, of a list's items or of a map's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    /// Go `string` and its named kinds.
    String,
    /// Go `int32`.
    Int32,
    /// Go `int64`.
    Int64,
    /// Go `bool`.
    Bool,
    /// Go `float64`.
    Double,
    /// `resource.Quantity`.
    Quantity,
    /// `metav1.Time`: RFC 3339 with seconds.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `intstr.IntOrString`.
    IntOrString,
    /// Go `[]byte`, base64 in JSON.
    Bytes,
    /// Any JSON value.
    Any,
    /// Any JSON object (RawExtension, FieldsV1).
    Object,
    /// A Go map with string keys.
    Map(&'static Type),
    /// A Go slice.
    List(&'static Type),
    /// A struct.
    Ref(DefId),
}

/// Index of a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DefId(u16);

impl DefId {
    /// The definition.
    pub fn get(self) -> &'static TypeDef {
        &table().defs[self.0 as usize]
    }
}

impl Type {
    /// The struct behind a reference.
    pub fn def(&self) -> Option<&'static TypeDef> {
        match self {
            Type::Ref(id) => Some(id.get()),
            _ => None,
        }
    }
    /// The type of items or values; none for scalars and structs.
    pub fn element(&self) -> Option<&'static Type> {
        match self {
            Type::Map(t) | Type::List(t) => Some(t),
            _ => None,
        }
    }
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Not said, or said: replaced as a whole.
    #[default]
    Atomic,
    /// Items are scalars and unique.
    Set,
    /// Items are objects, keyed by [`Field::map_keys`].
    Map,
}

/// What only few fields have.
#[derive(Debug, Default, PartialEq)]
struct Extra {
    map_keys: Vec<&'static str>,
    merge_key: &'static str,
    choices: Vec<&'static str>,
    default: Option<&'static str>,
    strategies: &'static str,
}

/// A field of a definition.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// Upstream's schema requires it (it is written even when empty).
    pub required: bool,
    /// How server-side apply merges a list.
    pub list_type: ListType,
    /// Is `list_type` said, or only assumed?
    pub list_type_given: bool,
    /// `x-kubernetes-map-type: atomic`: a map that is replaced as a whole.
    pub atomic: bool,
    /// Strategic merge: `merge`.
    pub merge: bool,
    /// Strategic merge: `replace`.
    pub replace: bool,
    /// Strategic merge: `retainKeys`.
    pub retain_keys: bool,
    extra: Option<&'static Extra>,
}

impl Field {
    /// `x-kubernetes-list-map-keys`.
    pub fn map_keys(&self) -> &'static [&'static str] {
        self.extra.map_or(&[], |e| &e.map_keys)
    }
    /// `x-kubernetes-patch-merge-key`; empty when there is none.
    pub fn merge_key(&self) -> &'static str {
        self.extra.map_or("", |e| e.merge_key)
    }
    /// `x-kubernetes-patch-strategy` as upstream writes it (`merge,retainKeys`); empty when there is none.
    pub fn patch_strategy(&self) -> &'static str {
        self.extra.map_or("", |e| e.strategies)
    }
    /// The enumeration, if upstream's schema has one.
    pub fn choices(&self) -> &'static [&'static str] {
        self.extra.map_or(&[], |e| &e.choices)
    }
    /// The schema's default, as JSON text.
    pub fn default_json(&self) -> Option<&'static str> {
        self.extra.and_then(|e| e.default)
    }
}

/// A group, version and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gvk {
    /// Group, empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
}

/// `x-kubernetes-unions`.
#[derive(Debug)]
pub struct Union {
    /// Field that names the member in use; empty when there is none.
    pub discriminator: &'static str,
    /// Member fields.
    pub fields: Vec<&'static str>,
}

/// One definition.
#[derive(Debug)]
pub struct TypeDef {
    /// e.g. `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// Set when the definition is no struct but a scalar or free JSON (Quantity, Time, JSON).
    pub scalar: Option<Type>,
    /// `x-kubernetes-map-type: atomic`: server-side apply replaces it as a whole.
    pub atomic: bool,
    /// Fields, sorted by name.
    pub fields: &'static [Field],
    /// What it is served as; empty for parts.
    pub gvks: Vec<Gvk>,
    /// Unions.
    pub unions: Vec<Union>,
}

impl TypeDef {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| f.name.cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }
    /// The last part of the name, as Go's errors show it: `DeploymentSpec`.
    pub fn short(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
    /// The type as Go names it: `v1.DeploymentSpec`.
    pub fn go_name(&self) -> &'static str {
        let mut dots = self.name.rmatch_indices('.');
        dots.next();
        dots.next().map_or(self.name, |(i, _)| &self.name[i + 1..])
    }
    /// Does it carry apiVersion, kind and metadata?
    pub fn is_kind(&self) -> bool {
        !self.gvks.is_empty()
    }
}

struct Table {
    defs: Vec<TypeDef>,
    by_gvk: Vec<(Gvk, u16)>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| read(FACTS))
}

/// Makes one static copy of each nested element type.
#[derive(Default)]
struct Interner {
    types: BTreeMap<&'static str, &'static Type>,
}

impl Interner {
    fn parse(&mut self, text: &'static str, scalars: &[Option<Type>]) -> Type {
        match text.as_bytes().first() {
            Some(b's') => Type::String,
            Some(b'i') => Type::Int32,
            Some(b'l') => Type::Int64,
            Some(b'b') => Type::Bool,
            Some(b'f') => Type::Double,
            Some(b'q') => Type::Quantity,
            Some(b't') => Type::Time,
            Some(b'u') => Type::MicroTime,
            Some(b'o') => Type::IntOrString,
            Some(b'y') => Type::Bytes,
            Some(b'O' | b'E') => Type::Object,
            Some(b'{') => Type::Map(self.element(&text[1..], scalars)),
            Some(b'[') => Type::List(self.element(&text[1..], scalars)),
            Some(b'@') => {
                let id: u16 = text[1..].parse().unwrap_or(0);
                scalars
                    .get(id as usize)
                    .copied()
                    .flatten()
                    .unwrap_or(Type::Ref(DefId(id)))
            }
            _ => Type::Any,
        }
    }
    fn element(&mut self, text: &'static str, scalars: &[Option<Type>]) -> &'static Type {
        if let Some(t) = self.types.get(text) {
            return t;
        }
        let ty = self.parse(text, scalars);
        let leaked: &'static Type = Box::leak(Box::new(ty));
        self.types.insert(text, leaked);
        leaked
    }
}

fn read(text: &'static str) -> Table {
    let mut interner = Interner::default();
    // Scalars first: references to them become the scalar itself.
    let scalars: Vec<Option<Type>> = text
        .lines()
        .filter_map(|l| l.strip_prefix("D "))
        .map(|l| {
            let scalar = l.split(' ').find_map(|w| w.strip_prefix("S="))?;
            (scalar != "E").then(|| interner.parse(scalar, &[]))
        })
        .collect();
    // All fields in one allocation, the definitions hold parts of it: thousands of growing lists would leave holes.
    let count = text.lines().filter(|l| l.starts_with("F ")).count();
    let mut fields: Vec<Field> = Vec::with_capacity(count);
    let mut ends: Vec<usize> = Vec::with_capacity(scalars.len());
    let mut defs: Vec<TypeDef> = Vec::with_capacity(scalars.len());
    for line in text.lines() {
        let mut words = line.split(' ');
        let tag = words.next().unwrap_or("");
        if tag == "D" {
            ends.push(fields.len());
            defs.push(TypeDef {
                name: words.next().unwrap_or(""),
                scalar: scalars.get(defs.len()).copied().flatten(),
                atomic: words.any(|w| w == "M=atomic"),
                fields: &[],
                gvks: Vec::new(),
                unions: Vec::new(),
            });
            continue;
        }
        let Some(def) = defs.last_mut() else { continue };
        match tag {
            "G" => {
                let mut next = || words.next().unwrap_or("");
                let (group, version, kind) = (next(), next(), next());
                def.gvks.reserve_exact(1);
                def.gvks.push(Gvk {
                    group: if group == "-" { "" } else { group },
                    version,
                    kind,
                });
            }
            "U" => {
                let d = words.next().unwrap_or("-");
                def.unions.push(Union {
                    discriminator: if d == "-" { "" } else { d },
                    fields: words.collect(),
                });
            }
            "F" => {
                let name = words.next().unwrap_or("");
                let ty = interner.parse(words.next().unwrap_or("*"), &scalars);
                fields.push(field(name, ty, words));
            }
            _ => {}
        }
    }
    let fields: &'static [Field] = Vec::leak(fields);
    ends.push(fields.len());
    for (d, w) in defs.iter_mut().zip(ends.windows(2)) {
        d.fields = &fields[w[0]..w[1]];
    }
    let mut by_gvk: Vec<(Gvk, u16)> = Vec::new();
    for (i, d) in defs.iter().enumerate() {
        by_gvk.extend(d.gvks.iter().map(|g| (*g, i as u16)));
    }
    by_gvk.sort();
    Table { defs, by_gvk }
}

fn field(name: &'static str, ty: Type, words: std::str::Split<'static, char>) -> Field {
    let mut f = Field {
        name,
        ty,
        required: false,
        list_type: ListType::Atomic,
        list_type_given: false,
        atomic: false,
        merge: false,
        replace: false,
        retain_keys: false,
        extra: None,
    };
    let mut extra = Extra::default();
    for word in words {
        match word.split_once('=') {
            None if word == "r" => f.required = true,
            None if word == "a" => f.atomic = true,
            Some(("t", t)) => {
                f.list_type_given = true;
                f.list_type = match t {
                    "set" => ListType::Set,
                    "map" => ListType::Map,
                    _ => ListType::Atomic,
                };
            }
            Some(("k", keys)) => extra.map_keys = keys.split(',').collect(),
            Some(("s", strategies)) => {
                extra.strategies = strategies;
                for s in strategies.split(',') {
                    f.merge |= s == "merge";
                    f.replace |= s == "replace";
                    f.retain_keys |= s == "retainKeys";
                }
            }
            Some(("m", key)) => extra.merge_key = key,
            Some(("e", choices)) => extra.choices = choices.split(',').collect(),
            Some(("d", json)) => extra.default = Some(json),
            _ => {}
        }
    }
    if extra != Extra::default() {
        extra.map_keys.shrink_to_fit();
        f.extra = Some(Box::leak(Box::new(extra)));
    }
    f
}

/// The definition of that name, e.g. `io.k8s.api.core.v1.Pod`.
pub fn find(name: &str) -> Option<&'static TypeDef> {
    let t = table();
    t.defs
        .binary_search_by(|d| d.name.cmp(name))
        .ok()
        .map(|i| &t.defs[i])
}

/// The definition of that name; a definition without fields, which knows nothing, when there is none (a wrong name in a
/// row is a mistake of ours that a test finds).
pub fn lookup(name: &str) -> &'static TypeDef {
    static NONE: TypeDef = TypeDef {
        name: "unknown",
        scalar: Some(Type::Any),
        atomic: false,
        fields: &[],
        gvks: Vec::new(),
        unions: Vec::new(),
    };
    find(name).unwrap_or(&NONE)
}

/// The definition served as that group, version and kind (kinds like DeleteOptions are served as many).
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static TypeDef> {
    let t = table();
    t.by_gvk
        .binary_search_by(|(g, _)| (g.group, g.version, g.kind).cmp(&(group, version, kind)))
        .ok()
        .map(|i| &t.defs[t.by_gvk[i].1 as usize])
}

/// Every definition, sorted by name.
pub fn all() -> &'static [TypeDef] {
    &table().defs
}

/// `io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta`.
pub fn object_meta() -> &'static TypeDef {
    static DEF: OnceLock<&'static TypeDef> = OnceLock::new();
    DEF.get_or_init(|| lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_fields_and_merge_keys() {
        let pod = lookup("io.k8s.api.core.v1.Pod");
        assert_eq!(pod.go_name(), "v1.Pod");
        let spec = pod.field("spec").and_then(|f| f.ty.def()).expect("spec");
        assert_eq!(spec.short(), "PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert!(containers.merge && containers.required);
        assert_eq!(containers.merge_key(), "name");
        assert_eq!(containers.list_type, ListType::Map);
        assert_eq!(containers.map_keys(), ["name"]);
        let volumes = spec.field("volumes").expect("volumes");
        assert!(volumes.merge && volumes.retain_keys);
        assert!(spec.field("nodeSelector").expect("nodeSelector").atomic);
    }

    #[test]
    fn every_row_has_a_definition() {
        for r in crate::kinds::builtin() {
            assert!(
                find(&r.schema).is_some(),
                "{} has no definition {}",
                r.kind,
                r.schema
            );
            for s in &r.subresources {
                let known =
                    by_gvk(&s.group, &s.version, &s.kind).is_some() || s.kind.ends_with("Options");
                assert!(
                    known,
                    "{}/{}: {} {} {}",
                    r.plural, s.name, s.group, s.version, s.kind
                );
            }
        }
    }

    #[test]
    fn definitions_are_sorted_and_references_resolve() {
        for w in all().windows(2) {
            assert!(w[0].name < w[1].name);
        }
        for d in all() {
            for w in d.fields.windows(2) {
                assert!(w[0].name < w[1].name, "{}", d.name);
            }
            for f in d.fields {
                let mut ty = &f.ty;
                while let Some(e) = ty.element() {
                    ty = e;
                }
                if let Some(target) = ty.def() {
                    assert!(target.scalar.is_none(), "{}.{}", d.name, f.name);
                }
            }
        }
    }

    #[test]
    fn scalars_are_told_from_structs() {
        let meta = object_meta();
        assert_eq!(
            meta.field("creationTimestamp").map(|f| f.ty),
            Some(Type::Time)
        );
        let port = lookup("io.k8s.api.core.v1.ServicePort");
        assert_eq!(
            port.field("targetPort").map(|f| f.ty),
            Some(Type::IntOrString)
        );
        let secret = lookup("io.k8s.api.core.v1.Secret");
        assert_eq!(
            secret.field("data").map(|f| f.ty),
            Some(Type::Map(&Type::Bytes))
        );
        assert!(by_gvk("apps", "v1", "Deployment").is_some());
    }
}
