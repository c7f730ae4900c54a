//! What the runtime says of one pod, in the kubelet's words. Owns the reading of CRI statuses, labels and
//! annotations; decides nothing.

use crate::labels;
use jiff::Timestamp;
use k8s_cri::v1;

/// Where a container stands; CRI's ContainerState.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum RunState {
    /// Made, not started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerView {
    /// The runtime's id.
    pub id: String,
    /// The sandbox that it is in.
    pub sandbox_id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// Where it stands.
    pub state: RunState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 when not started.
    pub started_at: i64,
    /// Nanoseconds since the epoch; 0 when not ended.
    pub finished_at: i64,
    /// Exit code, 128+n for a signal.
    pub exit_code: i32,
    /// Image as asked for.
    pub image: String,
    /// Reference (digest) of the image.
    pub image_ref: String,
    /// The runtime's reason (Completed, Error, OOMKilled, StartError...).
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// See [`labels::HASH`].
    pub hash: String,
    /// Host path of the log.
    pub log_path: String,
    /// Host path of the termination message, its policy's name.
    pub termination: Option<(String, String)>,
    /// uid, gid, supplemental groups of its first process.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

impl ContainerView {
    /// When it ended (or was made, where the runtime does not say).
    pub fn finished(&self) -> Timestamp {
        time(if self.finished_at > 0 {
            self.finished_at
        } else {
            self.created_at
        })
    }

    /// From the CRI's status.
    pub fn from_cri(s: v1::ContainerStatus, sandbox_id: String) -> Self {
        let meta = s.metadata.clone().unwrap_or_default();
        let annotation = |k: &str| s.annotations.get(k).cloned();
        let termination = annotation(labels::TERMINATION_MESSAGE_PATH)
            .filter(|p| !p.is_empty())
            .and_then(|path| {
                let mount = s.mounts.iter().find(|m| m.container_path == path)?;
                Some((
                    mount.host_path.clone(),
                    annotation(labels::TERMINATION_MESSAGE_POLICY).unwrap_or_default(),
                ))
            });
        let image = s.image.clone().unwrap_or_default();
        Self {
            name: s
                .labels
                .get(labels::CONTAINER_NAME)
                .cloned()
                .unwrap_or(meta.name),
            attempt: annotation(labels::RESTART_COUNT)
                .and_then(|c| c.parse().ok())
                .unwrap_or(meta.attempt),
            state: match v1::ContainerState::try_from(s.state) {
                Ok(v1::ContainerState::ContainerCreated) => RunState::Created,
                Ok(v1::ContainerState::ContainerRunning) => RunState::Running,
                Ok(v1::ContainerState::ContainerExited) => RunState::Exited,
                _ => RunState::Unknown,
            },
            hash: annotation(labels::HASH).unwrap_or_default(),
            termination,
            user: s
                .user
                .and_then(|u| u.linux)
                .map(|u| (u.uid, u.gid, u.supplemental_groups)),
            id: s.id,
            sandbox_id,
            created_at: s.created_at,
            started_at: s.started_at,
            finished_at: s.finished_at,
            exit_code: s.exit_code,
            image: if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            },
            image_ref: s.image_ref,
            reason: s.reason,
            message: s.message,
            log_path: s.log_path,
        }
    }
}

/// One sandbox of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxView {
    /// The runtime's id.
    pub id: String,
    /// How often the pod's sandbox was made before.
    pub attempt: u32,
    /// Does it run?
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Addresses; empty on the node's network.
    pub ips: Vec<String>,
}

impl SandboxView {
    /// From the CRI's status.
    pub fn from_cri(s: v1::PodSandboxStatus) -> Self {
        let mut ips = Vec::new();
        if let Some(network) = s.network {
            if !network.ip.is_empty() {
                ips.push(network.ip);
            }
            ips.extend(network.additional_ips.into_iter().map(|i| i.ip));
        }
        Self {
            id: s.id,
            attempt: s.metadata.map_or(0, |m| m.attempt),
            ready: s.state == v1::PodSandboxState::SandboxReady as i32,
            created_at: s.created_at,
            ips,
        }
    }
}

/// Everything the runtime has for one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeView {
    /// Newest first.
    pub sandboxes: Vec<SandboxView>,
    /// Newest first.
    pub containers: Vec<ContainerView>,
}

impl RuntimeView {
    /// Puts the newest first.
    pub fn sorted(mut self) -> Self {
        self.sandboxes
            .sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        self.containers
            .sort_by_key(|c| std::cmp::Reverse((c.created_at, c.attempt)));
        self
    }

    /// The newest container of a name.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The container of a name before the newest.
    pub fn previous(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// Containers whose process runs or may run.
    pub fn alive(&self) -> impl Iterator<Item = &ContainerView> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, RunState::Running | RunState::Unknown))
    }
}

/// A CRI time (nanoseconds) as a timestamp.
pub fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}
