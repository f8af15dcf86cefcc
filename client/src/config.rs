//! What a client may take: time, attempts, and room.

use std::time::Duration;

use super::backoff::Backoff;

/// What a caller gets where as many requests are outstanding as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for its turn, up to its deadline; where `max_queued` wait already,
    /// it gets the error.
    Wait,
    /// It gets [`RequestError::Full`](super::RequestError::Full) at once.
    Refuse,
}

/// The bounds of a client, each with the reason for its default.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How long one attempt waits for its reply: 1 s. An echo takes less than a
    /// millisecond; what takes a thousand times as long is not coming.
    pub timeout: Duration,
    /// How long a request may take with all of its attempts. `None` is as long as
    /// they can take at their timeouts, the pauses between them included.
    pub deadline: Option<Duration>,
    /// Whether the server is told how long each attempt waits, so that it does not work on what
    /// nobody waits for any more: no, as a server without `--client-deadlines` rejects such
    /// requests.
    pub send_deadlines: bool,
    /// How many further attempts a request has after its first: 2, so that two
    /// endpoints may fail at once. 0 for a handler that must not see a request twice.
    pub retries: u32,
    /// The pauses between the attempts of a request: up to 10 ms, doubling to 1 s.
    pub retry_backoff: Backoff,
    /// How long connecting and the handshake may take: 1 s.
    pub connect_timeout: Duration,
    /// The pauses between attempts to connect, and between checks of a suspect
    /// endpoint: up to 20 ms, doubling to 1 s, so that one that is back is used
    /// within a second.
    pub reconnect_backoff: Backoff,
    /// A PING is sent to a silent server of ZMTP 3.1 after this time: 1 s. Zero is for never.
    pub heartbeat_interval: Duration,
    /// How long a server may leave a PING, or its host a request, unacknowledged before it
    /// counts as lost: 3 s.
    pub heartbeat_timeout: Duration,
    /// How many requests may be outstanding at a time: 1,024. At least 1 and at most 1,048,576.
    pub max_outstanding: usize,
    /// How many callers may wait for their turn: 16,384.
    pub max_queued: usize,
    /// How many endpoints are connected to at a time: 256. A service with more has
    /// the first that the source named, which is enough to spread over.
    pub max_endpoints: usize,
    /// The largest payload that is sent, in bytes: 4 MiB, half of what the server
    /// takes by default. A larger one would cost its connection everything that is
    /// outstanding there, and then the next one's.
    pub max_payload: usize,
    /// The largest reply that is taken, in bytes: 8 MiB, as much as the server sends by
    /// default. A larger one ends its connection as soon as its size is announced.
    pub max_reply: usize,
    /// Bytes of one connection's replies that their callers have not picked up yet: 32 MiB, four
    /// of the largest. Replies of up to 4 KiB do not count.
    pub max_connection_replies: usize,
    /// The same of all connections, replies under way included: 128 MiB.
    pub max_replies: usize,
    /// What a caller gets where `max_outstanding` are outstanding: it waits.
    pub when_full: WhenFull,
}

/// The most requests outstanding: each takes some hundred bytes.
const MOST_OUTSTANDING: usize = 1 << 20;

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            deadline: None,
            send_deadlines: false,
            retries: 2,
            retry_backoff: Backoff::new(Duration::from_millis(10), Duration::from_secs(1)),
            connect_timeout: Duration::from_secs(1),
            reconnect_backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(1)),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            max_outstanding: 1024,
            max_queued: 16 << 10,
            max_endpoints: 256,
            max_payload: 4 << 20,
            max_reply: 8 << 20,
            max_connection_replies: 32 << 20,
            max_replies: 128 << 20,
            when_full: WhenFull::Wait,
        }
    }
}

impl ClientConfig {
    /// How long a request may take with all of its attempts.
    pub fn overall_deadline(&self) -> Duration {
        self.deadline.unwrap_or_else(|| {
            let pauses = (0..self.retries.min(64)).map(|retry| self.retry_backoff.longest(retry));
            pauses
                .fold(self.timeout.saturating_mul(self.retries.saturating_add(1)), |sum, pause| {
                    sum.saturating_add(pause)
                })
        })
    }

    /// `max_outstanding` as it is in force.
    pub(super) fn slots(&self) -> usize {
        self.max_outstanding.clamp(1, MOST_OUTSTANDING)
    }
}
