//! The load generator: one thread, non-blocking sockets, and bytes that are prepared in advance.
//!
//! It has to be much faster than any server, so it works in batches: one read, one look at the
//! clock and one write for all replies that are available. It never sleeps, because waking it would
//! cost the server more than the echo; it has its own CPU. Every byte of every reply is compared
//! with its request, and all requests that are in flight at the same time differ.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::cases::Load;
use crate::wire::{self, Protocol};

/// How long a server may send nothing on any connection, including during the handshake.
const STALL: Duration = Duration::from_secs(10);

/// Maximum bytes per read: four of the largest messages.
const READ: usize = 256 << 10;

/// The results of one measurement window.
#[derive(Debug)]
pub struct Window {
    /// Number of replies, all verified.
    pub messages: u64,
    /// The window's exact length.
    pub elapsed: Duration,
    /// Time from the release of a request to the read that completed its reply, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// Connects and completes the handshake.
///
/// # Errors
///
/// If the connection cannot be established, or the server does not send a valid handshake.
pub fn connect(address: SocketAddr, protocol: Protocol) -> Result<std::net::TcpStream> {
    let mut stream = std::net::TcpStream::connect_timeout(&address, STALL)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    if protocol == Protocol::Zmtp {
        stream.set_read_timeout(Some(STALL))?;
        wire::handshake(&mut stream)?;
    }
    Ok(stream)
}

/// Connections under load.
pub struct Generator {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    latency: Histogram<u64>,
}

impl Generator {
    /// Opens the connections one after the other and releases the first requests.
    ///
    /// # Errors
    ///
    /// If [`connect`] fails.
    pub fn start(address: SocketAddr, protocol: Protocol, load: Load) -> Result<Self> {
        let poll = Poll::new()?;
        let connections = (0..load.connections)
            .map(|index| {
                let stream = connect(address, protocol)?;
                stream.set_nonblocking(true)?;
                let mut stream = TcpStream::from_std(stream);
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(index), interest)?;
                Ok(Connection::new(stream, Requests::new(index, load), load.in_flight))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            poll,
            events: Events::with_capacity(load.connections),
            connections,
            buffer: vec![0; READ],
            latency: Histogram::new_with_max(STALL.as_nanos() as u64, 3)?,
        })
    }

    /// Keeps up the load for `length` and returns the results.
    ///
    /// # Errors
    ///
    /// If a reply differs from its request, a connection ends, or no reply comes for a while.
    pub fn run(&mut self, length: Duration) -> Result<Window> {
        self.latency.reset();
        let begun = Instant::now();
        let (mut now, mut replied) = (begun, begun);
        let mut messages = 0;
        while now - begun < length {
            self.poll.poll(&mut self.events, Some(Duration::ZERO)).or_else(ignore_interrupts)?;
            now = Instant::now();
            for event in &self.events {
                let connection = &mut self.connections[event.token().0];
                messages += connection.turn(&mut self.buffer, &mut self.latency)?;
                replied = now;
            }
            ensure!(now - replied < STALL, "the server sent no reply for {STALL:?}");
        }
        Ok(Window { messages, elapsed: now - begun, latency: self.latency.clone() })
    }
}

