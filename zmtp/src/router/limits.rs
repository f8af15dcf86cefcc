//! What a ROUTER socket may hold, and how long it waits.

use std::time::Duration;

/// What every peer may hold without drawing on the pool: a message of the usual
/// size, or a few dozen replies, while the other half is on its way.
pub const ALLOWANCE: usize = 8 << 10;

/// Slots for peers of this host alone, so that a full server answers its own probe.
pub const RESERVED_PEERS: usize = 8;

/// The limits of a [`Router`](crate::Router).
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
    /// Requests of one peer that may be in flight before it is not read from:
    /// [`Router::hold`](crate::Router::hold).
    pub in_flight_per_peer: usize,
    /// Requests of all peers that may be in flight before nobody is read from.
    pub in_flight: usize,
    /// The kernel's buffer for each connection's requests; replies have a quarter of it.
    pub socket_buffer: usize,
    /// A heartbeat is sent after this much silence; zero for never.
    pub heartbeat_interval: Duration,
    /// How long the next message may be waited for awake; zero for not at all.
    pub busy_poll: Duration,
}

impl Limits {
    /// The most memory that a socket of these limits takes, in bytes; the kernel's
    /// buffers, which are not the process's, aside. It is the formula of [`crate::router`].
    pub fn most_memory(&self) -> usize {
        self.peers * (ALLOWANCE + PEER) + self.buffer_bytes + 2 * self.message_bytes + READS
    }
}

/// The most that a peer costs without a byte buffered.
const PEER: usize = 4 << 10;

/// The most that the reads under way take beside their message.
const READS: usize = 1 << 20;
