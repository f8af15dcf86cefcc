//! Why a request failed.

use std::sync::Arc;
use std::time::Duration;

use zmq_echo::service::Rejection;
use zmq_echo::units::milliseconds;
use zmtp::endpoint::ConnectEndpoint;

use super::trouble::Unusable;

/// Why a request failed. Most variants name the last endpoint, the number of attempts and the time
/// they took.
///
/// [`RequestError::may_have_been_seen`] tells whether it is safe to repeat the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The last attempt timed out, or the deadline passed.
    #[error("{endpoint}: no reply after {} (attempts: {attempts})", milliseconds(*elapsed))]
    TimedOut {
        /// The last endpoint that was tried.
        endpoint: Arc<ConnectEndpoint>,
        /// Number of attempts.
        attempts: u32,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The connection of the last attempt broke before the reply came.
    #[error("{endpoint}: connection lost after {} (attempts: {attempts})", milliseconds(*elapsed))]
    Disconnected {
        /// The last endpoint that was tried.
        endpoint: Arc<ConnectEndpoint>,
        /// Number of attempts.
        attempts: u32,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The reply did not fit in the memory reserved for replies. Raise
    /// [`max_connection_replies`](super::ClientConfig::max_connection_replies) or
    /// [`max_replies`](super::ClientConfig::max_replies).
    #[error(
        "{endpoint}: no memory for the reply (attempts: {attempts}); raise \
         max_connection_replies or max_replies"
    )]
    ReplyMemory {
        /// The endpoint that answered.
        endpoint: Arc<ConnectEndpoint>,
        /// Number of attempts.
        attempts: u32,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The server answered with an error, and either says that a retry is pointless or no attempt
    /// is left.
    #[error("{endpoint}: {rejection} (attempts: {attempts})")]
    Rejected {
        /// The endpoint that answered.
        endpoint: Arc<ConnectEndpoint>,
        /// The error: a code, a text and whether a retry makes sense.
        rejection: Box<Rejection>,
        /// Number of attempts.
        attempts: u32,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The payload of the reply has no frame, or several, and this client takes only replies of one
    /// frame. The request has run. It is not repeated, because every server would reply in the same
    /// form.
    #[error(
        "{endpoint}: the reply has {frames} frames, but this client takes replies of one frame \
         (attempts: {attempts}); reply with one frame, or use a plain DEALER socket"
    )]
    NotOneFrame {
        /// The endpoint that answered.
        endpoint: Arc<ConnectEndpoint>,
        /// Number of frames in the reply's payload: not 1.
        frames: usize,
        /// Number of attempts.
        attempts: u32,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// Every connection broke before the request could be written, until the deadline. No server
    /// has seen it.
    #[error("{endpoint}: not sent within {}", milliseconds(*elapsed))]
    NotSent {
        /// The last endpoint that was tried.
        endpoint: Arc<ConnectEndpoint>,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// No endpoint was usable before the deadline, so no attempt was made.
    #[error("no endpoint was usable for {}{}", milliseconds(*elapsed), because(reason.as_deref()))]
    NoEndpoint {
        /// Why, if it is known.
        reason: Option<Box<Unusable>>,
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The maximum number of requests is outstanding or waiting.
    #[error("no slot for the request after {}: raise max_outstanding or send fewer requests at a time", milliseconds(*elapsed))]
    Full {
        /// Time from the request to this error.
        elapsed: Duration,
    },
    /// The payload is larger than [`max_payload`](super::ClientConfig::max_payload).
    #[error("the payload has {size} bytes; the limit is {limit}: raise max_payload")]
    TooLarge {
        /// Size of the payload in bytes.
        size: usize,
        /// The largest payload that may be sent, in bytes.
        limit: usize,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

fn because(reason: Option<&Unusable>) -> String {
    reason.map_or(String::new(), |reason| format!(": {reason}; {}", reason.advice()))
}

impl RequestError {
    /// Every value of [`RequestError::kind`].
    pub const KINDS: [&str; 10] = [
        "timed_out",
        "disconnected",
        "reply_memory",
        "rejected",
        "not_one_frame",
        "not_sent",
        "no_endpoint",
        "full",
        "too_large",
        "closed",
    ];

    /// Whether a server may have seen the request. If not, repeating it cannot make it run twice.
    pub fn may_have_been_seen(&self) -> bool {
        match self {
            Self::TimedOut { .. }
            | Self::Disconnected { .. }
            | Self::ReplyMemory { .. }
            | Self::Rejected { .. }
            | Self::NotOneFrame { .. } => true,
            Self::NotSent { .. }
            | Self::NoEndpoint { .. }
            | Self::Full { .. }
            | Self::TooLarge { .. }
            | Self::Closed => false,
        }
    }

    /// The kind of failure, from a closed set that suits a metric label: one of
    /// [`RequestError::KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::Disconnected { .. } => "disconnected",
            Self::ReplyMemory { .. } => "reply_memory",
            Self::Rejected { .. } => "rejected",
            Self::NotOneFrame { .. } => "not_one_frame",
            Self::NotSent { .. } => "not_sent",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::Full { .. } => "full",
            Self::TooLarge { .. } => "too_large",
            Self::Closed => "closed",
        }
    }
}
