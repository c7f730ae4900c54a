//! The rows of `rbac.authorization.k8s.io/v1`.

use super::row;
use crate::resource::{
    Resource, Scope,
    Scope::{Cluster, Namespaced},
    Strategy,
};

/// Rows of `rbac.authorization.k8s.io/v1`.
pub fn rows() -> Vec<Resource> {
    let v1 = |kind, plural, scope: Scope| {
        row("rbac.authorization.k8s.io", "v1", kind, plural, scope).strategy(Strategy {
            allow_create_on_update: true,
            ..Strategy::default()
        })
    };
    vec![
        v1("ClusterRoleBinding", "clusterrolebindings", Cluster),
        v1("ClusterRole", "clusterroles", Cluster),
        v1("RoleBinding", "rolebindings", Namespaced),
        v1("Role", "roles", Namespaced),
    ]
}
