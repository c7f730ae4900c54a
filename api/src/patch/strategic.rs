//! Strategic merge patch: merge patch with directives, where lists merge by the keys of the schema facts. Follows
//! `k8s.io/apimachinery/pkg/util/strategicpatch` as the API server uses it (parallel lists merged, unmatched nulls
//! ignored).

use crate::schema::{Field, Type, TypeDef};
use crate::status::Status;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";
const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_ORDER: &str = "invalid patch format of setElementOrder list";

/// Applies the patch of a request body (JSON or YAML) to the current object of that definition. 400 when the patch is
/// malformed, 422 when it does not fit the object.
pub fn apply(current: &Value, patch: &[u8], schema: &'static TypeDef) -> Result<Value, Status> {
    let patch = super::parse(patch)?;
    apply_value(current, patch, schema)
}

/// The same with a parsed patch.
pub fn apply_value(
    current: &Value,
    patch: Value,
    schema: &'static TypeDef,
) -> Result<Value, Status> {
    let (Value::Object(original), Value::Object(patch)) = (current.clone(), patch) else {
        return Err(Status::bad_request(
            "invalid JSON document: a strategic merge patch must be an object",
        ));
    };
    merge_map(original, patch, Shape::Struct(schema)).map(Value::Object)
}

/// What the schema says of a map: its struct, the type of its values, or nothing.
#[derive(Clone, Copy)]
enum Shape {
    Struct(&'static TypeDef),
    Values(&'static Type),
    Unknown,
}

impl Shape {
    fn of(ty: &'static Type) -> Self {
        match ty {
            Type::Ref(id) => Shape::Struct(id.get()),
            Type::Map(t) => Shape::Values(t),
            _ => Shape::Unknown,
        }
    }
    fn field(self, key: &str) -> Option<&'static Field> {
        match self {
            Shape::Struct(def) => def.field(key),
            _ => None,
        }
    }
    /// The shape of a map below `key`.
    fn below(self, key: &str) -> Self {
        match self {
            Shape::Struct(def) => def.field(key).map_or(Shape::Unknown, |f| Shape::of(&f.ty)),
            Shape::Values(t) => Shape::of(t),
            Shape::Unknown => Shape::Unknown,
        }
    }
    /// The shape of the items of the list below `key`.
    fn items(self, key: &str) -> Self {
        let ty = match self {
            Shape::Struct(def) => def.field(key).map(|f| &f.ty),
            Shape::Values(t) => Some(t),
            Shape::Unknown => None,
        };
        match ty {
            Some(Type::List(t)) => Shape::of(t),
            _ => Shape::Unknown,
        }
    }
}

type Object = Map<String, Value>;

fn no_merge_key(map: &Object, key: &str) -> Status {
    super::unprocessable(format!(
        "map: {} does not contain declared merge key: {key}",
        Value::Object(map.clone())
    ))
}

fn bad_directive(directive: &Value) -> Status {
    super::unprocessable(format!(
        "unknown patch type: {directive} (must be replace, merge or delete)"
    ))
}

fn merge_map(mut original: Object, mut patch: Object, shape: Shape) -> Result<Object, Status> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.shift_remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_directive(directive)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
            let Value::Array(gone) = value else {
                return Err(Status::bad_request(BAD_PRIMITIVE_LIST));
            };
            if let Some(Value::Array(have)) = original.get_mut(list) {
                let gone = Places::of(&gone, "");
                have.retain(|v| !gone.has(v, ""));
            }
            continue;
        }
        if value.is_null() {
            original.shift_remove(&key);
            continue;
        }
        let Some(slot) = original.get_mut(&key) else {
            if let Some(v) = fresh(value) {
                original.insert(key, v);
            }
            continue;
        };
        *slot = match (slot.take(), value) {
            (Value::Object(o), Value::Object(p)) => {
                if shape.field(&key).is_some_and(|f| f.replace) {
                    fresh(Value::Object(p)).unwrap_or_else(|| Value::Object(Object::new()))
                } else {
                    Value::Object(merge_map(o, p, shape.below(&key))?)
                }
            }
            (Value::Array(o), Value::Array(p)) => match shape.field(&key).filter(|f| f.merge) {
                Some(f) => Value::Array(merge_list(o, p, f.merge_key(), shape.items(&key))?),
                None => Value::Array(p),
            },
            (_, p) => p,
        };
    }
    Ok(original)
}

