//! projected volumes: several sources in one directory (upstream pkg/volume/projected). Owns putting them together.

use super::atomic_writer::{File, Payload};
use super::{Context, config_map, downward_api, secret};
use crate::pod::spec;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ProjectedVolumeSource};

/// The files, and when the earliest token must be renewed.
///
/// # Errors
/// The first source that cannot be had.
pub async fn payload(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    cx: &Context<'_>,
) -> Result<(Payload, Option<Timestamp>), String> {
    let mode = source.default_mode.unwrap_or(0o644);
    let mut out = Payload::new();
    let mut refresh: Option<Timestamp> = None;
    for s in source.sources.iter().flatten() {
        if let Some(m) = &s.config_map {
            out.extend(
                config_map::files(
                    pod,
                    &m.name,
                    m.items.as_ref(),
                    mode,
                    m.optional.unwrap_or(false),
                    cx,
                )
                .await?,
            );
        } else if let Some(m) = &s.secret {
            out.extend(
                secret::files(
                    pod,
                    &m.name,
                    m.items.as_ref(),
                    mode,
                    m.optional.unwrap_or(false),
                    cx,
                )
                .await?,
            );
        } else if let Some(d) = &s.downward_api {
            out.extend(downward_api::payload(
                pod,
                d.items.as_deref().unwrap_or_default(),
                mode,
                cx,
            )?);
        } else if let Some(t) = &s.service_account_token {
            let token = cx.tokens.get(pod, t, cx.client, cx.now).await?;
            refresh = Some(refresh.map_or(token.refresh_at, |r| r.min(token.refresh_at)));
            let mut file = File::new(token.token.into_bytes(), mode);
            let (mode, owner) = token_access(pod, mode);
            file.mode = mode;
            file.owner = owner;
            out.insert(t.path.clone(), file);
        } else if s.cluster_trust_bundle.is_some() {
            return Err("clusterTrustBundle projections are not supported by this kubelet".into());
        } else if s.pod_certificate.is_some() {
            return Err("podCertificate projections are not supported by this kubelet".into());
        }
    }
    Ok((out, refresh))
}

/// Tokens are for the pod's user only: 0600 when a group or one common user can be given (upstream's rule); the group's
/// right to read comes with the volume.
fn token_access(pod: &Pod, mode: i32) -> (u32, Option<u32>) {
    let s = spec::spec(pod);
    let sc = s.security_context.as_ref();
    let pod_user = sc.and_then(|s| s.run_as_user);
    let mut users = spec::containers(pod)
        .iter()
        .chain(spec::init_containers(pod))
        .map(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.run_as_user)
                .or(pod_user)
        });
    let first = users.next().flatten();
    let common = first
        .filter(|u| users.all(|o| o == Some(*u)))
        .and_then(|u| u32::try_from(u).ok());
    if common.is_some() || sc.and_then(|s| s.fs_group).is_some() {
        return (0o600, common);
    }
    (mode as u32 & 0o777, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_users_alone_where_there_is_one_user() {
        let get = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
            token_access(&pod, 0o644)
        };
        let c = |user: Option<i64>| match user {
            Some(u) => serde_json::json!({"name": "c", "securityContext": {"runAsUser": u}}),
            None => serde_json::json!({"name": "c"}),
        };
        let two = |a, b| serde_json::json!({"containers": [c(a), c(b)]});
        assert_eq!(get(two(Some(5), Some(5))), (0o600, Some(5)));
        assert_eq!(get(two(Some(5), Some(6))), (0o644, None));
        assert_eq!(get(two(Some(5), None)), (0o644, None));
        let group =
            serde_json::json!({"containers": [c(Some(5))], "securityContext": {"fsGroup": 7}});
        assert_eq!(get(group), (0o600, Some(5)));
        let group = serde_json::json!({"containers": [c(None)], "securityContext": {"fsGroup": 7}});
        assert_eq!(get(group), (0o600, None));
    }
}
