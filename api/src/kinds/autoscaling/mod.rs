//! The rows of `autoscaling/v2` (stored) and `autoscaling/v1`.

pub mod convert;
pub mod horizontal_pod_autoscaler;

use super::row;
use crate::resource::{Resource, Scope::Namespaced};
use horizontal_pod_autoscaler as hpa;

/// Rows of both versions, the preferred one first.
pub fn rows() -> Vec<Resource> {
    let of = |version| {
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
        .columns(hpa::columns())
    };
    let mut v1 = of("v1")
        .strategy(hpa::strategy_v1())
        .columns(hpa::columns_v1());
    v1.stored = false;
    v1.to_stored = convert::to_v2;
    v1.from_stored = convert::to_v1;
    vec![of("v2").strategy(hpa::strategy()), v1]
}