/// A part of a patch that meets nothing in the object: directives and nulls have nothing to act on.
fn fresh(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            Some(Value::Object(
                map.into_iter()
                    .filter(|(k, _)| !k.starts_with('$') || !is_directive(k))
                    .filter_map(|(k, v)| Some((k, fresh(v)?)))
                    .collect(),
            ))
        }
        Value::Array(items) => Some(Value::Array(
            items
                .into_iter()
                .filter_map(fresh)
                .filter(|v| {
                    // `[{"$patch": "replace"}]` says replace; nothing of it stays.
                    !v.as_object().is_some_and(|o| o.is_empty()) || !v.is_object()
                })
                .collect(),
        )),
        v => Some(v),
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(DELETE_PRIMITIVES)
        || key.starts_with(ELEMENT_ORDER)
}

/// `$retainKeys`: what the list does not name goes; the patch may only hold keys that it names.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(Status::bad_request(BAD_RETAIN_KEYS));
    };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let named = |k: &str| keys.contains(k);
    for (k, v) in patch.iter() {
        let list_directive = k.starts_with(DELETE_PRIMITIVES) || k.starts_with(ELEMENT_ORDER);
        if !v.is_null() && !list_directive && !named(k) {
            return Err(Status::bad_request(BAD_RETAIN_KEYS));
        }
    }
    original.retain(|k, _| named(k));
    Ok(())
}

/// `$setElementOrder/x`: merges the list x of both and sorts it: the order of the directive wins over the order of the
/// object, items that only the object has keep their place beside their neighbours.
fn set_element_order(
    original: &mut Object,
    patch: &mut Object,
    shape: Shape,
) -> Result<(), Status> {
    let orders: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in orders {
        let Some(Value::Array(order)) = patch.shift_remove(&directive) else {
            return Err(Status::bad_request(BAD_ORDER));
        };
        let key = &directive[ELEMENT_ORDER.len()..];
        let list = |v: Option<Value>| match v {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(_) => Err(Status::bad_request(BAD_ORDER)),
        };
        let merge_key = shape.field(key).map_or("", Field::merge_key);
        let removes = patch.get(key).is_some_and(Value::is_null);
        let in_patch = list(patch.shift_remove(key))?;
        if removes {
            original.shift_remove(key);
            continue;
        }
        let mut before = list(original.get(key).cloned())?;
        check_order(in_patch.as_deref().unwrap_or(&[]), &order, merge_key)?;
        if let Some(Value::Array(gone)) = patch.shift_remove(&format!("{DELETE_PRIMITIVES}{key}"))
            && let Some(b) = before.as_mut()
        {
            let gone = Places::of(&gone, "");
            b.retain(|v| !gone.has(v, ""));
        }
        let server_order = before.clone().unwrap_or_default();
        let merged = match (before, in_patch) {
            (None, None) => continue,
            (Some(b), None) => b,
            (None, Some(p)) => match fresh(Value::Array(p)) {
                Some(Value::Array(p)) => p,
                _ => Vec::new(),
            },
            (Some(b), Some(p)) => match shape.field(key).filter(|f| f.merge) {
                Some(_) => merge_list(b, p, merge_key, shape.items(key))?,
                None => p,
            },
        };
        original.insert(
            key.to_string(),
            Value::Array(in_order(merged, &order, &server_order, merge_key)),
        );
    }
    Ok(())
}

/// The items of the patch must be in the order list, in its order.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), Status> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|v| v.get(DIRECTIVE).is_none()) {
        if !merge_key.is_empty()
            && let Some(map) = item.as_object()
            && !map.contains_key(merge_key)
        {
            return Err(no_merge_key(map, merge_key));
        }
        if !rest.any(|o| same(o, item, merge_key)) {
            return Err(super::unprocessable(format!(
                "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                Value::from(patch.to_vec()),
                ELEMENT_ORDER.trim_end_matches('/'),
                Value::from(order.to_vec())
            )));
        }
    }
    Ok(())
}

