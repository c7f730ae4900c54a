//! `resource.Quantity`: parsing, canonical form, comparison and arithmetic, as
//! `k8s.io/apimachinery/pkg/api/resource` has them. Pure values; knows no fields.
//!
//! A quantity is held as a whole number of nanos: upstream rounds anything finer up to nano when it parses, so nothing
//! that it could tell apart is lost. Beyond about 1.7e29 values saturate.

use serde_json::Value;
use std::cmp::Ordering;

const NANO: i128 = 1_000_000_000;
/// Upstream caps binary quantities at 2^63-1.
const MAX_BINARY: i128 = (i64::MAX as i128) * NANO;

/// How the canonical form is written; it follows the suffix it was parsed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `Ki`, `Mi`...
    BinarySI,
    /// `m`, `k`, `M`... and plain numbers.
    #[default]
    DecimalSI,
    /// `e3`, `e6`...
    DecimalExponent,
}

/// A fixed-point number with a preferred suffix family.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity; the texts are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the form.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// A number with an unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// A number that cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

/// The multiplier of a suffix: a power of two or of ten.
enum Scale {
    Two(u32),
    Ten(i32),
}

fn suffix(s: &str) -> Result<(Scale, Format), Error> {
    let si = |e| Ok((Scale::Ten(e), Format::DecimalSI));
    let bin = |e| Ok((Scale::Two(e), Format::BinarySI));
    match s {
        "Ki" => bin(10),
        "Mi" => bin(20),
        "Gi" => bin(30),
        "Ti" => bin(40),
        "Pi" => bin(50),
        "Ei" => bin(60),
        "n" => si(-9),
        "u" => si(-6),
        "m" => si(-3),
        "" => si(0),
        "k" => si(3),
        "M" => si(6),
        "G" => si(9),
        "T" => si(12),
        "P" => si(15),
        "E" => si(18),
        _ => match s.strip_prefix(['e', 'E']) {
            Some(exp) => {
                let digits = exp.strip_prefix(['+', '-']).unwrap_or(exp);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(Error::Suffix);
                }
                let e: i32 = exp.parse().map_err(|_| Error::Suffix)?;
                Ok((Scale::Ten(e), Format::DecimalExponent))
            }
            None => Err(Error::Suffix),
        },
    }
}

impl Quantity {
    /// Reads a quantity such as `500m`, `1Gi`, `1e3`, `0.5`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Format);
        }
        let (negative, body) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let int_len = body.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = body.split_at(int_len);
        let (fraction, tail) = match rest.strip_prefix('.') {
            Some(r) => {
                let n = r.bytes().take_while(u8::is_ascii_digit).count();
                r.split_at(n)
            }
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(if rest.starts_with('.') {
                Error::Numeric
            } else {
                Error::Format
            });
        }
        let sign_and_digits_ok = tail
            .bytes()
            .all(|b| b.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&b));
        if !sign_and_digits_ok {
            return Err(Error::Format);
        }
        let (scale, mut format) = suffix(tail)?;
        let mut nanos = nanos_of(whole, fraction, &scale);
        if format == Format::BinarySI {
            nanos = nanos.min(MAX_BINARY);
            if nanos > 0 && nanos < NANO {
                format = Format::DecimalSI;
            }
        }
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    /// Reads a JSON string or number; null is zero, as Go's decoder has it.
    pub fn from_value(v: &Value) -> Result<Self, Error> {
        match v {
            Value::String(s) => Self::parse(s),
            Value::Number(n) => Self::parse(&n.to_string()),
            Value::Null => Ok(Self::default()),
            _ => Err(Error::Format),
        }
    }

    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    /// Thousandths.
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(milli) * (NANO / 1000),
            format,
        }
    }

    /// The value rounded up (away from zero) to a whole number; saturates.
    pub fn value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up (away from zero); saturates.
    pub fn milli_value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO / 1000))
    }

    /// The exact value in nanos.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The value as a float.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Is it zero?
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Is it a whole number?
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The suffix family.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Adds; a zero takes the other's suffix family, as upstream.
    pub fn add(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }

    /// Subtracts.
    pub fn sub(&mut self, other: &Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
    }
}

/// |whole.fraction| times the scale, in nanos, rounded up.
fn nanos_of(whole: &str, fraction: &str, scale: &Scale) -> i128 {
    let mut mantissa: i128 = 0;
    let mut exponent: i32 = 9;
    let mut sticky = false;
    let mut overflow = false;
    for b in whole.bytes() {
        match mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(i128::from(b - b'0')))
        {
            Some(m) if !overflow => mantissa = m,
            _ => {
                overflow = true;
                exponent = exponent.saturating_add(1);
            }
        }
    }
    for b in fraction.bytes() {
        match mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(i128::from(b - b'0')))
        {
            Some(m) if !overflow => {
                mantissa = m;
                exponent = exponent.saturating_sub(1);
            }
            _ => {
                overflow = true;
                sticky |= b != b'0';
            }
        }
    }
    if mantissa == 0 {
        return i128::from(sticky);
    }
    let mut twos = 0;
    match scale {
        Scale::Two(e) => twos = *e,
        Scale::Ten(e) => exponent = exponent.saturating_add(*e),
    }
    // Binary suffixes multiply before the fraction is cut, or 0.1Ki would be rounded too early.
    for _ in 0..twos {
        mantissa = match mantissa.checked_mul(2) {
            Some(m) => m,
            None if exponent < 0 => {
                sticky |= mantissa % 10 != 0;
                exponent += 1;
                (mantissa / 10).saturating_mul(2)
            }
            None => i128::MAX,
        };
    }
    while exponent > 0 {
        mantissa = mantissa.saturating_mul(10);
        exponent -= 1;
        if mantissa == i128::MAX {
            break;
        }
    }
    while exponent < 0 {
        if mantissa == 0 {
            sticky = true;
            break;
        }
        sticky |= mantissa % 10 != 0;
        mantissa /= 10;
        exponent += 1;
    }
    mantissa.saturating_add(i128::from(sticky))
}

