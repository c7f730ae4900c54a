//! downwardAPI volumes (upstream pkg/volume/downwardapi). Owns the files' content.

use super::Context;
use super::atomic_writer::{File, Payload};
use crate::kuberuntime::fields;
use crate::pod::spec;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod};

/// The files of the volume.
///
/// # Errors
/// A field that is not supported, or a container that does not exist.
pub fn payload(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    cx: &Context<'_>,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    for item in items {
        let value = if let Some(f) = &item.field_ref {
            fields::field(pod, &f.field_path, cx.addresses)?
        } else if let Some(r) = &item.resource_field_ref {
            let name = r.container_name.as_deref().unwrap_or_default();
            let (_, of) =
                spec::container(pod, name).ok_or_else(|| format!("container {name} not found"))?;
            fields::resource_field(r, &of, cx.allocatable)?
        } else {
            continue;
        };
        out.insert(
            item.path.clone(),
            File::new(value.into_bytes(), item.mode.unwrap_or(default_mode)),
        );
    }
    Ok(out)
}
