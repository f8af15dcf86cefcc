//! The DEALER socket: one connection to one endpoint, bounded by its [`DealerConfig`] whatever
//! the server does.
//!
//! 1. `connect`: from a name to a connection that is past its handshake.
//! 2. `socket`: sends, receives, and notices when the server is lost.
//!
//! There is no task but the caller's: the socket works while [`Dealer::recv`] is polled, and
//! the connection is closed when the socket is dropped. It does not connect again by itself.
//!
//! # What it can take
//!
//! At most, in bytes, whatever the server does:
//!
//! ```text
//! send_bytes + one message        messages that are not written
//! + 2 * message_bytes             a message under way
//! + 192 KiB                       one read, and PONGs
//! ```
//!
//! A [`MemoryPool`] bounds the messages under way of several sockets together.

mod connect;
mod socket;

use std::time::Duration;

use bytes::Bytes;

use crate::memory_pool::MemoryPool;
use crate::proto::connection::ConnectionLimits;
use crate::proto::peer_info::SocketType;

pub use connect::{ConnectError, connect_to};
pub use socket::{Dealer, Unsent};

/// The settings of a [`Dealer`], each with the reason for its default.
#[derive(Debug, Clone)]
pub struct DealerConfig {
    /// What it calls itself: DEALER. As REQ it gets along with REP and ROUTER, but whoever
    /// sends then has to keep to REQ's envelope and its order.
    pub socket_type: SocketType,
    /// What the server is to call it, at most 255 bytes. Empty, the default, if the server is
    /// to choose.
    pub identity: Bytes,
    /// What the server may send. One message: 8 MiB and 1,024 frames, as `zmq-echo-server`
    /// has it by default. Metadata: 4 KiB.
    pub limits: ConnectionLimits,
    /// How long all of connecting may take, the handshake included: 1 s.
    pub connect_timeout: Duration,
    /// A PING is sent after this much silence, if the server speaks ZMTP 3.1: 1 s. Zero is
    /// for never.
    pub heartbeat_interval: Duration,
    /// How long a PING, or what was sent to a host that does not acknowledge, may go unanswered
    /// before the server counts as lost: 3 s.
    pub heartbeat_timeout: Duration,
    /// How many bytes may wait to be written: 16 MiB. One message is always taken.
    pub send_bytes: usize,
    /// What messages under way may take beyond 64 KiB for each socket; `None`, the default,
    /// for no bound but each socket's own.
    pub memory: Option<MemoryPool>,
}

impl Default for DealerConfig {
    fn default() -> Self {
        Self {
            socket_type: SocketType::Dealer,
            identity: Bytes::new(),
            limits: ConnectionLimits {
                message_bytes: 8 << 20,
                message_frames: 1024,
                metadata_bytes: 4 << 10,
            },
            connect_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            send_bytes: 16 << 20,
            memory: None,
        }
    }
}
