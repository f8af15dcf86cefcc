//! The handshake of one connection as a state machine: bytes in, bytes to send
//! and at last a peer, or the reason why not. No I/O, no clock.
//!
//! We announce ZMTP 3.1 and speak it with every peer of 3.0 and later, with the
//! NULL mechanism alone. What we send, and when:
//!
//! 1. [`wire::GREETING_START`] bytes of our greeting at once, by the caller. A peer
//!    that looks at versions first, as libzmq does, then tells us its own.
//! 2. The rest of the greeting, once the peer is known to speak ZMTP 3.0 or later. A peer
//!    with another mechanism then learns ours, and can tell its user why it is refused.
//! 3. READY when the peer's is accepted, or ERROR in its place. RFC 37 allows ERROR
//!    nowhere else, so our READY waits for the peer's, although the RFC has both sides send
//!    it unasked. If a peer waits as well, the caller uses [`Handshake::send_ready`].
//!
//! One rule of RFC 37 is deliberately not kept: that an identity "SHALL NOT" begin with a
//! zero byte. RFC 23 has no such rule and libzmq dropped it in 2014, so such clients exist:
//! one random UUID in 256 begins with a zero byte, and so does every big-endian number. The
//! identities that the socket generates begin with one too. If an identity is taken, the
//! later peer gets a generated one.

use bytes::{Buf, Bytes};

use super::wire::{self, Command, GREETING, GREETING_START, Header};
use crate::reason::Reason;

/// The longest identity (RFC 23, "identity = 0*255OCTET").
pub const IDENTITY_BYTES: usize = 255;

/// The socket types that a ROUTER talks to (RFC 28).
const SOCKET_TYPES: [&[u8]; 3] = [b"REQ", b"DEALER", b"ROUTER"];

/// What the handshake has told of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Whether the peer knows PING, as those of ZMTP 3.1 and later do.
    pub knows_ping: bool,
    /// Whether it is a REQ, all of whose messages are requests (RFC 28).
    pub is_req: bool,
    /// The identity that it announced; empty if none.
    pub identity: Bytes,
}

/// A handshake under way.
#[derive(Debug, Default)]
pub struct Handshake {
    /// What has come of the greeting, or of READY behind it.
    bytes: Vec<u8>,
    minor: Option<u8>,
    /// Whether the whole of our greeting has been sent, and our READY.
    greeted: bool,
    ready_sent: bool,
}

impl Handshake {
    /// Takes from `input` what belongs to the handshake, appends what is to be sent
    /// to `out`, and returns the peer when all is said: the rest of `input` is its
    /// first messages.
    ///
    /// # Errors
    ///
    /// Why the peer is refused. The handshake is over then, and `out` has what tells the
    /// peer, if anything does.
    pub fn feed(
        &mut self,
        input: &mut Bytes,
        metadata_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<PeerInfo>, Reason> {
        if self.minor.is_none() {
            self.greet(input, out)?;
            if self.minor.is_none() {
                return Ok(None);
            }
        }
        let told = self.metadata(input, metadata_bytes);
        match &told {
            Ok(Some(_)) => self.send_ready(out),
            Err(reason) if reason.sends_error() && !self.ready_sent => {
                wire::encode_error(out, reason.as_str());
            }
            _ => {}
        }
        told
    }

    /// Whether the peer's greeting is whole and our READY has not been sent.
    pub fn owes_ready(&self) -> bool {
        self.minor.is_some() && !self.ready_sent
    }

    /// Appends our READY, unless it has been sent.
    pub fn send_ready(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.ready_sent, true) {
            wire::encode_ready(out);
        }
    }

    /// Whether the peer has been sent more than the start of our greeting.
    pub fn has_greeted(&self) -> bool {
        self.greeted
    }

    /// The greetings.
    fn greet(&mut self, input: &mut Bytes, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.take(input, GREETING);
        if wire::decode_version(&self.bytes)? && !self.greeted {
            self.greeted = true;
            out.extend_from_slice(&wire::greeting()[GREETING_START..]);
        }
        self.minor = wire::decode_greeting(&self.bytes)?;
        if self.minor.is_some() {
            self.bytes.clear();
        }
        Ok(())
    }

