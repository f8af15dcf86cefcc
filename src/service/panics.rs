//! How many panics of a service are too many.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Panics that are caught within [`WINDOW`]. One more ends the process: a service that fails
/// all the time is better restarted, where an orchestrator sees it.
pub const LIMIT: usize = 10;

/// The time in which panics count.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The panics of the last minute.
#[derive(Debug, Default)]
pub struct Panics(VecDeque<Instant>);

impl Panics {
    /// Notes a panic, and says whether the process may go on.
    pub fn may_go_on(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now - *at > WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len() <= LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_minute_are_borne_and_no_more() {
        let mut panics = Panics::default();
        let start = Instant::now();
        assert!((0..LIMIT as u32).all(|n| panics.may_go_on(start + n * Duration::from_secs(1))));
        assert!(!panics.may_go_on(start + WINDOW));
        assert!(panics.may_go_on(start + 3 * WINDOW));
    }
}
