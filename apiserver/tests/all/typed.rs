//! What the API reads, every component can read: objects made at random along the schema, decoded as a request's body is, are
//! read again as the types that caches hold. One that could not be would be missing to its controller.

use k8s_openapi::api;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use skiff_api::decode::{Expect, Strictness, decode};
use skiff_api::schema::{Type, TypeDef};
use std::collections::BTreeSet;

/// A small generator of its own, so that a failure is the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }
    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.next(list.len())]
    }
}

fn value(ty: &Type, r: &mut Random, depth: usize) -> Value {
    if r.next(12) == 0 {
        return Value::Null;
    }
    if r.next(400) == 0 {
        // Of a wrong type: the body is refused, or the value is dropped.
        return [
            json!(1),
            json!("x"),
            json!([1]),
            json!({"a": 1}),
            json!(true),
        ][r.next(5)]
        .clone();
    }
    match ty {
        Type::String => r.of(&["", "a", "Always", "\u{0}é\n", "-"]).into(),
        Type::Int32 | Type::Int64 => {
            [0, -1, 7, i64::from(i32::MAX), i64::from(i32::MIN)][r.next(5)].into()
        }
        Type::Bool => (r.next(2) == 0).into(),
        Type::Double => 1.5.into(),
        Type::Quantity => match r.next(4) {
            0 => json!(1.25),
            1 => json!(3),
            _ => r
                .of(&[
                    "1",
                    "100m",
                    "1e3",
                    "1.5Gi",
                    "-5",
                    "0.0000000001",
                    "999999999999999999999E",
                ])
                .into(),
        },
        Type::Time | Type::MicroTime => r
            .of(&[
                "2024-01-01T00:00:00Z",
                "2024-01-01T00:00:00.123456Z",
                "0000-01-01T00:00:00+23:59",
                "0001-01-01T00:00:00.000000Z",
                "9999-12-31T23:59:59.999999Z",
                "2024-02-30T00:00:00Z",
                "2024-06-30T23:59:60Z",
                "null",
            ])
            .into(),
        Type::IntOrString => {
            if r.next(2) == 0 {
                json!(80)
            } else {
                json!("25%")
            }
        }
        Type::Bytes => r.of(&["", "aGk=", "aGk", "aG\nk=", "aGl="]).into(),
        Type::Any => {
            [json!({"a": [1, null, {"b": "c"}]}), json!("x"), json!(1.0)][r.next(3)].clone()
        }
        Type::Object => json!({"a": [1, null, {"b": "c"}]}),
        Type::List(t) => (0..r.next(3))
            .map(|_| value(t, r, depth + 1))
            .collect::<Vec<_>>()
            .into(),
        Type::Map(t) => {
            let entries: Map<String, Value> = (0..r.next(3))
                .map(|i| (format!("k{i}"), value(t, r, depth + 1)))
                .collect();
            entries.into()
        }
        Type::Ref(id) => object(id.get(), r, depth + 1),
    }
}

fn object(def: &TypeDef, r: &mut Random, depth: usize) -> Value {
    let mut out = Map::new();
    for f in def.fields {
        // The deeper, the fewer.
        if (f.name == "apiVersion" || f.name == "kind") && depth == 0 {
            continue;
        }
        if r.next(depth + 2) == 0 && depth < 12 {
            out.insert(f.name.to_string(), value(&f.ty, r, depth));
        }
    }
    Value::Object(out)
}

/// Gives how many of the objects were taken.
fn check<K: DeserializeOwned + k8s_openapi::Resource>(unreadable: &mut BTreeSet<String>) -> usize {
    let expect = Expect::gvk(K::GROUP, K::VERSION, K::KIND);
    let def = expect.schema.expect("a definition");
    let mut r = Random(K::KIND.bytes().map(u64::from).sum());
    let mut taken = 0;
    for _ in 0..250 {
        let body = object(def, &mut r, 0).to_string();
        let Ok((read, _)) = decode(
            body.as_bytes(),
            "application/json",
            &expect,
            Strictness::Warn,
        ) else {
            continue;
        };
        taken += 1;
        // As bytes, as a cache has them.
        if let Err(e) = serde_json::from_str::<K>(&read.to_string()) {
            unreadable.insert(format!("{}: {e}: {body}", K::KIND));
        }
    }
    taken
}

#[test]
fn whatever_the_api_takes_the_components_can_read() {
    let u = &mut BTreeSet::new();
    let taken = [
        check::<api::core::v1::Pod>(u),
        check::<api::core::v1::Node>(u),
        check::<api::core::v1::Namespace>(u),
        check::<api::core::v1::Service>(u),
        check::<api::core::v1::Secret>(u),
        check::<api::core::v1::ConfigMap>(u),
        check::<api::core::v1::Event>(u),
        check::<api::core::v1::Endpoints>(u),
        check::<api::core::v1::ServiceAccount>(u),
        check::<api::core::v1::ResourceQuota>(u),
        check::<api::core::v1::LimitRange>(u),
        check::<api::core::v1::PersistentVolume>(u),
        check::<api::core::v1::PersistentVolumeClaim>(u),
        check::<api::core::v1::ReplicationController>(u),
        check::<api::apps::v1::Deployment>(u),
        check::<api::apps::v1::ReplicaSet>(u),
        check::<api::apps::v1::StatefulSet>(u),
        check::<api::apps::v1::DaemonSet>(u),
        check::<api::apps::v1::ControllerRevision>(u),
        check::<api::batch::v1::Job>(u),
        check::<api::batch::v1::CronJob>(u),
        check::<api::coordination::v1::Lease>(u),
        check::<api::discovery::v1::EndpointSlice>(u),
        check::<api::policy::v1::PodDisruptionBudget>(u),
        check::<api::networking::v1::NetworkPolicy>(u),
        check::<api::networking::v1::Ingress>(u),
        check::<api::scheduling::v1::PriorityClass>(u),
        check::<api::node::v1::RuntimeClass>(u),
        check::<api::storage::v1::StorageClass>(u),
        check::<api::storage::v1::CSIDriver>(u),
        check::<api::storage::v1::VolumeAttachment>(u),
        check::<api::rbac::v1::Role>(u),
        check::<api::rbac::v1::ClusterRoleBinding>(u),
        check::<api::autoscaling::v2::HorizontalPodAutoscaler>(u),
    ];
    assert!(
        u.is_empty(),
        "taken, and no component can read them: {u:#?}"
    );
    assert!(
        taken.iter().all(|n| *n > 0) && taken.iter().sum::<usize>() > 1000,
        "{taken:?}"
    );
}
