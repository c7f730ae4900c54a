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
        .find_map(|(i, c)| container(&format!("spec.ephemeralContainers[{i}]"), &c))
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
}
