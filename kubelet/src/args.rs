//! Settings by the names of upstream's kubelet flags, as k3s' --kubelet-arg takes them. Owns reading them; what they mean
//! is said in `config`.

use crate::config::Config;
use crate::eviction::signals::{Least, Signal, Threshold};
use crate::quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

impl Config {
    /// Sets `name=value` (leading dashes are fine).
    ///
    /// # Errors
    /// A flag that is not known, or a value that is none; the text names it.
    pub fn set(&mut self, arg: &str) -> Result<(), String> {
        let (name, value) = arg
            .trim_start_matches('-')
            .split_once('=')
            .ok_or_else(|| format!("kubelet argument {arg:?} is not name=value"))?;
        let bad = |why: &str| format!("kubelet argument {name}={value}: {why}");
        let number = || value.parse::<i64>().map_err(|_| bad("not a number"));
        let percent = || {
            let n = value.parse::<u8>().ok().filter(|n| *n <= 100);
            n.ok_or_else(|| bad("not a percentage"))
        };
        match name {
            "pod-max-pids" => self.pod_pids_limit = number()?,
            "max-pods" => self.max_pods = number()?,
            "allowed-unsafe-sysctls" => {
                let list = value.split(',').filter(|s| !s.is_empty());
                self.allowed_unsafe_sysctls.extend(list.map(String::from));
            }
            "system-reserved" => self.system_reserved = resources(value).map_err(|e| bad(&e))?,
            "kube-reserved" => self.kube_reserved = resources(value).map_err(|e| bad(&e))?,
            "enforce-node-allocatable" => {
                self.enforce_node_allocatable = match value {
                    "pods" => true,
                    "" | "none" => false,
                    _ => return Err(bad("only pods, or none")),
                };
            }
            "eviction-hard" => self.eviction_hard = thresholds(value).map_err(|e| bad(&e))?,
            "seccomp-default" => {
                self.seccomp_default = value.parse().map_err(|_| bad("true or false"))?;
            }
            "image-gc-high-threshold" => self.image_gc_high_percent = percent()?,
            "image-gc-low-threshold" => self.image_gc_low_percent = percent()?,
            "container-log-max-files" => {
                self.container_log_max_files = value
                    .parse()
                    .ok()
                    .filter(|n| *n > 1)
                    .ok_or_else(|| bad("two or more"))?;
            }
            "container-log-max-size" => {
                let bytes = quantity::value(&Quantity(value.into()));
                self.container_log_max_size = bytes
                    .and_then(|b| u64::try_from(b).ok())
                    .ok_or_else(|| bad("not a quantity"))?;
            }
            _ => return Err(format!("kubelet argument {name} is not known to Skiff")),
        }
        Ok(())
    }
}

/// `cpu=500m,memory=1Gi,pid=1000`
fn resources(text: &str) -> Result<BTreeMap<String, Quantity>, String> {
    text.split(',')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (name, q) = pair.split_once('=').ok_or("not name=quantity pairs")?;
            if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&name) {
                return Err(format!("{name} cannot be reserved"));
            }
            let q = Quantity(q.into());
            match quantity::milli(&q) {
                Some(n) if n >= 0 => Ok((name.to_string(), q)),
                _ => Err(format!("{} is not a quantity", q.0)),
            }
        })
        .collect()
}

/// `memory.available<100Mi,nodefs.available<10%`
fn thresholds(text: &str) -> Result<Vec<Threshold>, String> {
    text.split(',')
        .filter(|p| !p.is_empty())
        .map(|one| {
            let (name, least) = one.split_once('<').ok_or("not signal<value pairs")?;
            let signal =
                Signal::parse(name.trim()).ok_or_else(|| format!("{name} is not a signal"))?;
            let least = least.trim();
            let least = match least.strip_suffix('%') {
                Some(p) => p
                    .parse()
                    .ok()
                    .filter(|p| (0.0..=100.0).contains(p))
                    .map(Least::Percent),
                None => quantity::value(&Quantity(least.into()))
                    .filter(|n| *n >= 0)
                    .map(Least::Amount),
            };
            let least =
                least.ok_or_else(|| format!("{one}: neither a quantity nor a percentage"))?;
            Ok(Threshold { signal, least })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_upstreams_kubelet_are_taken_or_refused_by_name() {
        let mut c = Config::new("n", std::path::Path::new("/d"));
        for arg in [
            "pod-max-pids=64",
            "--allowed-unsafe-sysctls=kernel.msg*,net.core.somaxconn",
            "system-reserved=cpu=100m,memory=64Mi",
            "kube-reserved=memory=64Mi,pid=100",
            "eviction-hard=memory.available<5%,nodefs.available<1Gi",
            "enforce-node-allocatable=none",
        ] {
            c.set(arg).unwrap();
        }
        assert_eq!(c.pod_pids_limit, 64);
        assert_eq!(
            c.allowed_unsafe_sysctls,
            ["kernel.msg*", "net.core.somaxconn"]
        );
        assert!(!c.enforce_node_allocatable);
        let reserved = c.reserved();
        assert_eq!(quantity::value_of(Some(&reserved), "memory"), 128 << 20);
        assert_eq!(quantity::value_of(Some(&reserved), "pid"), 100);
        assert_eq!(c.eviction_hard.len(), 2);
        assert_eq!(c.eviction_hard[1].least, Least::Amount(1 << 30));
        for (arg, part) in [
            ("pod-max-pids", "name=value"),
            ("pod-max-pids=x", "not a number"),
            ("cgroup-driver=systemd", "cgroup-driver"),
            ("system-reserved=gpu=1", "gpu"),
            ("system-reserved=cpu=-1", "-1"),
            ("eviction-hard=disk<1", "disk"),
            ("eviction-hard=memory.available<120%", "120%"),
            ("image-gc-high-threshold=101", "percentage"),
        ] {
            let e = c.set(arg).unwrap_err();
            assert!(e.contains(part), "{arg}: {e}");
        }
    }
}
