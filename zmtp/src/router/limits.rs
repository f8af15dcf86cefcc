//! What a ROUTER socket may hold, and how long it waits.

use std::time::Duration;

/// What each peer may hold without drawing on the pool: one message of the usual size, or a few
/// dozen replies.
pub const ALLOWANCE: usize = 8 << 10;

/// Slots reserved for peers on this host, so that a full server still answers its own probe.
pub const RESERVED_PEERS: usize = 8;

/// Maximum number of messages in one turn. They take well under 0.1 ms, and the turn's two system
/// calls are small in comparison. A peer that floods the socket with tiny messages gets neither
/// more turns than others nor longer ones.
pub const MESSAGES: usize = 512;

/// The limits of a [`Router`](crate::Router).
///
/// Each field names its default and the reason for it. `zmq-echo-server` uses the same defaults.
///
/// ```
/// use zmtp::router::Limits;
///
/// let limits = Limits { peers: 1000, ..Limits::default() };
/// assert!(limits.most_memory() < 96 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a message, all frames together. Default: 8 MiB, so that eight of the
    /// largest fit into the pool.
    pub message_bytes: usize,
    /// Maximum number of frames in a message. Each frame costs work and memory in addition to its
    /// bytes. Default: 1,024, far more than any envelope needs.
    pub message_frames: usize,
    /// Maximum size of a READY command, in bytes. Default: 4 KiB, more than ten times what ZeroMQ
    /// libraries send with the longest identity.
    pub metadata_bytes: usize,
    /// Maximum number of connections, including [`RESERVED_PEERS`]. Default: 6,000, which keeps
    /// the memory for their allowances under 70 MiB.
    pub peers: usize,
    /// Maximum number of connections from one address of another host, or zero for no limit.
    /// Default: zero, because behind NAT or a proxy, all clients share a few addresses.
    pub peers_per_address: usize,
    /// How long a connection may take from accept to READY. Default: 5 s, enough for several round
    /// trips, even if some packets are lost.
    pub handshake_timeout: Duration,
    /// A partial message must grow by `stall_bytes` in each window of this length. Default: 30 s,
    /// longer than a pause for garbage collection.
    pub stall_timeout: Duration,
    /// Minimum number of bytes by which a partial message must grow in each `stall_timeout`.
    /// Default: 32 KiB, which is 1 KiB/s: less than the slowest mobile network carries.
    pub stall_bytes: usize,
    /// Size of the shared pool, in bytes: what all peers together may hold beyond their
    /// allowances. Default: 64 MiB, enough for 256 clients that do not read their replies.
    pub buffer_bytes: usize,
    /// A peer with this many requests in flight is not read from until some are answered (see
    /// [`Router::hold`](crate::Router::hold)). Default: 128, a small part of `in_flight`.
    pub in_flight_per_peer: usize,
    /// With this many requests of all peers in flight, no client is read from, only monitors are.
    /// Default: 4,096, for forty clients with a hundred slow calls each.
    pub in_flight: usize,
    /// Size of the kernel's receive buffer for each connection, in bytes. The send buffer gets a
    /// quarter of it. Default: 512 KiB, enough for several messages of 64 KiB in transit.
    pub socket_buffer: usize,
    /// A heartbeat is sent after this much silence, or never if it is zero. Default: 15 s, which
    /// finds a lost host before most clients' timeouts.
    pub heartbeat_interval: Duration,
    /// How long to spin for the next message before sleeping, or zero to sleep at once. Default:
    /// 10 µs, which takes no more CPU time than being woken up.
    pub busy_poll: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 8 << 20,
            message_frames: 1024,
            metadata_bytes: 4 << 10,
            peers: 6000,
            peers_per_address: 0,
            handshake_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            stall_bytes: 32 << 10,
            buffer_bytes: 64 << 20,
            in_flight_per_peer: 128,
            in_flight: 4096,
            socket_buffer: 512 << 10,
            heartbeat_interval: Duration::from_secs(15),
            busy_poll: Duration::from_micros(10),
        }
    }
}

impl Limits {
    /// Upper bound on the socket's memory, in bytes, excluding the kernel's buffers. See
    /// [`crate::router`] for the formula.
    pub fn most_memory(&self) -> usize {
        self.peers * (ALLOWANCE + PEER) + self.buffer_bytes + 2 * self.message_bytes + READS
    }
}

/// Upper bound on a peer's cost without buffered bytes.
const PEER: usize = 4 << 10;

/// Upper bound on the cost of reads in progress, in addition to their message.
const READS: usize = 1 << 20;
