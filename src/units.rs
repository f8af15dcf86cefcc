//! Numbers of bytes and durations, as people write and read them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// The longest duration that a flag accepts. A longer one is probably a mistake in the unit, and
/// adding a very long one to the current time would overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The units of bytes, each as a power of two. There is no kB or MB, because some people mean 1000
/// and others 1024.
const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];

/// A limit in bytes, as the value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u32);

impl ByteSize {
    /// The least that makes sense for any limit: the kernel's smallest buffer.
    const LEAST: u64 = 1 << 10;

    /// The most that any limit may be.
    const MOST: u64 = 3 << 30;

    /// The limit as a number.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }
}

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = parse_bytes(text).filter(|bytes| (Self::LEAST..=Self::MOST).contains(bytes));
        bytes
            .and_then(|bytes| u32::try_from(bytes).ok())
            .map(Self)
            .ok_or("expected 1KiB to 3GiB, such as 65536, 64KiB or 8MiB")
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bytes(self.0.into()))
    }
}

/// Parses a number of bytes: a whole number, optionally followed by KiB, MiB or GiB.
pub fn parse_bytes(text: &str) -> Option<u64> {
    UNITS.into_iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(1 << shift)
    })
}

/// Formats a number of bytes so that [`parse_bytes`] accepts it, in the largest unit that gives a
/// whole number.
pub fn bytes(bytes: u64) -> String {
    let whole = |(_, shift): &(&str, u32)| bytes.trailing_zeros() >= *shift;
    let (unit, shift) = UNITS.into_iter().find(whole).unwrap_or(("", 0));
    format!("{}{unit}", bytes >> shift)
}

/// Parses a flag's duration.
///
/// # Errors
///
/// An example of a correct value.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    // humantime's own errors count characters and invent units such as `10sec`.
    let duration = humantime::parse_duration(text)
        .map_err(|_| "expected a number with a unit, such as 500ms, 1s or 2m".to_owned())?;
    if duration > LONGEST {
        return Err(format!("expected {} at most", humantime::format_duration(LONGEST)));
    }
    Ok(duration)
}

/// Parses a flag's duration that must not be zero, such as a timeout.
///
/// # Errors
///
/// An example of a correct value.
pub fn parse_limit(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.is_zero() {
        return Err("expected more than 0s, such as 500ms".to_owned());
    }
    Ok(duration)
}

/// Returns a parser for a flag whose value is a whole number in `range`.
pub fn count(
    range: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            format!("expected a whole number from {} to {}", range.start(), range.end())
        })
    }
}

/// Formats a short duration in milliseconds.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit_and_the_error_has_examples() {
        for text in ["10", "soon", "-1s", "", "1.5.s"] {
            let error = parse_duration(text).unwrap_err();
            assert_eq!(error, "expected a number with a unit, such as 500ms, 1s or 2m", "{text}");
        }
        assert_eq!(parse_duration("0").unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_count_outside_its_range_is_refused_with_the_range() {
        let parse = count(9..=1 << 20);
        assert_eq!(parse("9"), Ok(9));
        for text in ["8", "1048577", "100000000000", "-9", "nine", ""] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, "expected a whole number from 9 to 1048576", "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_as_they_are_parsed() {
        for (text, number) in [("1023", 1023), ("1KiB", 1 << 10), ("1025", 1025), ("3GiB", 3 << 30)]
        {
            assert_eq!(parse_bytes(text), Some(number), "{text}");
            assert_eq!(bytes(number), text);
        }
        assert_eq!(parse_bytes("64 KiB"), Some(64 << 10));
        for text in ["", "KiB", "-1", "1.5MiB", "64kB", "1KiBKiB", "99999999999GiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn a_limit_in_bytes_is_1_kib_to_3_gib() {
        for (text, limit) in [("1KiB", Some(1 << 10)), ("3GiB", Some(3 << 30)), ("1023", None)] {
            assert_eq!(text.parse::<ByteSize>().ok().map(ByteSize::bytes), limit, "{text}");
        }
        assert!("3221225473".parse::<ByteSize>().is_err());
    }
}
