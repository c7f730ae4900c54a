//! The configuration file: YAML whose keys are the server's flags. Owns turning it into arguments that stand before
//! those of the command line, so that the command line wins; knows no flag by name.

use crate::paths;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The arguments of `skiff server`, those of the configuration file first.
///
/// # Errors
/// The file that `--config` or its variable names cannot be read, or is not a mapping of flags. The default file may
/// be absent.
pub fn with_file(
    args: Vec<OsString>,
    flags: &[String],
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>> {
    if args.get(1).and_then(|a| a.to_str()) != Some("server") {
        return Ok(args);
    }
    let named = named_file(&args[2..]).or_else(|| env("SKIFF_CONFIG_FILE").map(PathBuf::from));
    let path = named
        .clone()
        .unwrap_or_else(|| PathBuf::from("/etc/skiff/config.yaml"));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(args),
        Err(e) => return Err(e).with_context(|| format!("configuration file {}", path.display())),
    };
    let extra = arguments(&text, flags, &env)
        .with_context(|| format!("configuration file {}", path.display()))?;
    let mut all: Vec<OsString> = args[..2].to_vec();
    all.extend(extra.into_iter().map(OsString::from));
    all.extend_from_slice(&args[2..]);
    Ok(all)
}

fn named_file(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(a) = args.next() {
        let text = a.to_str()?;
        if text == "--config" || text == "-c" {
            return args.next().map(PathBuf::from);
        }
        if let Some(v) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(v));
        }
    }
    None
}

/// `key: value` becomes `--key=value`, a list becomes the flag repeated, `true` the flag alone. A variable of the
/// environment (`SKIFF_` and the key in capitals) wins over the file.
fn arguments(
    text: &str,
    flags: &[String],
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<String>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    // Of YAML 1.1's booleans only true and false: a host may be named `y` or `no`.
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    let value: serde_json::Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| anyhow::anyhow!("{e}"))?;
    let serde_json::Value::Object(map) = value else {
        if value.is_null() {
            return Ok(Vec::new());
        }
        bail!("it must be a mapping of flags to values, such as `node-name: edge-1`");
    };
    let mut out = Vec::new();
    for (key, value) in map {
        let name = key
            .trim_start_matches('-')
            .trim_end_matches('+')
            .to_string();
        if !flags.contains(&name) || name == "config" {
            bail!("`{key}` is no flag of `skiff server`; `skiff server --help` lists them");
        }
        if env(&format!("SKIFF_{}", name.to_uppercase().replace('-', "_"))).is_some() {
            continue;
        }
        let mut one = |v: &serde_json::Value| -> Result<()> {
            match v {
                serde_json::Value::Bool(true) => out.push(format!("--{name}")),
                serde_json::Value::Bool(false) | serde_json::Value::Null => {}
                serde_json::Value::String(s) => out.push(format!("--{name}={s}")),
                serde_json::Value::Number(n) if name == "v" => {
                    for _ in 0..n.as_u64().unwrap_or(0).min(3) {
                        out.push("--v".into());
                    }
                }
                serde_json::Value::Number(n) => out.push(format!("--{name}={n}")),
                _ => bail!("`{key}` must be a value or a list of values"),
            }
            Ok(())
        };
        match &value {
            serde_json::Value::Array(items) => items.iter().try_for_each(&mut one)?,
            v => one(v)?,
        }
    }
    Ok(out)
}

/// A flag's file mode in octal, such as `644`.
///
/// # Errors
/// It is not an octal number of up to 0777.
pub fn file_mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text.trim_start_matches("0o"), 8)
        .ok()
        .filter(|m| *m <= 0o777)
        .with_context(|| {
            format!("--write-kubeconfig-mode {text:?} is not a file mode such as 600 or 644")
        })
}

/// The directory in its canonical form, made (for this user alone) and marked as Skiff's if it is not there.
///
/// # Errors
/// It cannot be made or entered, or holds something else.
pub fn data_dir(path: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let name = || {
        format!(
            "data directory {}: give another with --data-dir, or mend its rights",
            path.display()
        )
    };
    let dir = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| path.canonicalize())
        .with_context(name)?;
    if is_data_dir(&dir) {
        return Ok(dir);
    }
    // What users put there before the first start, and what a file system of its own brings.
    let foreign = std::fs::read_dir(&dir)
        .with_context(name)?
        .filter_map(|e| Some(e.ok()?.file_name()))
        .find(|n| {
            !["agent", "server", "lock", "lost+found"]
                .iter()
                .any(|k| n == k)
        });
    if let Some(found) = foreign {
        bail!(
            "data directory {}: it holds {found:?}, which is none of Skiff's: give an empty or a new directory with --data-dir",
            dir.display()
        );
    }
    std::fs::write(
        dir.join(paths::MARKER),
        "This directory is Skiff's: `skiff reset` empties it.\n",
    )
    .with_context(name)?;
    Ok(dir)
}

