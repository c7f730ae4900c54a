//! Security contexts of containers (upstream kuberuntime security_context.go and pkg/securitycontext). Pure.

use crate::pod::spec;
use k8s_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};
use std::path::{Component, Path};

/// Paths that containers must not read (procMount Default).
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that containers must not write (procMount Default).
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Who the image runs as, when it says so.
#[derive(Debug, Clone, Default)]
pub struct ImageUser {
    /// Numeric.
    pub uid: Option<i64>,
    /// By name; empty when numeric or not set.
    pub username: String,
}

/// Namespaces that a pod's containers share.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let s = spec::spec(pod);
    let node = |yes: Option<bool>, other: NamespaceMode| {
        if yes.unwrap_or(false) {
            NamespaceMode::Node as i32
        } else {
            other as i32
        }
    };
    let pid = if s.share_process_namespace.unwrap_or(false) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node(s.host_network, NamespaceMode::Pod),
        ipc: node(s.host_ipc, NamespaceMode::Pod),
        pid: node(s.host_pid, pid),
        ..NamespaceOption::default()
    }
}

/// The container's security context for the CRI.
///
/// `seccomp_root` is the folder that localhost profiles are relative to.
///
/// # Errors
/// runAsNonRoot that is not met, in upstream's words; a profile or an unmasked /proc that cannot be given
/// (CreateContainerConfigError).
pub fn container(
    pod: &Pod,
    c: &Container,
    image: &ImageUser,
    (seccomp_default, seccomp_root): (bool, &Path),
    target_id: Option<&str>,
) -> Result<LinuxContainerSecurityContext, String> {
    let pod_sc = spec::spec(pod).security_context.clone().unwrap_or_default();
    let sc = c.security_context.clone().unwrap_or_default();
    let user = sc.run_as_user.or(pod_sc.run_as_user);
    let group = sc.run_as_group.or(pod_sc.run_as_group);
    if sc
        .run_as_non_root
        .or(pod_sc.run_as_non_root)
        .unwrap_or(false)
    {
        let about = format!(
            "(pod: \"{}_{}({})\", container: {})",
            spec::name(pod),
            spec::namespace(pod),
            spec::uid(pod),
            c.name
        );
        match (user, image.uid) {
            (Some(0), _) => {
                return Err(format!(
                    "container's runAsUser breaks non-root policy {about}"
                ));
            }
            (Some(_), _) => {}
            (None, Some(0)) => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root {about}"
                ));
            }
            (None, None) if !image.username.is_empty() => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {about}",
                    image.username
                ));
            }
            (None, None) => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root {about}"
                ));
            }
            (None, Some(_)) => {}
        }
    }
    let privileged = sc.privileged.unwrap_or(false);
    // Refused at admission already, but for ephemeral containers, which come later.
    if sc.proc_mount.as_deref() == Some("Unmasked") {
        // Root of the container could write the node's /proc/sys.
        return Err(
            "procMount: Unmasked needs a user namespace (hostUsers: false), which this kubelet does not support yet"
                .into(),
        );
    }
    let list = |paths: &[&str]| {
        if privileged {
            Vec::new()
        } else {
            paths.iter().map(ToString::to_string).collect()
        }
    };
    let mut namespace_options = namespaces(pod);
    if let Some(id) = target_id {
        namespace_options.pid = NamespaceMode::Target as i32;
        namespace_options.target_id = id.to_string();
    }
    let mut groups = pod_sc.supplemental_groups.unwrap_or_default();
    groups.extend(pod_sc.fs_group);
    Ok(LinuxContainerSecurityContext {
        capabilities: sc.capabilities.map(|k| Capability {
            add_capabilities: k.add.unwrap_or_default(),
            drop_capabilities: k.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespace_options),
        selinux_options: sc.se_linux_options.or(pod_sc.se_linux_options).map(selinux),
        // A name of the image is handed on, for the runtime to look up inside the container.
        run_as_username: if user.is_none() && image.uid.is_none() {
            image.username.clone()
        } else {
            String::new()
        },
        run_as_user: user.or(image.uid).map(|value| Int64Value { value }),
        run_as_group: group.map(|value| Int64Value { value }),
        readonly_rootfs: sc.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups,
        supplemental_groups_policy: match pod_sc.supplemental_groups_policy.as_deref() {
            Some("Strict") => SupplementalGroupsPolicy::Strict as i32,
            _ => SupplementalGroupsPolicy::Merge as i32,
        },
        no_new_privs: sc.allow_privilege_escalation == Some(false),
        masked_paths: list(MASKED),
        readonly_paths: list(READ_ONLY),
        seccomp: Some(seccomp(
            sc.seccomp_profile
                .as_ref()
                .or(pod_sc.seccomp_profile.as_ref()),
            seccomp_default && !privileged,
            seccomp_root,
        )?),
        apparmor: sc
            .app_armor_profile
            .as_ref()
            .or(pod_sc.app_armor_profile.as_ref())
            .map(apparmor),
        ..LinuxContainerSecurityContext::default()
    })
}

/// Unconfined when nothing is said, unless the kubelet's default is RuntimeDefault. Localhost profiles are files below
/// `root` (upstream's <root-dir>/seccomp).
///
/// # Errors
/// A localhost profile without a name, or one that leads out of the folder.
pub fn seccomp(
    profile: Option<&SeccompProfile>,
    default: bool,
    root: &Path,
) -> Result<SecurityProfile, String> {
    let unset = if default {
        ProfileType::RuntimeDefault
    } else {
        ProfileType::Unconfined
    };
    let (kind, localhost_ref) = match profile {
        None => (unset, String::new()),
        Some(p) => match p.type_.as_str() {
            "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
            "Localhost" => (
                ProfileType::Localhost,
                localhost(p.localhost_profile.as_deref().unwrap_or_default(), root)?,
            ),
            _ => (ProfileType::Unconfined, String::new()),
        },
    };
    Ok(SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    })
}

