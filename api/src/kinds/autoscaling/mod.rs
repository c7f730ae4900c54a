//! The rows of `autoscaling/v2` (stored) and `autoscaling/v1`.

use super::row;
use crate::resource::{Resource, Scope::Namespaced};

/// Rows of both versions, the preferred one first.
pub fn rows() -> Vec<Resource> {
    let hpa = |version| {
        row(
            "autoscaling",
            version,
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            Namespaced,
        )
        .short("hpa")
        .in_all()
        .status()
    };
    let mut v1 = hpa("v1");
    v1.stored = false;
    vec![hpa("v2"), v1]
}
