//! The handshake of one connection as a state machine, without I/O and without a clock.
//!
//! It takes received bytes, and returns bytes to send and finally the peer or the reason for
//! refusing it.
//!
//! We announce ZMTP 3.1, and speak 3.1 or 3.0 with every peer of version 3.0 or later. The
//! connecting side sends everything at once: its greeting and the first command of its mechanism.
//! The listening side sends:
//!
//! 1. [`GREETING_START`] bytes of its greeting at once. Peers that check versions first, such as
//!    libzmq, answer with their own version.
//! 2. The rest of the greeting, once the peer is known to speak ZMTP 3.0 or later. A peer with
//!    another mechanism then learns which one we use, and can tell its user why it is refused.
//! 3. READY once the peer's READY is accepted, or ERROR instead.
//!
//! RFC 37 lets the listening side wait for the peer's READY; RFC 23 has both sides send it at
//! once. We wait, because ERROR is only allowed in place of READY. If the peer is waiting too,
//! the caller uses [`Handshake::send_ready`].
//!
//! One rule of RFC 37 is not kept on purpose: that an identity must not begin with a zero byte.
//! RFC 23 has no such rule, and libzmq dropped it in 2014, so such clients exist. One in 256
//! random UUIDs begins with a zero byte, and so does every small big-endian number. The
//! identities that our ROUTER generates begin with one as well. If an identity is already taken,
//! the later peer gets a generated one.

use bytes::{Buf, Bytes};

use super::command::Command;
use super::frame::Header;
use super::greeting::{GREETING, GREETING_START, decode_greeting, decode_version, greeting};
use super::mechanism::Mechanism;
use super::peer_info::{Local, PeerInfo, Role};
use crate::reason::Reason;

/// A handshake in progress.
#[derive(Debug)]
pub struct Handshake {
    local: Local,
    mechanism: Mechanism,
    /// The bytes received so far of the greeting, or of the command after it.
    bytes: Vec<u8>,
    minor: Option<u8>,
    /// Whether all of our greeting has been sent.
    greeted: bool,
}

impl Handshake {
    /// Creates a handshake in which nothing has been sent yet.
    pub fn new(local: Local, mechanism: Mechanism) -> Self {
        Self { local, mechanism, bytes: Vec::new(), minor: None, greeted: false }
    }

