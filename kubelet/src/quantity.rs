//! Quantities of typed objects as integers (rounded up, as upstream's Value and MilliValue do). Reading and rounding are
//! `skiff_api::quantity`'s.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

fn parsed(q: &Quantity) -> Option<skiff_api::quantity::Quantity> {
    q.0.parse().ok()
}

/// Thousandths, rounded up; None when it is no quantity.
pub fn milli(q: &Quantity) -> Option<i64> {
    parsed(q).map(|q| q.milli_value())
}

/// Whole units, rounded up; None when it is no quantity.
pub fn value(q: &Quantity) -> Option<i64> {
    parsed(q).map(|q| q.value())
}

/// The named amount of a resource list in thousandths; 0 when absent.
pub fn milli_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).and_then(milli).unwrap_or(0)
}

/// The named amount of a resource list in whole units; 0 when absent.
pub fn value_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).and_then(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_rounded_up_to_whole_units() {
        let q = |s: &str| Quantity(s.into());
        for (text, whole, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000),
            ("2k", 2000, 2_000_000),
            ("1e3", 1000, 1_000_000),
            ("-1", -1, -1000),
            ("0.1m", 1, 1),
        ] {
            assert_eq!(value(&q(text)), Some(whole), "{text}");
            assert_eq!(milli(&q(text)), Some(thousandths), "{text}");
        }
        for bad in ["", "x", "1x", "1..2", "Mi"] {
            assert_eq!(value(&q(bad)), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_whole_numbers_are_themselves(text in ".{0,30}", n in -1_000_000i64..1_000_000) {
            let _ = (value(&Quantity(text.clone())), milli(&Quantity(text)));
            proptest::prop_assert_eq!(value(&Quantity(n.to_string())), Some(n));
            proptest::prop_assert_eq!(milli(&Quantity(format!("{n}m"))), Some(n));
        }
    }
}
