//! The rows of `rbac.authorization.k8s.io/v1`.

pub mod role;
pub mod role_binding;

use super::row;
use crate::resource::{
    Resource, Scope,
    Scope::{Cluster, Namespaced},
};

/// Rows of `rbac.authorization.k8s.io/v1`.
pub fn rows() -> Vec<Resource> {
    let v1 =
        |kind, plural, scope: Scope| row("rbac.authorization.k8s.io", "v1", kind, plural, scope);
    vec![
        v1("ClusterRoleBinding", "clusterrolebindings", Cluster)
            .strategy(role_binding::cluster_strategy())
            .columns(role_binding::columns()),
        v1("ClusterRole", "clusterroles", Cluster)
            .strategy(role::cluster_strategy())
            .columns(role::columns()),
        v1("RoleBinding", "rolebindings", Namespaced)
            .strategy(role_binding::strategy())
            .columns(role_binding::columns()),
        v1("Role", "roles", Namespaced)
            .strategy(role::strategy())
            .columns(role::columns()),
    ]
}
