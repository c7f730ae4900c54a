//! configMap volumes (upstream pkg/volume/configmap). Owns the files' content; `atomic_writer` writes them.

use super::atomic_writer::Payload;
use super::{Context, select};
use crate::pod::spec;
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath, Pod};
use std::collections::BTreeMap;

/// The files of the volume.
///
/// # Errors
/// A ConfigMap or key that does not exist and is not optional.
pub async fn payload(
    pod: &Pod,
    source: &ConfigMapVolumeSource,
    cx: &Context<'_>,
) -> Result<Payload, String> {
    files(
        pod,
        &source.name,
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
        .config_map(spec::uid(pod), spec::namespace(pod), name, cx.notify)
        .await?;
    match found {
        Some(map) => select(data(&map), items, mode, optional, "configmap"),
        None if optional => Ok(Payload::new()),
        None => Err(format!("configmap \"{name}\" not found")),
    }
}

fn data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}
