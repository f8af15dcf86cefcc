//! Why a request has no reply.

use std::sync::Arc;
use std::time::Duration;

use zmq_echo::service::Rejection;
use zmq_echo::units::milliseconds;
use zmtp::endpoint::ConnectEndpoint;

use super::trouble::Unusable;

/// A request that was not answered: where it was tried last, how often, and after
/// how long it was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The last attempt, or the deadline, passed without a reply.
    #[error("{endpoint}: no reply after {}, attempts {attempts}", milliseconds(*elapsed))]
    TimedOut {
        /// The endpoint that was tried last.
        endpoint: Arc<ConnectEndpoint>,
        /// How many attempts were made.
        attempts: u32,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// The connection of the last attempt broke before its reply came.
    #[error("{endpoint}: connection lost after {}, attempts {attempts}", milliseconds(*elapsed))]
    Disconnected {
        /// The endpoint that was tried last.
        endpoint: Arc<ConnectEndpoint>,
        /// How many attempts were made.
        attempts: u32,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// The reply came, and did not fit in the memory that replies may take.
    #[error(
        "{endpoint}: no room for the reply, attempts {attempts}; raise max_connection_replies \
         or max_replies"
    )]
    ReplyMemory {
        /// The endpoint that answered.
        endpoint: Arc<ConnectEndpoint>,
        /// How many attempts were made.
        attempts: u32,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// The server answered with an error, and either says that a repetition makes no sense, or no
    /// attempt is left.
    #[error("{endpoint}: {rejection}, attempts {attempts}")]
    Rejected {
        /// The endpoint that answered.
        endpoint: Arc<ConnectEndpoint>,
        /// What it said.
        rejection: Box<Rejection>,
        /// How many attempts were made.
        attempts: u32,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// Connections broke before the request could be written, until the deadline. No server
    /// has seen it.
    #[error("{endpoint}: not sent within {}", milliseconds(*elapsed))]
    NotSent {
        /// The endpoint that it was to go to last.
        endpoint: Arc<ConnectEndpoint>,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// No endpoint was usable until the deadline, and no attempt was made.
    #[error("no endpoint was usable for {}{}", milliseconds(*elapsed), because(reason.as_deref()))]
    NoEndpoint {
        /// Why, as far as it is known.
        reason: Option<Box<Unusable>>,
        /// From the request to this error.
        elapsed: Duration,
    },
    /// As many requests were outstanding, or waiting, as may be.
    #[error("as many requests are outstanding as may be, after {}", milliseconds(*elapsed))]
    Full {
        /// From the request to this error.
        elapsed: Duration,
    },
    /// The payload is larger than the client may send.
    #[error("expected a payload of at most {limit} bytes and got {size}")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The most that would do.
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
    /// Every kind there is.
    pub const KINDS: [&str; 9] = [
        "timed_out",
        "disconnected",
        "reply_memory",
        "rejected",
        "not_sent",
        "no_endpoint",
        "full",
        "too_large",
        "closed",
    ];

    /// Whether a server may have seen the request. If not, it is safe to send it again,
    /// whatever it asks for.
    pub fn may_have_been_seen(&self) -> bool {
        match self {
            Self::TimedOut { .. }
            | Self::Disconnected { .. }
            | Self::ReplyMemory { .. }
            | Self::Rejected { .. } => true,
            Self::NotSent { .. }
            | Self::NoEndpoint { .. }
            | Self::Full { .. }
            | Self::TooLarge { .. }
            | Self::Closed => false,
        }
    }

    /// What kind of failure it is, for a label or a column.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::Disconnected { .. } => "disconnected",
            Self::ReplyMemory { .. } => "reply_memory",
            Self::Rejected { .. } => "rejected",
            Self::NotSent { .. } => "not_sent",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::Full { .. } => "full",
            Self::TooLarge { .. } => "too_large",
            Self::Closed => "closed",
        }
    }
}
