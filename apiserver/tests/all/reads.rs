//! get, list, discovery, OpenAPI, health, content negotiation.

use crate::harness::*;
use serde_json::json;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const PARTIAL: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

#[test]
fn lists_are_selected_and_come_in_pages() {
    run(async {
        let ns = namespace("r-pages").await;
        let cms = format!("{ns}/configmaps");
        for i in 0..7 {
            let l = if i % 2 == 0 { "even" } else { "odd" };
            post(
                &cms,
                json!({"metadata": {"name": format!("c{i}"), "labels": {"l": l}}}),
            )
            .await;
        }
        let all = get(&cms).await;
        assert!(
            all.text.starts_with(
                r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":""#
            ),
            "{}",
            all.text
        );
        assert_eq!(all.names().len(), 7);
        assert!(all.body["items"][0].get("kind").is_none());
        assert_eq!(
            get(&format!("{cms}?labelSelector=l%3Dodd")).await.names(),
            vec!["c1", "c3", "c5"]
        );
        assert_eq!(
            get(&format!("{cms}?labelSelector=l!%3Dodd,l"))
                .await
                .names(),
            vec!["c0", "c2", "c4", "c6"]
        );
        assert_eq!(
            get(&format!("{cms}?fieldSelector=metadata.name%3Dc3"))
                .await
                .names(),
            vec!["c3"]
        );
        assert_eq!(
            get(&format!("{cms}?fieldSelector=metadata.name!%3Dc3"))
                .await
                .names()
                .len(),
            6
        );
        let bad = get(&format!("{cms}?fieldSelector=spec.x%3D1")).await;
        assert_eq!(
            (bad.code, bad.reason()),
            (400, "BadRequest"),
            "{}",
            bad.text
        );
        assert_eq!(
            get(&format!("{cms}?labelSelector=a%3D%3D%3Db")).await.code,
            400
        );

        let one = get(&format!("{cms}?limit=3")).await;
        assert_eq!(
            (one.names(), &one.body["metadata"]["remainingItemCount"]),
            (vec!["c0", "c1", "c2"], &json!(4))
        );
        // What happens between pages is not seen.
        delete(&format!("{cms}/c4"), serde_json::Value::Null).await;
        let token = one.body["metadata"]["continue"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let two = get(&format!("{cms}?limit=3&continue={token}")).await;
        assert_eq!(
            (two.names(), two.version()),
            (vec!["c3", "c4", "c5"], one.version())
        );
        let token = two.body["metadata"]["continue"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let three = get(&format!("{cms}?limit=3&continue={token}")).await;
        assert_eq!(
            (three.names(), &three.body["metadata"]["continue"]),
            (vec!["c6"], &serde_json::Value::Null)
        );
        let odd = get(&format!("{cms}?limit=2&labelSelector=l%3Dodd")).await;
        assert_eq!(
            (odd.names(), &odd.body["metadata"]["remainingItemCount"]),
            (vec!["c1", "c3"], &serde_json::Value::Null)
        );
        assert_eq!(get(&format!("{cms}?continue=nonsense")).await.code, 400);
        let exact = get(&format!(
            "{cms}?resourceVersion={}&resourceVersionMatch=Exact",
            one.version()
        ))
        .await;
        assert_eq!(exact.names().len(), 7);
        assert_eq!(
            get(&format!("{cms}?resourceVersion=99999999")).await.code,
            504
        );
        assert_eq!(
            get(&format!("{cms}?resourceVersionMatch=Exact")).await.code,
            422
        );
    });
}

#[test]
fn all_namespaces_are_listed_together() {
    run(async {
        for n in ["r-all-a", "r-all-b"] {
            let ns = namespace(n).await;
            post(
                &format!("{ns}/configmaps"),
                json!({"metadata": {"name": n, "labels": {"set": "r-all"}}}),
            )
            .await;
        }
        assert_eq!(
            get("/api/v1/configmaps?labelSelector=set%3Dr-all")
                .await
                .names(),
            vec!["r-all-a", "r-all-b"]
        );
        assert_eq!(get("/api/v1/configmaps/r-all-a").await.code, 404);
        assert_eq!(get("/api/v1/namespaces/r-all-a/nodes").await.code, 404);
    });
}

#[test]
fn selectable_fields_of_pods_select() {
    run(async {
        let ns = namespace("r-fields").await;
        post(&format!("{ns}/pods"), pod("a")).await;
        let mut placed = pod("b");
        placed["spec"]["nodeName"] = "n1".into();
        post(&format!("{ns}/pods"), placed).await;
        assert_eq!(
            get(&format!("{ns}/pods?fieldSelector=spec.nodeName%3Dn1"))
                .await
                .names(),
            vec!["b"]
        );
        assert_eq!(
            get(&format!("{ns}/pods?fieldSelector=spec.nodeName%3D"))
                .await
                .names(),
            vec!["a"]
        );
        assert_eq!(
            get(&format!("{ns}/pods?fieldSelector=status.phase%3DPending"))
                .await
                .names(),
            vec!["a", "b"]
        );
    });
}

#[test]
fn tables_and_metadata_are_made_on_demand() {
    run(async {
        let ns = namespace("r-forms").await;
        post(&format!("{ns}/pods"), pod("a")).await;
        let t = ask("GET", &format!("{ns}/pods"), &[("accept", TABLE)], "").await;
        assert_eq!(
            (&t.body["kind"], &t.body["apiVersion"]),
            (&json!("Table"), &json!("meta.k8s.io/v1")),
            "{}",
            t.text
        );
        let columns: Vec<&str> = t.body["columnDefinitions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(
            &columns[..5],
            ["Name", "Ready", "Status", "Restarts", "Age"]
        );
        assert_eq!(
            (
                &t.body["rows"][0]["cells"][0],
                &t.body["rows"][0]["cells"][2]
            ),
            (&json!("a"), &json!("Pending"))
        );
        assert_eq!(t.body["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let one = ask("GET", &format!("{ns}/pods/a"), &[("accept", TABLE)], "").await;
        assert_eq!(one.body["rows"].as_array().map(Vec::len), Some(1));
        let p = ask("GET", &format!("{ns}/pods"), &[("accept", PARTIAL)], "").await;
        assert_eq!(
            (&p.body["kind"], p.names()),
            (&json!("PartialObjectMetadataList"), vec!["a"]),
            "{}",
            p.text
        );
        assert!(p.body["items"][0].get("spec").is_none());
        let proto = ask(
            "GET",
            &format!("{ns}/pods"),
            &[("accept", "application/vnd.kubernetes.protobuf")],
            "",
        )
        .await;
        assert_eq!(proto.code, 406);
        let both = ask(
            "GET",
            &format!("{ns}/pods"),
            &[(
                "accept",
                "application/vnd.kubernetes.protobuf,application/json",
            )],
            "",
        )
        .await;
        assert_eq!((both.code, &both.body["kind"]), (200, &json!("PodList")));
        let pretty = get(&format!("{ns}/pods/a?pretty=true")).await;
        assert!(
            pretty.text.starts_with("{\n  \"kind\": \"Pod\""),
            "{}",
            pretty.text
        );
    });
}

#[test]
fn events_of_both_groups_are_the_same_objects() {
    run(async {
        let ns = namespace("r-events").await;
        let e = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "r-events"}, "reason": "Because", "message": "m", "type": "Normal"});
        let a = post(&format!("{ns}/events"), e).await;
        assert_eq!(a.code, 201, "{}", a.text);
        let b = get("/apis/events.k8s.io/v1/namespaces/r-events/events/e").await;
        assert_eq!(
            (
                b.code,
                &b.body["apiVersion"],
                &b.body["regarding"]["name"],
                &b.body["note"]
            ),
            (200, &json!("events.k8s.io/v1"), &json!("p"), &json!("m")),
            "{}",
            b.text
        );
        assert_eq!(
            get(&format!(
                "{ns}/events?fieldSelector=involvedObject.name%3Dp"
            ))
            .await
            .names(),
            vec!["e"]
        );
        assert_eq!(
            get("/apis/events.k8s.io/v1/namespaces/r-events/events")
                .await
                .names(),
            vec!["e"]
        );
    });
}

#[test]
fn discovery_names_what_is_served() {
    run(async {
        assert_eq!(get("/api").await.body["versions"], json!(["v1"]));
        let groups = get("/apis").await;
        assert!(
            groups.body["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|g| g["name"] == "apps")
        );
        assert_eq!(
            get("/apis/apps").await.body["preferredVersion"]["groupVersion"],
            "apps/v1"
        );
        assert_eq!(get("/apis/apps/v1").await.body["kind"], "APIResourceList");
        assert_eq!(get("/apis/nothing").await.code, 404);
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let a = ask("GET", "/apis", &[("accept", v2)], "").await;
        assert_eq!(
            a.headers.get("content-type").and_then(|v| v.to_str().ok()),
            Some(v2)
        );
        let etag = a
            .headers
            .get("etag")
            .and_then(|v| v.to_str().ok())
            .unwrap_or("")
            .to_string();
        let again = ask(
            "GET",
            "/apis",
            &[("accept", v2), ("if-none-match", &etag)],
            "",
        )
        .await;
        assert_eq!((again.code, again.text.as_str()), (304, ""));
    });
}

#[test]
fn every_row_can_be_listed() {
    run(async {
        for row in server().app().table.rows() {
            if row.verbs.contains(&"list") {
                let base = if row.group.is_empty() {
                    "/api/v1".to_string()
                } else {
                    format!("/apis/{}/{}", row.group, row.version)
                };
                let a = get(&format!("{base}/{}", row.plural)).await;
                assert_eq!(
                    (a.code, &a.body["kind"]),
                    (200, &json!(format!("{}List", row.kind))),
                    "{}",
                    a.text
                );
                let t = ask(
                    "GET",
                    &format!("{base}/{}", row.plural),
                    &[("accept", TABLE)],
                    "",
                )
                .await;
                assert_eq!(
                    (t.code, &t.body["kind"]),
                    (200, &json!("Table")),
                    "{}",
                    t.text
                );
            }
        }
    });
}

#[test]
fn openapi_describes_every_group() {
    run(async {
        let index = get("/openapi/v3").await;
        let url = index.body["paths"]["apis/apps/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap_or("")
            .to_string();
        let doc = get(&url).await;
        assert_eq!(doc.code, 200);
        assert!(doc.body["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
        assert!(
            doc.body["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
                .is_object()
        );
        let v2 = get("/openapi/v2").await;
        assert_eq!((v2.code, &v2.body["swagger"]), (200, &json!("2.0")));
        assert_eq!(get("/openapi/v3/apis/nothing/v1").await.code, 404);
    });
}

#[test]
fn health_answers_as_a_whole_and_by_check() {
    run(async {
        for p in [
            "/healthz",
            "/livez",
            "/readyz",
            "/readyz/ping",
            "/readyz/poststarthook/bootstrap",
        ] {
            let a = get(p).await;
            assert_eq!((a.code, a.text.as_str()), (200, "ok"), "{p}");
        }
        let v = get("/readyz?verbose").await;
        assert!(
            v.text.contains("[+]etcd ok\n") && v.text.ends_with("readyz check passed\n"),
            "{}",
            v.text
        );
        assert_eq!(get("/readyz/nothing").await.code, 404);
        assert_eq!(get("/version").await.body["minor"], "36");
        assert!(
            get("/metrics")
                .await
                .text
                .contains("apiserver_request_total")
        );
        assert_eq!(get("/nothing").await.code, 404);
    });
}
