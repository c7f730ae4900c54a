//! What a pod may ask for and this node cannot give: refused by name before anything of the pod runs, rather than run
//! without it. Pure. The table of all fields is in `fields.txt`, and its test keeps the two together.

use crate::pod::spec;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions};

/// The reason of what has no reason of upstream's.
pub const REASON: &str = "UnsupportedPodSpec";

const NO_USERS: &str = "its runtime has no user namespaces";
const NO_CLAIMS: &str = "it has no dynamic resources";

/// Reason and message of the refusal; None for a pod of which everything can be given.
pub fn refuses(pod: &Pod) -> Option<(String, String)> {
    let s = spec::spec(pod);
    let sc = s.security_context.as_ref();
    // The annotations of clients from before 1.30.
    let annotated = pod.metadata.annotations.iter().flatten().any(|(k, v)| {
        k.starts_with("container.apparmor.security.beta.kubernetes.io/")
            && !v.is_empty()
            && v != "unconfined"
    });
    if annotated || wants_app_armor(sc.and_then(|s| s.app_armor_profile.as_ref())) {
        return Some(app_armor());
    }
    if wants_label(sc.and_then(|s| s.se_linux_options.as_ref())) {
        return Some(se_linux("spec"));
    }
    if s.host_users == Some(false) {
        return Some(no("spec.hostUsers: false", NO_USERS));
    }
    if s.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Some(no("spec.resourceClaims", NO_CLAIMS));
    }
    if s.scheduling_group.is_some() {
        return Some(no(
            "spec.schedulingGroup",
            "pods are not scheduled in groups",
        ));
    }
    let lists = [
        ("initContainers", spec::init_containers(pod)),
        ("containers", spec::containers(pod)),
    ];
    for (list, containers) in lists {
        for (i, c) in containers.iter().enumerate() {
            if let Some(refusal) = container(&format!("spec.{list}[{i}]"), c) {
                return Some(refusal);
            }
        }
    }
    let ephemeral = spec::ephemeral_containers(pod)
        .iter()
        .map(spec::ephemeral_as_container)
        .enumerate();
    ephemeral
        .into_iter()
        .find_map(|(i, c)| self::ephemeral(&format!("spec.ephemeralContainers[{i}]"), &c))
}

/// The same of an ephemeral container. The volume manager, which refuses devices of the others, never sees it.
pub fn ephemeral(at: &str, c: &Container) -> Option<(String, String)> {
    if c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Some(no(
            &format!("{at}.volumeDevices"),
            "it gives no block devices to containers",
        ));
    }
    container(at, c)
}

/// The same of one container; it is asked for again when the container is made, because ephemeral ones come later.
pub fn container(at: &str, c: &Container) -> Option<(String, String)> {
    let sc = c.security_context.as_ref();
    if wants_app_armor(sc.and_then(|s| s.app_armor_profile.as_ref())) {
        return Some(app_armor());
    }
    if wants_label(sc.and_then(|s| s.se_linux_options.as_ref())) {
        return Some(se_linux(at));
    }
    if sc.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked") {
        return Some(no(
            &format!("{at}.securityContext.procMount: Unmasked"),
            NO_USERS,
        ));
    }
    let claims = c.resources.as_ref().and_then(|r| r.claims.as_ref());
    if claims.is_some_and(|c| !c.is_empty()) {
        return Some(no(&format!("{at}.resources.claims"), NO_CLAIMS));
    }
    for (i, r) in c.restart_policy_rules.iter().flatten().enumerate() {
        if r.action != "Restart" {
            return Some(no(
                &format!("{at}.restartPolicyRules[{i}].action: {}", r.action),
                "it restarts single containers only",
            ));
        }
    }
    for (i, e) in c.env.iter().flatten().enumerate() {
        let from = e.value_from.as_ref();
        if from.is_some_and(|f| f.file_key_ref.is_some()) {
            return Some(no(
                &format!("{at}.env[{i}].valueFrom.fileKeyRef"),
                "it reads no environment from files of volumes",
            ));
        }
    }
    None
}

fn no(field: &str, why: &str) -> (String, String) {
    (
        REASON.into(),
        format!("{field} cannot be honoured by this node: {why}"),
    )
}

fn wants_app_armor(p: Option<&AppArmorProfile>) -> bool {
    p.is_some_and(|p| p.type_ != "Unconfined")
}

/// The runtime loads no profile, so that it could not be enforced; reason and words are those of upstream's admit
/// handler on a host without AppArmor.
fn app_armor() -> (String, String) {
    (
        "AppArmor".into(),
        "Cannot enforce AppArmor: this node's runtime loads no AppArmor profiles".into(),
    )
}

