//! The buckets of the latency histogram.

use std::fmt;
use std::str::FromStr;

use crate::metrics::LATENCY_BUCKETS;

/// Maximum number of latency buckets. Each one is a separate series in every replica.
const MOST_BUCKETS: usize = 64;

/// Upper bounds of histogram buckets, in seconds: positive, finite and rising.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyBuckets(Vec<f64>);

impl LatencyBuckets {
    /// The bounds, in seconds.
    pub fn bounds(&self) -> &[f64] {
        &self.0
    }
}

impl Default for LatencyBuckets {
    fn default() -> Self {
        Self(LATENCY_BUCKETS.to_vec())
    }
}

impl FromStr for LatencyBuckets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = || {
            "expected seconds in rising order, comma-separated, such as 0.0001,0.001,0.01"
                .to_owned()
        };
        let bounds: Vec<f64> = text
            .split(',')
            .map(|bound| bound.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| right())?;
        let positive = bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0);
        let rising = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if !positive || !rising {
            return Err(right());
        }
        if bounds.len() > MOST_BUCKETS {
            return Err(format!(
                "expected at most {MOST_BUCKETS} bounds, because each adds a time series"
            ));
        }
        Ok(Self(bounds))
    }
}

impl fmt::Display for LatencyBuckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bound) in self.0.iter().enumerate() {
            write!(f, "{}{bound}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
