//! Nobody becomes more than they are: roles, bindings, aggregation, impersonation, rights on single names.

use crate::access::as_user;
use crate::harness::*;
use serde_json::{Value, json};
use skiff_apiserver::auth::UserInfo;
use std::time::Duration;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const APPLY: &str = "application/apply-patch+yaml";
const LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-view";

fn secrets() -> Value {
    json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["secrets"]}])
}

/// A user who may write all RBAC objects of the cluster, and nothing else.
pub async fn role_writer(name: &str, more: Value) -> UserInfo {
    let mut rules = json!([{"verbs": ["get", "list", "create", "update", "patch", "delete"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles", "clusterrolebindings", "roles", "rolebindings"]}]);
    rules
        .as_array_mut()
        .expect("list")
        .extend(more.as_array().cloned().unwrap_or_default());
    let a = post(
        &format!("{RBAC}/clusterroles"),
        json!({"metadata": {"name": name}, "rules": rules}),
    )
    .await;
    assert_eq!(a.code, 201, "{}", a.text);
    let binding = json!({"metadata": {"name": name}, "roleRef": {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
        "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}]});
    let a = post(&format!("{RBAC}/clusterrolebindings"), binding).await;
    assert_eq!(a.code, 201, "{}", a.text);
    UserInfo::new(name, &[])
}

/// A cluster role of these rules.
async fn cluster_role(name: &str, more: Value) {
    let mut role = json!({"metadata": {"name": name}, "rules": secrets()});
    role.as_object_mut()
        .expect("map")
        .extend(more.as_object().cloned().unwrap_or_default());
    let a = post(&format!("{RBAC}/clusterroles"), role).await;
    assert_eq!(a.code, 201, "{}", a.text);
}

#[test]
fn a_label_that_makes_a_role_part_of_another_needs_all_its_rights() {
    run(async {
        let writer = role_writer("label-writer", json!([])).await;
        cluster_role("label-secrets", json!({})).await;
        let path = format!("{RBAC}/clusterroles/label-secrets");
        let labelled = json!({"metadata": {"labels": {LABEL: "true"}}});
        let mut whole = get(&path).await.body;
        whole["metadata"]["labels"] = json!({LABEL: "true"});
        let applied = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "label-secrets", "labels": {LABEL: "true"}}});
        let added = json!([{"op": "add", "path": "/metadata/labels", "value": {LABEL: "true"}}]);
        for query in ["", "dryRun=All&"] {
            for (method, kind, body) in [
                ("PATCH", MERGE, &labelled),
                ("PATCH", STRATEGIC, &labelled),
                ("PATCH", JSON_PATCH, &added),
                ("PUT", "application/json", &whole),
                ("PATCH", APPLY, &applied),
            ] {
                let apply = if kind == APPLY { "force=true" } else { "" };
                let path = format!("{path}?{query}fieldManager=x&{apply}");
                let a = as_user(
                    &writer,
                    method,
                    &path,
                    &[("content-type", kind)],
                    body.clone(),
                )
                .await;
                assert_eq!(a.code, 403, "{kind} {query}: {}", a.text);
                assert!(
                    a.message()
                        .contains("attempting to grant RBAC permissions not currently held"),
                    "{}",
                    a.message()
                );
            }
        }
        // What the garbage collector changes is free.
        let a = as_user(
            &writer,
            "PATCH",
            &path,
            &[("content-type", MERGE)],
            json!({"metadata": {"finalizers": ["a.b/c"]}}),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        let a = patch(MERGE, &path, json!({"metadata": {"finalizers": null}})).await;
        assert_eq!(a.code, 200, "{}", a.text);
        // Whoever has the rights may.
        let holder = role_writer("label-holder", secrets()).await;
        let a = as_user(
            &holder,
            "PATCH",
            &path,
            &[("content-type", MERGE)],
            json!({"metadata": {"labels": {"x/y": "z"}}}),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
    });
}

#[test]
fn an_aggregating_role_is_made_and_changed_by_those_who_may_everything() {
    run(async {
        let writer = role_writer("sum-writer", secrets()).await;
        let rule = json!({"clusterRoleSelectors": [{"matchLabels": {"sum-test": "yes"}}]});
        cluster_role(
            "sum-existing",
            json!({"aggregationRule": rule, "rules": []}),
        )
        .await;
        cluster_role("sum-plain", json!({})).await;
        let roles = format!("{RBAC}/clusterroles");
        let new = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "sum-new"}, "aggregationRule": rule, "rules": []});
        let merge = [("content-type", MERGE)];
        assert_eq!(
            as_user(&writer, "POST", &roles, &[], new.clone())
                .await
                .code,
            403
        );
        assert_eq!(
            as_user(
                &writer,
                "PUT",
                &format!("{roles}/sum-new"),
                &[],
                new.clone()
            )
            .await
            .code,
            403
        );
        let apply = format!("{roles}/sum-new?fieldManager=x");
        assert_eq!(
            as_user(
                &writer,
                "PATCH",
                &apply,
                &[("content-type", APPLY)],
                new.clone()
            )
            .await
            .code,
            403
        );
        let mut generated = new.clone();
        generated["metadata"] = json!({"generateName": "sum-"});
        assert_eq!(
            as_user(&writer, "POST", &roles, &[], generated).await.code,
            403
        );
        let set = json!({"aggregationRule": rule});
        assert_eq!(
            as_user(&writer, "PATCH", &format!("{roles}/sum-plain"), &merge, set)
                .await
                .code,
            403
        );
        for change in [
            json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"other": "yes"}}]}}),
            json!({"aggregationRule": null}),
            json!({"metadata": {"labels": {LABEL: "true"}}}),
        ] {
            let a = as_user(
                &writer,
                "PATCH",
                &format!("{roles}/sum-existing"),
                &merge,
                change.clone(),
            )
            .await;
            assert_eq!(a.code, 403, "{change}: {}", a.text);
        }
        assert_eq!(get(&format!("{roles}/sum-new")).await.code, 404);
    });
}

