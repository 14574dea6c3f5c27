//! The `grpc-timeout` header: up to eight digits and a unit.

/// In milliseconds, rounded up and at least 1; `None` where the header is malformed, which the protocol lets servers
/// ignore.
#[must_use]
pub fn milliseconds(header: &str) -> Option<u32> {
    let unit = header.chars().next_back()?;
    let digits = header.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    let milliseconds = match unit {
        'H' => value * 3_600_000,
        'M' => value * 60_000,
        'S' => value * 1000,
        'm' => value,
        'u' => value.div_ceil(1000),
        'n' => value.div_ceil(1_000_000),
        _ => return None,
    };
    Some(u32::try_from(milliseconds).unwrap_or(u32::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn reads_every_unit_and_nothing_else() {
        assert_eq!(milliseconds("1H"), Some(3_600_000));
        assert_eq!(milliseconds("2M"), Some(120_000));
        assert_eq!(milliseconds("3S"), Some(3000));
        assert_eq!(milliseconds("4m"), Some(4));
        assert_eq!(milliseconds("1500u"), Some(2));
        assert_eq!(milliseconds("1n"), Some(1));
        assert_eq!(milliseconds("0m"), Some(1), "over at once, and not `no deadline`");
        assert_eq!(milliseconds("99999999H"), Some(u32::MAX));
        for malformed in ["", "S", "5", "-1S", "+1S", "1.5S", "123456789S", "1é", "1 S"] {
            assert_eq!(milliseconds(malformed), None, "{malformed:?}");
        }
    }
}
