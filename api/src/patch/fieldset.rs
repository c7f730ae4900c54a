//! Sets of fields, as `metadata.managedFields[].fieldsV1` writes them: a tree whose edges are path elements (`f:name`,
//! `k:{"name":"a"}`, `v:"x"`). Owns the algebra on them and the walk of objects along the schema; knows no managers.

use crate::schema::{Field, ListType, Type, TypeDef};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// A node of the tree; the empty root is the empty set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Set {
    /// The path that leads here belongs to the set.
    pub member: bool,
    /// What lies below, by path element.
    pub children: BTreeMap<String, Set>,
}

/// Keys inside `k:` and values inside `v:` in one spelling, so that clients' spacing and order do not matter.
fn canonical(element: &str) -> String {
    for prefix in ["k:", "v:"] {
        if let Some(json) = element.strip_prefix(prefix)
            && let Ok(v) = serde_json::from_str::<Value>(json)
        {
            return match v {
                Value::Object(o) => {
                    let sorted: BTreeMap<String, Value> = o.into_iter().collect();
                    key_element(&sorted)
                }
                other => format!("{prefix}{other}"),
            };
        }
    }
    element.to_string()
}

fn key_element(keys: &BTreeMap<String, Value>) -> String {
    let mut s = String::from("k:{");
    for (i, (k, v)) in keys.iter().enumerate() {
        if i > 0 {
            s.push(',');
        }
        s.push_str(&Value::from(k.as_str()).to_string());
        s.push(':');
        s.push_str(&v.to_string());
    }
    s.push('}');
    s
}

impl Set {
    /// Reads `fieldsV1`.
    pub fn from_json(v: &Value) -> Self {
        let mut set = Self::default();
        for (k, child) in v.as_object().into_iter().flatten() {
            if k == "." {
                set.member = true;
                continue;
            }
            let mut c = Self::from_json(child);
            if c.is_empty() {
                c.member = true;
            }
            set.children.insert(canonical(k), c);
        }
        set
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (k, c) in &self.children {
            if !c.is_empty() {
                out.insert(k.clone(), c.to_json());
            }
        }
        Value::Object(out)
    }

    /// Has it no member?
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Set::is_empty)
    }

    fn tidy(mut self) -> Self {
        self.children.retain(|_, c| !c.is_empty());
        self
    }

    /// Members of either.
    pub fn union(mut self, other: &Set) -> Self {
        self.member |= other.member;
        for (k, c) in &other.children {
            let mine = self.children.remove(k).unwrap_or_default();
            self.children.insert(k.clone(), mine.union(c));
        }
        self
    }

    /// Members that the other lacks.
    pub fn difference(mut self, other: &Set) -> Self {
        self.member &= !other.member;
        for (k, c) in &mut self.children {
            if let Some(o) = other.children.get(k) {
                *c = std::mem::take(c).difference(o);
            }
        }
        self.tidy()
    }

    /// Members of both.
    pub fn intersection(&self, other: &Set) -> Self {
        Self {
            member: self.member && other.member,
            children: self
                .children
                .iter()
                .filter_map(|(k, c)| Some((k.clone(), c.intersection(other.children.get(k)?))))
                .collect(),
        }
        .tidy()
    }

    /// Removes the top-level fields and all below them.
    pub fn without(mut self, fields: &[&str]) -> Self {
        for f in fields {
            self.children.remove(&format!("f:{f}"));
        }
        self
    }

    /// The paths of the members as conflicts show them: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, at: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(at.to_string());
        }
        for (k, c) in &self.children {
            c.collect(&format!("{at}{}", shown(k)), out);
        }
    }
}

fn shown(element: &str) -> String {
    if let Some(f) = element.strip_prefix("f:") {
        return format!(".{f}");
    }
    if let Some(v) = element.strip_prefix("v:") {
        return format!("[={v}]");
    }
    if let Some(i) = element.strip_prefix("i:") {
        return format!("[{i}]");
    }
    let keys: Map<String, Value> = element
        .strip_prefix("k:")
        .and_then(|j| serde_json::from_str(j).ok())
        .unwrap_or_default();
    let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
    format!("[{}]", parts.join(","))
}

