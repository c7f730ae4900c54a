//! What a pod or a persistent volume refers to by name: secrets, config maps, claims, service accounts (upstream's
//! VisitPodSecretNames, VisitPodConfigmapNames, VisitPVSecretNames). Pure.

use crate::admission::text;
use crate::auth::authorization::list;
use serde_json::Value;

/// What kind of object is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `secrets`
    Secret,
    /// `configmaps`
    ConfigMap,
    /// `persistentvolumeclaims`
    Claim,
    /// `serviceaccounts`
    ServiceAccount,
    /// `resourceclaims`
    ResourceClaim,
}

/// How many kinds there are.
pub const KINDS: usize = 5;

/// Volume sources that name a secret for their mount, and where.
const VOLUME_SECRETS: [(&str, &[&str]); 9] = [
    ("azureFile", &["secretName"]),
    ("cephfs", &["secretRef", "name"]),
    ("cinder", &["secretRef", "name"]),
    ("flexVolume", &["secretRef", "name"]),
    ("rbd", &["secretRef", "name"]),
    ("scaleIO", &["secretRef", "name"]),
    ("iscsi", &["secretRef", "name"]),
    ("storageos", &["secretRef", "name"]),
    ("csi", &["nodePublishSecretRef", "name"]),
];

/// Calls `found` for everything in the pod's namespace that the pod refers to. Names may come more than once.
pub fn of_pod(pod: &Value, found: &mut dyn FnMut(Kind, &str)) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut put = |kind: Kind, name: &str| {
        if !name.is_empty() {
            found(kind, name);
        }
    };
    put(Kind::ServiceAccount, text(spec, &["serviceAccountName"]));
    for s in list(spec, "imagePullSecrets") {
        put(Kind::Secret, text(s, &["name"]));
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    for c in containers.iter().flat_map(|k| list(spec, k)) {
        for e in list(c, "env") {
            put(
                Kind::Secret,
                text(e, &["valueFrom", "secretKeyRef", "name"]),
            );
            put(
                Kind::ConfigMap,
                text(e, &["valueFrom", "configMapKeyRef", "name"]),
            );
        }
        for e in list(c, "envFrom") {
            put(Kind::Secret, text(e, &["secretRef", "name"]));
            put(Kind::ConfigMap, text(e, &["configMapRef", "name"]));
        }
    }
    for v in list(spec, "volumes") {
        put(Kind::Secret, text(v, &["secret", "secretName"]));
        put(Kind::ConfigMap, text(v, &["configMap", "name"]));
        put(
            Kind::Claim,
            text(v, &["persistentVolumeClaim", "claimName"]),
        );
        if v.get("ephemeral").is_some_and(Value::is_object) {
            let pod = text(pod, &["metadata", "name"]);
            put(Kind::Claim, &format!("{pod}-{}", text(v, &["name"])));
        }
        for s in v.get("projected").map_or(&[][..], |p| list(p, "sources")) {
            put(Kind::Secret, text(s, &["secret", "name"]));
            put(Kind::ConfigMap, text(s, &["configMap", "name"]));
        }
        for (source, path) in VOLUME_SECRETS {
            if let Some(source) = v.get(source) {
                put(Kind::Secret, text(source, path));
            }
        }
    }
    // Claims made of templates have their names in the status.
    for c in list(spec, "resourceClaims") {
        put(Kind::ResourceClaim, text(c, &["resourceClaimName"]));
    }
    let status = pod.get("status").unwrap_or(&Value::Null);
    for c in list(status, "resourceClaimStatuses") {
        put(Kind::ResourceClaim, text(c, &["resourceClaimName"]));
    }
    put(
        Kind::ResourceClaim,
        text(
            status,
            &["extendedResourceClaimStatus", "resourceClaimName"],
        ),
    );
}

/// A pod that only shows what a node runs of its own files.
pub fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations")
        .is_some_and(|a| a.get(MIRROR).is_some())
}

/// The annotation of mirror pods.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The claim a persistent volume is bound to: namespace, name.
pub fn claim_of(volume: &Value) -> Option<(&str, &str)> {
    let claim = volume.pointer("/spec/claimRef")?;
    let (ns, name) = (text(claim, &["namespace"]), text(claim, &["name"]));
    (!ns.is_empty() && !name.is_empty()).then_some((ns, name))
}

