//! ServiceAccount controller: every namespace has the account `default` (pkg/controller/serviceaccount).

use crate::action::{Action, SERVICEACCOUNTS};
use crate::shell::{Controller, Shell};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use serde_json::json;
use skiff_client::ObjectKey;

/// What to do for a namespace.
pub fn reconcile(namespace: &Namespace, has_default: bool) -> Vec<Action> {
    let active = namespace.metadata.deletion_timestamp.is_none();
    if has_default || !active {
        return Vec::new();
    }
    vec![Action::Create {
        kind: SERVICEACCOUNTS,
        namespace: namespace.metadata.name.clone().unwrap_or_default(),
        object: json!({"metadata": {"name": "default"}}),
    }]
}

/// Starts the controller.
pub fn start(shell: &Shell) {
    let controller = Controller::new(shell, "serviceaccount-controller", false);
    let namespaces = shell.informers.cache::<Namespace>();
    let accounts = shell.informers.cache::<ServiceAccount>();
    shell.watch(&namespaces, &controller.queue, |n, _| {
        vec![ObjectKey::of(n)]
    });
    shell.watch(&accounts, &controller.queue, |a, old| {
        // Only a deletion of `default` (no old state) or its creation matters.
        let name = a.metadata.name.as_deref() == Some("default") && old.is_none();
        if name {
            vec![ObjectKey::new(
                "",
                a.metadata.namespace.clone().unwrap_or_default(),
            )]
        } else {
            Vec::new()
        }
    });
    let ready = {
        let (namespaces, accounts) = (namespaces.clone(), accounts.clone());
        async move {
            namespaces.synced().await;
            accounts.synced().await;
        }
    };
    let (this, me) = (shell.clone(), controller.clone());
    shell.work(
        "serviceaccount",
        controller.queue.clone(),
        ready,
        move |key| {
            let (shell, me) = (this.clone(), me.clone());
            let (namespaces, accounts) = (namespaces.clone(), accounts.clone());
            async move {
                let Some(namespace) = namespaces.get("", &key.name) else {
                    return Ok(());
                };
                let actions = reconcile(&namespace, accounts.get(&key.name, "default").is_some());
                crate::shell::unless_there(shell.run_actions(&me, &key, &*namespace, actions).await)
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_namespace_without_the_account_gets_it() {
        let mut n = Namespace::default();
        n.metadata.name = Some("a".into());
        assert_eq!(reconcile(&n, false).len(), 1);
        assert!(reconcile(&n, true).is_empty());
        n.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::UNIX_EPOCH,
        ));
        assert!(reconcile(&n, false).is_empty());
    }
}