/// How a value merges.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A struct: field by field.
    Struct(&'static TypeDef),
    /// A map: entry by entry.
    Map(&'static Type),
    /// A list of objects with keys.
    Keyed(&'static Type, &'static [&'static str]),
    /// A list of one-key objects by patch merge key.
    KeyedBy(&'static Type, &'static str),
    /// A list of unique scalars.
    Set(&'static Type),
    /// As a whole.
    Leaf,
    /// Not said: objects entry by entry, all else as a whole.
    Free,
}

impl Shape {
    /// The shape of a whole object.
    pub fn object(schema: Option<&'static TypeDef>) -> Self {
        schema.map_or(Shape::Free, Shape::Struct)
    }
    fn of(ty: &'static Type) -> Self {
        match ty {
            Type::Ref(id) if id.get().atomic => Shape::Leaf,
            Type::Ref(id) => Shape::Struct(id.get()),
            Type::Map(t) => Shape::Map(t),
            Type::Any | Type::Object => Shape::Free,
            _ => Shape::Leaf,
        }
    }
    fn field(f: &'static Field) -> Self {
        match &f.ty {
            Type::List(t) => match f.list_type {
                ListType::Set => Shape::Set(t),
                ListType::Map => Shape::Keyed(t, f.map_keys()),
                // Without a list type the patch strategy decides (kube-openapi's schemaconv).
                ListType::Atomic if !f.list_type_given && f.merge => match f.merge_key() {
                    "" => Shape::Set(t),
                    key => Shape::KeyedBy(t, key),
                },
                ListType::Atomic => Shape::Leaf,
            },
            _ if f.atomic => Shape::Leaf,
            ty => Shape::of(ty),
        }
    }
    /// The shape below a key of an object, and whether the schema names that key.
    fn below(self, key: &str) -> (Self, bool) {
        match self {
            Shape::Struct(def) => def
                .field(key)
                .map_or((Shape::Free, false), |f| (Shape::field(f), true)),
            Shape::Map(t) => (Shape::of(t), false),
            _ => (Shape::Free, false),
        }
    }
    /// Is it merged entry by entry, as an object?
    fn granular(self, v: &Value) -> bool {
        match self {
            Shape::Struct(_) | Shape::Map(_) | Shape::Free => v.is_object(),
            _ => false,
        }
    }
    /// The items of an associative list with their path elements; none for other values.
    fn items(self, v: &Value) -> Option<Vec<(String, &Value)>> {
        let list = v.as_array()?;
        match self {
            Shape::Set(_) => Some(list.iter().map(|x| (format!("v:{x}"), x)).collect()),
            Shape::Keyed(_, keys) => Some(list.iter().map(|x| (keyed(x, keys), x)).collect()),
            Shape::KeyedBy(_, key) => Some(list.iter().map(|x| (keyed(x, &[key]), x)).collect()),
            _ => None,
        }
    }
    fn item(self) -> Self {
        match self {
            Shape::Keyed(t, _) | Shape::KeyedBy(t, _) => Shape::of(t),
            _ => Shape::Leaf,
        }
    }
    fn keys(self) -> &'static [&'static str] {
        match self {
            Shape::Keyed(_, keys) => keys,
            _ => &[],
        }
    }
    fn is_key(self, field: &str) -> bool {
        match self {
            Shape::KeyedBy(_, key) => key == field,
            _ => self.keys().contains(&field),
        }
    }
}

/// `k:{...}` of an item. A key that is missing has its default: of all keys upstream only `protocol` has one.
fn keyed(item: &Value, keys: &[&str]) -> String {
    let map: BTreeMap<String, Value> = keys
        .iter()
        .filter_map(|k| match item.get(*k) {
            Some(v) => Some(((*k).to_string(), v.clone())),
            None if *k == "protocol" => Some(((*k).to_string(), "TCP".into())),
            None => None,
        })
        .collect();
    key_element(&map)
}

/// The set of fields that an object has (structured-merge-diff's ToFieldSet).
pub fn fields_of(v: &Value, shape: Shape) -> Set {
    let mut set = Set::default();
    collect(v, shape, &mut set);
    set
}

fn collect(v: &Value, shape: Shape, at: &mut Set) {
    if shape.granular(v) {
        for (k, x) in v.as_object().into_iter().flatten() {
            let (below, named) = shape.below(k);
            let node = at.children.entry(format!("f:{k}")).or_default();
            collect(x, below, node);
            let hollow = x.is_null() || x.as_object().is_some_and(Map::is_empty);
            // In free JSON nothing is named, and only leaves are members.
            node.member |= hollow || (!named && matches!(shape, Shape::Map(_)));
        }
    } else if let Some(items) = shape.items(v) {
        for (element, x) in items {
            let node = at.children.entry(element).or_default();
            collect(x, shape.item(), node);
            node.member = true;
        }
    } else {
        at.member = true;
    }
}

/// The leaves that both objects have with different values.
pub fn modified(old: &Value, new: &Value, shape: Shape) -> Set {
    let mut set = Set::default();
    differ(old, new, shape, &mut set);
    set.tidy()
}

fn differ(old: &Value, new: &Value, shape: Shape, at: &mut Set) {
    if shape.granular(old) && shape.granular(new) {
        for (k, n) in new.as_object().into_iter().flatten() {
            if let Some(o) = old.get(k) {
                differ(
                    o,
                    n,
                    shape.below(k).0,
                    at.children.entry(format!("f:{k}")).or_default(),
                );
            }
        }
    } else if let (Some(o), Some(n)) = (shape.items(old), shape.items(new)) {
        let mut before = HashMap::with_capacity(o.len());
        for (element, y) in o {
            before.entry(element).or_insert(y);
        }
        for (element, x) in n {
            if let Some(y) = before.get(&element) {
                differ(y, x, shape.item(), at.children.entry(element).or_default());
            }
        }
    } else if old != new {
        at.member = true;
    }
}

/// Merges what is applied into the live object: applied leaves win, lists with keys merge by them, in the applied
/// order where both have an item.
pub fn merge(live: &Value, applied: &Value, shape: Shape) -> Value {
    if shape.granular(applied) {
        let mut out = match live {
            Value::Object(o) => o.clone(),
            _ => Map::new(),
        };
        for (k, x) in applied.as_object().into_iter().flatten() {
            let merged = merge(out.get(k).unwrap_or(&Value::Null), x, shape.below(k).0);
            out.insert(k.clone(), merged);
        }
        return Value::Object(out);
    }
    let Some(right) = shape.items(applied) else {
        return applied.clone();
    };
    let left = shape.items(live).unwrap_or_default();
    // Where each element is first: lists may be long, and each item is looked for.
    let places = |list: &[(String, &Value)]| {
        let mut map = HashMap::with_capacity(list.len());
        for (i, (element, _)) in list.iter().enumerate() {
            map.entry(element.clone()).or_insert(i);
        }
        map
    };
    let (in_left, in_right) = (places(&left), places(&right));
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && !in_right.contains_key(&left[l].0) {
            out.push(left[l].1.clone());
            l += 1;
            continue;
        }
        if l < left.len()
            && (r >= right.len() || left[l].0 != right[r].0)
            && in_right.get(&left[l].0).is_some_and(|i| *i < r)
        {
            // Placed already, where the applied order wanted it.
            l += 1;
            continue;
        }
        if r >= right.len() {
            break;
        }
        let (element, item) = &right[r];
        let below = in_left.get(element).map_or(&Value::Null, |i| left[*i].1);
        out.push(merge(below, item, shape.item()));
        if l < left.len() && left[l].0 == *element {
            l += 1;
        }
        r += 1;
    }
    Value::Array(out)
}

/// Removes the members of `gone` that lead to no member of `kept`; keys of list items that stay are kept too.
pub fn remove(v: &mut Value, shape: Shape, gone: &Set, kept: &Set) {
    static EMPTY: Set = Set {
        member: false,
        children: BTreeMap::new(),
    };
    if shape.granular(v) {
        let Value::Object(map) = v else { return };
        map.retain(|k, x| {
            let element = format!("f:{k}");
            let Some(g) = gone.children.get(&element) else {
                return true;
            };
            let keep = kept.children.get(&element).unwrap_or(&EMPTY);
            let (below, named) = shape.below(k);
            // A named field that the manager had something below counts as its own (EnsureNamedFieldsAreMembers).
            if keep.is_empty() && (g.member || (named && !g.is_empty())) {
                return false;
            }
            remove(x, below, g, keep);
            true
        });
    } else if let Some(items) = shape.items(v) {
        let elements: Vec<String> = items.into_iter().map(|(e, _)| e).collect();
        let Value::Array(list) = v else { return };
        let mut i = 0;
        list.retain_mut(|x| {
            let element = &elements[i];
            i += 1;
            let Some(g) = gone.children.get(element) else {
                return true;
            };
            let keep = kept.children.get(element).unwrap_or(&EMPTY);
            if g.member && keep.is_empty() {
                return false;
            }
            let mut g = g.clone();
            g.children
                .retain(|e, _| !e.strip_prefix("f:").is_some_and(|f| shape.is_key(f)));
            remove(x, shape.item(), &g, keep);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::lookup;
    use serde_json::json;

    fn pod() -> Shape {
        Shape::object(Some(lookup("io.k8s.api.core.v1.Pod")))
    }

    #[test]
    fn fields_are_written_as_upstream_writes_them() {
        let v = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x"]}, "spec": {"containers": [{"name": "c", "image": "i", "command": ["a", "b"], "ports": [{"containerPort": 80}]}],
            "nodeSelector": {"a": "b"}, "securityContext": {}}});
        let set = fields_of(&v, pod());
        assert_eq!(
            set.to_json(),
            json!({
                "f:metadata": {"f:finalizers": {"v:\"x\"": {}}, "f:labels": {"f:a": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:command": {}, "f:image": {}, "f:name": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
                    "f:nodeSelector": {},
                    "f:securityContext": {},
                },
            })
        );
        assert_eq!(Set::from_json(&set.to_json()), set);
        assert!(
            set.paths()
                .contains(&".spec.containers[name=\"c\"].image".to_string())
        );
    }

    #[test]
    fn the_algebra_holds() {
        let a = Set::from_json(&json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}));
        let b = Set::from_json(&json!({"f:b": {"f:c": {}}}));
        assert_eq!(
            a.clone().difference(&b),
            Set::from_json(&json!({"f:a": {}, "f:b": {}}))
        );
        assert_eq!(a.intersection(&b), b);
        assert_eq!(a.clone().difference(&b).union(&b), a);
        assert!(b.clone().difference(&b).is_empty());
    }

    #[test]
    fn other_spellings_of_keys_are_the_same() {
        assert_eq!(
            Set::from_json(&json!({"k:{ \"b\": 1, \"a\":\"x\"}": {}})),
            Set::from_json(&json!({"k:{\"a\":\"x\",\"b\":1}": {}}))
        );
    }

    #[test]
    fn lists_merge_by_key_in_the_applied_order() {
        let got = merge(
            &json!({"spec": {"containers": [{"name": "s"}, {"name": "a", "image": "1"}, {"name": "b"}]}}),
            &json!({"spec": {"containers": [{"name": "b"}, {"name": "n"}, {"name": "a", "image": "2"}]}}),
            pod(),
        );
        let names: Vec<&str> = got["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(names, ["s", "b", "n", "a"]);
        assert_eq!(got["spec"]["containers"][3]["image"], "2");
    }
}
