//! secret volumes (upstream pkg/volume/secret). Owns the files' content; they live on a tmpfs.

use super::atomic_writer::Payload;
use super::{Context, select};
use crate::pod::spec;
use k8s_openapi::api::core::v1::{KeyToPath, Pod, SecretVolumeSource};

/// The files of the volume.
///
/// # Errors
/// A Secret or key that does not exist and is not optional.
pub async fn payload(
    pod: &Pod,
    source: &SecretVolumeSource,
    cx: &Context<'_>,
) -> Result<Payload, String> {
    files(
        pod,
        source.secret_name.as_deref().unwrap_or_default(),
        source.items.as_ref(),
        source.default_mode.unwrap_or(0o644),
        source.optional.unwrap_or(false),
        cx,
    )
    .await
}

/// The same for a projection.
///
/// # Errors
/// See [`payload`].
pub async fn files(
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    cx: &Context<'_>,
) -> Result<Payload, String> {
    let found = cx
        .objects
        .secret(spec::uid(pod), spec::namespace(pod), name, cx.notify)
        .await?;
    match found {
        Some(secret) => {
            let data = secret
                .data
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.0.clone()))
                .collect();
            select(data, items, mode, optional, "secret")
        }
        None if optional => Ok(Payload::new()),
        None => Err(format!("secret \"{name}\" not found")),
    }
}
