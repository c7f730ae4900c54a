//! The objects that every cluster has from its first moment on: namespaces, priority classes, RBAC, the `kubernetes`
//! service. Owns their contents; writes them through the registry, so that they are checked as any other.

pub mod datastore_alarm;
pub mod endpoints;
pub mod namespaces;
pub mod priority_classes;
pub mod rbac;
pub mod role_rules;

use crate::App;
use crate::auth::UserInfo;
use crate::registry::{self, Target};
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
    app.auth.nodes.follow(app)?;
    namespaces::ensure(app).await?;
    // Independent of each other: together they need fewer commits.
    let (a, b, c) = tokio::join!(
        rbac::ensure(app),
        priority_classes::ensure(app),
        endpoints::ensure(app)
    );
    a.and(b).and(c)
}

/// Creates an object as the API server itself; somebody else having made it is fine.
async fn make(
    app: &Arc<App>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    mut object: Value,
) -> Result<(), Status> {
    let row = app
        .table
        .get(group, version, plural)
        .ok_or_else(Status::no_route)?;
    let user = UserInfo::apiserver();
    (row.strategy.default)(&mut object);
    let target = Target {
        app,
        row: &row,
        namespace,
        name: "",
        subresource: "",
        user: &user,
        dry_run: false,
    };
    match registry::create::create_object(&target, object, &mut Vec::new()).await {
        Ok(_) => Ok(()),
        Err(e) if e.reason == "AlreadyExists" => Ok(()),
        Err(e) => Err(e),
    }
}

/// Changes an object as the API server itself.
async fn put(
    app: &Arc<App>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    change: impl Fn(&mut Value),
) -> Result<(), Status> {
    let row = app
        .table
        .get(group, version, plural)
        .ok_or_else(Status::no_route)?;
    let user = UserInfo::apiserver();
    let target = Target {
        app,
        row: &row,
        namespace,
        name,
        subresource: "",
        user: &user,
        dry_run: false,
    };
    registry::update::update_object(&target, &mut Vec::new(), false, |current| {
        let mut new = current.clone();
        change(&mut new);
        (row.strategy.default)(&mut new);
        Ok(new)
    })
    .await
    .map(drop)
}

/// Deletes an object as the API server itself.
async fn remove(
    app: &Arc<App>,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let row = app
        .table
        .get(group, version, plural)
        .ok_or_else(Status::no_route)?;
    let user = UserInfo::apiserver();
    let target = Target {
        app,
        row: &row,
        namespace,
        name,
        subresource: "",
        user: &user,
        dry_run: false,
    };
    match registry::delete::delete_object(&target, &registry::options::Options::default()).await {
        Ok(_) => Ok(()),
        Err(e) if e.code == 404 => Ok(()),
        Err(e) => Err(e),
    }
}
