//! Volumes of pods: one file for each plugin, all below `pods/<uid>/volumes/<plugin>/<name>` as upstream lays them out.
//! Owns mounting, live updates and removal; must not know anything of containers.

pub mod atomic_writer;
pub mod config_map;
pub mod downward_api;
pub mod empty_dir;
pub mod host_path;
pub mod memory;
pub mod mounts;
pub mod ownership;
pub mod persistent_volume_claim;
pub mod place;
pub mod projected;
pub mod secret;
pub mod subpath;
pub mod tear_down;
pub mod tokens;
pub mod work;

use crate::config::Config;
use crate::kuberuntime::fields::Addresses;
use crate::objects::{Notify, Objects};
use crate::pod::spec;
use atomic_writer::Payload;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use persistent_volume_claim as claim;
use place::Place;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use work::{Closed, Lane, Late, Work};

/// A volume that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Where on the node.
    pub path: PathBuf,
    /// The volume itself is not to be written, by nobody.
    pub read_only: bool,
    /// Its files are the kubelet's: containers get it read-only, always.
    pub ours: bool,
    /// An image volume: its reference instead of a path.
    pub image: Option<String>,
    /// A group that every container of the pod gets (annotation pv.beta.kubernetes.io/gid of a PersistentVolume).
    pub group: Option<i64>,
}

impl Mounted {
    /// A directory that containers may write.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }
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
    /// Where the work on file systems is done.
    pub work: Work,
}

/// What became of a pod's volumes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When to come again: tokens expire.
    pub refresh: Option<Timestamp>,
    /// What the user should know (upstream's AlreadyMountedVolume).
    pub warnings: Vec<String>,
}

