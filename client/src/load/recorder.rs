//! What happened to every request, counted on the thread that made it: no lock and
//! no allocation for an answered one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::completion::Completion;
use crate::discovery::{EndpointState, Endpoints};
use zmtp::endpoint::ConnectEndpoint;

/// The digits of a histogram over the whole run.
const DIGITS: u8 = 3;

/// The digits of a histogram over a part of it, of which less is read.
const WINDOW_DIGITS: u8 = 2;

/// The most changes of the endpoints that are kept: a page shows no more.
const MOST_CHANGES: usize = 1000;

/// One request's times.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When it was due: from here its latency counts.
    pub due: Instant,
    /// When it was handed to the client.
    pub sent: Instant,
    /// When its outcome was known.
    pub done: Instant,
}

/// Counts requests.
pub struct Recorder {
    /// When the first request was due.
    pub start: Instant,
    /// Requests handed to the client.
    pub sent: u64,
    /// Attempts beyond the first of each request.
    pub retried: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests failed, by kind.
    pub failed: BTreeMap<&'static str, u64>,
    /// The most requests that were due and waited for others to end.
    pub most_waiting: u64,
    /// From when a request was due to its reply.
    pub latency: Histogram<u64>,
    /// From when a request was sent to its reply: what a generator would show that
    /// waits for replies.
    pub from_sending: Histogram<u64>,
    /// From when a request was due to when this process noticed: its own fault.
    pub lateness: Histogram<u64>,
    /// Requests answered, by endpoint.
    pub endpoints: BTreeMap<Arc<ConnectEndpoint>, u64>,
    /// What went wrong last at those that are in trouble at the end.
    pub troubles: BTreeMap<Arc<ConnectEndpoint>, String>,
    /// When endpoints came and went.
    pub changes: Vec<Change>,
    /// Since the last look of the progress.
    pub recent: Window,
    slice: Window,
    timeline: Timeline,
    usable: Endpoints,
}

/// What happened to an endpoint, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Since the start.
    pub at: Duration,
    /// Which one.
    pub endpoint: ConnectEndpoint,
    /// What.
    pub what: What,
}

/// What can happen to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It takes requests.
    Came,
    /// It gets nothing new.
    Draining,
    /// It is known no more.
    Gone,
}

/// The run, in slices of equal length.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// How long each slice is.
    pub width: Duration,
    /// What happened in each.
    pub slices: Vec<Slice>,
}

/// What happened in one part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Requests answered.
    pub answered: u64,
    /// Requests failed.
    pub failed: u64,
    /// The median latency, the 99th percentile and the longest, in nanoseconds; none
    /// where nothing was answered.
    pub latency: Option<[u64; 3]>,
}

/// The requests that ended since it was last taken.
pub struct Window {
    answered: u64,
    failed: u64,
    latency: Histogram<u64>,
}

/// A histogram of times in nanoseconds, up to a bit more than an hour.
fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1 << 42, digits).expect("constant bounds that fit each other")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Recorder {
    /// Starts to count, with a timeline of slices of this width.
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

    /// Counts `count` requests that failed.
    pub fn failed(&mut self, kind: &'static str, count: u64) {
        if count == 0 {
            return;
        }
        *self.failed.entry(kind).or_default() += count;
        for window in [&mut self.slice, &mut self.recent] {
            window.failed += count;
        }
    }

    /// How many requests failed in all.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// How many requests were sent and have not ended.
    pub fn outstanding(&self) -> u64 {
        self.sent - self.answered - self.failures()
    }

    /// A request that was due at `due` was noticed at `now`.
    pub fn noticed(&mut self, due: Instant, now: Instant) {
        self.lateness.saturating_record(nanoseconds(now.saturating_duration_since(due)));
    }

    /// The source names this endpoint: it is in the result, also if nobody ever reaches it.
    pub fn names(&mut self, endpoint: &ConnectEndpoint) {
        if !self.endpoints.contains_key(endpoint) {
            self.endpoints.insert(Arc::new(endpoint.clone()), 0);
        }
    }

    /// Compares the endpoints with those of the last call.
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

    /// The timeline up to now, the slice that has begun included.
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

    /// What happened since the last call.
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
    fn latency_counts_from_when_a_request_was_due() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, WIDTH);
        answered(&mut recorder, start, 900, 1000);
        let near = |value: u64, expected: u64| value.abs_diff(expected) * 500 < expected;
        assert!(near(recorder.latency.max(), 1_000_000_000), "{}", recorder.latency.max());
        assert!(near(recorder.from_sending.max(), 100_000_000), "{}", recorder.from_sending.max());
    }

    #[test]
    fn every_slice_of_the_run_is_there_also_those_without_a_reply() {
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
    fn attempts_beyond_the_first_are_retries_also_of_a_request_that_failed() {
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
    fn an_endpoint_is_seen_to_come_to_drain_and_to_go() {
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