/// Is it a data directory of Skiff's? It is marked as one, or it was in use before there were marks.
pub fn is_data_dir(dir: &Path) -> bool {
    let file = |p: &str| {
        dir.join(p)
            .symlink_metadata()
            .is_ok_and(|m| m.file_type().is_file())
    };
    file(paths::MARKER)
        || (file("lock") && (file("server/tls/server-ca.crt") || file("agent/network/node.json")))
}

/// Makes `agent/`, which holds what containers are made of, and closes it to other users also where an older version left
/// it open: setuid programs of images and secrets of pods are in it.
///
/// # Errors
/// It cannot be made or closed.
pub fn private_agent(data_dir: &Path) -> Result<()> {
    use skiff_runtime::state;
    let agent = data_dir.join("agent");
    state::private_dir(&agent)
        .and_then(|()| state::narrow(&agent, 1))
        .and_then(|()| state::narrow(&agent.join("network"), 2))
        .with_context(|| format!("{} must be this user's alone", agent.display()))
}

/// The file that whoever runs on a data directory locks. Others must not even open it: a lock of theirs would keep the
/// server from starting.
///
/// # Errors
/// It cannot be made.
pub fn lock_file(data_dir: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let path = data_dir.join("lock");
    let open = || {
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&path)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        Ok::<_, std::io::Error>(file)
    };
    open().with_context(|| format!("{}: mend the rights of --data-dir", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_agent_is_closed_to_others_also_when_it_was_open() {
        use std::os::unix::fs::PermissionsExt;
        let t = tempfile::tempdir().expect("a directory");
        let dir = data_dir(&t.path().join("new")).expect("made");
        for d in ["agent/kubelet", "agent/network/pods"] {
            std::fs::create_dir_all(dir.join(d)).expect("made");
        }
        std::fs::write(dir.join("agent/network/node.json"), b"{}").expect("written");
        std::fs::write(dir.join("lock"), b"").expect("written");
        for p in [
            "agent",
            "agent/kubelet",
            "agent/network",
            "agent/network/node.json",
            "lock",
        ] {
            let wide = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir.join(p), wide).expect("widened");
        }
        private_agent(&dir).expect("closed");
        lock_file(&dir).expect("opened");
        for p in [
            "",
            "agent",
            "agent/kubelet",
            "agent/network",
            "agent/network/node.json",
            "lock",
        ] {
            let mode = std::fs::metadata(dir.join(p))
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{p}: {mode:o}");
        }
    }

    fn flags() -> Vec<String> {
        [
            "node-name",
            "tls-san",
            "disable-agent",
            "https-listen-port",
            "v",
            "config",
        ]
        .map(String::from)
        .to_vec()
    }

    fn args(yaml: &str) -> Result<Vec<String>> {
        arguments(yaml, &flags(), &|_| None)
    }

    #[test]
    fn keys_become_flags() {
        let got = args(
            "node-name: a\ntls-san: [x, z]\ndisable-agent: true\nhttps-listen-port: 7443\nv: 2\n",
        )
        .expect("ok");
        let mut got: Vec<&str> = got.iter().map(String::as_str).collect();
        got.sort_unstable();
        let mut want = [
            "--node-name=a",
            "--tls-san=x",
            "--tls-san=z",
            "--disable-agent",
            "--https-listen-port=7443",
            "--v",
            "--v",
        ];
        want.sort_unstable();
        assert_eq!(got, want);
        assert!(args("disable-agent: false").expect("ok").is_empty());
        assert!(args("# nothing\n").expect("ok").is_empty());
    }

    #[test]
    fn what_is_no_flag_is_named() {
        for bad in [
            "nope: 1",
            "config: x",
            "- a",
            "node-name: {a: b}",
            "node-name: [[1]]",
            "a: b: c",
        ] {
            assert!(args(bad).is_err(), "{bad}");
        }
        assert!(
            args("nope: 1")
                .expect_err("bad")
                .to_string()
                .contains("nope")
        );
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let got = arguments("node-name: a", &flags(), &|k| {
            (k == "SKIFF_NODE_NAME").then(|| "b".into())
        });
        assert!(got.expect("ok").is_empty());
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(file_mode("644").expect("ok"), 0o644);
        assert_eq!(file_mode("0600").expect("ok"), 0o600);
        assert!(file_mode("888").is_err() && file_mode("7777").is_err() && file_mode("").is_err());
    }
}
