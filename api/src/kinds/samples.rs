//! A good object of every kind: it is created without errors and prints the row that `kubectl get -o wide` shows. One
//! table; the refusals are tested beside each kind's rules.

use super::builtin;
use super::tests::cells;
use crate::resource::{Context, Resource};
use serde_json::{Value, json};

/// 2023-11-14T22:13:20Z; the objects are ten seconds old.
const NOW: i64 = 1_700_000_000;

fn row(group: &str, version: &str, plural: &str) -> Resource {
    builtin()
        .into_iter()
        .find(|r| r.group == group && r.version == version && r.plural == plural)
        .unwrap_or_else(|| panic!("no row {group}/{version} {plural}"))
}

/// The object after defaulting and preparation, as create stores it; panics on errors.
fn created(r: &Resource, mut object: Value) -> Value {
    let c = Context {
        now: "2023-11-14T22:13:20Z".into(),
        user: "admin".into(),
    };
    object["apiVersion"] = r.api_version().into();
    object["kind"] = r.kind.to_string().into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let m = &mut object["metadata"];
    if m["name"].is_null() {
        m["name"] = "x".into();
    }
    m["uid"] = "u".into();
    m["creationTimestamp"] = "2023-11-14T22:13:10Z".into();
    if r.namespaced() {
        m["namespace"] = "default".into();
    }
    (r.strategy.default)(&mut object);
    (r.strategy.prepare_create)(&c, &mut object);
    let errors = (r.strategy.validate)(&object);
    assert!(errors.is_empty(), "{}: {errors:?}", r.kind);
    // Sent back as it is, it is a good update too.
    let mut again = object.clone();
    (r.strategy.default)(&mut again);
    (r.strategy.prepare_update)(&c, &mut again, &object);
    assert_eq!(again, object, "{} changes when it is sent back", r.kind);
    let errors = (r.strategy.validate_update)(&again, &object);
    assert!(errors.is_empty(), "{}: {errors:?}", r.kind);
    object
}

/// The printed row.
fn printed(r: &Resource, object: &Value) -> String {
    cells(&r.columns, object, NOW)
        .iter()
        .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_string))
        .collect::<Vec<_>>()
        .join(" | ")
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}})
}

