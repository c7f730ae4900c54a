//! One rule of a role: what it means. Pure.

use crate::auth::authorization::{Attributes, list};
use serde_json::Value;

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs or `*`.
    pub verbs: Vec<String>,
    /// API groups or `*`.
    pub groups: Vec<String>,
    /// Resources, `pods/log`, `*/scale` or `*`.
    pub resources: Vec<String>,
    /// Names; empty for all.
    pub names: Vec<String>,
    /// Paths, `*` at the end for anything.
    pub urls: Vec<String>,
}

fn strings(v: &Value, key: &str) -> Vec<String> {
    list(v, key)
        .iter()
        .filter_map(Value::as_str)
        .map(String::from)
        .collect()
}

impl Rule {
    /// Of a PolicyRule.
    pub fn of(v: &Value) -> Self {
        Self {
            verbs: strings(v, "verbs"),
            groups: strings(v, "apiGroups"),
            resources: strings(v, "resources"),
            names: strings(v, "resourceNames"),
            urls: strings(v, "nonResourceURLs"),
        }
    }

    /// Everything there is: all resources, and all paths.
    pub fn everything() -> [Self; 2] {
        let star = || vec!["*".to_string()];
        [
            Self {
                verbs: star(),
                groups: star(),
                resources: star(),
                ..Self::default()
            },
            Self {
                verbs: star(),
                urls: star(),
                ..Self::default()
            },
        ]
    }

    /// Upstream's RuleAllows.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |l: &[String], x: &str| l.iter().any(|v| v == "*" || v == x);
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource {
            return self.urls.iter().any(|u| {
                u == "*"
                    || u == a.path
                    || u.strip_suffix('*').is_some_and(|p| a.path.starts_with(p))
            });
        }
        let resource = self.resources.iter().any(|r| {
            r == "*"
                || match r.split_once('/') {
                    None => a.subresource.is_empty() && r == a.resource,
                    Some((res, sub)) => {
                        !a.subresource.is_empty()
                            && sub == a.subresource
                            && (res == "*" || res == a.resource)
                    }
                }
        });
        has(&self.groups, a.group)
            && resource
            && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }
}
