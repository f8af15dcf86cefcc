//! The ROUTER socket, bounded by its [`Limits`] whatever peers do.
//!
//! In layers that can be read and tested apart, above those of [`crate::proto`]:
//!
//! 1. [`progress`]: how fast the bytes of a peer move.
//! 2. [`places`]: which peer makes room if there is none for the next.
//! 3. [`peer`]: one connection.
//! 4. [`ready`], [`clock`] and [`busy_poll`]: which peer has something to do, when, and how
//!    to wait for it.
//! 5. [`socket`]: accepting, fairness, flow control, accounts, shutdown.
//!
//! There is no task but the caller's: the socket owns the listeners and every connection,
//! works while it is polled, and is gone when it is dropped.
//!
//! # What it can take
//!
//! At most, in bytes, whatever peers do ([`Limits::most_memory`]):
//!
//! ```text
//! peers * (ALLOWANCE + 4 KiB)     each peer's allowance, and the peer itself
//! + buffer_bytes                  the pool, for all that exceeds the allowances
//! + 2 * message_bytes + 1 MiB     the message and the reads under way
//! ```
//!
//! and in the kernel `peers * 2.5 * socket_buffer`: one buffer for requests and a
//! quarter of it for replies, which Linux makes twice as large as it is told. (The 4 KiB
//! are what a peer costs at most without a byte buffered; it is about 1 KiB.) That is of an echo: replies are held against the pool when their batch
//! is through, so a handler that makes more of its requests adds what it makes of a
//! batch ([`socket`] says how much that is).
//!
//! # What it leaves out
//!
//! Other socket types, connecting, other transports, mechanisms other than NULL, and
//! ZMTP before 3.0. RFC 37's rule against identities that begin with a zero byte is not
//! kept ([`crate::proto::handshake`] says why). Peers that are refused in their handshake are told why
//! by an ERROR, unless a later attempt may survive it ([`Reason::sends_error`](crate::Reason::sends_error)).

mod busy_poll;
mod clock;
mod peer;
mod places;
mod progress;
mod ready;
mod socket;

use std::time::Duration;

pub use socket::{Closed, Router, SendError};

/// What every peer may hold without drawing on the pool: a message of the usual
/// size, or a few dozen replies, while the other half is on its way.
pub const ALLOWANCE: usize = 8 << 10;

/// Slots for peers of this host alone, so that a full server answers its own probe.
pub const RESERVED_PEERS: usize = 8;

/// The limits of a [`Router`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all frames of a message.
    pub message_bytes: usize,
    /// Frames of a message.
    pub message_frames: usize,
    /// Bytes of a READY command.
    pub metadata_bytes: usize,
    /// Connections at a time, [`RESERVED_PEERS`] included.
    pub peers: usize,
    /// Connections from one address of another host; zero for no limit of their own.
    pub peers_per_address: usize,
    /// From a connection's first moment to its READY.
    pub handshake_timeout: Duration,
    /// The window in which half a message has to bring `stall_bytes`.
    pub stall_timeout: Duration,
    /// The least that half a message has to bring in each `stall_timeout`.
    pub stall_bytes: usize,
    /// The shared pool: what all peers hold together beyond their allowances.
    pub buffer_bytes: usize,
    /// The kernel's buffer for each connection's requests; replies have a quarter of it.
    pub socket_buffer: usize,
    /// A heartbeat is sent after this much silence; zero for never.
    pub heartbeat_interval: Duration,
    /// How long the next message may be waited for awake; zero for not at all.
    pub busy_poll: Duration,
}

/// The most that a peer costs without a byte buffered.
const PEER: usize = 4 << 10;

/// The most that the reads under way take beside their message.
const READS: usize = 1 << 20;

impl Limits {
    /// The most memory that a socket of these limits takes, in bytes; the kernel's
    /// buffers, which are not the process's, aside. It is the formula above.
    pub fn most_memory(&self) -> usize {
        self.peers * (ALLOWANCE + PEER) + self.buffer_bytes + 2 * self.message_bytes + READS
    }
}
