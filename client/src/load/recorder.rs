//! Counts what happened to every request, on the thread that made it. An answered request costs
//! neither a lock nor an allocation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::completion::Completion;
use crate::discovery::{EndpointState, Endpoints};
use zmtp::endpoint::ConnectEndpoint;

/// Significant digits of the histograms for the whole run.
const DIGITS: u8 = 3;

/// Significant digits of the histograms for a part of the run. Their figures are read less closely.
const WINDOW_DIGITS: u8 = 2;

/// The most endpoint changes that are kept. More would be unreadable on the page.
const MOST_CHANGES: usize = 1000;

/// The times of one request.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When it was due. Its latency is measured from here.
    pub due: Instant,
    /// When it was handed to the client.
    pub sent: Instant,
    /// When its outcome was known.
    pub done: Instant,
}

/// The counters of a run.
pub struct Recorder {
    /// When the first request was due.
    pub start: Instant,
    /// Requests handed to the client.
    pub sent: u64,
    /// Attempts beyond the first of each request.
    pub retried: u64,
    /// Answered requests.
    pub answered: u64,
    /// Failed requests, by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// The longest queue of requests that were due but not sent, because all slots were taken.
    pub most_waiting: u64,
    /// Time from when a request was due to its reply.
    pub latency: Histogram<u64>,
    /// Time from when a request was sent to its reply: what a generator that waits for replies
    /// would report.
    pub from_sending: Histogram<u64>,
    /// Time from when a request was due to when this process noticed. It shows how late the load
    /// generator itself was.
    pub lateness: Histogram<u64>,
    /// Answered requests, by endpoint.
    pub endpoints: BTreeMap<Arc<ConnectEndpoint>, u64>,
    /// The last failure of each endpoint that was not usable at the end.
    pub troubles: BTreeMap<Arc<ConnectEndpoint>, String>,
    /// When endpoints appeared and left.
    pub changes: Vec<Change>,
    /// Requests that ended since the progress was last shown.
    pub recent: Window,
    slice: Window,
    timeline: Timeline,
    usable: Endpoints,
}

/// What happened to an endpoint, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Time since the start.
    pub at: Duration,
    /// The endpoint.
    pub endpoint: ConnectEndpoint,
    /// What happened to it.
    pub what: What,
}

/// What can happen to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It gets requests.
    Came,
    /// It gets no new requests.
    Draining,
    /// It is no longer known.
    Gone,
}

/// The run, cut into slices of equal length.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The length of each slice.
    pub width: Duration,
    /// The slices, in order.
    pub slices: Vec<Slice>,
}

/// What happened in one slice of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Requests answered.
    pub answered: u64,
    /// Requests failed.
    pub failed: u64,
    /// The median latency, the 99th percentile and the maximum, in nanoseconds. `None` if nothing
    /// was answered.
    pub latency: Option<[u64; 3]>,
}

/// Counts the requests that ended since [`Window::take`] was last called.
pub struct Window {
    answered: u64,
    failed: u64,
    latency: Histogram<u64>,
}

/// A histogram of times in nanoseconds, up to a little more than an hour.
fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1 << 42, digits).expect("the bounds are constant and valid")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Recorder {
    /// Starts counting, with timeline slices of length `width`.
    pub fn new(start: Instant, width: Duration) -> Self {
        Self {
            start,
            sent: 0,
            retried: 0,
            answered: 0,
            failed: BTreeMap::new(),
            most_waiting: 0,
            latency: histogram(DIGITS),
            from_sending: histogram(DIGITS),
            lateness: histogram(DIGITS),
            endpoints: BTreeMap::new(),
            troubles: BTreeMap::new(),
            changes: Vec::new(),
            recent: Window::new(),
            slice: Window::new(),
            timeline: Timeline { width, slices: Vec::new() },
            usable: Endpoints::new(),
        }
    }

    /// Counts one request that ended after `attempts`.
    pub fn record(&mut self, times: Times, attempts: u32, completion: Completion) {
        self.advance(times.done);
        self.retried += u64::from(attempts.saturating_sub(1));
        match completion {
            Completion::Answered(endpoint) => self.answered(times, endpoint),
            Completion::Failed(kind) => self.failed(kind, 1),
        }
    }

    fn answered(&mut self, times: Times, endpoint: Arc<ConnectEndpoint>) {
        let latency = nanoseconds(times.done.saturating_duration_since(times.due));
        let from_sending = nanoseconds(times.done.saturating_duration_since(times.sent));
        self.answered += 1;
        self.latency.saturating_record(latency);
        self.from_sending.saturating_record(from_sending);
        *self.endpoints.entry(endpoint).or_default() += 1;
        for window in [&mut self.slice, &mut self.recent] {
            window.answered += 1;
            window.latency.saturating_record(latency);
        }
    }

    /// Counts `count` failed requests.
    pub fn failed(&mut self, kind: &'static str, count: u64) {
        if count == 0 {
            return;
        }
        *self.failed.entry(kind).or_default() += count;
        for window in [&mut self.slice, &mut self.recent] {
            window.failed += count;
        }
    }

    /// Total number of failed requests.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Number of requests that were sent and have not ended.
    pub fn outstanding(&self) -> u64 {
        self.sent - self.answered - self.failures()
    }

    /// Records that a request due at `due` was noticed at `now`.
    pub fn noticed(&mut self, due: Instant, now: Instant) {
        self.lateness.saturating_record(nanoseconds(now.saturating_duration_since(due)));
    }

    /// Records that the source lists this endpoint. It appears in the result even if it is never
    /// reached.
    pub fn names(&mut self, endpoint: &ConnectEndpoint) {
        if !self.endpoints.contains_key(endpoint) {
            self.endpoints.insert(Arc::new(endpoint.clone()), 0);
        }
    }

    /// Records how the endpoints have changed since the last call.
    pub fn endpoints_are(&mut self, endpoints: &Endpoints, now: Instant) {
        let at = now.saturating_duration_since(self.start);
        let before = std::mem::replace(&mut self.usable, endpoints.clone());
        let gone = before.keys().filter(|endpoint| !endpoints.contains_key(*endpoint));
        let gone = gone.map(|endpoint| (endpoint, What::Gone));
        let changed = endpoints
            .iter()
            .map(|(endpoint, known)| (endpoint, known.state))
            .filter(|(key, state)| before.get(*key).map(|known| known.state) != Some(*state))
            .map(|(endpoint, state)| match state {
                EndpointState::Ready => (endpoint, What::Came),
                EndpointState::Draining => (endpoint, What::Draining),
            });
        let room = MOST_CHANGES - self.changes.len();
        let changes = gone.chain(changed).take(room);
        self.changes.extend(changes.map(|(endpoint, what)| Change {
            at,
            endpoint: endpoint.clone(),
            what,
        }));
    }

    /// Closes every slice of the timeline that ended before `now`.
    pub fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start);
        while elapsed >= self.timeline.width * (self.timeline.slices.len() as u32 + 1) {
            self.timeline.slices.push(self.slice.take());
        }
    }

    /// The timeline so far, including the current slice.
    pub fn timeline(&mut self) -> &Timeline {
        if self.slice.answered + self.slice.failed > 0 {
            self.timeline.slices.push(self.slice.take());
        }
        &self.timeline
    }
}