/// The file of a localhost profile.
fn localhost(name: &str, root: &Path) -> Result<String, String> {
    if name.is_empty() {
        return Err("localhostProfile must be set if seccompProfile type is Localhost.".into());
    }
    let plain = |c| matches!(c, Component::Normal(_) | Component::CurDir);
    if !Path::new(name).components().all(plain) {
        return Err(format!(
            "localhostProfile {name:?} must be a descending relative path"
        ));
    }
    Ok(root.join(name).to_string_lossy().into_owned())
}

fn apparmor(p: &AppArmorProfile) -> SecurityProfile {
    SecurityProfile {
        profile_type: match p.type_.as_str() {
            "RuntimeDefault" => ProfileType::RuntimeDefault,
            "Localhost" => ProfileType::Localhost,
            _ => ProfileType::Unconfined,
        } as i32,
        localhost_ref: p.localhost_profile.clone().unwrap_or_default(),
    }
}

fn selinux(o: SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: o.user.unwrap_or_default(),
        role: o.role.unwrap_or_default(),
        r#type: o.type_.unwrap_or_default(),
        level: o.level.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        pod_sc: serde_json::Value,
        sc: serde_json::Value,
        image: ImageUser,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_sc, "containers": [{"name": "c", "securityContext": sc}]}}))
        .unwrap();
        container(
            &pod,
            &spec::containers(&pod)[0],
            &image,
            (false, Path::new("/k/seccomp")),
            None,
        )
    }

    #[test]
    fn non_root_is_checked_against_spec_and_image() {
        let non_root = || serde_json::json!({"runAsNonRoot": true});
        let none = || serde_json::json!({});
        let uid = |u| ImageUser {
            uid: Some(u),
            username: String::new(),
        };
        assert!(
            run(non_root(), none(), uid(0))
                .unwrap_err()
                .contains("image will run as root")
        );
        assert!(
            run(non_root(), none(), ImageUser::default())
                .unwrap_err()
                .contains("image will run as root")
        );
        let named = ImageUser {
            uid: None,
            username: "web".into(),
        };
        assert!(
            run(non_root(), none(), named)
                .unwrap_err()
                .contains("non-numeric user (web)")
        );
        assert!(
            run(non_root(), serde_json::json!({"runAsUser": 0}), uid(5))
                .unwrap_err()
                .contains("breaks non-root policy")
        );
        assert_eq!(
            run(non_root(), none(), uid(7))
                .unwrap()
                .run_as_user
                .unwrap()
                .value,
            7
        );
        assert!(
            run(
                non_root(),
                serde_json::json!({"runAsNonRoot": false}),
                uid(0)
            )
            .is_ok()
        );
    }

    #[test]
    fn a_privileged_container_has_no_masked_paths_and_unset_seccomp_is_unconfined() {
        let c = run(
            serde_json::json!({"fsGroup": 9, "supplementalGroups": [4]}),
            serde_json::json!({"privileged": true}),
            ImageUser::default(),
        )
        .unwrap();
        assert!(c.masked_paths.is_empty() && c.privileged);
        assert_eq!(c.supplemental_groups, [4, 9]);
        assert_eq!(
            c.seccomp.unwrap().profile_type,
            ProfileType::Unconfined as i32
        );
        let c = run(
            serde_json::json!({"seccompProfile": {"type": "RuntimeDefault"}}),
            serde_json::json!({"allowPrivilegeEscalation": false}),
            ImageUser::default(),
        )
        .unwrap();
        assert!(c.no_new_privs && !c.masked_paths.is_empty());
        assert_eq!(
            c.seccomp.unwrap().profile_type,
            ProfileType::RuntimeDefault as i32
        );
    }

    #[test]
    fn localhost_profiles_are_files_of_the_kubelet_s_folder_and_no_others() {
        let with = |profile: serde_json::Value| {
            let sc = serde_json::json!({"seccompProfile": profile});
            run(serde_json::json!({}), sc, ImageUser::default()).map(|c| c.seccomp.unwrap())
        };
        let local =
            |name: &str| with(serde_json::json!({"type": "Localhost", "localhostProfile": name}));
        let p = local("profiles/audit.json").unwrap();
        assert_eq!(
            (p.profile_type, p.localhost_ref.as_str()),
            (
                ProfileType::Localhost as i32,
                "/k/seccomp/profiles/audit.json"
            )
        );
        for name in ["/etc/passwd", "../x", "a/../../x", ".."] {
            assert!(local(name).unwrap_err().contains("descending"), "{name}");
        }
        assert!(
            with(serde_json::json!({"type": "Localhost"}))
                .unwrap_err()
                .contains("localhostProfile must be set")
        );
        // The pod's counts where the container says nothing.
        let pod = serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "pod.json"}});
        let c = run(pod, serde_json::json!({}), ImageUser::default()).unwrap();
        assert_eq!(c.seccomp.unwrap().localhost_ref, "/k/seccomp/pod.json");
    }

    #[test]
    fn an_unmasked_proc_is_refused_without_a_user_namespace() {
        let e = run(
            serde_json::json!({}),
            serde_json::json!({"procMount": "Unmasked"}),
            ImageUser::default(),
        );
        assert!(e.unwrap_err().contains("procMount"));
        let c = run(
            serde_json::json!({}),
            serde_json::json!({"procMount": "Default"}),
            ImageUser::default(),
        )
        .unwrap();
        assert!(c.readonly_paths.iter().any(|p| p == "/proc/sys"));
    }
}
