//! Deadlines far in the future.

use std::time::Duration;

use tokio::time::Instant;

/// Thirty years: longer than any process waits.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// `duration` after `now`, but at most thirty years. An `Instant` can overflow, and callers may
/// pass a huge duration to mean "forever".
pub(super) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}
