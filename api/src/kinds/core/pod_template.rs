//! Pod templates (PodTemplate of v1, which controllers of our time do not use).

use super::{pod_spec, pod_validate};
use crate::kinds::apps::workload;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// Defaults of the template.
pub fn default(v: &mut Value) {
    if let Some(t) = at_mut(v, "template") {
        pod_spec::default_template(t);
    }
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate: |v| {
            let mut errs = Vec::new();
            pod_validate::template(at(v, "template"), &Path::new("template"), &mut errs);
            errs
        },
        ..Strategy::default()
    }
}

/// The columns of `kubectl get podtemplates`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Containers", 0, |v, _| {
            workload::containers(at(v, "template.spec")).into()
        }),
        col("Images", 0, |v, _| {
            workload::images(at(v, "template.spec")).into()
        }),
        col("Pod Labels", 0, |v, _| {
            labels(at(v, "template.metadata.labels")).into()
        }),
    ]
}
