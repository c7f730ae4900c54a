//! Times: RFC 3339 text to numbers and back, and the short durations that kubectl's columns show. Pure; no clock.

/// Days from 1970-01-01 to a civil date (proleptic Gregorian).
fn days_from_civil(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + d - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

fn civil_from_days(z: i64) -> (i64, i64, i64) {
    let z = z + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + i64::from(m <= 2);
    (y, m, doy - (153 * mp + 2) / 5 + 1)
}

fn days_in_month(y: i64, m: i64) -> i64 {
    match m {
        2 if y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn digits(s: &[u8], n: usize) -> Option<i64> {
    let part = s.get(..n)?;
    part.iter().try_fold(0i64, |a, b| {
        b.is_ascii_digit().then(|| a * 10 + i64::from(b - b'0'))
    })
}

/// The first and the last second that are taken: with an offset an earlier one has no year of four digits, and a later one
/// (after 9999-12-30T22:00:00Z) is outside of what components written with jiff can hold.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_207_200;

/// Seconds and nanoseconds since 1970-01-01T00:00:00Z of an RFC 3339 time with any offset and fraction.
pub fn parse_rfc3339_nanos(text: &str) -> Option<(i64, u32)> {
    let s = text.as_bytes();
    let sep = |i: usize, c: u8| (s.get(i) == Some(&c)).then_some(());
    let (y, m, d) = (
        digits(s, 4)?,
        digits(s.get(5..)?, 2)?,
        digits(s.get(8..)?, 2)?,
    );
    let (h, min, sec) = (
        digits(s.get(11..)?, 2)?,
        digits(s.get(14..)?, 2)?,
        digits(s.get(17..)?, 2)?,
    );
    sep(4, b'-')?;
    sep(7, b'-')?;
    sep(10, b'T')?;
    sep(13, b':')?;
    sep(16, b':')?;
    if !(1..=12).contains(&m) || d < 1 || d > days_in_month(y, m) || h > 23 || min > 59 || sec > 59
    {
        return None;
    }
    let mut rest = s.get(19..)?;
    let mut nanos: u32 = 0;
    if rest.first() == Some(&b'.') {
        let n = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if n == 0 {
            return None;
        }
        for i in 0..9 {
            let digit = if i < n {
                u32::from(rest[1 + i] - b'0')
            } else {
                0
            };
            nanos = nanos * 10 + digit;
        }
        rest = &rest[1 + n..];
    }
    let offset = match rest {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), hm @ ..] if hm.len() == 5 && hm[2] == b':' => {
            let (oh, om) = (digits(hm, 2)?, digits(&hm[3..], 2)?);
            if oh > 23 || om > 59 {
                return None;
            }
            let o = oh * 3600 + om * 60;
            if *sign == b'+' { o } else { -o }
        }
        _ => return None,
    };
    let secs = days_from_civil(y, m, d) * 86_400 + h * 3600 + min * 60 + sec - offset;
    (FIRST..=LAST).contains(&secs).then_some((secs, nanos))
}

/// Seconds since 1970-01-01T00:00:00Z of an RFC 3339 time; fractions are cut off.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    parse_rfc3339_nanos(text).map(|(s, _)| s)
}

/// Microseconds since 1970-01-01T00:00:00Z of an RFC 3339 time.
pub fn parse_micro(text: &str) -> Option<i64> {
    let (s, n) = parse_rfc3339_nanos(text)?;
    s.checked_mul(1_000_000)?.checked_add(i64::from(n / 1000))
}

/// `2006-01-02T15:04:05Z`, as `metav1.Time` writes it.
pub fn format_rfc3339(secs: i64) -> String {
    let (y, m, d) = civil_from_days(secs.div_euclid(86_400));
    let t = secs.rem_euclid(86_400);
    format!(
        "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z",
        t / 3600,
        t / 60 % 60,
        t % 60
    )
}

/// `2006-01-02T15:04:05.000000Z`, as `metav1.MicroTime` writes it.
pub fn format_micro(micros: i64) -> String {
    let mut s = format_rfc3339(micros.div_euclid(1_000_000));
    s.pop();
    s.push_str(&format!(".{:06}Z", micros.rem_euclid(1_000_000)));
    s
}

/// The age that kubectl's columns show, of seconds: two units at most, fewer as it grows (upstream's
/// `duration.HumanDuration`).
pub fn human_duration(seconds: i64) -> String {
    // Clocks differ: up to two seconds ahead counts as now, more is invalid.
    if seconds < -1 {
        return "<invalid>".to_string();
    }
    if seconds < 0 {
        return "0s".to_string();
    }
    if seconds < 60 * 2 {
        return format!("{seconds}s");
    }
    let minutes = seconds / 60;
    if minutes < 10 {
        return match seconds % 60 {
            0 => format!("{minutes}m"),
            s => format!("{minutes}m{s}s"),
        };
    }
    if minutes < 60 * 3 {
        return format!("{minutes}m");
    }
    let hours = minutes / 60;
    if hours < 8 {
        return match minutes % 60 {
            0 => format!("{hours}h"),
            m => format!("{hours}h{m}m"),
        };
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    if hours < 24 * 8 {
        return match hours % 24 {
            0 => format!("{}d", hours / 24),
            h => format!("{}d{h}h", hours / 24),
        };
    }
    if hours < 24 * 365 * 2 {
        return format!("{}d", hours / 24);
    }
    let years = hours / 24 / 365;
    if hours < 24 * 365 * 8 {
        return match hours / 24 % 365 {
            0 => format!("{years}y"),
            d => format!("{years}y{d}d"),
        };
    }
    format!("{years}y")
}

/// The single unit of `duration.ShortHumanDuration`: `5m`, `3h`, `2d`, `1y`.
pub fn short_human_duration(seconds: i64) -> String {
    if seconds < -1 {
        "<invalid>".to_string()
    } else if seconds < 0 {
        "0s".to_string()
    } else if seconds < 60 {
        format!("{seconds}s")
    } else if seconds < 3600 {
        format!("{}m", seconds / 60)
    } else if seconds < 86_400 {
        format!("{}h", seconds / 3600)
    } else if seconds < 86_400 * 365 {
        format!("{}d", seconds / 86_400)
    } else {
        format!("{}y", seconds / 86_400 / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_with_offsets_and_fractions() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            parse_rfc3339("2024-02-29T12:30:45.123456789+02:00"),
            Some(1_709_202_645)
        );
        assert_eq!(parse_micro("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        for bad in [
            "",
            "2024-02-30T00:00:00Z",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00.Z",
            "é024-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn ages_look_as_kubectl_shows_them() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86_400, "8d"),
            (729 * 86_400, "729d"),
            (731 * 86_400, "2y1d"),
            (3000 * 86_400, "8y"),
        ];
        for (s, want) in cases {
            assert_eq!(human_duration(s), want, "{s}");
        }
    }

    proptest! {
        #[test]
        fn writing_and_reading_a_time_gives_it_back(s in -60_000_000_000i64..250_000_000_000) {
            prop_assert_eq!(parse_rfc3339(&format_rfc3339(s)), Some(s));
            prop_assert_eq!(parse_micro(&format_micro(s * 1000 + 7)), Some(s * 1000 + 7));
        }
        #[test]
        fn no_text_makes_it_panic(s in "\\PC{0,40}") {
            parse_rfc3339_nanos(&s);
        }
    }
}