fn ignore_interrupts(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

struct Connection {
    stream: TcpStream,
    requests: Requests,
    /// Bytes of requests that are released but not yet written.
    unwritten: usize,
    /// When requests were released, and how many at the same time, oldest first. Replies come in
    /// the order of their requests.
    released: VecDeque<(Instant, u64)>,
}

impl Connection {
    fn new(stream: TcpStream, requests: Requests, in_flight: usize) -> Self {
        let mut connection =
            Self { stream, requests, unwritten: 0, released: VecDeque::with_capacity(in_flight) };
        // They are written when the kernel first reports the new socket as writable.
        connection.release(in_flight as u64);
        connection
    }

    /// Reads all available replies, and writes a new request for each.
    fn turn(&mut self, buffer: &mut [u8], latency: &mut Histogram<u64>) -> Result<u64> {
        let mut messages = 0;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => bail!("the server has closed a connection"),
                Ok(count) => {
                    let replies = self.requests.verify(&buffer[..count])?;
                    self.complete(replies, latency);
                    messages += replies;
                    // A short read means that the socket is empty (epoll(7), question 9).
                    if count < buffer.len() {
                        break;
                    }
                    self.write()?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading replies"),
            }
        }
        self.write()?;
        Ok(messages)
    }

    fn complete(&mut self, replies: u64, latency: &mut Histogram<u64>) {
        if replies == 0 {
            return;
        }
        let now = Instant::now();
        let mut left = replies;
        while left > 0 {
            let (released, count) = self.released.front_mut().expect("no reply without a request");
            let taken = left.min(*count);
            latency.saturating_record_n((now - *released).as_nanos() as u64, taken);
            left -= taken;
            *count -= taken;
            if *count == 0 {
                self.released.pop_front();
            }
        }
        self.unwritten += self.requests.bytes_of(replies);
        self.released.push_back((now, replies));
    }

    fn release(&mut self, count: u64) {
        self.unwritten += self.requests.bytes_of(count);
        self.released.push_back((Instant::now(), count));
    }

    /// Writes until all released requests are written or the socket is full. The kernel then
    /// reports when it is writable again.
    fn write(&mut self) -> Result<()> {
        while self.unwritten > 0 {
            match self.stream.write_vectored(&self.requests.next(self.unwritten)) {
                Ok(count) => {
                    self.requests.written(count);
                    self.unwritten -= count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("writing requests"),
            }
        }
        Ok(())
    }
}

/// A ring of encoded requests that all differ. Two positions in it show what has been written and
/// what has been read back.
struct Requests {
    ring: Vec<u8>,
    request: usize,
    write_at: usize,
    read_at: usize,
}

impl Requests {
    fn new(connection: usize, load: Load) -> Self {
        // One more than is in flight, so that a duplicate or missing reply is noticed.
        let ring: Vec<u8> = (0..=load.in_flight)
            .flat_map(|number| wire::message(&payload(connection, number, load.payload)))
            .collect();
        Self { request: ring.len() / (load.in_flight + 1), ring, write_at: 0, read_at: 0 }
    }

    fn bytes_of(&self, requests: u64) -> usize {
        requests as usize * self.request
    }

    /// The next `count` bytes to write; never more than the ring holds.
    fn next(&self, count: usize) -> [IoSlice<'_>; 2] {
        let (start, rest) = self.ring.split_at(self.write_at);
        let first = count.min(rest.len());
        [IoSlice::new(&rest[..first]), IoSlice::new(&start[..count - first])]
    }

    fn written(&mut self, count: usize) {
        self.write_at = (self.write_at + count) % self.ring.len();
    }

    /// Compares received bytes with the requests, and returns the number of replies that they
    /// complete.
    fn verify(&mut self, mut bytes: &[u8]) -> Result<u64> {
        let mut replies = 0;
        while !bytes.is_empty() {
            let expected = &self.ring[self.read_at..];
            let count = bytes.len().min(expected.len());
            ensure!(bytes[..count] == expected[..count], "a reply differs from its request");
            let end = self.read_at + count;
            replies += (end / self.request - self.read_at / self.request) as u64;
            self.read_at = end % self.ring.len();
            bytes = &bytes[count..];
        }
        Ok(replies)
    }
}

/// A payload of `length` bytes that identifies the connection and the number, as far as they fit.
fn payload(connection: usize, number: usize, length: usize) -> Vec<u8> {
    let tag = (connection as u64) << 32 | number as u64;
    tag.to_le_bytes().into_iter().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { connections: 1, in_flight: 3, payload: 64 };

    #[test]
    fn replies_are_counted_however_reads_split_them() {
        for cut in 1..200 {
            let mut requests = Requests::new(1, LOAD);
            let stream = requests.ring.repeat(5);
            let replies: u64 =
                stream.chunks(cut).map(|bytes| requests.verify(bytes).unwrap()).sum();
            assert_eq!(replies, 20, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_wrong_byte_and_a_missing_reply_are_noticed() {
        let mut requests = Requests::new(1, LOAD);
        let mut stream = requests.ring.clone();
        assert!(requests.verify(&stream[requests.request..]).is_err());
        stream[70] ^= 1;
        assert!(requests.verify(&stream).is_err());
    }

    #[test]
    fn writes_wrap_around_the_end_of_the_ring() {
        let mut requests = Requests::new(1, LOAD);
        let whole = requests.ring.len();
        requests.written(whole - 10);
        let [end, start] = requests.next(66);
        assert_eq!([&end[..], &start[..]], [&requests.ring[whole - 10..], &requests.ring[..56]]);
    }
}
