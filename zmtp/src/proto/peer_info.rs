//! The two sides of a connection: role, socket type and identity.

use bytes::Bytes;

/// The longest identity, in bytes (RFC 23, "identity = 0*255OCTET").
pub const IDENTITY_BYTES: usize = 255;

/// The socket types of the request-reply pattern (RFC 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketType {
    /// Sends a request, then waits for its reply.
    Req,
    /// Receives a request, then sends its reply.
    Rep,
    /// Sends and receives at any time.
    Dealer,
    /// Sends and receives at any time, and addresses its peers by identity.
    Router,
}

impl SocketType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Req, Self::Rep, Self::Dealer, Self::Router];

    /// The name in READY.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|socket_type| socket_type.as_str().as_bytes() == name)
    }

    /// Whether RFC 28 allows these two types to connect.
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

/// Which side opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that accepted it.
    Listening,
    /// The side that connected.
    Connecting,
}

/// Our own side.
#[derive(Debug, Clone)]
pub struct Local {
    /// Our role.
    pub role: Role,
    /// Our socket type.
    pub socket_type: SocketType,
    /// Our identity, at most [`IDENTITY_BYTES`]. Leave it empty to let the peer choose one.
    pub identity: Bytes,
}

/// What the handshake revealed about the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The minor version of ZMTP 3 that the peer speaks. PING exists from 1 on.
    pub minor: u8,
    /// The peer's socket type.
    pub socket_type: SocketType,
    /// The identity that the peer announced, or empty.
    pub identity: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_type_compatibility_is_mutual() {
        for one in SocketType::ALL {
            assert_eq!(SocketType::from_name(one.as_str().as_bytes()), Some(one));
            for other in SocketType::ALL {
                assert_eq!(one.talks_to(other), other.talks_to(one), "{one:?} {other:?}");
            }
        }
    }
}
