//! Addresses of the node's pods: which are taken, which is next, and the small files that remember it. Knows no
//! interfaces.

use super::{HostPort, PodError};
use crate::Cidr;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is kept for each sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
}

/// The allocations of a node. Files: `pods/<sandbox id>` (JSON) and `last` (the address given last).
#[derive(Debug)]
pub struct Ipam {
    dir: PathBuf,
    cidr: Cidr,
    records: BTreeMap<String, Record>,
    taken: HashSet<Ipv4Addr>,
    last: Ipv4Addr,
    last_file: File,
}

/// The address after `last` that is not taken, going round; None when all are. The network's own address, the
/// gateway (the first) and the broadcast address are never given. Going on from the last one given, rather than
/// taking the lowest, leaves a released address alone for as long as can be: peers may still talk to it.
pub fn next_free(cidr: &Cidr, taken: &HashSet<Ipv4Addr>, last: Ipv4Addr) -> Option<Ipv4Addr> {
    let first = u32::from(cidr.nth(2)?);
    let end = u32::from(cidr.last());
    let size = end.checked_sub(first)?;
    if size == 0 {
        return None;
    }
    let start = match u32::from(last) {
        l if l >= first && l < end => l - first + 1,
        _ => 0,
    };
    (0..size)
        .map(|i| Ipv4Addr::from(first + (start + i) % size))
        .find(|a| !taken.contains(a))
}