/// Calls `found` with namespace and name of each secret that a kubelet needs to mount the volume.
pub fn secrets_of_volume(volume: &Value, found: &mut dyn FnMut(&str, &str)) {
    let Some((claims, _)) = claim_of(volume) else {
        return;
    };
    let spec = volume.get("spec").unwrap_or(&Value::Null);
    let mut put = |namespace: &str, name: &str| {
        if !name.is_empty() {
            found(
                if namespace.is_empty() {
                    claims
                } else {
                    namespace
                },
                name,
            );
        }
    };
    let azure = spec.get("azureFile").unwrap_or(&Value::Null);
    put(
        text(azure, &["secretNamespace"]),
        text(azure, &["secretName"]),
    );
    let plain = [
        "cephfs",
        "cinder",
        "flexVolume",
        "rbd",
        "scaleIO",
        "iscsi",
        "storageos",
    ]
    .map(|source| [source, "secretRef"]);
    // The other secrets of CSI are the controller's.
    let csi = [
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ]
    .map(|r| ["csi", r]);
    for [source, r] in plain.into_iter().chain(csi) {
        put(
            text(spec, &[source, r, "namespace"]),
            text(spec, &[source, r, "name"]),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(pod: &Value) -> Vec<(Kind, String)> {
        let mut out = Vec::new();
        of_pod(pod, &mut |k, n| out.push((k, n.to_string())));
        out.sort();
        out
    }

    #[test]
    fn every_way_in_which_a_pod_names_something_is_found() {
        use Kind::*;
        let env = |s: &str, c: &str| {
            json!({"env": [{"valueFrom": {"secretKeyRef": {"name": s}}}, {"valueFrom": {"configMapKeyRef": {"name": c}}}],
                "envFrom": [{"secretRef": {"name": format!("{s}f")}}, {"configMapRef": {"name": format!("{c}f")}}]})
        };
        let pod = json!({"metadata": {"name": "p"}, "spec": {
        "serviceAccountName": "sa",
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [env("s1", "c1")], "initContainers": [env("s2", "c2")], "ephemeralContainers": [env("s3", "c3")],
        "resourceClaims": [{"name": "r", "resourceClaimName": "rc"}],
        "volumes": [
            {"name": "a", "secret": {"secretName": "sv"}}, {"name": "b", "configMap": {"name": "cv"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "d", "ephemeral": {}},
            {"name": "e", "projected": {"sources": [{"secret": {"name": "sp"}}, {"configMap": {"name": "cp"}}, {"serviceAccountToken": {"path": "t"}}]}},
            {"name": "f", "azureFile": {"secretName": "az"}}, {"name": "g", "csi": {"nodePublishSecretRef": {"name": "csi"}}},
            {"name": "h", "rbd": {"secretRef": {"name": "rbd"}}}, {"name": "i", "iscsi": {"secretRef": {"name": "iscsi"}}},
        ]}});
        let names = |kind: Kind| -> Vec<String> {
            all(&pod)
                .into_iter()
                .filter(|(k, _)| *k == kind)
                .map(|(_, n)| n)
                .collect()
        };
        assert_eq!(
            names(Secret),
            [
                "az", "csi", "iscsi", "pull", "rbd", "s1", "s1f", "s2", "s2f", "s3", "s3f", "sp",
                "sv"
            ]
        );
        assert_eq!(
            names(ConfigMap),
            ["c1", "c1f", "c2", "c2f", "c3", "c3f", "cp", "cv"]
        );
        assert_eq!(names(Claim), ["claim", "p-d"]);
        assert_eq!(names(ServiceAccount), ["sa"]);
        assert_eq!(names(ResourceClaim), ["rc"]);
        assert!(all(&json!({"metadata": {}, "spec": {"volumes": [{"secret": {}}]}})).is_empty());
    }

    #[test]
    fn a_volume_opens_the_secrets_that_its_mount_needs_and_no_others() {
        let claim = json!({"namespace": "ns", "name": "c"});
        let found = |v: &Value| {
            let mut out = Vec::new();
            secrets_of_volume(v, &mut |ns, n| out.push(format!("{ns}/{n}")));
            out
        };
        let csi = json!({"spec": {"claimRef": claim, "csi": {
            "nodeStageSecretRef": {"namespace": "x", "name": "stage"}, "controllerPublishSecretRef": {"namespace": "x", "name": "no"}}}});
        assert_eq!(found(&csi), ["x/stage"]);
        let rbd = json!({"spec": {"claimRef": claim, "rbd": {"secretRef": {"name": "key"}}}});
        assert_eq!(found(&rbd), ["ns/key"]);
        let free = json!({"spec": {"rbd": {"secretRef": {"name": "key", "namespace": "x"}}}});
        assert!(found(&free).is_empty(), "no claim, no node");
    }
}