/// Are two items the same by key (or, of scalars, by value)?
fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        return a == b;
    }
    match (a.get(merge_key), b.get(merge_key)) {
        (Some(x), Some(y)) => x == y,
        _ => false,
    }
}

fn merge_list(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
    items: Shape,
) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let kind = |v: &Value| (v.is_object(), v.is_array());
    let first = original.iter().chain(&patch).next().map(kind);
    if first.is_some_and(|(_, list)| list) {
        return Err(super::unprocessable("lists of lists are not supported"));
    }
    if original
        .iter()
        .chain(&patch)
        .any(|v| Some(kind(v)) != first)
    {
        return Err(super::unprocessable("list element types are not identical"));
    }
    let server_order = original.clone();
    if first.is_some_and(|(object, _)| !object) {
        let mut seen = HashSet::new();
        let merged = original
            .into_iter()
            .chain(patch.iter().cloned())
            .filter(|v| seen.insert(v.to_string()))
            .collect();
        return Ok(in_order(merged, &patch, &server_order, ""));
    }
    if merge_key.is_empty() {
        return Err(super::unprocessable("cannot merge lists without merge key"));
    }
    // Directives among the items.
    let mut plain: Vec<Object> = Vec::new();
    let mut gone: Vec<Value> = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(item) = item else { continue };
        let Some(directive) = item.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                if item.get(merge_key).is_none() {
                    return Err(no_merge_key(&item, merge_key));
                }
                gone.push(Value::Object(item));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(super::unprocessable(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            _ => return Err(bad_directive(directive)),
        }
    }
    if !gone.is_empty() {
        let gone = Places::of(&gone, merge_key);
        original.retain(|o| !gone.has(o, merge_key));
    }
    if replace {
        return Ok(plain.into_iter().map(Value::Object).collect());
    }
    let order: Vec<Value> = plain
        .iter()
        .map(|p| {
            Value::Object(
                p.iter()
                    .filter(|(k, _)| *k == merge_key)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            )
        })
        .collect();
    let mut places = Places::of(&original, merge_key);
    for item in plain {
        let Some(id) = item.get(merge_key).map(Value::to_string) else {
            return Err(no_merge_key(&item, merge_key));
        };
        match places.find(Some(&id)).and_then(|i| original.get_mut(i)) {
            Some(slot) => {
                if let Value::Object(o) = slot.take() {
                    *slot = Value::Object(merge_map(o, item, items)?);
                }
            }
            None => {
                // An item that is named twice is merged into itself.
                places.0.insert(id, original.len());
                original.extend(fresh(Value::Object(item)));
            }
        }
    }
    Ok(in_order(original, &order, &server_order, merge_key))
}

/// Upstream's normalizeElementOrder: items that `order` names come in its order, the others in the object's order, and
/// both are merged so that neighbours which the object had in some order keep it.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    let order = Places::of(order, merge_key);
    let server = Places::of(server_order, merge_key);
    let (named, others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .map(|v| {
            let id = identity(&v, merge_key);
            (order.find(id.as_deref()), server.find(id.as_deref()), v)
        })
        .partition(|(o, _, _)| o.is_some());
    let (mut named, mut others) = (named, others);
    named.sort_by_key(|(o, _, _)| *o);
    others.sort_by_key(|(_, s, _)| s.unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    loop {
        let other_first = match (named.peek(), others.peek()) {
            (None, None) => break,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some((_, Some(a), _)), Some((_, Some(b), _))) => a > b,
            (Some(_), Some(_)) => false,
        };
        let next = if other_first {
            others.next()
        } else {
            named.next()
        };
        out.extend(next.map(|(_, _, v)| v));
    }
    out
}

/// What makes items the same ([`same`]), as text that can be looked up; none for an item without the key, which is like no
/// other.
fn identity(v: &Value, merge_key: &str) -> Option<String> {
    if merge_key.is_empty() {
        return Some(v.to_string());
    }
    v.get(merge_key).map(Value::to_string)
}

/// Where the items of a list are, by their identity: lists may be long, and each item is looked for.
struct Places(HashMap<String, usize>);