    /// The peer's READY.
    fn metadata(
        &mut self,
        input: &mut Bytes,
        metadata_bytes: usize,
    ) -> Result<Option<PeerInfo>, Reason> {
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
        let (mut socket_type, mut identity) = (None, None);
        for property in wire::properties(metadata) {
            let (name, value) = property?;
            // "Metadata names SHALL be case-insensitive" (RFC 37).
            let known = if name.eq_ignore_ascii_case(b"Socket-Type") {
                &mut socket_type
            } else if name.eq_ignore_ascii_case(b"Identity") {
                &mut identity
            } else {
                continue;
            };
            if known.replace(value).is_some() {
                return Err(Reason::Metadata);
            }
        }
        let (socket_type, identity) =
            (socket_type.unwrap_or_default(), identity.unwrap_or_default());
        if !SOCKET_TYPES.contains(&socket_type) {
            return Err(Reason::SocketType);
        }
        if identity.len() > IDENTITY_BYTES {
            return Err(Reason::Identity);
        }
        Ok(PeerInfo {
            knows_ping: self.minor >= Some(1),
            is_req: socket_type == b"REQ",
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

    const READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER";

    /// What follows the start of our greeting.
    fn rest() -> &'static [u8] {
        b"\x01NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
          \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    }

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
            assert_eq!(peer, PeerInfo { knows_ping: true, is_req: false, identity: "me".into() });
            assert_eq!(second, b"\x00\x01a"[..]);
            assert_eq!(out, [rest(), READY].concat());
        }
    }

