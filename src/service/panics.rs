//! How many panics of a service are too many.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many panics within [`WINDOW`] the process survives. One more ends it, because a service that
/// fails all the time should be restarted by an orchestrator, where people can see it.
pub const LIMIT: usize = 10;

/// How long a panic counts towards [`LIMIT`].
pub const WINDOW: Duration = Duration::from_secs(60);

/// The panics within the last [`WINDOW`].
#[derive(Debug, Default)]
pub struct Panics(VecDeque<Instant>);

impl Panics {
    /// Records a panic at `now`. Returns whether the process may continue.
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
    fn the_eleventh_panic_within_a_minute_ends_the_process() {
        let mut panics = Panics::default();
        let start = Instant::now();
        assert!((0..LIMIT as u32).all(|n| panics.may_go_on(start + n * Duration::from_secs(1))));
        assert!(!panics.may_go_on(start + WINDOW));
        assert!(panics.may_go_on(start + 3 * WINDOW));
    }
}
