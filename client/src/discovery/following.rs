//! What the sources share: a set is published where it has changed, a failure is
//! logged where it begins and where it ends, and each is followed by a longer wait.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{EndpointState, Endpoints, Failures, MAX_ENDPOINTS, SourceFailure};
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

    /// How many endpoints were published last.
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
    /// Whether the source has ever answered.
    answered: bool,
    /// When it began, and how much of the source it took.
    current: Option<(Instant, Extent)>,
    /// What a user should know although the source answers.
    note: Option<SourceFailure>,
    last: watch::Sender<Option<SourceFailure>>,
}

/// How much of a source cannot be asked.
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

    /// The source could not be asked. As many `endpoints` are known, and stay in use.
    pub(super) fn failed(&mut self, failure: SourceFailure, endpoints: usize) {
        if self.worsens(Extent::Whole) {
            let (source, error) = (&self.source, failure.text());
            if endpoints > 0 {
                warn!(
                    source,
                    endpoints, error, "the source cannot be asked: its last endpoints stay in use"
                );
            } else if self.answered {
                warn!(source, error, "the source cannot be asked, and has named no endpoint");
            } else {
                warn!(source, error, "the source cannot be asked yet");
            }
        }
        self.tell(Some(failure));
    }

    /// The source has answered only in part. `endpoints` of them are known: those in the
    /// answer, and those that the missing part named last.
    pub(super) fn failed_in_part(&mut self, failure: SourceFailure, endpoints: usize) {
        self.answered = true;
        if self.worsens(Extent::Part) {
            let (source, error) = (&self.source, failure.text());
            warn!(source, endpoints, error, "a part of the source cannot be asked");
        }
        self.tell(Some(failure));
    }

    /// The source has answered.
    pub(super) fn recovered(&mut self) {
        self.answered = true;
        self.tell(self.note.clone());
        if let Some((began, _)) = self.current.take() {
            let duration = began.elapsed().as_secs_f64();
            info!(source = self.source, duration, "the source answers again");
        }
    }

    /// The source answers, and names no endpoint for this reason.
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

    /// Whether this is the start of an outage, or of its worse half. Only then it is logged,
    /// however often the source is asked in vain.
    fn worsens(&mut self, extent: Extent) -> bool {
        let (began, before) = self.current.unzip();
        let worst = before.map_or(extent, |before: Extent| before.max(extent));
        self.current = Some((began.unwrap_or_else(Instant::now), worst));
        before.is_none_or(|before| before < extent)
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
