//! Why connections end: one closed set for logs, metrics and tests.

use std::fmt;
use std::io;

/// Why a connection was refused or closed.
///
/// Before the handshake has finished, it says why the handshake failed. Afterwards, it says why
/// the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The peer closed the connection between two messages, or the socket was closed.
    Closed,
    /// The connection broke, or the peer closed it in the middle of a message or handshake.
    Error,
    /// The server was full. Either there was no slot for the connection, or its handshake was
    /// dropped to make room for another one.
    PeerLimit,
    /// The peer's address already had as many connections as one address may have.
    AddressLimit,
    /// The handshake took too long.
    HandshakeTimeout,
    /// The first bytes are not a ZMTP signature: TLS, HTTP, random bytes, or ZMTP 1.0.
    NotZmtp,
    /// The peer speaks a ZMTP version before 3.0.
    Version,
    /// The peer wants a security mechanism other than NULL.
    Mechanism,
    /// READY announces no socket type, or one that must not connect to this socket (RFC 28).
    SocketType,
    /// READY is malformed, exceeds the limit, or contains a property twice that we use.
    Metadata,
    /// The identity is longer than 255 bytes.
    Identity,
    /// A message arrived where READY was expected.
    DataBeforeReady,
    /// The peer sent ERROR.
    PeerError,
    /// The peer set flag bits that RFC 23 reserves.
    ReservedFlags,
    /// The peer sent an unknown or malformed command.
    Command,
    /// A message has more bytes than the limit allows.
    MessageLimit,
    /// A message has more frames than the limit allows.
    FrameLimit,
    /// A partial message made too little progress within the stall timeout.
    Stalled,
    /// The shared memory pool was full, and this connection would have taken longest to free its
    /// share.
    PoolFull,
    /// The peer did not answer a PING, or stayed silent for longer than the TTL of its own PING.
    Vanished,
}

impl Reason {
    /// All reasons, in declaration order.
    pub const ALL: [Reason; 20] = [
        Reason::Closed,
        Reason::Error,
        Reason::PeerLimit,
        Reason::AddressLimit,
        Reason::HandshakeTimeout,
        Reason::NotZmtp,
        Reason::Version,
        Reason::Mechanism,
        Reason::SocketType,
        Reason::Metadata,
        Reason::Identity,
        Reason::DataBeforeReady,
        Reason::PeerError,
        Reason::ReservedFlags,
        Reason::Command,
        Reason::MessageLimit,
        Reason::FrameLimit,
        Reason::Stalled,
        Reason::PoolFull,
        Reason::Vanished,
    ];

    /// The reason for closing a connection that failed with `error`. The kernel reports a timeout
    /// if keepalive probes or retransmissions went unanswered.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Vanished,
            _ => Self::Error,
        }
    }

    /// The name used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Error => "error",
            Reason::PeerLimit => "peer_limit",
            Reason::AddressLimit => "address_limit",
            Reason::HandshakeTimeout => "handshake_timeout",
            Reason::NotZmtp => "not_zmtp",
            Reason::Version => "version",
            Reason::Mechanism => "mechanism",
            Reason::SocketType => "socket_type",
            Reason::Metadata => "metadata",
            Reason::Identity => "identity",
            Reason::DataBeforeReady => "data_before_ready",
            Reason::PeerError => "peer_error",
            Reason::ReservedFlags => "reserved_flags",
            Reason::Command => "command",
            Reason::MessageLimit => "message_limit",
            Reason::FrameLimit => "frame_limit",
            Reason::Stalled => "stalled",
            Reason::PoolFull => "pool_full",
            Reason::Vanished => "vanished",
        }
    }

    /// Whether a handshake can fail for this reason.
    pub const fn before_ready(self) -> bool {
        !matches!(
            self,
            Reason::MessageLimit | Reason::FrameLimit | Reason::Stalled | Reason::Vanished
        )
    }

    /// Whether a peer that is refused for this reason is sent an ERROR in place of our READY.
    ///
    /// libzmq does not reconnect after an ERROR (RFC 37, "Error Handling"). So ERROR is never
    /// sent for a problem that may be gone at the next attempt, nor in answer to an ERROR.
    pub const fn sends_error(self) -> bool {
        matches!(
            self,
            Reason::SocketType
                | Reason::Metadata
                | Reason::Identity
                | Reason::DataBeforeReady
                | Reason::ReservedFlags
                | Reason::Command
        )
    }

    /// Whether an established connection can end for this reason.
    pub const fn after_ready(self) -> bool {
        matches!(
            self,
            Reason::Closed
                | Reason::Error
                | Reason::PeerError
                | Reason::ReservedFlags
                | Reason::Command
                | Reason::MessageLimit
                | Reason::FrameLimit
                | Reason::Stalled
                | Reason::PoolFull
                | Reason::Vanished
        )
    }
}

/// Writes the name that logs and metric labels use.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Reason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once_with_a_unique_name() {
        let mut words = std::collections::HashSet::new();
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert!(words.insert(reason.as_str()));
            assert!(reason.before_ready() || reason.after_ready());
            assert!(reason.before_ready() || !reason.sends_error());
            // It is sent as an ERROR's reason, which allows only visible characters.
            assert!(reason.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
