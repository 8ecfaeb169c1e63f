//! Durations as people write and read them.

use std::time::Duration;

/// Longest duration that is taken: what is longer is a mistake, and would overflow a clock.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads `90s`, `10m`, `1h30m`, `2d`, `500ms`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let refuse = |why: &str| Err(format!("{text:?} {why}; write for example 90s, 10m, 1h30m or 2d"));
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(letters);
        let Ok(number) = number.parse::<u64>() else {
            return refuse("is not a duration");
        };
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return refuse("has no unit"),
            _ => return refuse("has a unit that is not known"),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis);
        match part.and_then(|part| sum.checked_add(part)) {
            Some(total) if total <= LONGEST => sum = total,
            _ => return refuse("is too long"),
        }
        rest = after;
    }
    if sum.is_zero() {
        refuse("is no time at all")
    } else {
        Ok(sum)
    }
}

/// Writes `0.4s`, `12.3s`, `1m 05s`, `2h 03m`: three digits of what matters.
pub(crate) fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64().min(59.9)),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "10",
            "m",
            "1w",
            "-1s",
            "1 h",
            "0s",
            "99999999999999999999s",
            "9999999d",
            "1.5h",
        ] {
            let why = parse(bad).unwrap_err();
            assert!(why.contains("1h30m"), "{bad}: {why}");
        }
    }

    #[test]
    fn durations_are_written_short() {
        for (millis, text) in [
            (0, "0.0s"),
            (449, "0.4s"),
            (59_960, "59.9s"),
            (65_000, "1m 05s"),
            (7_380_000, "2h 03m"),
        ] {
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
    }
}
