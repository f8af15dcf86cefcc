//! Any bytes, read in any pieces, must give a peer, an incomplete handshake or a named failure. The
//! result and the bytes that are sent must be the same as when the input is read at once, and match
//! the model. Little is held. This covers both roles: a ROUTER that listens and a DEALER that
//! connects.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use zmq_echo_fuzz::{Announced, End, Hello, READY, START, cuts, greeting, hello, hello_to_dealer};
use zmtp::Reason;
use zmtp::proto::greeting::GREETING;
use zmtp::proto::handshake::Handshake;
use zmtp::proto::mechanism::Mechanism;
use zmtp::proto::mechanism::null::Null;
use zmtp::proto::peer_info::{Local, PeerInfo, Role, SocketType};

/// Limits of the metadata in bytes. A READY with the longest identity fits only the second.
const METADATA: [usize; 2] = [64, 4 << 10];

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let Some((cuts, noise)) = cuts(input) else { return };
    let metadata = METADATA[usize::from(choice & 1)];
    // Half of the inputs start after the greeting, which a fuzzer takes long to find.
    let greeted: &[u8] = if choice & 2 == 0 { b"" } else { &greeting(choice >> 3) };
    let stream = Bytes::from([greeted, noise].concat());
    let role = if choice & 4 == 0 { Role::Listening } else { Role::Connecting };

    let whole = run_handshake(role, &stream, &[stream.len().max(1)], metadata, false);
    assert_eq!(
        whole,
        run_handshake(role, &stream, &cuts, metadata, false),
        "the result differs if the input is cut at {cuts:?}"
    );
    if role == Role::Connecting {
        assert_eq!(whole, hello_to_dealer(&stream, metadata));
        return;
    }
    assert_eq!(whole, hello(&stream, metadata));
    // If our READY does not wait for the peer's, nothing follows it.
    let mut waited = run_handshake(role, &stream, &cuts, metadata, true);
    if waited.sent != whole.sent {
        assert!(whole.greeted);
        assert_eq!(waited.sent, [&greeting(1), READY].concat());
        waited.sent.clone_from(&whole.sent);
    }
    assert_eq!(whole, waited, "the result differs if the input is cut at {cuts:?}");
});

/// The result of the state machine for `stream`, read in pieces of `cuts` bytes, in turn. If the
/// peer `waits`, our READY is sent between two pieces.
fn run_handshake(
    role: Role,
    stream: &Bytes,
    cuts: &[usize],
    metadata: usize,
    waits: bool,
) -> Hello {
    let socket_type = match role {
        Role::Listening => SocketType::Router,
        Role::Connecting => SocketType::Dealer,
    };
    let local = Local { role, socket_type, identity: Bytes::new() };
    let mut handshake = Handshake::new(local, Mechanism::Null(Null::default()));
    let mut out = Vec::new();
    handshake.start(&mut out);
    let started = out.len();
    let mut at = 0;
    let mut result = Ok(None);
    for cut in cuts.iter().cycle() {
        let end = stream.len().min(at + cut);
        let mut input = stream.slice(at..end);
        result = handshake.feed(&mut input, metadata, &mut out);
        at = end - input.len();
        // Memory grows by doubling, and only for bytes that have arrived.
        assert!(
            handshake.held() <= 2 * at.max(8),
            "{} bytes are held for {at} bytes",
            handshake.held()
        );
        assert!(handshake.held() <= 2 * (metadata + 9).max(GREETING));
        assert_eq!(handshake.untouched(), at == 0);
        assert_eq!(handshake.has_greeted(), out.len() > START);
        if role == Role::Connecting {
            // It sends everything at the start.
            assert_eq!(out.len(), started);
        }
        if waits && result == Ok(None) && handshake.owes_ready() {
            handshake.send_ready(&mut out);
        }
        if result != Ok(None) || at == stream.len() {
            break;
        }
        assert!(input.is_empty(), "bytes of the handshake were left unread");
    }
    // READY, or an ERROR instead of it, has been sent or is due.
    let greeted = role == Role::Connecting || handshake.owes_ready() || out.len() > GREETING;
    let result = match result {
        Ok(Some(PeerInfo { minor, socket_type, identity })) => {
            assert!(identity.len() <= 255);
            let (knows_ping, is_req) = (minor > 0, socket_type == SocketType::Req);
            Ok(Announced { bytes: at, knows_ping, is_req, identity: identity.to_vec() })
        }
        Ok(None) => Err(if at == 0 { End::Whole } else { End::Within }),
        Err(reason) => {
            assert!(Reason::before_ready(reason));
            Err(End::Fault(reason))
        }
    };
    Hello { sent: out, greeted, result }
}
