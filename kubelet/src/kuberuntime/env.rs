//! The environment of a container (upstream kubelet_pods.go makeEnvironmentVariables). Pure: ConfigMaps and Secrets
//! come in as maps.

use super::expansion::expand;
use super::fields::{self, Addresses};
use crate::pod::spec;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Objects that pods take values from; None for one that is known not to exist.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// By name, all of the pod's namespace.
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    /// By name, all of the pod's namespace.
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
pub fn references(c: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in c.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for v in c.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        maps.extend(v.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(v.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// Name and value of each variable, in the order: envFrom, env, Services; later ones win.
///
/// # Errors
/// Upstream's words for a missing object or key, shown with CreateContainerConfigError.
pub fn environment(
    pod: &Pod,
    c: &Container,
    sources: &Sources,
    services: &[(String, String)],
    addresses: &Addresses,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Vec<(String, String)>, String> {
    let ns = spec::namespace(pod);
    let mut env: Vec<(String, String)> = Vec::new();
    let put = |env: &mut Vec<(String, String)>, k: String, v: String| match env
        .iter_mut()
        .find(|(n, _)| *n == k)
    {
        Some((_, old)) => *old = v,
        None => env.push((k, v)),
    };
    for from in c.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut found: Vec<(String, String)> = Vec::new();
        if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name).cloned().flatten() {
                Some(m) => {
                    found.extend(m.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())))
                }
                None if r.optional.unwrap_or(false) => {}
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name).cloned().flatten() {
                Some(s) => found.extend(
                    s.data
                        .iter()
                        .flatten()
                        .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned())),
                ),
                None if r.optional.unwrap_or(false) => {}
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        }
        for (k, v) in found {
            let k = format!("{prefix}{k}");
            // A name that cannot stand in an environment is left out, as upstream leaves it out.
            if !k.is_empty() && !k.contains('=') {
                put(&mut env, k, v);
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, None) => {
                let raw = var.value.as_deref().unwrap_or_default();
                expand(raw, |n| lookup(&env, services, n))
            }
            (_, Some(from)) => {
                if let Some(f) = &from.field_ref {
                    fields::field(pod, &f.field_path, addresses)?
                } else if let Some(r) = &from.resource_field_ref {
                    let of = match r.container_name.as_deref().filter(|n| !n.is_empty()) {
                        Some(n) => spec::container(pod, n)
                            .map(|(_, c)| c)
                            .ok_or_else(|| format!("container {n} not found"))?,
                        None => c.clone(),
                    };
                    fields::resource_field(r, &of, allocatable)?
                } else if let Some(r) = &from.config_map_key_ref {
                    let optional = r.optional.unwrap_or(false);
                    let map = match sources.config_maps.get(&r.name).cloned().flatten() {
                        Some(m) => m,
                        None if optional => continue,
                        None => return Err(format!("configmap \"{}\" not found", r.name)),
                    };
                    match map.data.as_ref().and_then(|d| d.get(&r.key)) {
                        Some(v) => v.clone(),
                        None if optional => continue,
                        None => {
                            return Err(format!(
                                "couldn't find key {} in ConfigMap {ns}/{}",
                                r.key, r.name
                            ));
                        }
                    }
                } else if let Some(r) = &from.secret_key_ref {
                    let optional = r.optional.unwrap_or(false);
                    let secret = match sources.secrets.get(&r.name).cloned().flatten() {
                        Some(s) => s,
                        None if optional => continue,
                        None => return Err(format!("secret \"{}\" not found", r.name)),
                    };
                    match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
                        Some(v) => String::from_utf8_lossy(&v.0).into_owned(),
                        None if optional => continue,
                        None => {
                            return Err(format!(
                                "couldn't find key {} in Secret {ns}/{}",
                                r.key, r.name
                            ));
                        }
                    }
                } else if from.file_key_ref.is_some() {
                    return Err(format!(
                        "environment variable {}: fileKeyRef is not supported",
                        var.name
                    ));
                } else {
                    continue;
                }
            }
        };
        put(&mut env, var.name.clone(), value);
    }
    for (k, v) in services {
        if !env.iter().any(|(n, _)| n == k) {
            env.push((k.clone(), v.clone()));
        }
    }
    Ok(env)
}

/// A variable's value: the container's own before those of Services.
pub fn lookup(
    env: &[(String, String)],
    services: &[(String, String)],
    name: &str,
) -> Option<String> {
    env.iter()
        .chain(services)
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(container: serde_json::Value, sources: &Sources) -> Result<String, String> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]}
        }))
        .unwrap();
        let services = [(
            "KUBERNETES_SERVICE_HOST".to_string(),
            "10.43.0.1".to_string(),
        )];
        let addresses = Addresses {
            pod: vec!["10.42.0.9".into()],
            host: vec![],
        };
        let env = environment(
            &pod,
            &spec::containers(&pod)[0],
            sources,
            &services,
            &addresses,
            &BTreeMap::new(),
        )?;
        Ok(env.iter().map(|(k, v)| format!("{k}={v}\n")).collect())
    }

    fn sources() -> Sources {
        let mut s = Sources::default();
        let map: ConfigMap =
            serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}})).unwrap();
        let secret: Secret =
            serde_json::from_value(serde_json::json!({"data": {"p": "cHc="}})).unwrap();
        s.config_maps.insert("m".into(), Some(Arc::new(map)));
        s.config_maps.insert("gone".into(), None);
        s.secrets.insert("s".into(), Some(Arc::new(secret)));
        s
    }

    #[test]
    fn env_overrides_env_from_and_sees_earlier_variables() {
        let got = run(
            serde_json::json!({"name": "c",
                "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "X_"}],
                "env": [
                    {"name": "X_a", "value": "mine"},
                    {"name": "REF", "value": "$(X_a)-$(X_b)-$(KUBERNETES_SERVICE_HOST)-$(LATER)"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                    {"name": "MAY", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k", "optional": true}}},
                    {"name": "LATER", "value": "x"}]}),
            &sources(),
        );
        assert_eq!(
            got.unwrap(),
            "X_a=mine\nX_b=2\nREF=mine-2-10.43.0.1-$(LATER)\nIP=10.42.0.9\nPW=pw\nLATER=x\nKUBERNETES_SERVICE_HOST=10.43.0.1\n"
        );
    }

    #[test]
    fn missing_objects_and_keys_are_named() {
        for (env, want) in [
            (
                serde_json::json!({"configMapKeyRef": {"name": "gone", "key": "k"}}),
                "configmap \"gone\" not found",
            ),
            (
                serde_json::json!({"configMapKeyRef": {"name": "m", "key": "k"}}),
                "couldn't find key k in ConfigMap ns/m",
            ),
            (
                serde_json::json!({"secretKeyRef": {"name": "s", "key": "k"}}),
                "couldn't find key k in Secret ns/s",
            ),
        ] {
            let got = run(
                serde_json::json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]}),
                &sources(),
            );
            assert_eq!(got.unwrap_err(), want);
        }
    }
}
