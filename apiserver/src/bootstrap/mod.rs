//! The objects that every cluster has from its first moment on: namespaces, priority classes, RBAC, the `kubernetes`
//! service. Owns their contents; writes them through the registry, so that they are checked as any other.

pub mod endpoints;
pub mod namespaces;
pub mod priority_classes;
pub mod rbac;
pub mod role_rules;

use crate::App;
use crate::auth::UserInfo;
use crate::registry::{self, Target, Written};
use serde_json::Value;
use skiff_api::status::Status;
use std::sync::Arc;

/// Makes what is missing and mends what must be so. Called at every start, once the store is open and before requests are
/// answered; readiness waits for it.
///
/// # Errors
/// When an object cannot be written.
pub async fn run(app: &Arc<App>) -> Result<(), Status> {
    app.auth.rbac.follow(app)?;
    app.special.services.rebuild(app)?;
    namespaces::ensure(app).await?;
    rbac::ensure(app).await?;
    priority_classes::ensure(app).await?;
    endpoints::ensure(app).await
}