/// Does it ask for a label that says more than what everything has without SELinux? `s0` without categories parts
/// nobody from anybody, with SELinux or without; upstream's conformance pods carry it.
fn wants_label(o: Option<&SELinuxOptions>) -> bool {
    let some = |v: &Option<String>| v.as_deref().is_some_and(|v| !v.is_empty());
    o.is_some_and(|o| {
        let level = some(&o.level) && o.level.as_deref() != Some("s0");
        some(&o.user) || some(&o.role) || some(&o.type_) || level
    })
}

fn se_linux(at: &str) -> (String, String) {
    (
        "SELinux".into(),
        format!(
            "Cannot enforce SELinux: {at}.securityContext.seLinuxOptions asks for a label, and this node's runtime sets none"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    fn refusal(spec: serde_json::Value) -> Option<(String, String)> {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
        refuses(&pod)
    }

    #[test]
    fn what_cannot_be_confined_is_refused_and_not_run_unconfined() {
        let c = |sc: serde_json::Value| serde_json::json!({"containers": [{"name": "c", "securityContext": sc}]});
        let p = |sc: serde_json::Value| serde_json::json!({"containers": [{"name": "c"}], "securityContext": sc});
        let reason = |spec| refusal(spec).map(|(r, _)| r);
        for profile in [
            serde_json::json!({"type": "RuntimeDefault"}),
            serde_json::json!({"type": "Localhost", "localhostProfile": "x"}),
        ] {
            let sc = serde_json::json!({"appArmorProfile": profile});
            assert_eq!(reason(c(sc.clone())).as_deref(), Some("AppArmor"));
            assert_eq!(reason(p(sc.clone())).as_deref(), Some("AppArmor"));
            let init = serde_json::json!({"containers": [], "initContainers": [{"name": "i", "securityContext": sc}]});
            assert_eq!(reason(init).as_deref(), Some("AppArmor"));
        }
        assert_eq!(
            reason(c(
                serde_json::json!({"appArmorProfile": {"type": "Unconfined"}})
            )),
            None
        );
        for options in [
            serde_json::json!({"type": "spc_t"}),
            serde_json::json!({"user": "u"}),
            serde_json::json!({"role": "r"}),
            serde_json::json!({"level": "s0:c0,c1"}),
        ] {
            let sc = serde_json::json!({"seLinuxOptions": options});
            assert_eq!(reason(c(sc.clone())).as_deref(), Some("SELinux"));
            assert_eq!(reason(p(sc)).as_deref(), Some("SELinux"));
        }
        for options in [serde_json::json!({}), serde_json::json!({"level": "s0"})] {
            assert_eq!(
                reason(p(serde_json::json!({"seLinuxOptions": options}))),
                None
            );
        }
        assert_eq!(
            reason(c(serde_json::json!({"procMount": "Unmasked"}))).as_deref(),
            Some(REASON)
        );
        assert_eq!(reason(c(serde_json::json!({"procMount": "Default"}))), None);
    }

    #[test]
    fn the_old_annotation_of_app_armor_counts() {
        let mut pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c"}]}}))
                .unwrap();
        let key = "container.apparmor.security.beta.kubernetes.io/c".to_string();
        for (value, refused) in [
            ("runtime/default", true),
            ("localhost/x", true),
            ("unconfined", false),
        ] {
            pod.metadata.annotations = Some([(key.clone(), value.to_string())].into());
            assert_eq!(refuses(&pod).is_some(), refused, "{value}");
        }
    }

    /// (definition, field) -> what becomes of it and who sees to it, out of the table.
    fn table() -> BTreeMap<(&'static str, &'static str), (&'static str, &'static str)> {
        let mut out = BTreeMap::new();
        for line in include_str!("fields.txt").lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (head, fields) = line.split_once(": ").expect(line);
            let mut words = head.splitn(3, ' ');
            let mut word = || words.next().expect(line);
            let (def, how, who) = (word(), word(), word());
            assert!(["handled", "refused", "nothing"].contains(&how), "{line}");
            for field in fields.split(' ') {
                let before = out.insert((def, field), (how, who));
                assert_eq!(before, None, "{def}.{field} stands twice");
            }
        }
        out
    }

    #[test]
    fn every_field_of_a_pods_spec_has_its_effect_or_is_refused() {
        let table = table();
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        let mut todo = vec![skiff_api::schema::lookup("io.k8s.api.core.v1.PodSpec")];
        let mut known: BTreeSet<&str> = todo.iter().map(|d| d.name).collect();
        while let Some(def) = todo.pop() {
            for field in def.fields {
                let key = (def.short(), field.name);
                match table.get(&key) {
                    None => missing.push(format!("{}.{}", key.0, key.1)),
                    Some((how, _)) => {
                        seen.insert(key);
                        // What is refused or without meaning need not be looked into.
                        let mut ty = &field.ty;
                        while let Some(inner) = ty.element() {
                            ty = inner;
                        }
                        if let Some(d) = ty.def()
                            && *how == "handled"
                            && known.insert(d.name)
                        {
                            todo.push(d);
                        }
                    }
                }
            }
        }
        assert!(
            missing.is_empty(),
            "fields of which nobody has decided: {missing:?}"
        );
        let gone: Vec<_> = table.keys().filter(|k| !seen.contains(*k)).collect();
        assert!(
            gone.is_empty(),
            "lines that the schema does not know: {gone:?}"
        );
    }

    /// One pod for each field that admission refuses.
    fn samples() -> Vec<((&'static str, &'static str), serde_json::Value)> {
        let c = |more: serde_json::Value| {
            let mut c = serde_json::json!({"name": "c", "image": "i"});
            for (k, v) in more.as_object().unwrap() {
                c[k] = v.clone();
            }
            serde_json::json!({"containers": [c]})
        };
        let p = |more: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            for (k, v) in more.as_object().unwrap() {
                spec[k] = v.clone();
            }
            spec
        };
        let sc = |sc: serde_json::Value| serde_json::json!({"securityContext": sc});
        let app_armor = serde_json::json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        let label = serde_json::json!({"seLinuxOptions": {"type": "t"}});
        vec![
            (
                ("PodSpec", "hostUsers"),
                p(serde_json::json!({"hostUsers": false})),
            ),
            (
                ("PodSpec", "resourceClaims"),
                p(serde_json::json!({"resourceClaims": [{"name": "r"}]})),
            ),
            (
                ("PodSpec", "schedulingGroup"),
                p(serde_json::json!({"schedulingGroup": {}})),
            ),
            (
                ("PodSecurityContext", "appArmorProfile"),
                p(sc(app_armor.clone())),
            ),
            (
                ("PodSecurityContext", "seLinuxOptions"),
                p(sc(label.clone())),
            ),
            (("SecurityContext", "appArmorProfile"), c(sc(app_armor))),
            (("SecurityContext", "seLinuxOptions"), c(sc(label))),
            (
                ("SecurityContext", "procMount"),
                c(sc(serde_json::json!({"procMount": "Unmasked"}))),
            ),
            (
                ("ResourceRequirements", "claims"),
                c(serde_json::json!({"resources": {"claims": [{"name": "r"}]}})),
            ),
            (
                ("EnvVarSource", "fileKeyRef"),
                c(
                    serde_json::json!({"env": [{"name": "E", "valueFrom": {"fileKeyRef": {"key": "k", "path": "p", "volumeName": "v"}}}]}),
                ),
            ),
            (
                ("EphemeralContainer", "volumeDevices"),
                p(
                    serde_json::json!({"ephemeralContainers": [{"name": "e", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
                ),
            ),
        ]
    }

    #[test]
    fn each_field_that_admission_is_said_to_refuse_is_refused() {
        let said: BTreeSet<_> = table()
            .into_iter()
            .filter(|(_, what)| *what == ("refused", "admission"))
            .map(|(key, _)| key)
            .collect();
        let tried: BTreeSet<_> = samples().into_iter().map(|(key, _)| key).collect();
        assert_eq!(said, tried);
        for (key, spec) in samples() {
            let (reason, message) = refusal(spec).unwrap_or_else(|| panic!("{key:?} is let in"));
            let named =
                message.contains(key.1) || (reason == "AppArmor" && key.1 == "appArmorProfile");
            assert!(named, "{key:?}: {message}");
        }
    }

    #[tokio::test]
    async fn each_volume_source_that_is_said_to_be_refused_does_not_mount() {
        let dir = tempfile::tempdir().unwrap();
        let k = crate::parts::tests::kubelet(dir.path());
        let mut tried = 0;
        for ((def, field), what) in table() {
            if what != ("refused", "mount") {
                continue;
            }
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            match def {
                "Volume" => spec["volumes"] = serde_json::json!([{"name": "v", field: {}}]),
                "VolumeProjection" => {
                    spec["volumes"] =
                        serde_json::json!([{"name": "v", "projected": {"sources": [{field: {}}]}}]);
                }
                "Container" => {
                    spec["volumes"] = serde_json::json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
                    spec["containers"][0][field] =
                        serde_json::json!([{"name": "v", "devicePath": "/d"}]);
                }
                other => panic!("no sample for {other}.{field}"),
            }
            let pod: Pod = serde_json::from_value(
                serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": field}, "spec": spec}),
            )
            .unwrap();
            let e = crate::pod::actions::mount_volumes(&k, &Arc::new(pod), &[])
                .await
                .expect_err(field);
            assert!(
                e.contains("not supported") && e.contains(field),
                "{field}: {e}"
            );
            tried += 1;
        }
        assert!(tried > 20);
        k.stop.cancel();
    }
}
