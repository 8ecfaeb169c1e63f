//! Durations and sizes as people write them.

use std::time::Duration;

/// Units of a duration, the longest name first where one starts another.
const TIMES: [(&str, f64); 6] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// A duration as Go and Concourse write it: `90s`, `10m`, `1h30m`, `1.5h`. Not zero, at most a year.
///
/// # Errors
/// What to write instead.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "write a number with a unit (ms, s, m, h), for example `90s`, `10m` or `1h30m`";
    let mut rest = text.trim();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(FORM);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = TIMES.iter().find(|(name, _)| *name == unit).ok_or(FORM)?;
        seconds += number.parse::<f64>().map_err(|_| FORM)? * factor;
        rest = tail;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(Duration::ZERO) => Err("it must be more than nothing; leave the key out for no limit"),
        Ok(duration) if duration <= Duration::from_secs(366 * 24 * 3600) => Ok(duration),
        _ => Err("it is longer than a year; leave the key out for no limit"),
    }
}

/// A size in bytes: `512MB`, `1GiB`, `4g` or a number of bytes. As in Concourse, all units are powers of 1024.
///
/// # Errors
/// What to write instead.
pub fn size(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "write bytes or a number with a unit (KB, MB, GB), for example `512MB` or `1.5GB`";
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return Err(FORM),
    };
    let bytes = number.parse::<f64>().map_err(|_| FORM)? * 1024_f64.powi(power);
    if (1.0..1e18).contains(&bytes) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be from 1 to 10^18"
        )]
        Ok(bytes as u64)
    } else {
        Err("it must be from 1 byte to an exabyte; leave the key out for no limit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_concourse_reads_them() {
        for (text, millis) in [
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("90s", 90_000),
            ("1m500ms", 60_500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "", "10", "m", "10 m", "1d", "-1s", "0s", "1..2s", "1e3s", "99999h", "10m5", "1h-5m",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("512MB", 512 << 20),
            ("1GiB", 1 << 30),
            ("4g", 4 << 30),
            ("1.5 kb", 1536),
            ("1048576", 1 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MB", "1XB", "-1", "0", "0.2b", "9999999TB", "1.2.3", "NaN", "inf"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
