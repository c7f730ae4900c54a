//! The rules of the bootstrap cluster roles, as a table. Pure data with a small reader; the contents follow upstream's
//! plugin/pkg/auth/authorizer/rbac/bootstrappolicy for the kinds that Skiff serves.
//!
//! A rule is `verbs | groups | resources`, lists separated by commas; group `core` is the empty one; `R` stands for
//! `get,list,watch`, `W` for `create,delete,deletecollection,patch,update`. A rule that begins with `/` in the second place
//! is of paths: `get | /healthz,/livez`.

use serde_json::{Value, json};

const EVENTS: &str = "create,patch,update | core,events.k8s.io | events";

/// The rules of a role of the table.
pub fn rules(lines: &[&str]) -> Vec<Value> {
    lines.iter().filter_map(|l| rule(l)).collect()
}

fn rule(line: &str) -> Option<Value> {
    let mut parts = line.split('|').map(str::trim);
    let mut verbs: Vec<&str> = Vec::new();
    for v in parts.next()?.split(',') {
        match v.trim() {
            "R" => verbs.extend(["get", "list", "watch"]),
            "W" => verbs.extend(["create", "delete", "deletecollection", "patch", "update"]),
            v => verbs.push(v),
        }
    }
    let second = parts.next()?;
    let list = |s: &str| -> Vec<String> { s.split(',').map(|x| x.trim().to_string()).collect() };
    if second.starts_with('/') || (second == "*" && line.matches('|').count() == 1) {
        return Some(json!({"verbs": verbs, "nonResourceURLs": list(second)}));
    }
    let groups: Vec<String> = list(second)
        .into_iter()
        .map(|g| if g == "core" { String::new() } else { g })
        .collect();
    let mut v = json!({"verbs": verbs, "apiGroups": groups, "resources": list(parts.next()?)});
    if let Some(names) = parts.next() {
        v["resourceNames"] = json!(list(names));
    }
    Some(v)
}

/// A role of the table.
pub struct Role {
    /// Its name.
    pub name: &'static str,
    /// `admin`, `edit`, `view`: the roles it is added to.
    pub aggregate_to: &'static [&'static str],
    /// Its rules.
    pub rules: &'static [&'static str],
}

