//! PodSecurity: what a namespace's labels refuse and warn of.

use crate::harness::*;
use serde_json::{Value, json};

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
const WARN: &str = "pod-security.kubernetes.io/warn";

async fn labelled(name: &str, labels: Value) -> String {
    let ns = namespace(name).await;
    let a = patch(MERGE, &ns, json!({"metadata": {"labels": labels}})).await;
    assert_eq!(a.code, 200, "{}", a.text);
    ns
}

fn warnings(a: &Answer) -> Vec<String> {
    a.headers
        .get_all("warning")
        .iter()
        .filter_map(|v| v.to_str().ok().map(String::from))
        .collect()
}

fn with(name: &str, spec: Value) -> Value {
    let mut p = pod(name);
    for (k, v) in spec.as_object().into_iter().flatten() {
        p["spec"][k] = v.clone();
    }
    p
}

fn hardened(name: &str) -> Value {
    with(
        name,
        json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}),
    )
}

#[test]
fn a_namespace_refuses_the_pods_that_its_level_forbids_on_every_way_in() {
    run(async {
        let ns = labelled("ps-base", json!({ENFORCE: "baseline"})).await;
        let pods = format!("{ns}/pods");
        for spec in [
            json!({"hostNetwork": true}),
            json!({"hostPID": true}),
            json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}),
            json!({"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}),
            json!({"initContainers": [{"name": "i", "image": "i", "securityContext": {"privileged": true}}]}),
            json!({"containers": [{"name": "c", "image": "i", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
            json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
        ] {
            for query in ["", "?dryRun=All"] {
                let a = post(&format!("{pods}{query}"), with("p", spec.clone())).await;
                assert!(
                    a.code == 403
                        && a.message().starts_with(
                            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": "
                        ),
                    "{spec}: {}",
                    a.text
                );
            }
            let a = ask(
                "PATCH",
                &format!("{pods}/p?fieldManager=m"),
                &[("content-type", "application/apply-patch+yaml")],
                with("p", spec.clone()).to_string(),
            )
            .await;
            assert_eq!(a.code, 403, "{spec}: {}", a.text);
        }
        assert_eq!(get(&format!("{pods}/p")).await.code, 404);
        assert_eq!(post(&pods, pod("p")).await.code, 201);
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "securityContext": {"privileged": true}}]}});
        let a = patch(STRATEGIC, &format!("{pods}/p/ephemeralcontainers"), debug).await;
        assert!(
            a.code == 403 && a.message().contains("privileged (container \"d\""),
            "{}",
            a.text
        );
        // A status, a label: no question of security.
        assert_eq!(
            patch(
                MERGE,
                &format!("{pods}/p"),
                json!({"metadata": {"labels": {"a": "b"}}})
            )
            .await
            .code,
            200
        );
        assert_eq!(
            patch(
                MERGE,
                &format!("{pods}/p/status"),
                json!({"status": {"phase": "Running"}})
            )
            .await
            .code,
            200
        );
    });
}

#[test]
fn a_restricted_namespace_takes_hardened_pods_alone_and_warns_of_templates() {
    run(async {
        let ns = labelled("ps-strict", json!({ENFORCE: "restricted"})).await;
        let a = post(&format!("{ns}/pods"), pod("p")).await;
        assert_eq!(
            a.message(),
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let a = post(&format!("{ns}/pods"), hardened("h")).await;
        assert_eq!((a.code, warnings(&a)), (201, vec![]), "{}", a.text);
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let never = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
        for (path, body) in [
            (
                "/apis/apps/v1/namespaces/ps-strict/deployments",
                json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
            ),
            (
                "/apis/batch/v1/namespaces/ps-strict/jobs",
                json!({"metadata": {"name": "j"}, "spec": {"template": never}}),
            ),
            (
                "/apis/batch/v1/namespaces/ps-strict/cronjobs",
                json!({"metadata": {"name": "k"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": never}}}}),
            ),
        ] {
            let a = post(path, body).await;
            assert_eq!(a.code, 201, "{}", a.text);
            let w = warnings(&a);
            assert!(
                w.len() == 1
                    && w[0].starts_with(
                        "299 - \"would violate PodSecurity \\\"restricted:latest\\\": "
                    ),
                "{path}: {w:?}"
            );
        }
    });
}

#[test]
fn a_warned_pod_is_made() {
    run(async {
        let ns = labelled("ps-warn", json!({ENFORCE: "privileged", WARN: "baseline"})).await;
        let a = post(
            &format!("{ns}/pods"),
            with("p", json!({"hostNetwork": true})),
        )
        .await;
        assert_eq!(a.code, 201, "{}", a.text);
        assert!(
            warnings(&a)[0].contains("host namespaces (hostNetwork=true)"),
            "{:?}",
            warnings(&a)
        );
        let free = namespace("ps-free").await;
        let a = post(
            &format!("{free}/pods"),
            with("p", json!({"hostNetwork": true})),
        )
        .await;
        assert_eq!((a.code, warnings(&a)), (201, vec![]), "{}", a.text);
    });
}

#[test]
fn labels_that_mean_nothing_are_refused_and_stricter_ones_name_the_pods_that_are_there() {
    run(async {
        let ns = namespace("ps-labels").await;
        for labels in [
            json!({ENFORCE: "strict"}),
            json!({WARN: ""}),
            json!({"pod-security.kubernetes.io/audit-version": "1.30"}),
            json!({"pod-security.kubernetes.io/enforce-version": "v2.0"}),
        ] {
            let a = patch(MERGE, &ns, json!({"metadata": {"labels": labels}})).await;
            assert_eq!(
                (a.code, a.reason()),
                (422, "Invalid"),
                "{labels}: {}",
                a.text
            );
            let body = json!({"metadata": {"name": "ps-labels-2", "labels": labels}});
            assert_eq!(post("/api/v1/namespaces", body).await.code, 422);
        }
        for name in ["a", "b"] {
            assert_eq!(
                post(&format!("{ns}/pods"), with(name, json!({"hostPID": true})))
                    .await
                    .code,
                201
            );
        }
        assert_eq!(post(&format!("{ns}/pods"), hardened("h")).await.code, 201);
        let path = format!("{ns}?dryRun=All");
        let a = patch(
            MERGE,
            &path,
            json!({"metadata": {"labels": {ENFORCE: "baseline"}}}),
        )
        .await;
        assert_eq!(a.code, 200, "{}", a.text);
        let w = warnings(&a);
        assert_eq!(w.len(), 3, "{w:?}");
        assert!(w[0].contains("existing pods in namespace \\\"ps-labels\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\""), "{w:?}");
        assert!(w[1].ends_with("a: host namespaces\""), "{w:?}");
        // Pods that are there stay and can be changed where it does not matter.
        assert_eq!(
            patch(
                MERGE,
                &ns,
                json!({"metadata": {"labels": {ENFORCE: "baseline"}}})
            )
            .await
            .code,
            200
        );
        assert_eq!(
            patch(
                MERGE,
                &format!("{ns}/pods/a"),
                json!({"metadata": {"labels": {"x": "y"}}})
            )
            .await
            .code,
            200
        );
        assert_eq!(
            ask("DELETE", &format!("{ns}/pods/a"), &[], "").await.code,
            200
        );
        let a = patch(
            MERGE,
            &ns,
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "baseline"}}}),
        )
        .await;
        assert!(
            warnings(&a)[0].contains("no audit log yet"),
            "{:?}",
            warnings(&a)
        );
    });
}
