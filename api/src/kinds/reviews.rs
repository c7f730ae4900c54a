//! The rows of `authentication.k8s.io/v1` and `authorization.k8s.io/v1`: reviews, which are answered at once by the API
//! server and never stored.

use super::virtual_row;
use crate::resource::{
    Resource,
    Scope::{Cluster, Namespaced},
};

/// Rows of both groups.
pub fn rows() -> Vec<Resource> {
    let authn = "authentication.k8s.io";
    let authz = "authorization.k8s.io";
    vec![
        virtual_row(
            authn,
            "v1",
            "SelfSubjectReview",
            "selfsubjectreviews",
            Cluster,
        ),
        virtual_row(authn, "v1", "TokenReview", "tokenreviews", Cluster),
        virtual_row(
            authz,
            "v1",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            Namespaced,
        ),
        virtual_row(
            authz,
            "v1",
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            Cluster,
        ),
        virtual_row(
            authz,
            "v1",
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            Cluster,
        ),
        virtual_row(
            authz,
            "v1",
            "SubjectAccessReview",
            "subjectaccessreviews",
            Cluster,
        ),
    ]
}
