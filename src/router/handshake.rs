//! The handshake of one connection as a state machine: bytes in, bytes to send
//! and at last a peer, or the reason why not. No I/O, no clock.
//!
//! We announce ZMTP 3.1 and speak it with every peer of 3.0 and later, with the
//! NULL mechanism alone. Both sides send their READY without waiting for the
//! other's (RFC 23, "The NULL Security Mechanism").

use bytes::{Buf, Bytes};

use super::reason::Reason;
use super::wire::{self, Command, GREETING, Header};

/// The longest identity (RFC 23, "identity = 0*255OCTET").
pub const IDENTITY_BYTES: usize = 255;

/// The socket types that a ROUTER talks to (RFC 28).
const SOCKET_TYPES: [&[u8]; 3] = [b"REQ", b"DEALER", b"ROUTER"];

/// What the handshake has told of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Whether the peer knows PING, as those of ZMTP 3.1 and later do.
    pub knows_ping: bool,
    /// The identity that it announced; empty if none.
    pub identity: Bytes,
}

/// A handshake under way.
#[derive(Debug, Default)]
pub struct Handshake {
    /// What has come of the greeting, or of READY behind it.
    bytes: Vec<u8>,
    minor: Option<u8>,
}

impl Handshake {
    /// Takes from `input` what belongs to the handshake, appends what is to be sent
    /// to `out`, and returns the peer when all is said: the rest of `input` is its
    /// first messages.
    ///
    /// # Errors
    ///
    /// Why the peer is refused. The handshake is over then.
    pub fn feed(
        &mut self,
        input: &mut Bytes,
        metadata_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<PeerInfo>, Reason> {
        if self.minor.is_none() {
            self.take(input, GREETING);
            self.minor = wire::decode_greeting(&self.bytes)?;
            if self.minor.is_none() {
                return Ok(None);
            }
            self.bytes.clear();
            wire::encode_ready(out);
        }
        loop {
            let end = match Header::decode(&self.bytes)? {
                None => self.bytes.len() + 1,
                Some(header) if !header.command => return Err(Reason::DataBeforeReady),
                Some(header) => match usize::try_from(header.body) {
                    Ok(body) if body <= metadata_bytes => header.bytes + body,
                    _ => return Err(Reason::Metadata),
                },
            };
            if self.bytes.len() == end {
                let header = Header::decode(&self.bytes)?.map_or(0, |header| header.bytes);
                return self.ready(&self.bytes[header..]).map(Some);
            }
            if input.is_empty() {
                return Ok(None);
            }
            self.take(input, end);
        }
    }

    /// Whether not a byte has come.
    pub fn untouched(&self) -> bool {
        self.minor.is_none() && self.bytes.is_empty()
    }

    /// The memory that the handshake holds.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves bytes from `input` until there are `whole` or no more.
    fn take(&mut self, input: &mut Bytes, whole: usize) {
        let count = input.len().min(whole - self.bytes.len());
        self.bytes.extend_from_slice(&input[..count]);
        input.advance(count);
    }

    fn ready(&self, body: &[u8]) -> Result<PeerInfo, Reason> {
        let metadata = match Command::decode(body)? {
            Command::Ready(metadata) => metadata,
            Command::Error => return Err(Reason::PeerError),
            Command::Ping { .. } | Command::Pong => return Err(Reason::Command),
        };
        let mut socket_type: &[u8] = b"";
        let mut identity: &[u8] = b"";
        for property in wire::properties(metadata) {
            let (name, value) = property?;
            // "The name SHALL be case-insensitive" (RFC 23).
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                socket_type = value;
            } else if name.eq_ignore_ascii_case(b"Identity") {
                identity = value;
            }
        }
        if !SOCKET_TYPES.contains(&socket_type) {
            return Err(Reason::SocketType);
        }
        // A leading zero byte is kept for identities that a ROUTER makes up.
        if identity.len() > IDENTITY_BYTES || identity.first() == Some(&0) {
            return Err(Reason::Identity);
        }
        Ok(PeerInfo {
            knows_ping: self.minor >= Some(1),
            identity: Bytes::copy_from_slice(identity),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::collection::vec;
    use proptest::prelude::*;

    const METADATA: usize = 512;

    /// A client's greeting and READY.
    fn hello(minor: u8, properties: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = wire::greeting().to_vec();
        bytes[11] = minor;
        let mut body = b"\x05READY".to_vec();
        for (name, value) in properties {
            body.push(name.len() as u8);
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            body.extend_from_slice(value);
        }
        wire::encode_header(&mut bytes, 4, body.len());
        bytes.extend_from_slice(&body);
        bytes
    }

    fn feed(bytes: &[u8]) -> Result<Option<PeerInfo>, Reason> {
        Handshake::default().feed(&mut Bytes::copy_from_slice(bytes), METADATA, &mut Vec::new())
    }

    #[test]
    fn a_peer_is_known_wherever_its_bytes_are_cut() {
        let mut bytes = hello(1, &[("socket-TYPE", b"DEALER"), ("Identity", b"me"), ("X", b"")]);
        let handshake = bytes.len();
        bytes.extend_from_slice(b"\x00\x01a");
        for cut in 0..handshake {
            let mut state = Handshake::default();
            let mut out = Vec::new();
            let mut first = Bytes::copy_from_slice(&bytes[..cut]);
            assert_eq!(state.feed(&mut first, METADATA, &mut out), Ok(None));
            let mut second = Bytes::copy_from_slice(&bytes[cut..]);
            let peer = state.feed(&mut second, METADATA, &mut out).unwrap().unwrap();
            assert_eq!(peer, PeerInfo { knows_ping: true, identity: "me".into() });
            assert_eq!(second, b"\x00\x01a"[..]);
            assert_eq!(out, b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER");
        }
    }

    #[test]
    fn req_dealer_and_router_of_3_0_and_later_are_welcome_and_nobody_else() {
        for socket_type in SOCKET_TYPES {
            let peer = feed(&hello(0, &[("Socket-Type", socket_type)])).unwrap().unwrap();
            assert_eq!(peer, PeerInfo { knows_ping: false, identity: Bytes::new() });
        }
        for socket_type in ["PUB", "SUB", "REP", "PAIR", "PUSH", "req", ""] {
            let bytes = hello(0, &[("Socket-Type", socket_type.as_bytes())]);
            assert_eq!(feed(&bytes), Err(Reason::SocketType));
        }
        assert_eq!(feed(&hello(0, &[])), Err(Reason::SocketType));
        let mut later = hello(7, &[("Socket-Type", b"REQ")]);
        later[10] = 4;
        assert!(feed(&later).unwrap().unwrap().knows_ping);
    }

    #[test]
    fn strangers_are_told_apart_at_their_first_wrong_byte() {
        assert_eq!(feed(b"G"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\x16\x03\x01"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\xff\0\0\0\0\0\0\0\x01\x7e"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"), Err(Reason::Version));
        for mechanism in [b"CURVE", b"PLAIN", b"NULLX"] {
            let mut bytes = wire::greeting();
            bytes[12..17].copy_from_slice(mechanism);
            assert_eq!(feed(&bytes), Err(Reason::Mechanism));
        }
        let behind_greeting = |bytes: &[u8]| feed(&[&wire::greeting(), bytes].concat());
        assert_eq!(behind_greeting(b"\x00"), Ok(None));
        assert_eq!(behind_greeting(b"\x00\x01"), Err(Reason::DataBeforeReady));
        assert_eq!(behind_greeting(b"\x08"), Err(Reason::ReservedFlags));
        assert_eq!(behind_greeting(b"\x06\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Reason::Metadata));
        assert_eq!(behind_greeting(b"\x04\x06\x05HELLO"), Err(Reason::Command));
        assert_eq!(behind_greeting(b"\x04\x06\x05ERROR"), Err(Reason::PeerError));
        assert_eq!(behind_greeting(b"\x04\x07\x05READY\x05"), Err(Reason::Metadata));
        assert_eq!(behind_greeting(b"\x04\x00"), Err(Reason::Command));
    }

    #[test]
    fn identities_that_are_too_long_or_reserved_are_refused() {
        let with = |identity: &[u8]| {
            feed(&hello(0, &[("Socket-Type", b"DEALER"), ("Identity", identity)]))
        };
        assert_eq!(with(&[1; 255]).unwrap().unwrap().identity.len(), 255);
        assert_eq!(with(&[1; 256]), Err(Reason::Identity));
        assert_eq!(with(b"\0abc"), Err(Reason::Identity));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_peer_or_a_named_reason_within_the_limit(
            greeted in any::<bool>(),
            noise in vec(prop_oneof![Just(4u8), Just(0), any::<u8>()], 0..600),
            cuts in vec(1usize..100, 1..20),
        ) {
            let greeting: &[u8] = if greeted { &wire::greeting() } else { b"" };
            let bytes = Bytes::from([greeting, &noise].concat());
            let mut handshake = Handshake::default();
            let mut out = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = bytes.len().min(at + cut);
                let mut input = bytes.slice(at..end);
                let told = handshake.feed(&mut input, METADATA, &mut out);
                prop_assert!(handshake.bytes.len() <= METADATA + GREETING);
                prop_assert!(out.len() <= 64);
                at = end;
                if told != Ok(None) || at == bytes.len() {
                    break;
                }
                prop_assert!(input.is_empty());
            }
        }
    }
}
