//! Why a request has no reply.

use std::sync::Arc;
use std::time::Duration;

use zmq_echo::units::milliseconds;
use zmtp::endpoint::ConnectEndpoint;

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
    /// No endpoint was usable until the deadline, and no attempt was made.
    #[error("no endpoint was usable for {}", milliseconds(*elapsed))]
    NoEndpoint {
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

impl RequestError {
    /// Every kind there is.
    pub const KINDS: [&str; 6] =
        ["timed_out", "disconnected", "no_endpoint", "full", "too_large", "closed"];

    /// What kind of failure it is, for a label or a column.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::Disconnected { .. } => "disconnected",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::Full { .. } => "full",
            Self::TooLarge { .. } => "too_large",
            Self::Closed => "closed",
        }
    }
}
