//! Descriptions of definitions and fields, out of k8s-openapi's JSON schemas. Only texts; the structure is the facts'.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1 as apps,
    authentication::v1 as authentication,
    authorization::v1 as authorization,
    autoscaling::{v1 as autoscaling_v1, v2 as autoscaling_v2},
    batch::v1 as batch,
    coordination::v1 as coordination,
    core::v1 as core,
    discovery::v1 as discovery,
    events::v1 as events,
    networking::v1 as networking,
    node::v1 as node,
    policy::v1 as policy,
    rbac::v1 as rbac,
    scheduling::v1 as scheduling,
    storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

type Root = fn(&mut SchemaGenerator);

fn root<T: JsonSchema>(g: &mut SchemaGenerator) {
    g.subschema_for::<T>();
}

/// The kinds whose definitions carry descriptions; a definition below them is found through them.
const ROOTS: &[(&str, Root)] = &[
    (
        "io.k8s.api.apps.v1.ControllerRevision",
        root::<apps::ControllerRevision>,
    ),
    ("io.k8s.api.apps.v1.DaemonSet", root::<apps::DaemonSet>),
    ("io.k8s.api.apps.v1.Deployment", root::<apps::Deployment>),
    ("io.k8s.api.apps.v1.ReplicaSet", root::<apps::ReplicaSet>),
    ("io.k8s.api.apps.v1.StatefulSet", root::<apps::StatefulSet>),
    (
        "io.k8s.api.authentication.v1.SelfSubjectReview",
        root::<authentication::SelfSubjectReview>,
    ),
    (
        "io.k8s.api.authentication.v1.TokenRequest",
        root::<authentication::TokenRequest>,
    ),
    (
        "io.k8s.api.authentication.v1.TokenReview",
        root::<authentication::TokenReview>,
    ),
    (
        "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        root::<authorization::LocalSubjectAccessReview>,
    ),
    (
        "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        root::<authorization::SelfSubjectAccessReview>,
    ),
    (
        "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        root::<authorization::SelfSubjectRulesReview>,
    ),
    (
        "io.k8s.api.authorization.v1.SubjectAccessReview",
        root::<authorization::SubjectAccessReview>,
    ),
    (
        "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        root::<autoscaling_v1::HorizontalPodAutoscaler>,
    ),
    (
        "io.k8s.api.autoscaling.v1.Scale",
        root::<autoscaling_v1::Scale>,
    ),
    (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        root::<autoscaling_v2::HorizontalPodAutoscaler>,
    ),
    ("io.k8s.api.batch.v1.CronJob", root::<batch::CronJob>),
    ("io.k8s.api.batch.v1.Job", root::<batch::Job>),
    (
        "io.k8s.api.coordination.v1.Lease",
        root::<coordination::Lease>,
    ),
    ("io.k8s.api.core.v1.Binding", root::<core::Binding>),
    (
        "io.k8s.api.core.v1.ComponentStatus",
        root::<core::ComponentStatus>,
    ),
    ("io.k8s.api.core.v1.ConfigMap", root::<core::ConfigMap>),
    ("io.k8s.api.core.v1.Endpoints", root::<core::Endpoints>),
    ("io.k8s.api.core.v1.Event", root::<core::Event>),
    ("io.k8s.api.core.v1.LimitRange", root::<core::LimitRange>),
    ("io.k8s.api.core.v1.Namespace", root::<core::Namespace>),
    ("io.k8s.api.core.v1.Node", root::<core::Node>),
    (
        "io.k8s.api.core.v1.PersistentVolume",
        root::<core::PersistentVolume>,
    ),
    (
        "io.k8s.api.core.v1.PersistentVolumeClaim",
        root::<core::PersistentVolumeClaim>,
    ),
    ("io.k8s.api.core.v1.Pod", root::<core::Pod>),
    ("io.k8s.api.core.v1.PodTemplate", root::<core::PodTemplate>),
    (
        "io.k8s.api.core.v1.ReplicationController",
        root::<core::ReplicationController>,
    ),
    (
        "io.k8s.api.core.v1.ResourceQuota",
        root::<core::ResourceQuota>,
    ),
    ("io.k8s.api.core.v1.Secret", root::<core::Secret>),
    ("io.k8s.api.core.v1.Service", root::<core::Service>),
    (
        "io.k8s.api.core.v1.ServiceAccount",
        root::<core::ServiceAccount>,
    ),
    (
        "io.k8s.api.discovery.v1.EndpointSlice",
        root::<discovery::EndpointSlice>,
    ),
    ("io.k8s.api.events.v1.Event", root::<events::Event>),
    (
        "io.k8s.api.networking.v1.IPAddress",
        root::<networking::IPAddress>,
    ),
    (
        "io.k8s.api.networking.v1.Ingress",
        root::<networking::Ingress>,
    ),
    (
        "io.k8s.api.networking.v1.IngressClass",
        root::<networking::IngressClass>,
    ),
    (
        "io.k8s.api.networking.v1.NetworkPolicy",
        root::<networking::NetworkPolicy>,
    ),
    (
        "io.k8s.api.networking.v1.ServiceCIDR",
        root::<networking::ServiceCIDR>,
    ),
    (
        "io.k8s.api.node.v1.RuntimeClass",
        root::<node::RuntimeClass>,
    ),
    ("io.k8s.api.policy.v1.Eviction", root::<policy::Eviction>),
    (
        "io.k8s.api.policy.v1.PodDisruptionBudget",
        root::<policy::PodDisruptionBudget>,
    ),
    ("io.k8s.api.rbac.v1.ClusterRole", root::<rbac::ClusterRole>),
    (
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
        root::<rbac::ClusterRoleBinding>,
    ),
    ("io.k8s.api.rbac.v1.Role", root::<rbac::Role>),
    ("io.k8s.api.rbac.v1.RoleBinding", root::<rbac::RoleBinding>),
    (
        "io.k8s.api.scheduling.v1.PriorityClass",
        root::<scheduling::PriorityClass>,
    ),
    (
        "io.k8s.api.storage.v1.CSIDriver",
        root::<storage::CSIDriver>,
    ),
    ("io.k8s.api.storage.v1.CSINode", root::<storage::CSINode>),
    (
        "io.k8s.api.storage.v1.CSIStorageCapacity",
        root::<storage::CSIStorageCapacity>,
    ),
    (
        "io.k8s.api.storage.v1.StorageClass",
        root::<storage::StorageClass>,
    ),
    (
        "io.k8s.api.storage.v1.VolumeAttachment",
        root::<storage::VolumeAttachment>,
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        root::<apiextensions::CustomResourceDefinition>,
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        root::<meta::DeleteOptions>,
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        root::<meta::Status>,
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
        root::<meta::WatchEvent<k8s_openapi::apimachinery::pkg::runtime::RawExtension>>,
    ),
];