impl Window {
    fn new() -> Self {
        Self { answered: 0, failed: 0, latency: histogram(WINDOW_DIGITS) }
    }

    /// Returns what happened since the last call, and starts again.
    pub fn take(&mut self) -> Slice {
        let at = |quantile| self.latency.value_at_quantile(quantile);
        let latency = [at(0.5), at(0.99), self.latency.max()];
        let slice = Slice {
            answered: self.answered,
            failed: self.failed,
            latency: (self.answered > 0).then_some(latency),
        };
        (self.answered, self.failed) = (0, 0);
        self.latency.reset();
        slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Endpoint;

    const WIDTH: Duration = Duration::from_secs(1);

    fn endpoint(port: u16) -> ConnectEndpoint {
        std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()
    }

    fn answered(recorder: &mut Recorder, due: Instant, sent: u64, done: u64) {
        let times = Times {
            due,
            sent: due + Duration::from_millis(sent),
            done: due + Duration::from_millis(done),
        };
        recorder.record(times, 1, Completion::Answered(endpoint(1).into()));
    }

    #[test]
    fn latency_is_measured_from_when_a_request_was_due() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, WIDTH);
        answered(&mut recorder, start, 900, 1000);
        let near = |value: u64, expected: u64| value.abs_diff(expected) * 500 < expected;
        assert!(near(recorder.latency.max(), 1_000_000_000), "{}", recorder.latency.max());
        assert!(near(recorder.from_sending.max(), 100_000_000), "{}", recorder.from_sending.max());
    }

    #[test]
    fn the_timeline_includes_slices_without_a_reply() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, WIDTH);
        answered(&mut recorder, start, 0, 5);
        answered(&mut recorder, start, 0, 3500);
        recorder.failed("timed_out", 2);
        let slices = &recorder.timeline().slices;
        let counts: Vec<_> = slices.iter().map(|slice| (slice.answered, slice.failed)).collect();
        assert_eq!(counts, [(1, 0), (0, 0), (0, 0), (1, 2)]);
        assert_eq!(slices[1].latency, None);
        assert!(slices[3].latency.unwrap()[2] > 3_400_000_000);
        assert_eq!(recorder.recent.take().answered, 2);
        assert_eq!(recorder.recent.take(), Slice { answered: 0, failed: 0, latency: None });
    }

    #[test]
    fn retries_count_for_answered_and_failed_requests() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, WIDTH);
        let times = Times { due: start, sent: start, done: start };
        recorder.record(times, 1, Completion::Answered(endpoint(1).into()));
        recorder.record(times, 2, Completion::Answered(endpoint(2).into()));
        recorder.record(times, 3, Completion::Failed("timed_out"));
        recorder.record(times, 0, Completion::Failed("no_endpoint"));
        assert_eq!((recorder.retried, recorder.answered, recorder.failures()), (3, 2, 2));
        assert_eq!(recorder.failed, [("no_endpoint", 1), ("timed_out", 1)].into());
        assert_eq!(recorder.endpoints, [(endpoint(1).into(), 1), (endpoint(2).into(), 1)].into());
    }

    #[test]
    fn endpoints_that_come_drain_and_go_are_recorded() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, WIDTH);
        let steps = [
            vec![(endpoint(1), EndpointState::Ready)],
            vec![(endpoint(1), EndpointState::Draining), (endpoint(2), EndpointState::Ready)],
            vec![(endpoint(2), EndpointState::Ready)],
        ];
        for (second, step) in (0..).zip(steps) {
            let now = start + Duration::from_secs(second);
            let known = |(endpoint, state)| (endpoint, Endpoint::new(state, Vec::new()));
            recorder.endpoints_are(&step.into_iter().map(known).collect(), now);
        }
        let seen: Vec<_> = recorder
            .changes
            .iter()
            .map(|change| (change.at.as_secs(), change.endpoint.host_and_port().1, change.what))
            .collect();
        let expected =
            [(0, 1, What::Came), (1, 1, What::Draining), (1, 2, What::Came), (2, 1, What::Gone)];
        assert_eq!(seen, expected);
    }
}
