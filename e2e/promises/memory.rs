//! What a cluster's processes hold: VmRSS of all processes named skiff that belong to it, shims included, and the
//! shims' own share.

use anyhow::{Context, Result};
use skiff_e2e::framework::{Cluster, leftovers};
use std::fmt;

/// Memory of a cluster, in kB.
#[derive(Debug, Default)]
pub struct Memory {
    server: u64,
    shims: u64,
    shim_count: u64,
    shim_pss: u64,
}

impl Memory {
    /// Proportional share of one shim.
    pub fn each_shim(&self) -> u64 {
        self.shim_pss.checked_div(self.shim_count).unwrap_or(0)
    }
}

impl fmt::Display for Memory {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} MB",
            (self.server + self.shims) as f64 * 1024.0 / 1e6
        )?;
        if self.shim_count > 0 {
            write!(f, " ({} shims)", self.shim_count)?;
        }
        Ok(())
    }
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|l| l.strip_prefix(name))
        .and_then(|v| {
            v.trim_start_matches(':')
                .trim()
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// Adds up the processes of a cluster.
///
/// # Errors
/// The server does not run.
pub fn total(cluster: &Cluster) -> Result<Memory> {
    let mut m = Memory::default();
    let server = cluster.pid().context("the server does not run")?;
    for (pid, line) in leftovers::processes(&cluster.data_dir) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // A path in the command line of something else (a kubectl, a shell) is not ours.
        if pid != server && !line.contains(" shim ") {
            continue;
        }
        let rss = field(&status, "VmRSS");
        if pid == server {
            m.server = rss;
        } else {
            m.shims += rss;
            m.shim_count += 1;
            let rollup =
                std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            m.shim_pss += field(&rollup, "Pss");
        }
    }
    Ok(m)
}

/// CPU time that the server has used, in seconds.
///
/// # Errors
/// The server does not run.
#[allow(clippy::cast_precision_loss)]
pub fn cpu_seconds(cluster: &Cluster) -> Result<f64> {
    let pid = cluster.pid().context("the server does not run")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(") ").map(|(_, r)| r).context("stat")?;
    let numbers: Vec<u64> = after.split(' ').map(|n| n.parse().unwrap_or(0)).collect();
    let ticks = numbers.get(11).unwrap_or(&0) + numbers.get(12).unwrap_or(&0);
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
