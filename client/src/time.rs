//! Times that are far away.

use std::time::Duration;

use tokio::time::Instant;

/// Later than anything that a process waits for.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// `duration` after `now`, or thirty years after it if that is sooner: the clock has an end, and
/// a caller may well mean "for ever".
pub(super) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}
