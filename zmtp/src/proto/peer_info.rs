//! What the two sides of a connection are.

use bytes::Bytes;

/// The longest identity (RFC 23, "identity = 0*255OCTET").
pub const IDENTITY_BYTES: usize = 255;

/// The socket types of request and reply (RFC 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketType {
    /// Sends a request, then waits for its reply.
    Req,
    /// Receives a request, then sends its reply.
    Rep,
    /// Sends and receives at any time.
    Dealer,
    /// Sends and receives at any time, and knows its peers by their identities.
    Router,
}

impl SocketType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Req, Self::Rep, Self::Dealer, Self::Router];

    /// Its name in READY.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
        }
    }

    /// The type of this name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|socket_type| socket_type.as_str().as_bytes() == name)
    }

    /// Whether the two types may be connected (RFC 28, "compatible with").
    pub const fn talks_to(self, peer: Self) -> bool {
        use SocketType::{Dealer, Rep, Req, Router};
        match self {
            Req => matches!(peer, Rep | Router),
            Rep => matches!(peer, Req | Dealer),
            Dealer => matches!(peer, Rep | Dealer | Router),
            Router => matches!(peer, Req | Dealer | Router),
        }
    }
}

/// Which side made the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that accepted it.
    Listening,
    /// The one that connected.
    Connecting,
}

/// Our own side.
#[derive(Debug, Clone)]
pub struct Local {
    /// Which side we are.
    pub role: Role,
    /// What we are.
    pub socket_type: SocketType,
    /// What we want to be called; empty if the peer is to choose. At most [`IDENTITY_BYTES`].
    pub identity: Bytes,
}

/// What the handshake has told of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The minor version of ZMTP 3 that it speaks: 0, or 1 and more, which have PING.
    pub minor: u8,
    /// What it is.
    pub socket_type: SocketType,
    /// The identity that it announced; empty if none.
    pub identity: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_talk_to_whom_is_mutual() {
        for one in SocketType::ALL {
            assert_eq!(SocketType::from_name(one.as_str().as_bytes()), Some(one));
            for other in SocketType::ALL {
                assert_eq!(one.talks_to(other), other.talks_to(one), "{one:?} {other:?}");
            }
        }
    }
}