    /// Appends what we send before hearing from the peer. Call it once, before anything else.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        let greeting = greeting(self.mechanism.name());
        match self.local.role {
            Role::Listening => out.extend_from_slice(&greeting[..GREETING_START]),
            Role::Connecting => {
                out.extend_from_slice(&greeting);
                self.greeted = true;
                self.mechanism.start(&self.local, out);
            }
        }
    }

    /// Takes the handshake's bytes from `input` and appends the answers to `out`. Returns the
    /// peer when the handshake is complete. The rest of `input` then belongs to its first
    /// messages.
    ///
    /// # Errors
    ///
    /// Why the peer is refused. The handshake is over. `out` contains the ERROR, if there is one
    /// to send.
    pub fn feed(
        &mut self,
        input: &mut Bytes,
        metadata_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<PeerInfo>, Reason> {
        if self.minor.is_none() {
            self.greet(input, out)?;
        }
        let Some(minor) = self.minor else { return Ok(None) };
        let told = self.commands(input, minor, metadata_bytes, out);
        if let Err(reason) = told {
            self.mechanism.refuse(reason, out);
        }
        told
    }

    /// Whether the peer's greeting is complete but our READY has not been sent.
    pub fn owes_ready(&self) -> bool {
        self.minor.is_some() && self.mechanism.is_waiting()
    }

    /// Appends our READY, unless it has been sent.
    pub fn send_ready(&mut self, out: &mut Vec<u8>) {
        self.mechanism.stop_waiting(&self.local, out);
    }

    /// Whether more than the start of our greeting has been sent.
    pub fn has_greeted(&self) -> bool {
        self.greeted
    }

    /// The reason that the peer gave when it refused us. It may contain any bytes.
    pub fn refusal(&self) -> Option<Bytes> {
        let header = Header::decode(&self.bytes).ok().flatten()?;
        match Command::decode(&self.bytes[header.bytes..]) {
            Ok(Command::Error(reason)) => Some(Bytes::copy_from_slice(reason)),
            _ => None,
        }
    }

    /// Whether nothing has been received yet.
    pub fn untouched(&self) -> bool {
        self.minor.is_none() && self.bytes.is_empty()
    }

    /// Memory held by the handshake, in bytes.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// The greetings.
    fn greet(&mut self, input: &mut Bytes, out: &mut Vec<u8>) -> Result<(), Reason> {
        self.take(input, GREETING);
        if decode_version(&self.bytes)? && !self.greeted {
            self.greeted = true;
            out.extend_from_slice(&greeting(self.mechanism.name())[GREETING_START..]);
        }
        self.minor = decode_greeting(&self.bytes, self.mechanism.name())?;
        if self.minor.is_some() {
            self.bytes.clear();
        }
        Ok(())
    }

    /// The mechanism's commands.
    fn commands(
        &mut self,
        input: &mut Bytes,
        minor: u8,
        metadata_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<PeerInfo>, Reason> {
        loop {
            let (header, end) = match Header::decode(&self.bytes)? {
                None => (0, self.bytes.len() + 1),
                Some(header) if !header.command => return Err(Reason::DataBeforeReady),
                Some(header) => match usize::try_from(header.body) {
                    Ok(body) if body <= metadata_bytes => (header.bytes, header.bytes + body),
                    _ => return Err(Reason::Metadata),
                },
            };
            if self.bytes.len() == end {
                let body = &self.bytes[header..];
                let told = self.mechanism.receive(&self.local, minor, body, out)?;
                self.bytes.clear();
                if told.is_some() {
                    return Ok(told);
                }
            } else if input.is_empty() {
                return Ok(None);
            } else {
                self.take(input, end);
            }
        }
    }

    /// Moves bytes from `input` until there are `whole` bytes, or no more.
    fn take(&mut self, input: &mut Bytes, whole: usize) {
        let count = input.len().min(whole - self.bytes.len());
        self.bytes.extend_from_slice(&input[..count]);
        input.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::encode_header;
    use super::super::mechanism::null::Null;
    use super::super::peer_info::SocketType;
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
        let mut bytes = greeting("NULL").to_vec();
        bytes[11] = minor;
        let mut body = b"\x05READY".to_vec();
        for (name, value) in properties {
            body.push(name.len() as u8);
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            body.extend_from_slice(value);
        }
        encode_header(&mut bytes, 4, body.len());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The listening side of a ROUTER, after the start of its greeting.
    fn listening() -> Handshake {
        let local = Local {
            role: Role::Listening,
            socket_type: SocketType::Router,
            identity: Bytes::new(),
        };
        Handshake::new(local, Mechanism::Null(Null::default()))
    }

    fn feed(bytes: &[u8]) -> Result<Option<PeerInfo>, Reason> {
        listening().feed(&mut Bytes::copy_from_slice(bytes), METADATA, &mut Vec::new())
    }

    #[test]
    fn a_handshake_completes_wherever_its_bytes_are_split() {
        let mut bytes = hello(1, &[("socket-TYPE", b"DEALER"), ("Identity", b"me"), ("X", b"")]);
        let handshake = bytes.len();
        bytes.extend_from_slice(b"\x00\x01a");
        for cut in 0..handshake {
            let mut state = listening();
            let mut out = Vec::new();
            let mut first = Bytes::copy_from_slice(&bytes[..cut]);
            assert_eq!(state.feed(&mut first, METADATA, &mut out), Ok(None));
            let mut second = Bytes::copy_from_slice(&bytes[cut..]);
            let peer = state.feed(&mut second, METADATA, &mut out).unwrap().unwrap();
            assert_eq!(
                peer,
                PeerInfo { minor: 1, socket_type: SocketType::Dealer, identity: "me".into() }
            );
            assert_eq!(second, b"\x00\x01a"[..]);
            assert_eq!(out, [rest(), READY].concat());
        }
    }

    #[test]
    fn only_req_dealer_and_router_of_zmtp_3_0_and_later_are_accepted() {
        for socket_type in [SocketType::Req, SocketType::Dealer, SocketType::Router] {
            let name = socket_type.as_str().as_bytes();
            let peer = feed(&hello(0, &[("Socket-Type", name)])).unwrap().unwrap();
            assert_eq!(peer, PeerInfo { minor: 0, socket_type, identity: Bytes::new() });
        }
        for socket_type in ["PUB", "SUB", "REP", "PAIR", "PUSH", "req", ""] {
            let bytes = hello(0, &[("Socket-Type", socket_type.as_bytes())]);
            assert_eq!(feed(&bytes), Err(Reason::SocketType));
        }
        assert_eq!(feed(&hello(0, &[])), Err(Reason::SocketType));
        let mut later = hello(7, &[("Socket-Type", b"REQ")]);
        later[10] = 4;
        assert_eq!(feed(&later).unwrap().unwrap().minor, 1);
    }

    #[test]
    fn wrong_peers_are_rejected_at_their_first_wrong_byte() {
        assert_eq!(feed(b"G"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\x16\x03\x01"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\xff\0\0\0\0\0\0\0\x01\x7e"), Err(Reason::NotZmtp));
        assert_eq!(feed(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"), Err(Reason::Version));
        for mechanism in [b"CURVE", b"PLAIN", b"NULLX"] {
            let mut bytes = greeting("NULL");
            bytes[12..17].copy_from_slice(mechanism);
            assert_eq!(feed(&bytes), Err(Reason::Mechanism));
        }
        let behind_greeting = |bytes: &[u8]| feed(&[&greeting("NULL"), bytes].concat());
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
    fn the_rest_of_our_greeting_follows_the_peers_version_and_our_ready_its_ready() {
        let bytes = Bytes::from(hello(1, &[("Socket-Type", b"REQ")]));
        let mut handshake = listening();
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
        let mut bytes = greeting("NULL").to_vec();
        bytes[12..17].copy_from_slice(b"CURVE");
        for cut in 0..=bytes.len() {
            let mut handshake = listening();
            let mut out = Vec::new();
            let mut told = Ok(None);
            for mut part in [Bytes::copy_from_slice(&bytes[..cut]), bytes[cut..].to_vec().into()] {
                told = told.and_then(|_| handshake.feed(&mut part, METADATA, &mut out));
            }
            assert_eq!((told, &out[..]), (Err(Reason::Mechanism), rest()), "cut at {cut}");
        }
    }

    #[test]
    fn a_refused_peer_gets_error_in_place_of_ready_but_not_after_it() {
        let metadata = |names: &[&str]| {
            let named: Vec<_> = names.iter().map(|name| (*name, &b"DEALER"[..])).collect();
            hello(1, &named)
        };
        let ready = |socket_type: &[u8], identity: &[u8]| {
            hello(1, &[("Socket-Type", socket_type), ("Identity", identity)])
        };
        let greeted = |bytes: &[u8]| [&greeting("NULL"), bytes].concat();
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
                let mut handshake = listening();
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
    fn invalid_property_names_and_duplicate_properties_are_malformed() {
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
        // An empty identity counts too. Properties that we do not use may be repeated.
        let identities = [("Socket-Type", &b"REQ"[..]), ("Identity", b""), ("identity", b"")];
        assert_eq!(feed(&hello(1, &identities)), Err(Reason::Metadata));
        let others = [("X-a", &b""[..]), ("Socket-Type", b"REQ"), ("X-a", b"")];
        assert!(feed(&hello(1, &others)).unwrap().is_some());
    }

    #[test]
    fn identities_of_up_to_255_bytes_are_accepted_whatever_they_begin_with() {
        let with = |identity: &[u8]| {
            feed(&hello(0, &[("Socket-Type", b"DEALER"), ("Identity", identity)]))
        };
        assert_eq!(with(&[1; 255]).unwrap().unwrap().identity.len(), 255);
        assert_eq!(with(&[1; 256]), Err(Reason::Identity));
        for identity in [b"\0".as_slice(), b"\0abc", &[0; 255]] {
            assert_eq!(with(identity).unwrap().unwrap().identity, identity);
        }
    }

    /// A connecting side of the given type.
    fn connecting(socket_type: SocketType, identity: &'static [u8]) -> Handshake {
        let local = Local { role: Role::Connecting, socket_type, identity: identity.into() };
        Handshake::new(local, Mechanism::Null(Null::default()))
    }

    #[test]
    fn the_connecting_side_sends_greeting_and_ready_at_once() {
        let mut handshake = connecting(SocketType::Dealer, b"me");
        let mut out = Vec::new();
        handshake.start(&mut out);
        let properties = [("Socket-Type", &b"DEALER"[..]), ("Identity", b"me")];
        assert_eq!(out, hello(1, &properties));
        out.clear();
        let mut reply = Bytes::from([&greeting("NULL")[..], READY].concat());
        let peer = handshake.feed(&mut reply, METADATA, &mut out).unwrap().unwrap();
        assert_eq!(peer.socket_type, SocketType::Router);
        assert!(out.is_empty());
    }

    #[test]
    fn every_pair_of_socket_types_connects_or_is_refused_wherever_bytes_are_split() {
        for one in SocketType::ALL {
            for other in SocketType::ALL {
                for cut in [1, 2, 7, 64, 1000] {
                    let told = talk(one, other, cut);
                    let expected = match one.talks_to(other) {
                        true => (Ok(Some(other)), Ok(Some(one))),
                        // The listening side refuses, and the connecting side reads its ERROR.
                        false => (Err(Reason::PeerError), Err(Reason::SocketType)),
                    };
                    assert_eq!(told, expected, "{one:?} {other:?} {cut}");
                }
            }
        }
    }

    /// What two sides learn about each other when their bytes arrive in pieces of `cut`. The
    /// first one connects.
    fn talk(
        one: SocketType,
        other: SocketType,
        cut: usize,
    ) -> (Result<Option<SocketType>, Reason>, Result<Option<SocketType>, Reason>) {
        let mut sides = [connecting(one, b""), listening()];
        sides[1].local.socket_type = other;
        // What each side has sent that the other has not read.
        let mut sent = [Vec::new(), Vec::new()];
        let mut told = [Ok(None), Ok(None)];
        for (side, sent) in sides.iter_mut().zip(&mut sent) {
            side.start(sent);
        }
        for step in 0..10_000 {
            let (me, peer) = (step % 2, 1 - step % 2);
            if sent[peer].is_empty() || told[me] != Ok(None) {
                continue;
            }
            let count = sent[peer].len().min(cut);
            let mut input = Bytes::from(sent[peer].drain(..count).collect::<Vec<_>>());
            told[me] = sides[me]
                .feed(&mut input, METADATA, &mut sent[me])
                .map(|peer| peer.map(|peer| peer.socket_type));
        }
        let [one, other] = told;
        (one, other)
    }

    proptest! {
        #[test]
        fn any_bytes_yield_a_peer_or_a_reason_within_the_limit(
            greeted in any::<bool>(),
            noise in vec(prop_oneof![Just(4u8), Just(0), any::<u8>()], 0..600),
            cuts in vec(1usize..100, 1..20),
        ) {
            let greeting: &[u8] = if greeted { &greeting("NULL") } else { b"" };
            let bytes = Bytes::from([greeting, &noise].concat());
            let mut handshake = listening();
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
