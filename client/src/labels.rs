//! Label selectors over typed objects. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

/// Does a label selector match? None matches nothing, an empty one everything (metav1.LabelSelectorAsSelector).
pub fn matches(
    selector: Option<&LabelSelector>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    static EMPTY: BTreeMap<String, String> = BTreeMap::new();
    let labels = labels.unwrap_or(&EMPTY);
    let Some(selector) = selector else {
        return false;
    };
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let values = e.values.as_deref().unwrap_or(&[]);
            match e.operator.as_str() {
                "In" => value.is_some_and(|v| values.contains(v)),
                "NotIn" => value.is_none_or(|v| !values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Does a plain map selector match (Services, ReplicationControllers)? An empty one matches nothing.
pub fn map_matches(
    selector: Option<&BTreeMap<String, String>>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let Some(selector) = selector.filter(|s| !s.is_empty()) else {
        return false;
    };
    selector
        .iter()
        .all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_matches_nothing_and_empty_matches_all_but_for_maps() {
        let labels = BTreeMap::from([("a".to_string(), "1".to_string())]);
        assert!(!matches(None, Some(&labels)));
        assert!(matches(Some(&LabelSelector::default()), None));
        assert!(!map_matches(Some(&BTreeMap::new()), Some(&labels)));
        assert!(map_matches(Some(&labels), Some(&labels)));
        assert!(!map_matches(Some(&labels), None));
    }
}