impl Places {
    fn of<'a>(list: impl IntoIterator<Item = &'a Value>, merge_key: &str) -> Self {
        let mut map = HashMap::new();
        for (i, v) in list.into_iter().enumerate() {
            if let Some(id) = identity(v, merge_key) {
                map.entry(id).or_insert(i);
            }
        }
        Self(map)
    }
    fn find(&self, id: Option<&str>) -> Option<usize> {
        self.0.get(id?).copied()
    }
    fn has(&self, v: &Value, merge_key: &str) -> bool {
        self.find(identity(v, merge_key).as_deref()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::lookup;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(current: Value, patch: Value) -> Result<Value, Status> {
        apply(
            &current,
            patch.to_string().as_bytes(),
            lookup("io.k8s.api.core.v1.Pod"),
        )
    }
    fn spec(current: Value, patch: Value) -> Value {
        pod(json!({"spec": current}), json!({"spec": patch})).expect("patched")["spec"].take()
    }

    #[test]
    fn lists_with_a_merge_key_merge_by_it() {
        let got = spec(
            json!({"containers": [{"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]}, {"name": "b", "image": "y"}]}),
            json!({"containers": [{"name": "b", "image": "z"}, {"name": "c", "image": "w"}, {"name": "a", "env": [{"name": "L", "value": "2"}]}]}),
        );
        assert_eq!(
            got,
            json!({"containers": [{"name": "b", "image": "z"}, {"name": "c", "image": "w"},
                {"name": "a", "image": "x", "env": [{"name": "L", "value": "2"}, {"name": "K", "value": "1"}]}]})
        );
    }

    #[test]
    fn lists_without_a_merge_key_are_replaced() {
        let got = spec(
            json!({"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"key": "a"}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}),
        );
        assert_eq!(
            got,
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]})
        );
    }

    #[test]
    fn nulls_remove_and_unmatched_nulls_are_ignored() {
        assert_eq!(
            pod(
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null, "c": null}, "annotations": {"x": null}}})
            ),
            Ok(json!({"metadata": {"labels": {"b": "2"}, "annotations": {}}}))
        );
    }

    #[test]
    fn items_are_deleted_by_directive() {
        let have = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(
            spec(
                have.clone(),
                json!({"containers": [{"name": "a", "$patch": "delete"}]})
            ),
            json!({"containers": [{"name": "b"}]})
        );
        assert_eq!(
            spec(
                have.clone(),
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})
            ),
            json!({"containers": [{"name": "z"}]})
        );
        assert_eq!(
            spec(have.clone(), json!({"$patch": "replace", "nodeName": "n"})),
            json!({"nodeName": "n"})
        );
        assert_eq!(spec(have.clone(), json!({"$patch": "delete"})), json!({}));
        assert_eq!(
            pod(
                json!({"spec": have.clone()}),
                json!({"spec": {"$patch": "x"}})
            )
            .unwrap_err()
            .code,
            422
        );
        assert_eq!(
            pod(
                json!({"spec": have.clone()}),
                json!({"spec": {"containers": [{"image": "x"}]}})
            )
            .unwrap_err()
            .code,
            422
        );
        assert_eq!(pod(json!({"spec": have}), json!([])).unwrap_err().code, 400);
    }

    #[test]
    fn retained_keys_drop_the_rest() {
        let got = spec(
            json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        );
        assert_eq!(
            got,
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}, {"name": "w", "emptyDir": {}}]})
        );
        let d = lookup("io.k8s.api.apps.v1.Deployment");
        let strategy = |p: Value| {
            apply_value(
                &json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": p}}),
                d,
            )
        };
        assert_eq!(
            strategy(json!({"$retainKeys": ["type"], "type": "Recreate"})),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        assert_eq!(
            strategy(json!({"$retainKeys": ["type"], "x": 1}))
                .unwrap_err()
                .message,
            "invalid patch format of retainKeys"
        );
    }

    #[test]
    fn primitive_lists_are_sets() {
        let have = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
        assert_eq!(
            pod(
                have.clone(),
                json!({"metadata": {"finalizers": ["d", "b"]}})
            ),
            Ok(json!({"metadata": {"finalizers": ["d", "a", "b", "c"]}}))
        );
        assert_eq!(
            pod(
                have.clone(),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a", "x"]}})
            ),
            Ok(json!({"metadata": {"finalizers": ["b", "c"]}}))
        );
        assert_eq!(
            pod(
                have,
                json!({"metadata": {"$setElementOrder/finalizers": ["c", "d"], "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["d"]}})
            ),
            Ok(json!({"metadata": {"finalizers": ["b", "c", "d"]}}))
        );
    }

    #[test]
    fn the_order_directive_orders() {
        let have = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        assert_eq!(
            spec(
                have.clone(),
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "x"}]})
            ),
            json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a", "image": "x"}]})
        );
        // What kubectl apply sends to add, change and remove at once.
        assert_eq!(
            spec(
                have.clone(),
                json!({"$setElementOrder/containers": [{"name": "d"}, {"name": "b"}], "containers": [{"name": "d", "image": "n"}, {"name": "a", "$patch": "delete"}, {"name": "c", "$patch": "delete"}]})
            ),
            json!({"containers": [{"name": "d", "image": "n"}, {"name": "b"}]})
        );
        assert_eq!(
            pod(json!({"spec": have}), json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "z"}]}})).unwrap_err().code,
            422
        );
    }

    #[test]
    fn a_fresh_part_keeps_no_directives() {
        assert_eq!(
            spec(
                json!({}),
                json!({"$setElementOrder/volumes": [{"name": "v"}], "volumes": [{"name": "v", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}], "securityContext": {"runAsUser": null}})
            ),
            json!({"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}})
        );
    }

    #[test]
    fn service_ports_merge_by_port() {
        let s = lookup("io.k8s.api.core.v1.Service");
        let got = apply_value(
            &json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81}]}}),
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
            s,
        );
        assert_eq!(
            got,
            Ok(
                json!({"spec": {"ports": [{"port": 80, "name": "a", "targetPort": 8080}, {"port": 81}]}})
            )
        );
    }

    fn any_patch() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            "[ab]".prop_map(Value::from),
            Just(json!("replace")),
            Just(json!("delete"))
        ];
        let key = prop_oneof![
            Just("spec"),
            Just("containers"),
            Just("name"),
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$setElementOrder/finalizers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("finalizers"),
            Just("metadata"),
            Just("volumes"),
            Just("env"),
        ];
        leaf.prop_recursive(6, 64, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5).prop_map(|v| Value::Object(
                    v.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_patch_makes_it_panic(a in any_patch(), b in any_patch()) {
            let _ = apply_value(&a, b, lookup("io.k8s.api.core.v1.Pod"));
        }
        #[test]
        fn an_empty_patch_changes_nothing(a in any_patch()) {
            if a.is_object() {
                prop_assert_eq!(apply_value(&a, json!({}), lookup("io.k8s.api.core.v1.Pod")), Ok(a));
            }
        }
    }

    #[test]
    fn long_lists_are_merged_in_the_time_they_are_long() {
        let list = |from: usize, to: usize| -> Vec<Value> {
            (from..to)
                .map(|i| json!({"name": format!("c{i}"), "image": "i"}))
                .collect()
        };
        let order: Vec<Value> = (0..40_000)
            .map(|i| json!({"name": format!("c{i}")}))
            .collect();
        let begun = std::time::Instant::now();
        // Without the bounds of a body, which would make less of it.
        let merge = |current: Value, patch: Value| {
            apply_value(&current, patch, lookup("io.k8s.api.core.v1.Pod")).expect("patched")
        };
        let got = merge(
            json!({"spec": {"containers": list(0, 20_000)}}),
            json!({"spec": {"containers": list(10_000, 40_000), "$setElementOrder/containers": order}}),
        );
        assert_eq!(
            got["spec"]["containers"].as_array().map(Vec::len),
            Some(40_000)
        );
        let names: Vec<String> = (0..40_000).map(|i| format!("f{i}")).collect();
        merge(
            json!({"metadata": {"finalizers": names}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": names, "$setElementOrder/finalizers": names}}),
        );
        // Comparing each with each took minutes; this takes a second in a debug build.
        assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    }
}
