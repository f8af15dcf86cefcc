//! Why connections end: one closed set for logs, metrics and tests.

use std::io;

/// Why a connection was refused or closed.
///
/// Before the handshake is done it is the reason of a failed handshake, after it
/// that of a disconnection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The peer closed its connection between two messages, or the socket was closed.
    Closed,
    /// The connection broke, or was closed within a message or a handshake.
    Error,
    /// The server was full: it had no place for the connection, or the handshake made room
    /// for another one.
    PeerLimit,
    /// Its address had as many connections as an address may have.
    AddressLimit,
    /// The handshake was not done in time.
    HandshakeTimeout,
    /// The first bytes are no ZMTP signature: TLS, HTTP, noise, ZMTP 1.0.
    NotZmtp,
    /// ZMTP before 3.0.
    Version,
    /// A security mechanism other than NULL.
    Mechanism,
    /// READY announces a socket type other than REQ, DEALER and ROUTER, or none.
    SocketType,
    /// READY is malformed, larger than the limit, or has a property that we read twice.
    Metadata,
    /// An identity of more than 255 bytes.
    Identity,
    /// A message came where READY was due.
    DataBeforeReady,
    /// The peer sent ERROR.
    PeerError,
    /// Flag bits that RFC 23 reserves.
    ReservedFlags,
    /// A command that is not known or not well formed.
    Command,
    /// A message of more bytes than the limit.
    MessageLimit,
    /// A message of more frames than the limit.
    FrameLimit,
    /// Half a message or a reply has not moved for the stall timeout.
    Stalled,
    /// The shared pool was full, and this holder had gone longest without progress.
    PoolFull,
    /// The peer did not answer a PING, or broke the TTL that it had set itself.
    Vanished,
}

impl Reason {
    /// All of them, in the order of their numbers.
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

    /// The reason for the end of a connection that `error` has broken. The kernel says that a
    /// connection has timed out if keepalive or retransmissions were in vain.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Vanished,
            _ => Self::Error,
        }
    }

    /// The word for logs and metric labels.
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

    /// Whether a handshake can fail for it.
    pub const fn before_ready(self) -> bool {
        !matches!(
            self,
            Reason::MessageLimit | Reason::FrameLimit | Reason::Stalled | Reason::Vanished
        )
    }

    /// Whether a peer that is refused for it in place of our READY is told by an ERROR,
    /// after which libzmq does not come back (RFC 37, "Error Handling"). So it is never
    /// sent for what a later attempt may survive, and it is no answer to an ERROR.
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

    /// Whether an established connection can end for it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_listed_at_its_number_and_has_a_word_of_its_own() {
        let mut words = std::collections::HashSet::new();
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert!(words.insert(reason.as_str()));
            assert!(reason.before_ready() || reason.after_ready());
            assert!(reason.before_ready() || !reason.sends_error());
            // It is sent as an ERROR's reason, which has visible characters alone.
            assert!(reason.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
