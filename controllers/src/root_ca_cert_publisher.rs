//! Root CA publisher: ConfigMap kube-root-ca.crt in every namespace, so that pods can check the API's certificate
//! (pkg/controller/certificates/rootcacertpublisher).

use crate::action::{Action, CONFIGMAPS};
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::json;
use skiff_client::{ObjectKey, Scope};

/// The ConfigMap's name.
pub const NAME: &str = "kube-root-ca.crt";

/// What to do for a namespace.
pub fn reconcile(namespace: &Namespace, have: Option<&ConfigMap>, ca: &str) -> Vec<Action> {
    if namespace.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let name = namespace.metadata.name.clone().unwrap_or_default();
    let note = "Holds the certificate of the cluster's CA, with which pods check the API server.";
    match have {
        None => vec![Action::Create {
            kind: CONFIGMAPS,
            namespace: name,
            object: json!({"metadata": {"name": NAME, "annotations": {"kubernetes.io/description": note}},
                "data": {"ca.crt": ca}}),
        }],
        Some(m)
            if m.data
                .as_ref()
                .is_some_and(|d| d.len() == 1 && d.get("ca.crt").is_some_and(|c| c == ca)) =>
        {
            Vec::new()
        }
        Some(m) => {
            let mut object = json!(m);
            object["data"] = json!({"ca.crt": ca});
            vec![Action::Replace {
                kind: CONFIGMAPS,
                namespace: name,
                object,
            }]
        }
    }
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "root-ca-cert-publisher", false);
    let namespaces = shell.informers.cache::<Namespace>();
    let maps = shell.informers.scoped::<ConfigMap>(Scope {
        fields: Some(format!("metadata.name={NAME}")),
        ..Scope::default()
    });
    shell.watch(&namespaces, &controller.queue, |n, _| {
        vec![ObjectKey::of(n)]
    });
    shell.watch(&maps, &controller.queue, |m, _| {
        vec![ObjectKey::new(
            "",
            m.metadata.namespace.clone().unwrap_or_default(),
        )]
    });
    let ready = {
        let (namespaces, maps) = (namespaces.clone(), maps.clone());
        async move {
            namespaces.synced().await;
            maps.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work(
        "root-ca-cert-publisher",
        controller.queue.clone(),
        ready,
        move |key| {
            let (shell, me) = (this.clone(), me.clone());
            let (namespaces, maps) = (namespaces.clone(), maps.clone());
            async move {
                let Some(namespace) = namespaces.get("", &key.name) else {
                    return Ok(());
                };
                let have = maps.get(&key.name, NAME);
                let actions = reconcile(&namespace, have.as_deref(), &shell.config.root_ca_pem);
                crate::shell::unless_there(shell.run_actions(&me, &key, &*namespace, actions).await)
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_made_and_mended() {
        let mut n = Namespace::default();
        n.metadata.name = Some("a".into());
        let [Action::Create { object, .. }] = &reconcile(&n, None, "pem")[..] else {
            panic!("no create")
        };
        let mut have: ConfigMap = serde_json::from_value(object.clone()).expect("a map");
        assert!(reconcile(&n, Some(&have), "pem").is_empty());
        have.data
            .get_or_insert_default()
            .insert("more".into(), "x".into());
        assert!(matches!(
            reconcile(&n, Some(&have), "pem")[..],
            [Action::Replace { .. }]
        ));
    }
}
