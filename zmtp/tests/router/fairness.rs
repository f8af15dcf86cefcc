//! A peer that floods the socket gets turns like all other peers.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use tokio::task::yield_now;
use zmtp::router::Limits;

use crate::polled::{LIMITS, bound, dealer_of, on_runtime};
use crate::support::raw;

/// How many requests a well-behaved peer has in flight.
const WINDOW: usize = 100;

/// How many windows of requests of the measured peer are answered.
const WINDOWS: usize = 50;

/// Maximum number of requests in one turn.
const TURN: usize = 512;

/// As in the poll loop: the runtime gets a turn after this many requests.
const BATCH: usize = 256;

fn request() -> Vec<u8> {
    raw::frame(&[1; 64], false)
}

/// A client that never blocks: it reads what has arrived and writes what the kernel accepts.
struct Client {
    stream: TcpStream,
    /// Bytes still to be written. The requests repeat.
    unwritten: usize,
    written: usize,
    read: usize,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, unwritten: 0, written: 0, read: 0 }
    }

    /// Sends `requests` more requests.
    fn ask(&mut self, requests: usize) {
        self.unwritten += requests * request().len();
    }

    fn is_answered(&self) -> bool {
        self.unwritten == 0 && self.read == self.written
    }

    fn advance(&mut self) {
        let mut bytes = vec![0; 64 << 10];
        while let Some(count) = progress(self.stream.read(&mut bytes)) {
            self.read += count;
        }
        let requests = request().repeat(WINDOW);
        while self.unwritten > 0 {
            let from = self.written % requests.len();
            let most = self.unwritten.min(requests.len() - from);
            let write = self.stream.write(&requests[from..from + most]);
            let Some(count) = progress(write) else { return };
            self.written += count;
            self.unwritten -= count;
        }
    }
}

fn progress(moved: std::io::Result<usize>) -> Option<usize> {
    match moved {
        Ok(count) => Some(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// The clients and the socket share one thread, and the clients advance between any two requests,
/// so the count does not depend on speed.
#[test]
fn a_flood_gets_neither_more_nor_longer_turns_than_others() {
    on_runtime(async {
        let (mut socket, address, _) = bound(Limits { socket_buffer: 512 << 10, ..LIMITS });
        let mut clients = Vec::new();
        for identity in [b"measured".as_slice(), b"equal", b"another", b"flood"] {
            clients.push(Client::new(dealer_of(&mut socket, address, identity).await));
        }
        let (mut windows, mut of_flood, mut received) = (0, 0, 0);
        let mut next = None;
        loop {
            let (flood, others) = clients.split_last_mut().unwrap();
            // The flooding client always has more to send than the kernel accepts.
            flood.ask(WINDOW);
            for other in others.iter_mut().filter(|other| other.is_answered()) {
                other.ask(WINDOW);
            }
            clients.iter_mut().for_each(Client::advance);
            if clients[0].is_answered() {
                windows += 1;
            }
            if windows == WINDOWS {
                break;
            }
            let mut message = match next.take() {
                Some(message) => message,
                None => socket.recv().await,
            };
            of_flood += usize::from(message.frames()[0] == b"flood"[..]);
            socket.send(&mut message).unwrap();
            received += 1;
            if received % BATCH == 0 {
                yield_now().await;
            }
            next = socket.try_recv();
        }
        eprintln!("{of_flood} requests of a flood in {WINDOWS} windows");
        assert!(
            of_flood > WINDOWS * WINDOW,
            "only {of_flood} requests of the flood were served, so it was not a flood"
        );
        // One turn that has begun when a window arrives, and one before the window's own turn.
        let most = (2 * WINDOWS + 1) * TURN;
        assert!(
            of_flood <= most,
            "the flood got {of_flood} requests served in {WINDOWS} windows; the maximum is {most}"
        );
    });
}
