//! The syntax of cron schedules as upstream's library (robfig/cron v3, standard parser) accepts it. Only checks and parses;
//! it computes no times of its own beyond what the fields mean.

/// The five fields of a schedule; bit n of a mask: value n is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Minutes 0-59.
    pub minute: u64,
    /// Hours 0-23.
    pub hour: u64,
    /// Days of the month 1-31.
    pub day: u64,
    /// Months 1-12.
    pub month: u64,
    /// Days of the week 0-6, Sunday is 0.
    pub weekday: u64,
    /// Whether the day of the month was `*`: then the weekday alone decides (and the other way round).
    pub any_day: bool,
    /// Whether the day of the week was `*`.
    pub any_weekday: bool,
}

/// What a schedule can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Five fields, or a name for them such as `@hourly`.
    Fields(Schedule),
    /// `@every <duration>`: the text of the duration.
    Every(String),
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Parses a schedule (without a time zone in it).
pub fn parse(s: &str) -> Result<Spec, String> {
    if s.is_empty() {
        return Err("empty spec string".into());
    }
    if let Some(name) = s.strip_prefix('@') {
        let fields = match name {
            "yearly" | "annually" => "0 0 1 1 *",
            "monthly" => "0 0 1 * *",
            "weekly" => "0 0 * * 0",
            "daily" | "midnight" => "0 0 * * *",
            "hourly" => "0 * * * *",
            _ => {
                return match name.strip_prefix("every ") {
                    Some(d) if is_duration(d) => Ok(Spec::Every(d.to_string())),
                    Some(_) => Err(format!("failed to parse duration {s}")),
                    None => Err(format!("unrecognized descriptor: {s}")),
                };
            }
        };
        return parse(fields);
    }
    let parts: Vec<&str> = s.split_whitespace().collect();
    if parts.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            parts.len(),
            parts.join(" ")
        ));
    }
    let (minute, _) = field(parts[0], 0, 59, &[], 0)?;
    let (hour, _) = field(parts[1], 0, 23, &[], 0)?;
    let (day, any_day) = field(parts[2], 1, 31, &[], 0)?;
    let (month, _) = field(parts[3], 1, 12, MONTHS, 1)?;
    let (weekday, any_weekday) = field(parts[4], 0, 6, DAYS, 0)?;
    Ok(Spec::Fields(Schedule {
        minute,
        hour,
        day,
        month,
        weekday,
        any_day,
        any_weekday,
    }))
}

fn field(s: &str, min: u32, max: u32, names: &[&str], first: u32) -> Result<(u64, bool), String> {
    let mut mask = 0;
    let mut any = false;
    for part in s.split(',').filter(|p| !p.is_empty()) {
        let (m, star) = range(part, min, max, names, first)?;
        mask |= m;
        any |= star;
    }
    if s.split(',').all(str::is_empty) {
        return Err(format!("failed to parse int from {s}: empty field"));
    }
    Ok((mask, any))
}

/// `number`, `a-b`, `*`, `?`, each with `/step`.
fn range(s: &str, min: u32, max: u32, names: &[&str], first: u32) -> Result<(u64, bool), String> {
    let value = |t: &str| -> Result<u32, String> {
        let lower = t.to_lowercase();
        if let Some(i) = names.iter().position(|n| *n == lower) {
            return Ok(i as u32 + first);
        }
        match t.parse::<i64>() {
            Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {t}")),
            Ok(n) => u32::try_from(n)
                .map_err(|_| format!("failed to parse int from {t}: value out of range")),
            Err(_) => Err(format!(
                "failed to parse int from {t}: strconv.Atoi: parsing {t:?}: invalid syntax"
            )),
        }
    };
    let steps: Vec<&str> = s.split('/').collect();
    let bounds: Vec<&str> = steps[0].split('-').collect();
    let single = bounds.len() == 1;
    let mut star = false;
    let (start, mut end) = if bounds[0] == "*" || bounds[0] == "?" {
        star = true;
        (min, max)
    } else {
        let a = value(bounds[0])?;
        match bounds.len() {
            1 => (a, a),
            2 => (a, value(bounds[1])?),
            _ => return Err(format!("too many hyphens: {s}")),
        }
    };
    let step = match steps.len() {
        1 => 1,
        2 => {
            let step = value(steps[1])?;
            if single {
                end = max;
            }
            if step > 1 {
                star = false;
            }
            step
        }
        _ => return Err(format!("too many slashes: {s}")),
    };
    if start < min {
        return Err(format!(
            "beginning of range ({start}) below minimum ({min}): {s}"
        ));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {s}"));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {s}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {s}"));
    }
    let mut mask = 0;
    let mut n = start;
    while n <= end {
        mask |= 1 << n;
        n = n.saturating_add(step);
    }
    Ok((mask, star))
}

/// A Go duration: `1h30m`, `1.5s`.
fn is_duration(s: &str) -> bool {
    let mut rest = s.trim_start_matches(['-', '+']);
    if rest.is_empty() {
        return false;
    }
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let digits = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        if digits == 0 || !rest[..digits].bytes().any(|b| b.is_ascii_digit()) {
            return false;
        }
        rest = &rest[digits..];
        match ["ns", "us", "µs", "ms", "s", "m", "h"]
            .iter()
            .find(|u| rest.starts_with(**u))
        {
            Some(u) => rest = &rest[u.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_schedules_parse() {
        for s in [
            "*/5 * * * *",
            "0 0 1 jan sun",
            "1-5,10 2/3 * * 1-5",
            "@hourly",
            "@every 1h30m",
            "0 0 ? * *",
        ] {
            assert!(parse(s).is_ok(), "{s}: {:?}", parse(s));
        }
        let Ok(Spec::Fields(f)) = parse("*/20 3 * * *") else {
            panic!("no fields")
        };
        assert_eq!(f.minute, 1 | 1 << 20 | 1 << 40);
        assert_eq!(f.hour, 8);
        assert!(f.any_day && f.any_weekday);
    }

    #[test]
    fn bad_schedules_say_why() {
        assert_eq!(
            parse("* * *").unwrap_err(),
            "expected exactly 5 fields, found 3: [* * *]"
        );
        assert_eq!(
            parse("61 * * * *").unwrap_err(),
            "end of range (61) above maximum (59): 61"
        );
        assert_eq!(
            parse("5-1 * * * *").unwrap_err(),
            "beginning of range (5) beyond end of range (1): 5-1"
        );
        assert_eq!(
            parse("@often").unwrap_err(),
            "unrecognized descriptor: @often"
        );
        assert!(
            parse("x * * * *")
                .unwrap_err()
                .starts_with("failed to parse int from x")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(s in "[-*/?,@a-z0-9. ]{0,30}") {
            let _ = parse(&s);
        }
    }
}