const fn role(name: &'static str, rules: &'static [&'static str]) -> Role {
    Role {
        name,
        aggregate_to: &[],
        rules,
    }
}

/// Every bootstrap role but the aggregating ones and the controllers'.
pub const ROLES: &[Role] = &[
    role("cluster-admin", &["* | * | *", "* | *"]),
    role(
        "system:discovery",
        &[
            "get | /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
        ],
    ),
    role(
        "system:public-info-viewer",
        &["get | /healthz,/livez,/readyz,/version,/version/"],
    ),
    role(
        "system:monitoring",
        &["get | /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"],
    ),
    role(
        "system:basic-user",
        &[
            "create | authorization.k8s.io | selfsubjectaccessreviews,selfsubjectrulesreviews",
            "create | authentication.k8s.io | selfsubjectreviews",
        ],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[
            "get | /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        ],
    ),
    Role {
        name: "system:aggregate-to-admin",
        aggregate_to: &["admin"],
        rules: &[
            "create | authorization.k8s.io | localsubjectaccessreviews",
            "W,R | rbac.authorization.k8s.io | roles,rolebindings",
        ],
    },
    Role {
        name: "system:aggregate-to-edit",
        aggregate_to: &["edit"],
        rules: &[
            "R | core | pods/attach,pods/proxy,pods/exec,pods/portforward,secrets,services/proxy",
            "impersonate | core | serviceaccounts",
            "W | core | pods,pods/attach,pods/proxy,pods/exec,pods/portforward",
            "create | core | pods/eviction",
            "W | core | replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/proxy,persistentvolumeclaims,configmaps,secrets,events",
            "create | core | serviceaccounts/token",
            "W | apps | statefulsets,statefulsets/scale,daemonsets,deployments,deployments/scale,deployments/rollback,replicasets,replicasets/scale",
            "W | autoscaling | horizontalpodautoscalers",
            "W | batch | jobs,cronjobs",
            "W | policy | poddisruptionbudgets",
            "W | networking.k8s.io | networkpolicies,ingresses",
            "W,R | coordination.k8s.io | leases",
        ],
    },
    Role {
        name: "system:aggregate-to-view",
        aggregate_to: &["view"],
        rules: &[
            "R | core | pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,configmaps",
            "R | core | limitranges,resourcequotas,bindings,events,pods/status,resourcequotas/status,namespaces/status,replicationcontrollers/status,pods/log",
            "R | core | namespaces",
            "R | discovery.k8s.io | endpointslices",
            "R | apps | controllerrevisions,statefulsets,statefulsets/status,statefulsets/scale,daemonsets,daemonsets/status,deployments,deployments/status,deployments/scale,replicasets,replicasets/status,replicasets/scale",
            "R | autoscaling | horizontalpodautoscalers,horizontalpodautoscalers/status",
            "R | batch | jobs,cronjobs,cronjobs/status,jobs/status",
            "R | policy | poddisruptionbudgets,poddisruptionbudgets/status",
            "R | networking.k8s.io | networkpolicies,ingresses,ingresses/status",
        ],
    },
    role(
        "system:heapster",
        &[
            "R | core | events,pods,nodes,namespaces",
            "R | apps | deployments",
        ],
    ),
    // Not bound to anybody: the node authorizer goes by it, and limits what is of single nodes to theirs.
    role(
        "system:node",
        &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews,localsubjectaccessreviews",
            "R | core | services",
            "create,R | core | nodes",
            "update,patch | core | nodes/status",
            "update,patch | core | nodes",
            EVENTS,
            "R | core | pods",
            "create,delete | core | pods",
            "update,patch | core | pods/status",
            "create | core | pods/eviction",
            "R | core | secrets,configmaps",
            "get | core | persistentvolumeclaims,persistentvolumes",
            "update,patch | core | persistentvolumeclaims/status",
            "get | core | endpoints,serviceaccounts",
            "create | core | serviceaccounts/token",
            "get,create,update,patch,delete | coordination.k8s.io | leases",
            "R | node.k8s.io | runtimeclasses",
            "R | storage.k8s.io | csidrivers",
            "get,create,update,patch,delete | storage.k8s.io | csinodes",
            "get | storage.k8s.io | volumeattachments",
            "create,R | certificates.k8s.io | certificatesigningrequests",
        ],
    ),
    role(
        "system:node-proxier",
        &[
            "R | core | services,endpoints,nodes",
            "R | discovery.k8s.io | endpointslices",
            "R | networking.k8s.io | servicecidrs",
            EVENTS,
        ],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            "R,proxy | core | nodes",
            "* | core | nodes/proxy,nodes/log,nodes/stats,nodes/metrics,nodes/spec,nodes/configz,nodes/healthz,nodes/pods",
        ],
    ),
    role(
        "system:auth-delegator",
        &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
        ],
    ),
    role(
        "system:kube-aggregator",
        &[
            "R | core | services,endpoints",
            "R | discovery.k8s.io | endpointslices",
        ],
    ),
    role(
        "system:kube-dns",
        &[
            "list,watch | core | endpoints,services,namespaces,pods",
            "list,watch | discovery.k8s.io | endpointslices",
        ],
    ),
    role(
        "system:coredns",
        &[
            "list,watch | core | endpoints,services,namespaces,pods",
            "list,watch | discovery.k8s.io | endpointslices",
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            "R,create,delete | core | persistentvolumes",
            "R,update | core | persistentvolumeclaims",
            "R | storage.k8s.io | storageclasses",
            "watch | core | events",
            EVENTS,
        ],
    ),
    role(
        "system:volume-scheduler",
        &[
            "R,update,patch | core | persistentvolumes,persistentvolumeclaims",
            "R | storage.k8s.io | storageclasses",
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            EVENTS,
            "create | coordination.k8s.io | leases",
            "get,update | coordination.k8s.io | leases | kube-scheduler",
            "R | core | nodes,namespaces",
            "R,delete | core | pods",
            "create | core | bindings,pods/binding",
            "patch,update | core | pods/status",
            "R | core | services,replicationcontrollers",
            "R | apps | replicasets,statefulsets",
            "R | policy | poddisruptionbudgets",
            "R | scheduling.k8s.io | priorityclasses",
            "R,update,patch | core | persistentvolumeclaims,persistentvolumes",
            "R | storage.k8s.io | storageclasses,csinodes,csidrivers,csistoragecapacities,volumeattachments",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
        ],
    ),
    role(
        "system:kube-controller-manager",
        &[
            EVENTS,
            "create | coordination.k8s.io | leases",
            "get,update | coordination.k8s.io | leases | kube-controller-manager",
            "create | core | secrets,serviceaccounts",
            "delete | core | secrets",
            "get | core | configmaps,namespaces,secrets,serviceaccounts",
            "update | core | secrets,serviceaccounts",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
            "list,watch | * | *",
            "create | core | serviceaccounts/token",
        ],
    ),
];

