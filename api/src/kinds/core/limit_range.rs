//! Limit ranges (SetDefaults_LimitRangeItem, ValidateLimitRange). Applying them to pods is admission's work.

use super::resources;
use crate::field::FieldError;
use crate::kinds::check;
use crate::kinds::util::*;
use crate::resource::{Column, Strategy};
use serde_json::Value;

/// SetDefaults_LimitRangeItem: a container's default limit is the maximum, its default request the limit, then the
/// minimum.
pub fn default(lr: &mut Value) {
    for item in items_mut(lr, "spec.limits") {
        if text(item, "type") != "Container" {
            continue;
        }
        for (from, to) in [
            ("max", "default"),
            ("default", "defaultRequest"),
            ("min", "defaultRequest"),
        ] {
            let Some(source) = at(item, from)
                .as_object()
                .filter(|m| !m.is_empty())
                .cloned()
            else {
                continue;
            };
            if let Some(target) = object(item, to) {
                for (k, v) in source {
                    unset(target, &k, v);
                }
            }
        }
    }
}

fn validate(lr: &Value) -> Vec<FieldError> {
    let mut errs = Vec::new();
    let sp = Path::new("spec");
    let lp = sp.child("limits");
    let limits = items(lr, "spec.limits");
    for (i, item) in limits.iter().enumerate() {
        let p = lp.index(i);
        let kind = text(item, "type");
        check::qualified_name(kind, &p.child("type"), &mut errs);
        if limits[..i].iter().any(|o| text(o, "type") == kind) {
            errs.push(FieldError::duplicate(p.child("type"), kind));
        }
        for key in [
            "max",
            "min",
            "default",
            "defaultRequest",
            "maxLimitRequestRatio",
        ] {
            let kp = p.child(key);
            for (name, q) in entries(item, key) {
                resources::quantity_value(name, q, &kp.key(name), &mut errs);
            }
            if kind == "Pod" && key.starts_with("default") && !is_empty(at(item, key)) {
                errs.push(FieldError::forbidden(
                    kp,
                    "may not be specified when `type` is 'Pod'",
                ));
            }
        }
        let q = |key: &str, name: &str| at(item, key).get(name).and_then(check::quantity);
        for (low, high, why) in [
            ("min", "max", "min value {a} is greater than max value {b}"),
            (
                "min",
                "defaultRequest",
                "min value {a} is greater than default request value {b}",
            ),
            (
                "defaultRequest",
                "max",
                "default request value {a} is greater than max value {b}",
            ),
            (
                "defaultRequest",
                "default",
                "default request value {a} is greater than default limit value {b}",
            ),
            (
                "min",
                "default",
                "min value {a} is greater than default value {b}",
            ),
            (
                "default",
                "max",
                "default value {a} is greater than max value {b}",
            ),
        ] {
            for (name, lv) in entries(item, low) {
                if let (Some(l), Some(h)) = (q(low, name), q(high, name))
                    && l > h
                {
                    let hv = at(item, high).get(name.as_str()).unwrap_or(&Value::Null);
                    let kp = p.child(low);
                    errs.push(FieldError::invalid(
                        kp.key(name),
                        lv.clone(),
                        why.replace("{a}", &int_or_string(lv))
                            .replace("{b}", &int_or_string(hv)),
                    ));
                }
            }
        }
        if kind == "PersistentVolumeClaim"
            && q("min", "storage").is_none()
            && q("max", "storage").is_none()
        {
            errs.push(FieldError::required(
                p.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
    }
    errs
}

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        default,
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        validate,
        allow_create_on_update: true,
        ..Strategy::default()
    }
}

/// The columns of `kubectl get limitranges`.
pub fn columns() -> Vec<Column> {
    vec![col_name(), col_created_at()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn container_limits_default_from_max_and_min() {
        let mut lr = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default(&mut lr);
        let item = &lr["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "2"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        assert!(validate(&lr).is_empty());
    }

    #[test]
    fn min_above_max_is_refused() {
        let lr = json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "2"}}]}});
        assert_eq!(
            validate(&lr)[0].to_string(),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"
        );
    }
}
