//! Any bytes, read in any pieces, are a peer, the start of one, or a named failure,
//! the same as in one piece, which is the model's, and so is what is sent. Little is
//! held.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use zmq_echo_fuzz::{Announced, End, Hello, READY, START, cuts, greeting, hello};
use zmtp::Reason;
use zmtp::proto::handshake::{Handshake, PeerInfo};
use zmtp::proto::wire;

/// The least that a READY of a longest identity needs is between the two.
const METADATA: [usize; 2] = [64, 4 << 10];

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let Some((cuts, noise)) = cuts(input) else { return };
    let metadata = METADATA[usize::from(choice & 1)];
    // Half of the inputs are past the greeting, which takes long to guess.
    let greeted: &[u8] = if choice & 2 == 0 { b"" } else { &greeting(choice >> 2) };
    let stream = Bytes::from([greeted, noise].concat());

    let whole = shake(&stream, &[stream.len().max(1)], metadata, false);
    assert_eq!(whole, shake(&stream, &cuts, metadata, false), "cut at {cuts:?}");
    assert_eq!(whole, hello(&stream, metadata));
    // Where our READY does not wait for the peer's, nothing else follows it.
    let mut waited = shake(&stream, &cuts, metadata, true);
    if waited.sent != whole.sent {
        assert!(whole.greeted);
        assert_eq!(waited.sent, [&greeting(1), READY].concat());
        waited.sent.clone_from(&whole.sent);
    }
    assert_eq!(whole, waited, "cut at {cuts:?}");
});

/// What the state machine makes of `stream`, read in pieces of `cuts` bytes in turn, with
/// our READY sent between two of them if one `waits` for it.
fn shake(stream: &Bytes, cuts: &[usize], metadata: usize, waits: bool) -> Hello {
    let mut handshake = Handshake::default();
    let mut out = greeting(1)[..START].to_vec();
    let mut at = 0;
    let mut told = Ok(None);
    for cut in cuts.iter().cycle() {
        let end = stream.len().min(at + cut);
        let mut input = stream.slice(at..end);
        told = handshake.feed(&mut input, metadata, &mut out);
        at = end - input.len();
        // Memory grows by doubling, and never for what has only been announced.
        assert!(handshake.held() <= 2 * at.max(8), "{} for {at}", handshake.held());
        assert!(handshake.held() <= 2 * (metadata + 9).max(wire::GREETING));
        assert_eq!(handshake.untouched(), at == 0);
        assert_eq!(handshake.has_greeted(), out.len() > START);
        if waits && told == Ok(None) && handshake.owes_ready() {
            handshake.send_ready(&mut out);
        }
        if told != Ok(None) || at == stream.len() {
            break;
        }
        assert!(input.is_empty(), "what belongs to a handshake is taken");
    }
    let greeted = handshake.owes_ready() || out.ends_with(READY);
    let told = match told {
        Ok(Some(PeerInfo { knows_ping, is_req, identity })) => {
            assert!(identity.len() <= 255);
            Ok(Announced { bytes: at, knows_ping, is_req, identity: identity.to_vec() })
        }
        Ok(None) => Err(if at == 0 { End::Whole } else { End::Within }),
        Err(reason) => {
            assert!(Reason::before_ready(reason));
            Err(End::Fault(reason))
        }
    };
    Hello { sent: out, greeted, told }
}