fn workload(more: Value) -> Value {
    let mut v =
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template()}});
    if let (Some(spec), Some(more)) = (v["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    v
}

#[test]
fn a_good_object_of_each_kind_is_taken_and_printed() {
    let job = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "perl:5"}]}}});
    let table: Vec<(&str, &str, &str, Value, &str)> = vec![
        (
            "",
            "v1",
            "configmaps",
            json!({"data": {"a": "b"}, "binaryData": {"c": "AA=="}}),
            "x | 2 | 10s",
        ),
        (
            "",
            "v1",
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.42.0.7"}], "ports": [{"port": 80}]}]}),
            "x | 10.42.0.7:80 | 10s",
        ),
        (
            "",
            "v1",
            "events",
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Killing", "type": "Normal",
                "message": "Stopping\n", "source": {"component": "kubelet", "host": "n"},
                "firstTimestamp": "2023-11-14T22:03:20Z", "lastTimestamp": "2023-11-14T22:13:10Z", "count": 3}),
            "10s | Normal | Killing | pod/p |  | kubelet, n | Stopping | 10m | 3 | x",
        ),
        (
            "",
            "v1",
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
            "x | 2023-11-14T22:13:10Z",
        ),
        ("", "v1", "namespaces", json!({}), "x | Active | 10s"),
        (
            "",
            "v1",
            "nodes",
            json!({"status": {"capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "False"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.18", "containerRuntimeVersion": "skiff://0.1"}}}),
            "x | NotReady | <none> | 10s | v1.36.0 | <none> | <none> | Debian | 6.18 | skiff://0.1",
        ),
        (
            "",
            "v1",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "s"}}),
            "x | Pending |  |  |  | s | <unset> | 10s | Filesystem",
        ),
        (
            "",
            "v1",
            "persistentvolumes",
            json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "1Gi"}, "nfs": {"server": "s", "path": "/"}}}),
            "x | 1Gi | RWO,ROX | Retain | Pending |  |  | <unset> |  | 10s | Filesystem",
        ),
        (
            "",
            "v1",
            "pods",
            json!({"spec": {"containers": [{"name": "c", "image": "nginx"}], "readinessGates": [{"conditionType": "a/b"}]}}),
            "x | 0/1 | Pending | 0 | 10s | <none> | <none> | <none> | 0/1",
        ),
        (
            "",
            "v1",
            "podtemplates",
            json!({"template": template()}),
            "x | c | nginx:1 | app=web",
        ),
        (
            "",
            "v1",
            "replicationcontrollers",
            json!({"spec": {"template": template()}}),
            "x | 1 | 0 | 0 | 10s | c | nginx:1 | app=web",
        ),
        (
            "",
            "v1",
            "resourcequotas",
            json!({"spec": {"hard": {"pods": "3", "limits.cpu": "1"}}}),
            "x |  |  | 10s",
        ),
        (
            "",
            "v1",
            "secrets",
            json!({"stringData": {"a": "b"}}),
            "x | Opaque | 1 | 10s",
        ),
        ("", "v1", "serviceaccounts", json!({}), "x | 0 | 10s"),
        (
            "",
            "v1",
            "services",
            json!({"spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80}], "selector": {"app": "web"}}}),
            "x | ClusterIP | 10.43.0.9 | <none> | 80/TCP | 10s | app=web",
        ),
        (
            "apps",
            "v1",
            "controllerrevisions",
            json!({"revision": 2, "data": {}}),
            "x | <none> | 2 | 10s",
        ),
        (
            "apps",
            "v1",
            "daemonsets",
            workload(json!({})),
            "x | 0 | 0 | 0 | 0 | 0 | <none> | 10s | c | nginx:1 | app=web",
        ),
        (
            "apps",
            "v1",
            "deployments",
            workload(json!({"replicas": 2})),
            "x | 0/2 | 0 | 0 | 10s | c | nginx:1 | app=web",
        ),
        (
            "apps",
            "v1",
            "replicasets",
            workload(json!({})),
            "x | 1 | 0 | 0 | 10s | c | nginx:1 | app=web",
        ),
        (
            "apps",
            "v1",
            "statefulsets",
            workload(json!({"serviceName": "web"})),
            "x | 0/1 | 10s | c | nginx:1",
        ),
        (
            "events.k8s.io",
            "v1",
            "events",
            json!({"regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "Killing", "type": "Normal",
                "note": "Stopping", "action": "Kill", "reportingController": "example.com/c", "reportingInstance": "i",
                "eventTime": "2023-11-14T22:13:10.000000Z"}),
            "10s | Normal | Killing | pod/p |  | example.com/c, i | Stopping | 10s | 1 | x",
        ),
        (
            "autoscaling",
            "v2",
            "horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 3}}),
            "x | Deployment/web | cpu: <unknown>/80% | 1 | 3 | 0 | 10s",
        ),
        (
            "autoscaling",
            "v1",
            "horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            "x | Deployment/web | cpu: <unknown>/50% | 1 | 3 | 0 | 10s",
        ),
        (
            "batch",
            "v1",
            "cronjobs",
            json!({"spec": {"schedule": "@daily", "timeZone": "UTC", "jobTemplate": {"spec": job}}}),
            "x | @daily | UTC | False | 0 | <none> | 10s | c | perl:5 | <none>",
        ),
        (
            "batch",
            "v1",
            "jobs",
            json!({"spec": job}),
            "x | Running | 0/1 |  | 10s | c | perl:5 | batch.kubernetes.io/controller-uid=u",
        ),
        (
            "networking.k8s.io",
            "v1",
            "ingressclasses",
            json!({"spec": {"controller": "example.com/ingress"}}),
            "x | example.com/ingress | <none> | 10s",
        ),
        (
            "networking.k8s.io",
            "v1",
            "ingresses",
            json!({"spec": {"ingressClassName": "i", "tls": [{"hosts": ["a.example.com"]}], "rules": [{"host": "a.example.com"}],
                "defaultBackend": {"service": {"name": "web", "port": {"name": "http"}}}}}),
            "x | i | a.example.com |  | 80, 443 | 10s",
        ),
        (
            "networking.k8s.io",
            "v1",
            "networkpolicies",
            json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}),
            "x | a=b | 10s",
        ),
        (
            "discovery.k8s.io",
            "v1",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [], "ports": []}),
            "x | IPv4 | <unset> | <unset> | 10s",
        ),
        (
            "policy",
            "v1",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}}),
            "x | 50% | N/A | 0 | 10s",
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "clusterrolebindings",
            json!({"roleRef": {"kind": "ClusterRole", "name": "admin"}, "subjects": [{"kind": "Group", "name": "g"}]}),
            "x | ClusterRole/admin | 10s |  | g | ",
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "clusterroles",
            json!({"rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]}),
            "x | 2023-11-14T22:13:10Z",
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
            "x | Role/r | 10s |  |  | n/s",
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "roles",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}]}),
            "x | 2023-11-14T22:13:10Z",
        ),
        (
            "storage.k8s.io",
            "v1",
            "csidrivers",
            json!({"spec": {}}),
            "x | true | false | false | <unset> | false | Persistent | 10s",
        ),
        (
            "storage.k8s.io",
            "v1",
            "csinodes",
            json!({"spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
            "x | 1 | 10s",
        ),
        (
            "storage.k8s.io",
            "v1",
            "storageclasses",
            json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/p"}),
            "x (default) | example.com/p | Delete | Immediate | false | 10s",
        ),
        (
            "storage.k8s.io",
            "v1",
            "volumeattachments",
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
            "x | d | v | n | false | 10s",
        ),
        (
            "scheduling.k8s.io",
            "v1",
            "priorityclasses",
            json!({"value": 1000}),
            "x | 1000 | false | 10s | PreemptLowerPriority",
        ),
        (
            "coordination.k8s.io",
            "v1",
            "leases",
            json!({"spec": {"holderIdentity": "h"}}),
            "x | h | 10s",
        ),
        (
            "node.k8s.io",
            "v1",
            "runtimeclasses",
            json!({"handler": "runc"}),
            "x | runc | 10s",
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "customresourcedefinitions",
            json!({"spec": {"group": "a.b", "scope": "Cluster", "names": {"kind": "X", "plural": "xs"}, "versions": []}}),
            "x | 2023-11-14T22:13:10Z",
        ),
    ];
    for (group, version, plural, object, expected) in &table {
        let r = row(group, version, plural);
        let object = created(&r, object.clone());
        assert_eq!(printed(&r, &object), *expected, "{plural}");
    }
    // No stored kind is left out.
    for r in builtin().iter().filter(|r| r.verbs.contains(&"list")) {
        assert!(
            table
                .iter()
                .any(|(g, v, p, ..)| r.group == *g && r.version == *v && r.plural == *p),
            "{} has no sample",
            r.kind
        );
    }
}
