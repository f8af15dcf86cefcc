//! What all sources share: publishing a set only if it changed, logging the start and the end of an
//! outage, and waiting longer after each failure.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{EndpointState, Endpoints, Failures, MAX_ENDPOINTS, SourceFailure};
use crate::Backoff;

/// Runs `follow` until `endpoints` has no receivers left.
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

/// Publishes sets of endpoints to the listeners.
pub(super) struct Publisher {
    source: String,
    endpoints: watch::Sender<Endpoints>,
    published: bool,
    over: bool,
}

impl Publisher {
    /// Publishes the set if it changed. The first set is always published: knowing that it is empty
    /// beats knowing nothing.
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
            warn!(source = self.source, "the endpoint source lists no endpoints");
        }
    }

    /// The size of the last published set.
    pub(super) fn len(&self) -> usize {
        self.endpoints.borrow().len()
    }

    fn bound(&mut self, set: &mut Endpoints) {
        let count = set.len();
        let over = count > MAX_ENDPOINTS;
        if over && !self.over {
            warn!(
                source = self.source,
                count,
                limit = MAX_ENDPOINTS,
                "too many endpoints; the rest are ignored"
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

/// Tracks whether a source is failing.
pub(super) struct Outage {
    source: String,
    /// Whether the source has ever answered.
    answered: bool,
    /// When the outage began, and how much of the source it affects.
    current: Option<(Instant, Extent)>,
    /// Something that a user should know although the source answers.
    note: Option<SourceFailure>,
    last: watch::Sender<Option<SourceFailure>>,
}

/// How much of a source is failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    Part,
    Whole,
}

impl Outage {
    pub(super) fn new(source: String) -> Self {
        let last = watch::Sender::new(None);
        Self { source, answered: false, current: None, note: None, last }
    }

    /// See [`Discovery::failures`](super::Discovery::failures).
    pub(super) fn failures(&self) -> Failures {
        self.last.subscribe()
    }

    /// Records that the source failed. `endpoints` are known and stay in use.
    pub(super) fn failed(&mut self, failure: SourceFailure, endpoints: usize) {
        if self.worsens(Extent::Whole) {
            let (source, error) = (&self.source, failure.text());
            if endpoints > 0 {
                warn!(
                    source,
                    endpoints,
                    error,
                    "endpoint discovery failed; the last known endpoints stay in use"
                );
            } else if self.answered {
                warn!(
                    source,
                    error, "endpoint discovery failed; the last answer listed no endpoints"
                );
            } else {
                warn!(source, error, "endpoint discovery failed; no endpoints are known yet");
            }
        }
        self.tell(Some(failure));
    }

    /// Records that only a part of the source answered. `endpoints` are known: those in the answer,
    /// and the last ones of the missing part.
    pub(super) fn failed_in_part(&mut self, failure: SourceFailure, endpoints: usize) {
        self.answered = true;
        if self.worsens(Extent::Part) {
            let (source, error) = (&self.source, failure.text());
            warn!(source, endpoints, error, "endpoint discovery failed in part");
        }
        self.tell(Some(failure));
    }

    /// Records that the source has answered.
    pub(super) fn recovered(&mut self) {
        self.answered = true;
        self.tell(self.note.clone());
        if let Some((began, _)) = self.current.take() {
            let duration = began.elapsed().as_secs_f64();
            info!(source = self.source, duration, "endpoint discovery works again");
        }
    }

    /// Records that the source answers but lists no endpoint, for this reason.
    pub(super) fn names_none(&mut self, because: Option<SourceFailure>) {
        self.note = because;
        if self.current.is_none() {
            self.tell(self.note.clone());
        }
    }

    fn tell(&self, failure: Option<SourceFailure>) {
        self.last.send_if_modified(|last| {
            let modified = *last != failure;
            *last = failure;
            modified
        });
    }

    /// Whether an outage starts, or grows from a part to the whole. Only these are logged, or a
    /// source that keeps failing would flood the log.
    fn worsens(&mut self, extent: Extent) -> bool {
        let (began, before) = self.current.unzip();
        let worst = before.map_or(extent, |before: Extent| before.max(extent));
        self.current = Some((began.unwrap_or_else(Instant::now), worst));
        before.is_none_or(|before| before < extent)
    }
}

/// The waits after consecutive failures. They grow like a client's pauses, with jitter, so that
/// clients which one server has thrown out do not return all at once. Each is at least half of its
/// bound, so that a failing source is not queried again at once.
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

    /// The next wait, between half of its bound and the bound.
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
    fn waits_grow_to_the_cap_with_jitter() {
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
