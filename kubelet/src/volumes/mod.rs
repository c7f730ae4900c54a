//! Volumes of pods: one file for each plugin, all below `pods/<uid>/volumes/<plugin>/<name>` as upstream lays them out.
//! Owns mounting, live updates and removal; must not know anything of containers.

pub mod atomic_writer;
pub mod config_map;
pub mod downward_api;
pub mod empty_dir;
pub mod host_path;
pub mod mounts;
pub mod ownership;
pub mod persistent_volume_claim;
pub mod projected;
pub mod secret;
pub mod subpath;
pub mod tear_down;
pub mod tokens;

use crate::config::Config;
use crate::kuberuntime::fields::Addresses;
use crate::objects::{Notify, Objects};
use crate::pod::spec;
use atomic_writer::Payload;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

/// A volume that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where on the node.
    pub path: PathBuf,
    /// Never writable for containers.
    pub read_only: bool,
    /// An image volume: its reference instead of a path.
    pub image: Option<String>,
}

/// What volumes are made of besides the pod.
pub struct Context<'a> {
    /// The kubelet's configuration.
    pub config: &'a Config,
    /// The API.
    pub client: &'a kube::Client,
    /// ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// Tokens of service accounts.
    pub tokens: &'a tokens::Tokens,
    /// Told when a source of the pod's volumes changes.
    pub notify: &'a Notify,
    /// status.podIPs and so on, for downwardAPI.
    pub addresses: &'a Addresses,
    /// What the node can allocate, for downwardAPI.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Now.
    pub now: Timestamp,
}

/// All mounted volumes of the node.
#[derive(Default)]
pub struct Volumes {
    mounted: Mutex<HashMap<String, Arc<HashMap<String, Mounted>>>>,
}

impl Volumes {
    /// The volumes of a pod, by name.
    pub fn of(&self, uid: &str) -> Arc<HashMap<String, Mounted>> {
        self.mounted.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Mounts what is not mounted and brings the rest up to date. Answers when to come again (tokens expire).
    ///
    /// # Errors
    /// The first volume that could not be mounted, in the words of upstream's FailedMount event.
    pub async fn mount_all(
        &self,
        pod: &Pod,
        cx: &Context<'_>,
    ) -> Result<Option<Timestamp>, String> {
        let mut refresh: Option<Timestamp> = None;
        let mut mounted = HashMap::new();
        for volume in spec::spec(pod).volumes.iter().flatten() {
            let (one, again) = mount(pod, volume, cx).await.map_err(|e| {
                format!(
                    "MountVolume.SetUp failed for volume \"{}\" : {e}",
                    volume.name
                )
            })?;
            mounted.insert(volume.name.clone(), one);
            if let Some(again) = again {
                refresh = Some(refresh.map_or(again, |r| r.min(again)));
            }
        }
        self.mounted
            .lock()
            .insert(spec::uid(pod).to_string(), Arc::new(mounted));
        Ok(refresh)
    }

    /// Forgets a pod's volumes, which `tear_down` has removed.
    pub fn forget(&self, uid: &str) {
        self.mounted.lock().remove(uid);
    }
}

async fn mount(
    pod: &Pod,
    volume: &Volume,
    cx: &Context<'_>,
) -> Result<(Mounted, Option<Timestamp>), String> {
    let dir = |plugin: &str| cx.config.volume_dir(spec::uid(pod), plugin, &volume.name);
    let plain = |path: PathBuf| {
        (
            Mounted {
                path,
                read_only: false,
                image: None,
            },
            None,
        )
    };
    if let Some(source) = &volume.empty_dir {
        let path = dir("kubernetes.io/empty-dir");
        empty_dir::mount(pod, source, &path)?;
        return Ok(plain(path));
    }
    if let Some(source) = &volume.host_path {
        return Ok(plain(host_path::mount(source)?));
    }
    if let Some(source) = &volume.config_map {
        let payload = config_map::payload(pod, source, cx).await?;
        return Ok(plain(
            write(pod, payload, dir("kubernetes.io/configmap")).await?,
        ));
    }
    if let Some(source) = &volume.secret {
        let payload = secret::payload(pod, source, cx).await?;
        let path = dir("kubernetes.io/secret");
        empty_dir::ensure_tmpfs(&path, None)?;
        return Ok(plain(write(pod, payload, path).await?));
    }
    if let Some(source) = &volume.downward_api {
        let payload = downward_api::payload(
            pod,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode.unwrap_or(0o644),
            cx,
        )?;
        return Ok(plain(
            write(pod, payload, dir("kubernetes.io/downward-api")).await?,
        ));
    }
    if let Some(source) = &volume.projected {
        let (payload, refresh) = projected::payload(pod, source, cx).await?;
        let path = dir("kubernetes.io/projected");
        if projected::is_sensitive(source) {
            empty_dir::ensure_tmpfs(&path, None)?;
        }
        let (mounted, _) = plain(write(pod, payload, path).await?);
        return Ok((mounted, refresh));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let (path, read_only) = persistent_volume_claim::mount(pod, source, cx).await?;
        return Ok((
            Mounted {
                path,
                read_only,
                image: None,
            },
            None,
        ));
    }
    if let Some(source) = &volume.image {
        return Ok((
            Mounted {
                path: PathBuf::new(),
                read_only: true,
                image: Some(source.reference.clone().unwrap_or_default()),
            },
            None,
        ));
    }
    Err(format!(
        "the volume plugin {} is not supported by this kubelet",
        plugin_name(volume)
    ))
}

/// The field of the volume that is set, for messages.
fn plugin_name(volume: &Volume) -> String {
    serde_json::to_value(volume)
        .ok()
        .and_then(|v| {
            v.as_object()
                .and_then(|o| o.keys().find(|k| *k != "name").cloned())
        })
        .unwrap_or_else(|| "(none)".into())
}

async fn write(pod: &Pod, payload: Payload, path: PathBuf) -> Result<PathBuf, String> {
    let group = spec::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group);
    let dir = path.clone();
    tokio::task::spawn_blocking(move || atomic_writer::write(&dir, &payload, group))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

/// ConfigMap and Secret keys as files: all of them, or those that `items` names.
///
/// # Errors
/// A named key that is not there.
pub fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<k8s_openapi::api::core::v1::KeyToPath>>,
    default_mode: i32,
    optional: bool,
    what: &str,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    match items {
        None => {
            for (k, v) in data {
                out.insert(k, atomic_writer::File::new(v, default_mode));
            }
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(v) => {
                        let mode = item.mode.unwrap_or(default_mode);
                        out.insert(item.path.clone(), atomic_writer::File::new(v.clone(), mode));
                    }
                    None if optional => {}
                    None => {
                        return Err(format!(
                            "{what} references non-existent {} key: {}",
                            if what == "secret" { "secret" } else { "config" },
                            item.key
                        ));
                    }
                }
            }
        }
    }
    Ok(out)
}