/// The controllers' roles; each is bound to the service account of its name in kube-system, and to the user
/// `system:kube-controller-manager`, as which they all run in one process.
pub const CONTROLLERS: &[Role] = &[
    role(
        "attachdetach-controller",
        &[
            "R | core | persistentvolumes,persistentvolumeclaims,nodes,pods",
            "patch,update | core | nodes/status",
            "R,create,delete | storage.k8s.io | volumeattachments",
            "R | storage.k8s.io | csidrivers,csinodes",
            EVENTS,
        ],
    ),
    role(
        "clusterrole-aggregation-controller",
        &["escalate,R,update,patch | rbac.authorization.k8s.io | clusterroles"],
    ),
    role(
        "cronjob-controller",
        &[
            "R,update | batch | cronjobs",
            "R,create,update,delete,patch | batch | jobs",
            "update,patch | batch | cronjobs/status,cronjobs/finalizers",
            "list,watch,delete | core | pods",
            EVENTS,
        ],
    ),
    role(
        "daemon-set-controller",
        &[
            "R | apps | daemonsets",
            "update,patch | apps | daemonsets/status,daemonsets/finalizers",
            "list,watch | core | nodes",
            "list,watch,create,delete,patch | core | pods",
            "create | core | pods/binding",
            "R,create,delete,update,patch | apps | controllerrevisions",
            EVENTS,
        ],
    ),
    role(
        "deployment-controller",
        &[
            "R,update | apps | deployments",
            "update,patch | apps | deployments/status,deployments/finalizers",
            "R,create,update,patch,delete | apps | replicasets",
            "R,update | core | pods",
            EVENTS,
        ],
    ),
    role(
        "disruption-controller",
        &[
            "R | apps | deployments,replicasets,statefulsets",
            "R | core | replicationcontrollers,pods",
            "R | policy | poddisruptionbudgets",
            "update,patch | policy | poddisruptionbudgets/status",
            "patch,update | core | pods/status",
            "get | * | */scale",
            EVENTS,
        ],
    ),
    role(
        "endpoint-controller",
        &[
            "R | core | services,pods",
            "R,create,update,patch,delete | core | endpoints",
            "create | core | endpoints/restricted",
            EVENTS,
        ],
    ),
    role(
        "endpointslice-controller",
        &[
            "R | core | services,pods,nodes",
            "update | core | services/finalizers",
            "R,create,update,patch,delete | discovery.k8s.io | endpointslices",
            EVENTS,
        ],
    ),
    role(
        "endpointslicemirroring-controller",
        &[
            "R | core | services,endpoints",
            "update | core | services/finalizers,endpoints/finalizers",
            "R,create,update,patch,delete | discovery.k8s.io | endpointslices",
            EVENTS,
        ],
    ),
    role(
        "ephemeral-volume-controller",
        &[
            "R | core | pods",
            "update | core | pods/finalizers",
            "R,create | core | persistentvolumeclaims",
            EVENTS,
        ],
    ),
    role(
        "expand-controller",
        &[
            "R,update,patch | core | persistentvolumes",
            "update,patch | core | persistentvolumeclaims/status",
            "R | core | persistentvolumeclaims",
            EVENTS,
        ],
    ),
    role(
        "generic-garbage-collector",
        &["R,patch,update,delete | * | *", EVENTS],
    ),
    role(
        "horizontal-pod-autoscaler",
        &[
            "R | autoscaling | horizontalpodautoscalers",
            "update,patch | autoscaling | horizontalpodautoscalers/status",
            "get,update | * | */scale",
            "list,watch | core | pods",
            "list,watch | metrics.k8s.io | pods",
            EVENTS,
        ],
    ),
    role(
        "job-controller",
        &[
            "R,update,patch | batch | jobs",
            "update,patch | batch | jobs/status,jobs/finalizers",
            "list,watch,create,delete,patch | core | pods",
            EVENTS,
        ],
    ),
    role(
        "namespace-controller",
        &[
            "R,delete | core | namespaces",
            "update,patch | core | namespaces/finalize,namespaces/status",
            "R,delete,deletecollection | * | *",
        ],
    ),
    role(
        "node-controller",
        &[
            "R,update,delete,patch | core | nodes",
            "patch,update | core | nodes/status,pods/status",
            "R,delete | core | pods",
            "R,create,update,delete | coordination.k8s.io | leases",
            EVENTS,
        ],
    ),
    role(
        "persistent-volume-binder",
        &[
            "R,update,create,delete | core | persistentvolumes",
            "update,patch | core | persistentvolumes/status,persistentvolumeclaims/status",
            "R,update | core | persistentvolumeclaims",
            "R,create,delete | core | pods",
            "R | storage.k8s.io | storageclasses",
            "R,create,update,delete | core | endpoints,services",
            "get,list | core | secrets",
            "R | core | nodes",
            EVENTS,
        ],
    ),
    role(
        "pod-garbage-collector",
        &[
            "list,watch,delete | core | pods",
            "R | core | nodes",
            "patch,update | core | pods/status",
        ],
    ),
    role(
        "pv-protection-controller",
        &["R,update | core | persistentvolumes", EVENTS],
    ),
    role(
        "pvc-protection-controller",
        &[
            "R,update | core | persistentvolumeclaims",
            "R | core | pods",
            EVENTS,
        ],
    ),
    role(
        "replicaset-controller",
        &[
            "R,update | apps | replicasets",
            "update,patch | apps | replicasets/status,replicasets/finalizers",
            "list,watch,create,delete,patch | core | pods",
            EVENTS,
        ],
    ),
    role(
        "replication-controller",
        &[
            "R,update | core | replicationcontrollers",
            "update,patch | core | replicationcontrollers/status,replicationcontrollers/finalizers",
            "list,watch,create,delete,patch | core | pods",
            EVENTS,
        ],
    ),
    role(
        "resourcequota-controller",
        &[
            "list,watch | * | *",
            "update,patch | core | resourcequotas/status",
            EVENTS,
        ],
    ),
    role(
        "root-ca-cert-publisher",
        &[
            "create,update,R | core | configmaps",
            "R | core | namespaces",
            EVENTS,
        ],
    ),
    role(
        "service-account-controller",
        &[
            "create,R | core | serviceaccounts",
            "R | core | namespaces",
            EVENTS,
        ],
    ),
    role(
        "statefulset-controller",
        &[
            "list,watch | core | pods",
            "R | apps | statefulsets",
            "update,patch | apps | statefulsets/status,statefulsets/finalizers",
            "R,create,delete,update,patch | core | pods",
            "R,create,delete,update,patch | apps | controllerrevisions",
            "R,create,update,delete | core | persistentvolumeclaims",
            EVENTS,
        ],
    ),
    role(
        "ttl-after-finished-controller",
        &["R,delete | batch | jobs", EVENTS],
    ),
    role(
        "ttl-controller",
        &["update,patch,list,watch | core | nodes", EVENTS],
    ),
];

