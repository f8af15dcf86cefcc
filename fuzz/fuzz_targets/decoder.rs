//! Any bytes, read in any pieces, must give the same messages and the same end as when they are
//! read at once. Both must match the model, and no more is held than the limits allow.
#![no_main]

use std::collections::VecDeque;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use zmq_echo_fuzz::{End, Outcome, cuts, outcome};
use zmtp::Reason;
use zmtp::proto::command::{self, Command};
use zmtp::proto::frame::{self, COMMAND_BYTES, MessageLimits, Scan, Scanned};

/// Small limits are exceeded often; large limits allow long sizes.
const LIMITS: [MessageLimits; 4] = [
    MessageLimits { bytes: 1, frames: 1 },
    MessageLimits { bytes: 100, frames: 3 },
    MessageLimits { bytes: 600, frames: 64 },
    MessageLimits { bytes: 1 << 20, frames: 1024 },
];

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let Some((cuts, stream)) = cuts(input) else { return };
    let limits = &LIMITS[usize::from(choice % 4)];
    let whole = read(stream, &[stream.len().max(1)], limits);
    assert_eq!(
        whole,
        read(stream, &cuts, limits),
        "the result differs if the input is cut at {cuts:?}"
    );
    assert_eq!(whole, outcome(stream, limits.bytes, limits.frames, false));

    for message in &whole.messages {
        assert!((1..=limits.frames).contains(&message.len()));
        assert!(message.iter().map(Vec::len).sum::<usize>() <= limits.bytes);
    }
    // The echo decodes to the original messages.
    let again = read(&whole.replies, &cuts, limits);
    assert_eq!((again.messages, again.end), (whole.messages, End::Whole));
});

/// The result of a connection that reads `stream` in pieces of `cuts` bytes, in turn.
fn read(stream: &[u8], cuts: &[usize], limits: &MessageLimits) -> Outcome {
    let mut outcome =
        Outcome { messages: Vec::new(), replies: Vec::new(), end: End::Whole, ttl: false };
    let mut held = Vec::new();
    let mut scan = Scan::default();
    let mut rest = stream;
    for cut in cuts.iter().cycle() {
        let (read, left) = rest.split_at((*cut).min(rest.len()));
        rest = left;
        held.extend_from_slice(read);
        if let Err(reason) = scan_held(&mut held, &mut scan, limits, &mut outcome) {
            outcome.end = End::Fault(reason);
            return outcome;
        }
        if rest.is_empty() {
            break;
        }
    }
    if !held.is_empty() {
        outcome.end = End::Within;
    }
    outcome
}

fn scan_held(
    held: &mut Vec<u8>,
    scan: &mut Scan,
    limits: &MessageLimits,
    outcome: &mut Outcome,
) -> Result<(), Reason> {
    loop {
        match scan.step(held, limits)? {
            Scanned::Message(end) => {
                let mut frames = VecDeque::new();
                frame::split_frames(&mut Bytes::copy_from_slice(held), end, &mut frames);
                held.drain(..end);
                let last = frames.len() - 1;
                for (index, body) in frames.iter().enumerate() {
                    let flags = frame::message_flags(index < last);
                    frame::encode_header(&mut outcome.replies, flags, body.len());
                    outcome.replies.extend_from_slice(body);
                }
                outcome.messages.push(frames.iter().map(|frame| frame.to_vec()).collect());
            }
            Scanned::Command(body) => {
                match Command::decode(&held[body])? {
                    Command::Ping { ttl, context } => {
                        outcome.ttl |= ttl.is_some();
                        command::encode_pong(&mut outcome.replies, context);
                    }
                    Command::Pong => {}
                    Command::Error(_) => return Err(Reason::PeerError),
                    Command::Ready(_) => return Err(Reason::Command),
                }
                if let Some(end) = scan.between_messages() {
                    held.drain(..end);
                }
            }
            Scanned::Partial(missing) => {
                // A message, its headers, and a command between its frames.
                let most = limits.bytes + 9 * (limits.frames + 1) + COMMAND_BYTES;
                assert!(missing > 0 && held.len() + missing <= most);
                return Ok(());
            }
        }
    }
}
