//! What the sources share: a set is published where it has changed, a failure is
//! logged where it begins and where it ends, and each is followed by a longer wait.

use std::convert::Infallible;
use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{EndpointState, Endpoints, MAX_ENDPOINTS};
use crate::Backoff;

/// Publishes what `follow` finds out until nobody listens any more.
pub(super) async fn until_unheard<F>(
    source: String,
    endpoints: watch::Sender<Endpoints>,
    follow: impl FnOnce(Publisher) -> F,
) where
    F: Future<Output = Infallible>,
{
    let listeners = endpoints.clone();
    let publisher = Publisher { source, endpoints, published: false, over: false };
    tokio::select! {
        () = listeners.closed() => {}
        never = follow(publisher) => match never {},
    }
}

/// The way to those who listen.
pub(super) struct Publisher {
    source: String,
    endpoints: watch::Sender<Endpoints>,
    published: bool,
    over: bool,
}

impl Publisher {
    /// Publishes the set where it is another. The first one is always published: that
    /// there are no endpoints is more than not to know of any.
    pub(super) fn publish(&mut self, mut set: Endpoints) {
        self.bound(&mut set);
        let first = !std::mem::replace(&mut self.published, true);
        let none = set.is_empty();
        let changed = self.endpoints.send_if_modified(|last| {
            let changed = first || *last != set;
            *last = set;
            changed
        });
        if changed && none {
            warn!(source = self.source, "the source names no endpoints");
        }
    }

    fn bound(&mut self, set: &mut Endpoints) {
        let count = set.len();
        let over = count > MAX_ENDPOINTS;
        if over && !self.over {
            warn!(
                source = self.source,
                count,
                limit = MAX_ENDPOINTS,
                "more endpoints than are taken"
            );
        }
        self.over = over;
        if over {
            let (ready, draining): (Vec<_>, Vec<_>) = std::mem::take(set)
                .into_iter()
                .partition(|(_, endpoint)| endpoint.state == EndpointState::Ready);
            *set = ready.into_iter().chain(draining).take(MAX_ENDPOINTS).collect();
        }
    }
}

/// Whether a source cannot be asked just now.
pub(super) struct Outage {
    source: String,
    began: Option<Instant>,
}

impl Outage {
    pub(super) fn new(source: String) -> Self {
        Self { source, began: None }
    }

    pub(super) fn failed(&mut self, error: &dyn Display) {
        if self.began.is_none() {
            self.began = Some(Instant::now());
            warn!(source = self.source, %error, "the source failed: the last endpoints stay");
        }
    }

    pub(super) fn recovered(&mut self) {
        if let Some(began) = self.began.take() {
            let duration = began.elapsed().as_secs_f64();
            info!(source = self.source, duration, "the source answers again");
        }
    }
}

/// The waits after failures in a row. They grow as a client's pauses do, with jitter, so
/// that those whom one server has thrown out do not come back as one; none is less than
/// half of what is due, for a source that failed is not to be asked again at once.
pub(super) struct Waits {
    backoff: Backoff,
    failures: u32,
}

impl Waits {
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        Self { backoff: Backoff::new(first, cap), failures: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// From the half of the wait that is due to all of it.
    pub(super) fn next(&mut self) -> Duration {
        let due = self.backoff.longest(self.failures);
        self.failures = self.failures.saturating_add(1);
        due.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_longer_up_to_the_cap_and_no_two_are_the_same() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut waits = Waits::new(first, cap);
        for due in [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis) {
            let wait = waits.next();
            assert!((due / 2..=due).contains(&wait), "{wait:?} of {due:?}");
        }
        assert_ne!(waits.next(), waits.next());
        waits.reset();
        assert!(waits.next() <= first);
    }
}