/// Sandbox ids become file names.
fn check_id(id: &str) -> Result<(), PodError> {
    let fine = !id.is_empty()
        && id.len() <= 128
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fine {
        Ok(())
    } else {
        Err(PodError::SandboxId(id.to_string()))
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PodError> {
    // Not synced: after a power loss no sandbox is left that could own an address.
    let fail = |e| PodError::State(path.to_path_buf(), e);
    let temporary = path.with_extension("tmp");
    private_file(&temporary)
        .and_then(|mut f| std::io::Write::write_all(&mut f, bytes))
        .map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

/// A fresh file for this user alone, whatever the umask.
pub(super) fn private_file(path: &Path) -> std::io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

impl Ipam {
    /// Reads what is on disk; makes the directory when it is not there. Files that cannot be read are set aside.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, cidr: Cidr) -> Result<Self, PodError> {
        let pods = dir.join("pods");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pods)
            .map_err(|e| PodError::State(pods.clone(), e))?;
        let last_path = dir.join("last");
        let last_file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&last_path)
            .map_err(|e| PodError::State(last_path.clone(), e))?;
        let mut this = Self {
            dir: dir.to_path_buf(),
            last_file,
            cidr,
            records: BTreeMap::new(),
            taken: HashSet::new(),
            last: Ipv4Addr::UNSPECIFIED,
        };
        if let Ok(text) = std::fs::read_to_string(&last_path)
            && let Ok(last) = text.trim().parse()
        {
            this.last = last;
        }
        let entries = std::fs::read_dir(&pods).map_err(|e| PodError::State(pods.clone(), e))?;
        for entry in entries {
            let entry = entry.map_err(|e| PodError::State(pods.clone(), e))?;
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if check_id(&id).is_err() || id.ends_with(".tmp") {
                let _ = std::fs::remove_file(entry.path());
                continue;
            }
            let record = std::fs::read(entry.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            match record {
                Some(record) => {
                    this.taken.insert(record.address);
                    this.records.insert(id, record);
                }
                None => {
                    tracing::warn!(file = %entry.path().display(), "an address record cannot be read; it is removed");
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        Ok(this)
    }

    /// The record of a sandbox.
    pub fn get(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    /// Every sandbox with its record.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.records.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The sandbox's address: the one it has, or a new one.
    ///
    /// # Errors
    /// When no address is free, the id cannot be a file name, or the disk refuses.
    pub fn allocate(&mut self, id: &str, ports: &[HostPort]) -> Result<Ipv4Addr, PodError> {
        check_id(id)?;
        let kept = self
            .records
            .get(id)
            .filter(|r| self.cidr.contains(r.address));
        let address = match kept {
            Some(record) => record.address,
            None => next_free(&self.cidr, &self.taken, self.last)
                .ok_or(PodError::NoAddress(self.cidr, self.taken.len()))?,
        };
        let record = Record {
            address,
            ports: ports.to_vec(),
        };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        write_file(&self.dir.join("pods").join(id), &bytes)?;
        if kept.is_none() {
            // In place: replacing a file by renaming makes ext4 write it out at once, which takes milliseconds.
            let text = format!("{:<16}", address.to_string());
            self.last_file
                .write_all_at(text.as_bytes(), 0)
                .map_err(|e| PodError::State(self.dir.join("last"), e))?;
            self.last = address;
        }
        self.taken.insert(address);
        self.records.insert(id.to_string(), record);
        Ok(address)
    }

    /// Puts a sandbox on record that has an address already.
    ///
    /// # Errors
    /// When the address is another sandbox's or not of this network, or the disk refuses.
    pub fn adopt(
        &mut self,
        id: &str,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), PodError> {
        check_id(id)?;
        if self.records.get(id).is_some_and(|r| r.address == address) {
            return Ok(());
        }
        if self.taken.contains(&address) || !self.cidr.contains(address) {
            return Err(PodError::Foreign(address, self.cidr));
        }
        self.release(id);
        let record = Record {
            address,
            ports: ports.to_vec(),
        };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        write_file(&self.dir.join("pods").join(id), &bytes)?;
        self.taken.insert(address);
        self.records.insert(id.to_string(), record);
        Ok(())
    }

    /// Gives a sandbox's address back; None when it had none.
    pub fn release(&mut self, id: &str) -> Option<Record> {
        let record = self.records.remove(id)?;
        self.taken.remove(&record.address);
        let _ = std::fs::remove_file(self.dir.join("pods").join(id));
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr() -> Cidr {
        "10.42.0.0/29".parse().expect("a network")
    }

    #[test]
    fn a_released_address_is_not_given_again_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ipam = Ipam::open(dir.path(), cidr()).expect("open");
        assert_eq!(
            ipam.allocate("a", &[]).ok(),
            Some(Ipv4Addr::new(10, 42, 0, 2))
        );
        ipam.release("a");
        assert_eq!(
            ipam.allocate("b", &[]).ok(),
            Some(Ipv4Addr::new(10, 42, 0, 3))
        );
        drop(ipam);
        let mut ipam = Ipam::open(dir.path(), cidr()).expect("open");
        assert_eq!(
            ipam.allocate("b", &[]).ok(),
            Some(Ipv4Addr::new(10, 42, 0, 3))
        );
        assert_eq!(
            ipam.allocate("c", &[]).ok(),
            Some(Ipv4Addr::new(10, 42, 0, 4))
        );
    }

    #[test]
    fn a_full_network_says_so_and_recovers() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ipam = Ipam::open(dir.path(), cidr()).expect("open");
        for i in 0..5 {
            assert!(ipam.allocate(&format!("s{i}"), &[]).is_ok());
        }
        assert!(matches!(
            ipam.allocate("x", &[]),
            Err(PodError::NoAddress(_, 5))
        ));
        ipam.release("s1");
        assert_eq!(
            ipam.allocate("x", &[]).ok(),
            Some(Ipv4Addr::new(10, 42, 0, 3))
        );
    }

    #[test]
    fn ids_that_are_no_file_names_are_refused_and_broken_files_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ipam = Ipam::open(dir.path(), cidr()).expect("open");
        for bad in ["", "../x", "a/b", "..", "a\0"] {
            assert!(ipam.allocate(bad, &[]).is_err(), "{bad:?}");
        }
        std::fs::write(dir.path().join("pods/broken"), b"{").expect("write");
        let ipam = Ipam::open(dir.path(), cidr()).expect("open");
        assert_eq!(ipam.records().count(), 0);
        assert!(!dir.path().join("pods/broken").exists());
    }

    #[test]
    fn tiny_networks_have_no_addresses() {
        for text in ["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30"] {
            let cidr: Cidr = text.parse().expect("a network");
            let free = next_free(&cidr, &HashSet::new(), Ipv4Addr::UNSPECIFIED);
            assert_eq!(free.is_some(), text.ends_with("30"), "{text}");
        }
    }
}
