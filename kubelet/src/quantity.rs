//! Quantities as integers. Owns the rounding that the kubelet uses (up, as upstream's Value and MilliValue do).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Thousandths, rounded up; None when it is no quantity.
pub fn milli(q: &Quantity) -> Option<i64> {
    nano(&q.0).map(|n| clamp(n.div_euclid(1_000_000) + i128::from(n.rem_euclid(1_000_000) != 0)))
}

/// Whole units, rounded up; None when it is no quantity.
pub fn value(q: &Quantity) -> Option<i64> {
    const NANO: i128 = 1_000_000_000;
    nano(&q.0).map(|n| clamp(n.div_euclid(NANO) + i128::from(n.rem_euclid(NANO) != 0)))
}

/// The named amount of a resource list in thousandths; 0 when absent.
pub fn milli_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).and_then(milli).unwrap_or(0)
}

/// The named amount of a resource list in whole units; 0 when absent.
pub fn value_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).and_then(value).unwrap_or(0)
}

fn clamp(v: i128) -> i64 {
    i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX })
}

/// The value in units of 1e-9, saturating.
fn nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut digits: i128 = 0;
    for b in whole.bytes().chain(fraction.bytes()) {
        digits = digits
            .saturating_mul(10)
            .saturating_add(i128::from(b - b'0'));
    }
    // digits * 10^-fraction * multiplier * 1e9
    let (two, ten): (u32, i32) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        e if e.starts_with('e') || e.starts_with('E') => (0, e[1..].parse::<i32>().ok()?),
        _ => return None,
    };
    let exponent = ten + 9 - i32::try_from(fraction.len()).ok()?;
    let mut v = digits.saturating_mul(1i128 << two);
    if exponent >= 0 {
        for _ in 0..exponent.min(40) {
            v = v.saturating_mul(10);
        }
    } else {
        for _ in 0..(-exponent).min(40) {
            // Rounded up, away from zero: the sign comes last.
            v = v / 10 + i128::from(v % 10 != 0);
        }
    }
    Some(if negative { -v } else { v })
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