fn round_away(n: i128, unit: i128) -> i128 {
    let q = n / unit;
    if n % unit == 0 { q } else { q + n.signum() }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n > 0 { i64::MAX } else { i64::MIN })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, the largest suffix that keeps it whole.
impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        if self.format == Format::BinarySI && whole && self.nanos.abs() >= 1024 * NANO {
            let mut n = self.nanos / NANO;
            let mut i = 0;
            while n % 1024 == 0 && i < 6 {
                n /= 1024;
                i += 1;
            }
            return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][i]);
        }
        let mut n = self.nanos;
        let mut exponent = -9;
        while n % 10 == 0 {
            n /= 10;
            exponent += 1;
        }
        let top = if self.format == Format::DecimalExponent {
            i32::MAX
        } else {
            18
        };
        while exponent % 3 != 0 || exponent > top {
            n = n.saturating_mul(10);
            exponent -= 1;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 {
                write!(f, "{n}")
            } else {
                write!(f, "{n}e{exponent}")
            };
        }
        let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        write!(f, "{n}{}", suffixes[((exponent + 9) / 3) as usize])
    }
}

impl std::str::FromStr for Quantity {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Self::parse(s)
    }
}

/// Are two JSON quantities the same number? False when either is none.
pub fn equal(a: &Value, b: &Value) -> bool {
    matches!((Quantity::from_value(a), Quantity::from_value(b)), (Ok(x), Ok(y)) if x == y)
}

/// Compares two JSON quantities; none when either is no quantity.
pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    Some(
        Quantity::from_value(a)
            .ok()?
            .cmp(&Quantity::from_value(b).ok()?),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_written_canonically() {
        for (text, want) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1024Mi", "1Gi"),
            ("100Mi", "100Mi"),
            ("1000Mi", "1000Mi"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1000e0", "1e3"),
            ("1E", "1E"),
            ("12e2", "1200"),
            ("0.1Ki", "102400m"),
            ("1023Ki", "1023Ki"),
            ("512", "512"),
            ("1048576", "1048576"),
            ("+5", "5"),
            ("-5", "-5"),
            ("-1.5", "-1500m"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("5.", "5"),
            ("1500m", "1500m"),
            ("2.5G", "2500M"),
            ("1Ei", "1Ei"),
            ("100E", "100E"),
            ("8Ei", "9223372036854775807"),
            ("0.5Mi", "512Ki"),
            ("100u", "100u"),
        ] {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()),
                Ok(want.to_string()),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_texts_get_upstreams_errors() {
        for (text, want) in [
            ("", Error::Format),
            ("abc", Error::Format),
            ("1 Gi", Error::Format),
            ("1ki", Error::Suffix),
            ("1KiB", Error::Format),
            ("1mm", Error::Suffix),
            ("1e", Error::Suffix),
            ("1e+", Error::Suffix),
            (".", Error::Numeric),
            ("--1", Error::Format),
        ] {
            assert_eq!(Quantity::parse(text).err(), Some(want), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let q = |s: &str| Quantity::parse(s).unwrap_or_default();
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("1m").value(), 1);
        assert_eq!(q("0.0001").milli_value(), 1);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("2Gi").value(), 2 << 30);
        assert!(q("1Gi") > q("1G"));
        let mut a = q("0");
        a.add(&q("1Gi"));
        a.add(&q("1Gi"));
        assert_eq!(a.to_string(), "2Gi");
    }

    proptest! {
            #[test]
            fn no_text_makes_it_panic(s in "[-+0-9.eEinumkKMGTP ]{0,60}") {
                if let Ok(q) = Quantity::parse(&s) {
                    let _ = (q.value(), q.milli_value());
                    let again = Quantity::parse(&q.to_string());
                    if q.nanos().abs() < i128::from(i64::MAX) * NANO {
                        prop_assert_eq!(again, Ok(q));
                    }
                }
            }
            #[test]
            fn the_canonical_form_is_a_fixed_point(n in any::<i64>(), binary in any::<bool>()) {
                let q = Quantity::new(n, if binary { Format::BinarySI } else { Format::DecimalSI });
                let text = q.to_string();
    prop_assert_eq!(Quantity::parse(&text), Ok(q));
                // Written without a suffix, a binary quantity reads as a decimal one, also upstream.
                if !binary || text.ends_with('i') {
                    prop_assert_eq!(Quantity::parse(&text).map(|q| q.to_string()), Ok(text));
                }
            }
        }
}
