//! A share of the requests or of a duration, as people write it.

use std::fmt;
use std::str::FromStr;

/// A share from 0 % to 100 %.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Share {
    percent: f64,
}

impl Share {
    /// The share as a number from 0 to 1.
    pub fn fraction(self) -> f64 {
        self.percent / 100.0
    }
}

impl FromStr for Share {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        percent.map(|percent| Self { percent }).ok_or("expected 0% to 100%, such as 20%")
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_percentage_from_0_to_100_is_a_share() {
        for (text, fraction) in [("0%", 0.0), ("20%", 0.2), ("0.5%", 0.005), ("100 %", 1.0)] {
            assert_eq!(text.parse::<Share>().unwrap().fraction(), fraction, "{text}");
        }
        for text in ["", "%", "20", "0.2", "101%", "-1%", "nan%", "inf%", "20%%"] {
            assert!(text.parse::<Share>().unwrap_err().contains("20%"), "{text}");
        }
        assert_eq!("12.5%".parse::<Share>().unwrap().to_string(), "12.5%");
    }
}
