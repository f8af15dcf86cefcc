//! The limits of a client: time, attempts and memory.

use std::time::Duration;

use super::backoff::Backoff;

/// What happens to a request when `max_outstanding` others are outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for its turn, up to its deadline. If `max_queued` callers wait already, it fails
    /// with [`RequestError::Full`](super::RequestError::Full).
    Wait,
    /// It fails with [`RequestError::Full`](super::RequestError::Full) at once.
    Refuse,
}

/// The limits of a client. Each field gives its default and the reason for it.
///
/// ```
/// # use zmq_echo_client::ClientConfig;
/// # use std::time::Duration;
/// let config = ClientConfig {
///     timeout: Duration::from_millis(200),
///     deadline: Some(Duration::from_secs(1)),
///     ..ClientConfig::default()
/// };
/// ```
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How long one attempt waits for its reply: 1 s. An echo takes less than a millisecond. A
    /// reply that is a thousand times slower is probably not coming.
    pub timeout: Duration,
    /// How long a request may take, all attempts included. `None` allows all attempts their full
    /// timeout, plus the longest pauses between them.
    pub deadline: Option<Duration>,
    /// Whether to tell the server how long each attempt waits, so that it does not work on requests
    /// that have timed out. Off by default, because a server without `--client-deadlines` rejects
    /// such requests.
    pub send_deadlines: bool,
    /// How many times a request may be retried: 2, so that it survives two endpoints that fail at
    /// once. Set 0 if your handler must not see a request twice.
    pub retries: u32,
    /// The pauses between the attempts of a request: the first is at most 10 ms, and the bound
    /// doubles up to 1 s.
    pub retry_backoff: Backoff,
    /// How long connecting, handshake included, may take: 1 s.
    pub connect_timeout: Duration,
    /// The pauses between attempts to connect, and between checks of a suspect endpoint: the first
    /// is at most 20 ms, and the bound doubles up to 1 s. So an endpoint that is back gets requests
    /// within about a second.
    pub reconnect_backoff: Backoff,
    /// After this much silence a server that speaks ZMTP 3.1 is sent a PING: 1 s. Zero turns
    /// heartbeats off.
    pub heartbeat_interval: Duration,
    /// How long a server may leave a PING unanswered, or its host a request unacknowledged, before
    /// the connection counts as lost: 3 s.
    pub heartbeat_timeout: Duration,
    /// Maximum number of outstanding requests: 1,024. Values outside 1 to 1,048,576 are moved into
    /// that range.
    pub max_outstanding: usize,
    /// Maximum number of callers that wait for their turn: 16,384.
    pub max_queued: usize,
    /// Maximum number of endpoints to connect to: 256. If the source lists more, the first 256 are
    /// used, which is enough to spread the load.
    pub max_endpoints: usize,
    /// The largest payload that may be sent, in bytes: 4 MiB, half of what the server accepts by
    /// default. A server that gets too large a message closes the connection, and every outstanding
    /// request on it fails. A retry would do the same to the next connection.
    pub max_payload: usize,
    /// The largest reply that is accepted, in bytes: 8 MiB, the most that the server sends by
    /// default. A larger one ends its connection as soon as its size is announced.
    pub max_reply: usize,
    /// Memory for one connection's replies until their callers receive them, in bytes: 32 MiB, four
    /// of the largest replies. Replies of up to 4 KiB do not count.
    pub max_connection_replies: usize,
    /// The same for all connections together, including replies that are still arriving: 128 MiB.
    pub max_replies: usize,
    /// What happens when `max_outstanding` requests are outstanding: further requests wait.
    pub when_full: WhenFull,
}

/// Upper bound for `max_outstanding`: each outstanding request takes some hundred bytes.
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
    /// How long a request may take, all attempts included: [`Self::deadline`], or the sum of all
    /// timeouts and the longest pauses.
    pub fn overall_deadline(&self) -> Duration {
        self.deadline.unwrap_or_else(|| {
            let pauses = (0..self.retries.min(64)).map(|retry| self.retry_backoff.longest(retry));
            pauses
                .fold(self.timeout.saturating_mul(self.retries.saturating_add(1)), |sum, pause| {
                    sum.saturating_add(pause)
                })
        })
    }

    /// `max_outstanding`, moved into its valid range.
    pub(super) fn slots(&self) -> usize {
        self.max_outstanding.clamp(1, MOST_OUTSTANDING)
    }
}
