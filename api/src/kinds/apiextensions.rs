//! The row of `apiextensions.k8s.io/v1`: served so that clients can ask for definitions (kubectl does, before it says
//! that a kind is unknown). There are none yet: the API server answers a creation with 501.

use super::row;
use super::util::{col, col_name};
use crate::resource::{Resource, Scope::Cluster};

/// Rows of the group.
pub fn rows() -> Vec<Resource> {
    let mut definitions = row(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Cluster,
    )
    .short("crd")
    .columns(vec![
        col_name(),
        // Upstream's default column of kinds without a printer: the time, not the age.
        col("Created At", 0, |c, _| {
            c["metadata"]["creationTimestamp"].clone()
        }),
    ]);
    definitions.schema =
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition".into();
    vec![definitions]
}
