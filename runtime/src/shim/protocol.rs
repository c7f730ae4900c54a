//! Owns the words between server and shim: one length-prefixed JSON message each way, descriptors as SCM_RIGHTS beside
//! the first byte. It must stay readable across versions: a server may meet shims that an older one started, so
//! fields are only ever added, with defaults.

use crate::container::rootfs::CgroupMount;
use crate::container::spec::{ContainerSpec, Exited, ProcessSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A longer message is a broken peer.
pub const MAX_MESSAGE: usize = 16 << 20;

/// What a shim is told at birth (`shim.json` in its directory).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ShimConfig {
    pub sandbox_id: String,
    /// Host names are set only in an own UTS namespace (pods without host network).
    pub hostname: String,
    pub host_network: bool,
    pub host_ipc: bool,
    /// The containers share one pid namespace, whose pid 1 is a child of the shim.
    pub share_pid: bool,
    pub sysctls: BTreeMap<String, String>,
    /// The node's cgroup hierarchies, for containers' /sys/fs/cgroup.
    pub cgroup_mounts: Vec<CgroupMountRecord>,
    /// It ends with the last connection that listens to it (image builds): its maker may be killed.
    pub tied: bool,
}

/// `CgroupMount` on the wire.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CgroupMountRecord {
    pub name: String,
    pub fstype: String,
    pub data: String,
    pub links: Vec<String>,
}

impl From<CgroupMountRecord> for CgroupMount {
    fn from(r: CgroupMountRecord) -> Self {
        Self {
            name: r.name,
            fstype: r.fstype,
            data: r.data,
            links: r.links,
        }
    }
}

impl From<CgroupMount> for CgroupMountRecord {
    fn from(r: CgroupMount) -> Self {
        Self {
            name: r.name,
            fstype: r.fstype,
            data: r.data,
            links: r.links,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Request {
    /// This connection gets `Subscribed` and then every `Exited`.
    Subscribe,
    /// Makes and runs a container: `Started` or `Error`. Descriptors: readers of stdout and stderr from the first byte on,
    /// those that are true.
    Start {
        spec: Box<ContainerSpec>,
        #[serde(default)]
        stdout: bool,
        #[serde(default)]
        stderr: bool,
    },
    /// Signals a container's first process, or with `all` every process of it.
    Kill {
        id: String,
        signal: i32,
        #[serde(default)]
        all: bool,
    },
    /// Runs a process in a container. Descriptors: stdin, stdout, stderr, those that are true. `ExecStarted` (with the
    /// terminal's master attached if the process has one), then `ExecExited` on the same connection.
    Exec {
        id: String,
        process: Box<ProcessSpec>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    KillExec {
        pid: i32,
        signal: i32,
    },
    /// Adds readers (and a writer of stdin) to a container's stdio. Descriptors as for Exec.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        id: String,
        width: u16,
        height: u16,
    },
    ReopenLog {
        id: String,
    },
    /// A TCP socket of the pod's network namespace: `Ok` with the descriptor.
    Socket {
        v6: bool,
    },
    /// Kills everything and leaves.
    Shutdown,
}

/// A container that the shim holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    pub id: String,
    pub pid: i32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "camelCase")]
pub enum Reply {
    Ok,
    /// The shim's pid too: the kernel names the process that called listen(2), which is the server that made the socket.
    Subscribed {
        pid: i32,
        containers: Vec<Held>,
    },
    #[serde(rename_all = "camelCase")]
    Started {
        pid: i32,
        started_at: i64,
    },
    ExecStarted {
        pid: i32,
    },
    ExecExited {
        code: i32,
    },
    /// A container runs. Whoever asked for the start gets `Started`; this is for a server that came later.
    #[serde(rename_all = "camelCase")]
    Began {
        id: String,
        pid: i32,
        started_at: i64,
    },
    /// A container ended; its exit.json is already written.
    Exited {
        id: String,
        exited: Exited,
    },
    #[serde(rename_all = "camelCase")]
    Error {
        not_running: bool,
        message: String,
    },
}

/// The bytes of one message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = vec![0; 4];
    if let Err(e) = serde_json::to_writer(&mut out, message) {
        // Only a map with non-string keys can fail, and there is none in these types.
        tracing::error!(error = %e, "a message to or from the shim could not be encoded");
    }
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
    out
}

/// Takes one whole message off the front of the buffer. None: more bytes are needed.
pub fn decode<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*head) as usize;
    if len > MAX_MESSAGE {
        return Err(format!("a message of {len} bytes is too long"));
    }
    if buffer.len() < 4 + len {
        return Ok(None);
    }
    let message =
        serde_json::from_slice(&buffer[4..4 + len]).map_err(|e| format!("bad message: {e}"));
    buffer.drain(..4 + len);
    message.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_being_cut_into_pieces() {
        let mut wire = encode(&Request::Kill {
            id: "a".into(),
            signal: 15,
            all: true,
        });
        wire.extend(encode(&Request::Shutdown));
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for b in wire {
            buffer.push(b);
            while let Some(r) = decode::<Request>(&mut buffer).unwrap() {
                seen.push(format!("{r:?}"));
            }
        }
        assert_eq!(
            seen,
            [r#"Kill { id: "a", signal: 15, all: true }"#, "Shutdown"]
        );
        assert!(decode::<Request>(&mut vec![255; 8]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_refused_or_waited_for_but_never_a_panic(mut bytes in proptest::collection::vec(0u8.., 0..64)) {
            let before = bytes.len();
            if let Ok(Some(_)) = decode::<Request>(&mut bytes) {
                proptest::prop_assert!(bytes.len() < before);
            }
        }
    }
}
