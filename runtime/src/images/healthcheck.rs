//! Owns HEALTHCHECK of a Dockerfile: reading it, and its form in an image's config (Docker's extension of the OCI image
//! spec). Nothing here runs it: Kubernetes probes by what the pod says.

use super::dockerfile::{Command, Flags};
use serde::{Deserialize, Serialize};

/// How Docker would find out whether a container is well. Times in nanoseconds; 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args...]` or `["CMD-SHELL", command]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// The flags that HEALTHCHECK knows.
pub const FLAGS: [&str; 5] = [
    "interval",
    "timeout",
    "start-period",
    "start-interval",
    "retries",
];

/// `HEALTHCHECK [flags] CMD command` or `HEALTHCHECK NONE`.
pub fn parse(
    flags: &Flags,
    rest: &str,
    command: impl Fn(&str) -> Result<Command, String>,
) -> Result<Healthcheck, String> {
    let (kind, rest) = rest
        .split_once(char::is_whitespace)
        .map_or((rest, ""), |(k, r)| (k, r.trim()));
    let time = |name: &str| match flags.get(name) {
        None => Ok(0),
        Some(v) => duration(v).map_err(|e| format!("HEALTHCHECK --{name}={v}: {e}")),
    };
    let mut out = Healthcheck {
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        ..Default::default()
    };
    if let Some(n) = flags.get("retries") {
        out.retries = n
            .parse()
            .ok()
            .filter(|n| (0..=i64::from(i32::MAX)).contains(n))
            .ok_or_else(|| format!("HEALTHCHECK --retries={n} is not a number"))?;
    }
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() && flags.is_empty() => out.test = vec!["NONE".into()],
        "NONE" => return Err("HEALTHCHECK NONE takes no arguments".into()),
        "CMD" => match command(rest)? {
            Command::Exec(argv) if !argv.is_empty() => {
                out.test = [vec!["CMD".to_string()], argv].concat();
            }
            Command::Exec(_) => return Err("HEALTHCHECK CMD needs a command".into()),
            Command::Shell(text) => out.test = vec!["CMD-SHELL".into(), text],
        },
        other => {
            return Err(format!(
                "HEALTHCHECK {other:?} is not known; use CMD or NONE"
            ));
        }
    }
    Ok(out)
}

/// Go's notation: `30s`, `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Result<i64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("\u{b5}s", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 6e10),
        ("h", 3.6e12),
    ];
    let bad = || "it is not a duration such as 30s or 1m30s".to_string();
    let mut rest = text;
    let mut total = 0f64;
    if rest == "0" {
        return Ok(0);
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let n: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = UNITS
            .iter()
            .find(|(u, _)| *u == &rest[..end])
            .ok_or_else(bad)?;
        total += n * unit.1;
        rest = &rest[end..];
    }
    if text.is_empty() || total > i64::MAX as f64 {
        return Err(bad());
    }
    // Docker's rule: what is shorter is a mistake.
    if total > 0.0 && total < 1e6 {
        return Err("it is shorter than 1ms".into());
    }
    Ok(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, want) in [
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("500ms", 500_000_000),
            ("1.5h", 5_400_000_000_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(want), "{text}");
        }
        for bad in ["", "5", "s", "1x", "1us", "-1s", "99999999999h", "1..5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