/// Cluster role, and the subjects it is bound to: `group:`, `user:`.
pub const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["group:system:masters"]),
    ("system:monitoring", &["group:system:monitoring"]),
    ("system:discovery", &["group:system:authenticated"]),
    ("system:basic-user", &["group:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["group:system:authenticated", "group:system:unauthenticated"],
    ),
    ("system:node", &[]),
    ("system:node-proxier", &["user:system:kube-proxy"]),
    // What the API server is to kubelets (kubeadm's kubeadm:apiserver-kubelet-client).
    (
        "system:kubelet-api-admin",
        &["user:kube-apiserver-kubelet-client"],
    ),
    (
        "system:kube-controller-manager",
        &["user:system:kube-controller-manager"],
    ),
    ("system:kube-scheduler", &["user:system:kube-scheduler"]),
    ("system:volume-scheduler", &["user:system:kube-scheduler"]),
    (
        "system:kube-dns",
        &["user:system:kube-dns", "account:kube-system:kube-dns"],
    ),
    (
        "system:service-account-issuer-discovery",
        &["group:system:serviceaccounts"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_rule() {
        for r in ROLES.iter().chain(CONTROLLERS) {
            assert_eq!(rules(r.rules).len(), r.rules.len(), "{}", r.name);
        }
        assert_eq!(
            rule("R,create | core,apps | pods | one"),
            Some(
                json!({"verbs": ["get", "list", "watch", "create"], "apiGroups": ["", "apps"], "resources": ["pods"], "resourceNames": ["one"]})
            )
        );
        assert_eq!(
            rule("* | *"),
            Some(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}))
        );
        for (role, _) in BINDINGS {
            assert!(ROLES.iter().any(|r| r.name == *role), "{role}");
        }
    }
}
