//! Messages from one byte to 64 MiB, whole and in frames.

use crate::support::{client, server};

/// Raises the server's limits to the sizes sent here. The pool must hold the largest message twice:
/// while it arrives, and while it is sent back.
const RAISED_LIMITS: &[&str] = &["--message-limit", "64MiB", "--buffer-limit", "160MiB"];

const LARGEST: usize = 64 << 20;

#[test]
fn messages_of_every_size_come_back_unchanged() {
    let server = server(RAISED_LIMITS);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    let powers = (0..=LARGEST.ilog2()).map(|power| 1 << power);
    let sizes = powers.flat_map(|size: usize| [size - 1, size, size + 1]);
    for size in sizes.filter(|size| *size <= LARGEST) {
        let message = bytes(size);
        dealer.send(&message[..], 0).unwrap();
        let reply = dealer.recv_msg(0).unwrap();
        assert!(reply[..] == message[..], "{size} bytes came back as {}", reply.len());
    }
}

#[test]
fn a_large_message_may_be_split_into_frames() {
    const FRAMES: usize = 64;
    let server = server(RAISED_LIMITS);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    let frames = vec![bytes(LARGEST / FRAMES); FRAMES];
    dealer.send_multipart(&frames, 0).unwrap();
    assert!(dealer.recv_multipart(0).unwrap() == frames, "the frames came back changed");
}

/// Bytes that do not repeat at a power of two, so that a misplaced piece is noticed.
fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}