impl Volumes {
    /// The volumes of a pod, by name.
    pub fn of(&self, uid: &str) -> Arc<HashMap<String, Mounted>> {
        self.mounted.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Supplementary groups that the pod's volumes bring along (upstream GetExtraSupplementalGroupsForPod).
    pub fn groups(&self, uid: &str) -> Vec<i64> {
        let mut groups: Vec<i64> = self.of(uid).values().filter_map(|m| m.group).collect();
        groups.sort_unstable();
        groups
    }

    /// Mounts what is not mounted and brings the rest up to date.
    ///
    /// # Errors
    /// The first volume that could not be mounted, in the words of upstream's FailedMount event.
    pub async fn mount_all(&self, pod: &Pod, cx: &Context<'_>) -> Result<Outcome, String> {
        refuse_devices(pod)?;
        let mut out = Outcome::default();
        let mut todo = Vec::new();
        for volume in spec::spec(pod).volumes.iter().flatten() {
            let (wanted, again) = prepare(pod, volume, cx)
                .await
                .map_err(|e| set_up_failed(&volume.name, e))?;
            todo.push((volume.name.clone(), wanted));
            if let Some(again) = again {
                out.refresh = Some(out.refresh.map_or(again, |r| r.min(again)));
            }
        }
        let uid = spec::uid(pod);
        let place = Place::new(cx.config, uid);
        let at_work = Arc::new(Mutex::new(String::new()));
        let shown = at_work.clone();
        let job = move |closed: &Closed| {
            let made = make_all(&place, todo, closed, &shown);
            tear_down::if_late(&place, closed);
            made
        };
        let (mounted, warnings) = self
            .work
            .run(uid, Lane::Mount, work::MOUNT, job)
            .await
            .map_err(|e| late(&e, &at_work.lock()))??;
        out.warnings = warnings;
        self.mounted
            .lock()
            .insert(uid.to_string(), Arc::new(mounted));
        Ok(out)
    }

    /// Forgets a pod's volumes, which `tear_down` removes. What still hangs makes nothing more.
    pub fn forget(&self, uid: &str) {
        self.work.close(uid);
        self.mounted.lock().remove(uid);
    }
}

fn set_up_failed(volume: &str, e: impl std::fmt::Display) -> String {
    format!("MountVolume.SetUp failed for volume \"{volume}\" : {e}")
}

fn late(e: &Late, volume: &str) -> String {
    format!(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[]: {e}"
    )
}

/// Block devices are not carried out: a pod that wants one must not run without it.
fn refuse_devices(pod: &Pod) -> Result<(), String> {
    let all = spec::init_containers(pod)
        .iter()
        .chain(spec::containers(pod));
    for c in all {
        if let Some(d) = c.volume_devices.iter().flatten().next() {
            return Err(format!(
                "MapVolume.SetUpDevice failed for volume \"{}\" : volumeDevices of container \"{}\" are not supported by this kubelet",
                d.name, c.name
            ));
        }
    }
    Ok(())
}

/// A volume once its sources are read: what is left is work on the node's files.
enum Wanted {
    EmptyDir(empty_dir::Wanted),
    HostPath(HostPathVolumeSource),
    Claim(claim::Found, Option<i64>),
    Image(String),
    Files {
        plugin: &'static str,
        payload: Payload,
        group: Option<u32>,
        memory: Option<memory::Options>,
    },
}

async fn prepare(
    pod: &Pod,
    volume: &Volume,
    cx: &Context<'_>,
) -> Result<(Wanted, Option<Timestamp>), String> {
    let group = spec::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.fs_group)
        .map(ownership::group_id)
        .transpose()?;
    let files = |plugin, payload, in_memory: bool| Wanted::Files {
        plugin,
        payload,
        group,
        memory: in_memory.then(|| empty_dir::for_files(pod, group, cx.allocatable)),
    };
    let mut refresh = None;
    let wanted = if let Some(source) = &volume.empty_dir {
        Wanted::EmptyDir(empty_dir::wanted(pod, source, group, cx.allocatable)?)
    } else if let Some(source) = &volume.host_path {
        Wanted::HostPath(source.clone())
    } else if let Some(source) = &volume.config_map {
        let payload = config_map::payload(pod, source, cx).await?;
        files("kubernetes.io/configmap", payload, false)
    } else if let Some(source) = &volume.secret {
        let payload = secret::payload(pod, source, cx).await?;
        files("kubernetes.io/secret", payload, true)
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(0o644);
        let payload = downward_api::payload(pod, items, mode, cx)?;
        files("kubernetes.io/downward-api", payload, true)
    } else if let Some(source) = &volume.projected {
        let (payload, again) = projected::payload(pod, source, cx).await?;
        refresh = again;
        files("kubernetes.io/projected", payload, true)
    } else if let Some(source) = &volume.persistent_volume_claim {
        let (found, gid) = claim::find(pod, source, group, cx).await?;
        Wanted::Claim(found, gid)
    } else if let Some(source) = &volume.image {
        Wanted::Image(source.reference.clone().unwrap_or_default())
    } else {
        return Err(format!(
            "the volume plugin {} is not supported by this kubelet",
            plugin_name(volume)
        ));
    };
    Ok((wanted, refresh))
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

type Made = (HashMap<String, Mounted>, Vec<String>);

/// `shown` is the volume at work, for whoever waits.
fn make_all(
    place: &Place,
    todo: Vec<(String, Wanted)>,
    closed: &Closed,
    shown: &Mutex<String>,
) -> Result<Made, String> {
    let mut mounted = HashMap::new();
    let mut warnings = Vec::new();
    for (name, wanted) in todo {
        if closed.is() {
            return Err("the pod's volumes are being removed".into());
        }
        shown.lock().clone_from(&name);
        let one = make(place, &name, wanted, &mut warnings);
        mounted.insert(name.clone(), one.map_err(|e| set_up_failed(&name, e))?);
    }
    Ok((mounted, warnings))
}

fn make(
    place: &Place,
    name: &str,
    wanted: Wanted,
    warnings: &mut Vec<String>,
) -> Result<Mounted, String> {
    match wanted {
        Wanted::EmptyDir(wanted) => empty_dir::mount(place, name, &wanted),
        Wanted::HostPath(source) => Ok(Mounted::at(host_path::mount(&source)?)),
        Wanted::Claim(found, group) => {
            let (mounted, warning) = claim::mount(place, &found)?;
            warnings.extend(warning);
            Ok(Mounted { group, ..mounted })
        }
        Wanted::Image(reference) => Ok(Mounted {
            read_only: true,
            image: Some(reference),
            ..Mounted::default()
        }),
        Wanted::Files {
            plugin,
            payload,
            group,
            memory,
        } => {
            let path = place.volume_path(plugin, name);
            write(place, plugin, name, &payload, group, memory)
                .map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(Mounted {
                ours: true,
                ..Mounted::at(path)
            })
        }
    }
}

fn write(
    place: &Place,
    plugin: &str,
    name: &str,
    payload: &Payload,
    group: Option<u32>,
    memory: Option<memory::Options>,
) -> std::io::Result<()> {
    let parent = place.volumes(plugin)?;
    let dir = match memory {
        Some(options) => memory::mount(&parent, name, &options)?,
        None => {
            let mode = group.map_or(0o777, |_| ownership::with_group(0o777, true, true));
            place::make_volume(&parent, name, mode, group)?
        }
    };
    atomic_writer::write(&dir, payload, group)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_are_refused_by_name() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "c", "volumeDevices": [{"name": "disk", "devicePath": "/dev/x"}]}]}}))
        .unwrap();
        let refused = refuse_devices(&pod).unwrap_err();
        assert!(refused.contains("volumeDevices") && refused.contains("\"disk\""));
        assert!(refuse_devices(&Pod::default()).is_ok());
    }
}