struct Texts {
    definition: Option<String>,
    fields: BTreeMap<String, String>,
}

/// Texts by definition.
pub(super) struct Descriptions(BTreeMap<String, Texts>);

impl Descriptions {
    /// The texts of those definitions and of what they refer to.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut g = SchemaSettings::openapi3().into_generator();
        for name in names {
            if let Ok(i) = ROOTS.binary_search_by(|(n, _)| (*n).cmp(name)) {
                (ROOTS[i].1)(&mut g);
            }
        }
        let text = |v: &Value| {
            v.get("description")
                .and_then(Value::as_str)
                .map(str::to_string)
        };
        Self(
            g.take_definitions(false)
                .into_iter()
                .map(|(name, v)| {
                    let fields = v
                        .get("properties")
                        .and_then(Value::as_object)
                        .into_iter()
                        .flatten()
                        .filter_map(|(k, f)| Some((k.clone(), text(f)?)))
                        .collect();
                    (
                        name,
                        Texts {
                            definition: text(&v),
                            fields,
                        },
                    )
                })
                .collect(),
        )
    }

    /// A definition's text; lists and small parts that k8s-openapi folds away have a plain one.
    pub(super) fn definition(&self, name: &str) -> Option<String> {
        if let Some(t) = self.0.get(name) {
            return t.definition.clone();
        }
        let short = name.rsplit('.').next()?;
        match short.strip_suffix("List") {
            Some(kind) if !kind.is_empty() => Some(format!("{short} is a list of {kind} objects.")),
            _ => None,
        }
    }

    /// A field's text.
    pub(super) fn field(&self, definition: &str, field: &str) -> Option<&str> {
        if let Some(t) = self.0.get(definition) {
            return t.fields.get(field).map(String::as_str);
        }
        if !definition.ends_with("List") {
            return None;
        }
        match field {
            "items" => Some("items is the list of objects."),
            "metadata" => Some("Standard list metadata."),
            "kind" => Some(
                "Kind is a string value representing the REST resource this object represents.",
            ),
            "apiVersion" => {
                Some("APIVersion defines the versioned schema of this representation of an object.")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_sorted() {
        for w in ROOTS.windows(2) {
            assert!(w[0].0 < w[1].0, "{}", w[1].0);
        }
    }
}
