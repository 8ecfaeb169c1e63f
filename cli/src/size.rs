//! Sizes as people write them.

/// Reads `512MB`, `1.5GiB`, `4g` or a number of bytes; as in pipelines, all units are powers of 1024.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let refuse = || format!("{text:?} is not a size; write for example 512MB, 1.5GB or a number of bytes");
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
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << (10 * power)).ok_or_else(refuse);
    }
    let number: f64 = number.parse().map_err(|_| refuse())?;
    let bytes = number * f64::from(1u32 << (10 * power.min(3))) * if power == 4 { 1024.0 } else { 1.0 };
    if !bytes.is_finite() || bytes >= 1e18 {
        return Err(refuse());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a finite number without a sign, far below the largest"
    )]
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("10", 10),
            ("4k", 4096),
            ("1.5 MB", 3 << 19),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
            ("0.5TB", 1 << 39),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "1x", "-1", "1.2.3", "99999999999t"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
