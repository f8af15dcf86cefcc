//! Pauses between attempts: exponential backoff with a cap and full jitter.

use std::time::Duration;

/// The pauses between attempts: exponential backoff with a cap and full jitter.
///
/// Each pause is drawn at random between zero and a bound. The bound starts at `first` and doubles
/// with each failure up to `cap`. The jitter keeps clients that failed together from coming back
/// together.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
}

impl Backoff {
    /// A backoff whose bounds start at `first` and double up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap }
    }

    /// The upper bound of the pause after `failures` earlier failures, counted from 0.
    pub fn longest(&self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures).and_then(|factor| self.first.checked_mul(factor));
        doubled.unwrap_or(self.cap).min(self.cap)
    }

    /// Draws the pause after `failures` earlier failures, counted from 0.
    pub fn pause(&self, failures: u32) -> Duration {
        self.longest(failures).mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_random_below_a_bound_that_doubles_up_to_the_cap() {
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(70));
        let bounds: Vec<_> = (0..5).map(|failures| backoff.longest(failures).as_millis()).collect();
        assert_eq!(bounds, [10, 20, 40, 70, 70]);
        assert_eq!(backoff.longest(u32::MAX), Duration::from_millis(70));
        let drawn: Vec<_> = (0..100).map(|_| backoff.pause(2)).collect();
        assert!(drawn.iter().all(|pause| *pause <= backoff.longest(2)));
        assert!(drawn.iter().any(|pause| *pause < backoff.longest(2) / 2), "no jitter");
        assert!(drawn.iter().any(|pause| *pause > backoff.longest(2) / 2), "no backoff");
    }
}