#[test]
fn an_aggregating_role_fills_with_roles_that_come_later_and_empties_when_they_go() {
    run(async {
        let roles = format!("{RBAC}/clusterroles");
        let rule = json!({"clusterRoleSelectors": [{"matchLabels": {"fill-test": "yes"}}]});
        cluster_role("fill-sum", json!({"aggregationRule": rule, "rules": []})).await;
        let binding = json!({"metadata": {"name": "fill"}, "roleRef": {"kind": "ClusterRole", "name": "fill-sum", "apiGroup": "rbac.authorization.k8s.io"},
            "subjects": [{"kind": "User", "name": "filler", "apiGroup": "rbac.authorization.k8s.io"}]});
        assert_eq!(
            post(&format!("{RBAC}/clusterrolebindings"), binding)
                .await
                .code,
            201
        );
        let filler = UserInfo::new("filler", &[]);
        let reads = async || {
            as_user(&filler, "GET", "/api/v1/secrets", &[], Value::Null)
                .await
                .code
        };
        assert_eq!(reads().await, 403);
        let shown = async |wanted: Value| {
            let path = format!("{roles}/fill-sum");
            for _ in 0..500 {
                if get(&path).await.body["rules"] == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{} is not {wanted}", get(&path).await.text);
        };
        cluster_role(
            "fill-part",
            json!({"metadata": {"name": "fill-part", "labels": {"fill-test": "yes"}}}),
        )
        .await;
        assert_eq!(reads().await, 200, "at once");
        shown(secrets()).await;
        let a = patch(
            MERGE,
            &format!("{roles}/fill-part"),
            json!({"metadata": {"labels": {"fill-test": "no"}}}),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        assert_eq!(reads().await, 403, "at once");
        shown(json!([])).await;
        // The server's own: a role that is added to view is in edit and admin, too.
        let part = json!({"metadata": {"name": "fill-view", "labels": {LABEL: "true"}}, "rules": [{"verbs": ["get"], "apiGroups": ["fill.example"], "resources": ["things"]}]});
        cluster_role("fill-view", part).await;
        for role in ["view", "edit", "admin"] {
            let path = format!("{roles}/{role}");
            let mut there = false;
            for _ in 0..500 {
                there = get(&path).await.text.contains("fill.example");
                if there {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(there, "{role}");
        }
        assert_eq!(
            delete(&format!("{roles}/fill-view"), Value::Null)
                .await
                .code,
            200
        );
    });
}

#[test]
fn rules_that_are_not_held_are_given_in_no_way() {
    run(async {
        namespace("give").await;
        let writer = role_writer("give-writer", json!([])).await;
        let merge = [("content-type", MERGE)];
        for base in [
            format!("{RBAC}/clusterroles"),
            format!("{RBAC}/namespaces/give/roles"),
        ] {
            let kind = if base.ends_with("clusterroles") {
                "ClusterRole"
            } else {
                "Role"
            };
            let role = |name: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": secrets()});
            let mut empty = role("give-empty");
            empty["rules"] = json!([]);
            let a = as_user(&writer, "POST", &base, &[], empty).await;
            assert_eq!(a.code, 201, "{}", a.text);
            for query in ["?fieldManager=x", "?fieldManager=x&dryRun=All"] {
                let a = as_user(
                    &writer,
                    "POST",
                    &format!("{base}{query}"),
                    &[],
                    role("give-new"),
                )
                .await;
                assert_eq!(a.code, 403, "{}", a.text);
                let mut generated = role("x");
                generated["metadata"] = json!({"generateName": "give-"});
                assert_eq!(
                    as_user(&writer, "POST", &format!("{base}{query}"), &[], generated)
                        .await
                        .code,
                    403
                );
                let new = format!("{base}/give-new{query}");
                assert_eq!(
                    as_user(&writer, "PUT", &new, &[], role("give-new"))
                        .await
                        .code,
                    403
                );
                let apply = [("content-type", APPLY)];
                assert_eq!(
                    as_user(&writer, "PATCH", &new, &apply, role("give-new"))
                        .await
                        .code,
                    403
                );
                let old = format!("{base}/give-empty{query}");
                assert_eq!(
                    as_user(&writer, "PUT", &old, &[], role("give-empty"))
                        .await
                        .code,
                    403
                );
                assert_eq!(
                    as_user(
                        &writer,
                        "PATCH",
                        &format!("{old}&force=1"),
                        &apply,
                        role("give-empty")
                    )
                    .await
                    .code,
                    403
                );
                let rules = json!({"rules": secrets()});
                for kind in [MERGE, STRATEGIC] {
                    assert_eq!(
                        as_user(
                            &writer,
                            "PATCH",
                            &old,
                            &[("content-type", kind)],
                            rules.clone()
                        )
                        .await
                        .code,
                        403
                    );
                }
                let added = json!([{"op": "add", "path": "/rules/-", "value": secrets()[0]}]);
                let a = as_user(
                    &writer,
                    "PATCH",
                    &old,
                    &[("content-type", JSON_PATCH)],
                    added,
                )
                .await;
                assert!(matches!(a.code, 403 | 422), "{}", a.text);
                assert_ne!(a.code, 200);
            }
            // Deleted and made again.
            let old = format!("{base}/give-empty");
            assert_eq!(
                as_user(&writer, "DELETE", &old, &[], Value::Null)
                    .await
                    .code,
                200
            );
            assert_eq!(
                as_user(&writer, "POST", &base, &[], role("give-empty"))
                    .await
                    .code,
                403
            );
        }
        // `escalate` on one name is for that name.
        cluster_role("give-named", json!({})).await;
        cluster_role("give-unnamed", json!({})).await;
        let more = json!([{"verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["give-named"]}]);
        let named = role_writer("give-escalator", more).await;
        let wide = json!({"rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
        let roles = format!("{RBAC}/clusterroles");
        let a = as_user(
            &named,
            "PATCH",
            &format!("{roles}/give-named"),
            &merge,
            wide.clone(),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        let a = as_user(
            &named,
            "PATCH",
            &format!("{roles}/give-unnamed"),
            &merge,
            wide,
        )
        .await;
        assert_eq!(a.code, 403, "{}", a.text);
    });
}

#[test]
fn a_binding_needs_the_roles_rights_or_bind_on_it() {
    run(async {
        namespace("bind").await;
        cluster_role("bind-secrets", json!({})).await;
        cluster_role("bind-other", json!({})).await;
        let more = json!([{"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["bind-secrets"]}]);
        let binder = role_writer("binder", more).await;
        let writer = role_writer("bind-writer", json!([])).await;
        let subject =
            |n: &str| json!([{"kind": "User", "name": n, "apiGroup": "rbac.authorization.k8s.io"}]);
        let merge = [("content-type", MERGE)];
        for (base, kind) in [
            (format!("{RBAC}/clusterrolebindings"), "ClusterRoleBinding"),
            (
                format!("{RBAC}/namespaces/bind/rolebindings"),
                "RoleBinding",
            ),
        ] {
            let binding = |name: &str, role: &str| {
                json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name},
                "roleRef": {"kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io"}, "subjects": subject("x")})
            };
            let a = as_user(
                &binder,
                "POST",
                &base,
                &[],
                binding("bind-a", "bind-secrets"),
            )
            .await;
            assert_eq!(a.code, 201, "{}", a.text);
            for (user, role) in [
                (&binder, "bind-other"),
                (&writer, "bind-secrets"),
                (&writer, "cluster-admin"),
                (&writer, "view"),
            ] {
                let b = binding("bind-b", role);
                assert_eq!(
                    as_user(user, "POST", &base, &[], b.clone()).await.code,
                    403,
                    "{role}"
                );
                assert_eq!(
                    as_user(user, "POST", &format!("{base}?dryRun=All"), &[], b.clone())
                        .await
                        .code,
                    403
                );
                assert_eq!(
                    as_user(user, "PUT", &format!("{base}/bind-b"), &[], b.clone())
                        .await
                        .code,
                    403
                );
                let apply = format!("{base}/bind-b?fieldManager=x");
                assert_eq!(
                    as_user(user, "PATCH", &apply, &[("content-type", APPLY)], b)
                        .await
                        .code,
                    403
                );
            }
            let path = format!("{base}/bind-a");
            for change in [
                json!({"subjects": subject("bind-writer")}),
                json!({"metadata": {"annotations": {"a": "b"}}}),
            ] {
                assert_eq!(
                    as_user(&writer, "PATCH", &path, &merge, change).await.code,
                    403
                );
            }
            // Not even they turn it to another role.
            let role = json!({"roleRef": {"name": "cluster-admin"}});
            assert_eq!(
                ask("PATCH", &path, &merge, role.to_string()).await.code,
                422
            );
            assert_eq!(
                as_user(
                    &writer,
                    "POST",
                    &base,
                    &[],
                    binding("bind-c", "none-of-that-name")
                )
                .await
                .code,
                404
            );
        }
    });
}