    #[test]
    fn req_dealer_and_router_of_3_0_and_later_are_welcome_and_nobody_else() {
        for socket_type in SOCKET_TYPES {
            let peer = feed(&hello(0, &[("Socket-Type", socket_type)])).unwrap().unwrap();
            let is_req = socket_type == b"REQ";
            assert_eq!(peer, PeerInfo { knows_ping: false, is_req, identity: Bytes::new() });
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
    fn the_rest_of_our_greeting_follows_the_peers_version_and_ready_its_ready() {
        let bytes = Bytes::from(hello(1, &[("Socket-Type", b"REQ")]));
        let mut handshake = Handshake::default();
        let mut out = Vec::new();
        let mut feed = |from: usize, to: usize| {
            let told = handshake.feed(&mut bytes.slice(from..to), METADATA, &mut out);
            (told.unwrap().is_some(), handshake.owes_ready(), std::mem::take(&mut out))
        };
        assert_eq!(feed(0, 10), (false, false, Vec::new()));
        assert_eq!(feed(10, 11), (false, false, rest().to_vec()));
        assert_eq!(feed(11, 63), (false, false, Vec::new()));
        assert_eq!(feed(63, 64), (false, true, Vec::new()));
        assert_eq!(feed(64, bytes.len() - 1), (false, true, Vec::new()));
        assert_eq!(feed(bytes.len() - 1, bytes.len()), (true, false, READY.to_vec()));
    }

    #[test]
    fn a_peer_with_another_mechanism_gets_our_whole_greeting_and_no_error() {
        let mut bytes = wire::greeting().to_vec();
        bytes[12..17].copy_from_slice(b"CURVE");
        for cut in 0..=bytes.len() {
            let mut handshake = Handshake::default();
            let mut out = Vec::new();
            let mut told = Ok(None);
            for mut part in [Bytes::copy_from_slice(&bytes[..cut]), bytes[cut..].to_vec().into()] {
                told = told.and_then(|_| handshake.feed(&mut part, METADATA, &mut out));
            }
            assert_eq!((told, &out[..]), (Err(Reason::Mechanism), rest()), "cut at {cut}");
        }
    }

    #[test]
    fn a_refused_peer_is_told_why_in_place_of_ready_and_not_behind_it() {
        let metadata = |names: &[&str]| {
            let named: Vec<_> = names.iter().map(|name| (*name, &b"DEALER"[..])).collect();
            hello(1, &named)
        };
        let ready = |socket_type: &[u8], identity: &[u8]| {
            hello(1, &[("Socket-Type", socket_type), ("Identity", identity)])
        };
        let greeted = |bytes: &[u8]| [&wire::greeting(), bytes].concat();
        for (bytes, reason) in [
            (ready(b"PUB", b""), Reason::SocketType),
            (ready(b"DEALER", &[1; 256]), Reason::Identity),
            (metadata(&["Socket-Type", "socket-type"]), Reason::Metadata),
            (greeted(b"\x06\xff\xff\xff\xff\xff\xff\xff\xff"), Reason::Metadata),
            (greeted(b"\x04\x06\x05HELLO"), Reason::Command),
            (greeted(b"\x00\x01"), Reason::DataBeforeReady),
            (greeted(b"\x08"), Reason::ReservedFlags),
            // An ERROR is not answered.
            (greeted(b"\x04\x06\x05ERROR"), Reason::PeerError),
        ] {
            let word = reason.as_str();
            let size = word.len() as u8;
            let error = match reason {
                Reason::PeerError => Vec::new(),
                _ => [&[4, size + 7][..], b"\x05ERROR", &[size], word.as_bytes()].concat(),
            };
            for impatient in [false, true] {
                let mut handshake = Handshake::default();
                let mut out = Vec::new();
                let mut greeting = Bytes::copy_from_slice(&bytes[..GREETING]);
                assert_eq!(handshake.feed(&mut greeting, METADATA, &mut out), Ok(None));
                assert!(handshake.owes_ready());
                if impatient {
                    handshake.send_ready(&mut out);
                    assert!(!handshake.owes_ready());
                }
                let mut ready = Bytes::copy_from_slice(&bytes[GREETING..]);
                assert_eq!(handshake.feed(&mut ready, METADATA, &mut out), Err(reason));
                let told = if impatient { READY } else { &error };
                assert_eq!(out, [rest(), told].concat(), "{word}");
            }
        }
    }

    #[test]
    fn a_name_of_other_characters_and_a_second_of_what_is_read_are_malformed() {
        let type_and = |name: &str| {
            let properties = [("Socket-Type", &b"REQ"[..]), (name, b"REQ")];
            feed(&hello(1, &properties)).map(|peer| peer.is_some())
        };
        let longest = "x".repeat(255);
        for name in ["X-a", "az-AZ_09.+", "x", &longest] {
            assert_eq!(type_and(name), Ok(true), "{name:?}");
        }
        let mut other: Vec<_> = (0..=127u8)
            .filter(|byte| !byte.is_ascii_alphanumeric() && !b"-_.+".contains(byte))
            .map(|byte| format!("a{}b", char::from(byte)))
            .collect();
        other.extend(["", "\0", "Socket-Type\0", "é"].map(str::to_owned));
        other.extend(["Socket-Type", "SOCKET-type"].map(str::to_owned));
        for name in other {
            assert_eq!(type_and(&name), Err(Reason::Metadata), "{name:?}");
        }
        // An empty one is one, and others may come twice.
        let identities = [("Socket-Type", &b"REQ"[..]), ("Identity", b""), ("identity", b"")];
        assert_eq!(feed(&hello(1, &identities)), Err(Reason::Metadata));
        let others = [("X-a", &b""[..]), ("Socket-Type", b"REQ"), ("X-a", b"")];
        assert!(feed(&hello(1, &others)).unwrap().is_some());
    }

    #[test]
    fn identities_of_up_to_255_bytes_are_welcome_whatever_they_begin_with() {
        let with = |identity: &[u8]| {
            feed(&hello(0, &[("Socket-Type", b"DEALER"), ("Identity", identity)]))
        };
        assert_eq!(with(&[1; 255]).unwrap().unwrap().identity.len(), 255);
        assert_eq!(with(&[1; 256]), Err(Reason::Identity));
        for identity in [b"\0".as_slice(), b"\0abc", &[0; 255]] {
            assert_eq!(with(identity).unwrap().unwrap().identity, identity);
        }
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
                prop_assert!(out.len() <= GREETING + READY.len());
                at = end;
                if told != Ok(None) || at == bytes.len() {
                    break;
                }
                prop_assert!(input.is_empty());
            }
        }
    }
}
