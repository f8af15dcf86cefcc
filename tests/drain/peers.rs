//! Peers of every speed, drawn at random, each behind its own relay. Each peer counts its requests
//! and the replies that it got.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::SockRef;

use crate::support::relay::{self, Path};
use crate::support::{DEADLINE, raw};

/// Maximum bytes sent by a peer with a limited number of requests.
const MOST: usize = 3 << 20;

/// The largest message.
const LARGEST: usize = 2 << 20;

/// The content of messages. It does not repeat within a message for long, and consecutive messages
/// do not start at the same place.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..LARGEST + 256).map(|at| (at % 251) as u8).collect());

fn body(number: u64, size: usize) -> &'static [u8] {
    &PATTERN[(number % 251) as usize..][..size]
}

/// How fast a peer writes or reads.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Bytes per second.
    rate: u64,
    /// Bytes per read or write.
    chunk: usize,
    /// How long it pauses, and after how many bytes each time.
    pause: Option<(usize, Duration)>,
}

/// Keeps reads or writes to a pace.
struct Pacer {
    pace: Pace,
    free_at: Instant,
    moved: usize,
}

impl Pacer {
    fn new(pace: Pace) -> Self {
        Self { pace, free_at: Instant::now(), moved: 0 }
    }

    fn moved(&mut self, bytes: usize) {
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / self.pace.rate as f64);
        self.free_at = self.free_at.max(now) + takes;
        if let Some((every, pause)) = self.pace.pause
            && self.moved / every < (self.moved + bytes) / every
        {
            self.free_at += pause;
        }
        self.moved += bytes;
        // Short sleeps take longer than requested, so they are accumulated.
        if self.free_at > now + Duration::from_millis(2) {
            thread::sleep(self.free_at - now);
        }
    }
}

/// What a peer does after its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Half-closes the connection.
    HalfCloses,
    /// Waits for the server to close.
    Stays,
    /// Sends PINGs until the server closes.
    Pings,
}

/// A peer, before it connects.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Connects while the other peers are already active.
    pub late: Option<Duration>,
    /// Closes after this time, whatever is still open.
    pub leaves: Option<(Duration, Leaves)>,
    /// The sizes of its requests. A peer that never stops starts again at the beginning.
    sizes: Sizes,
    pub endless: bool,
    /// The number of frames of each request.
    frames: usize,
    /// Maximum requests in flight.
    depth: u64,
    /// How long it pauses after each request.
    gap: Duration,
    then: Then,
    write: Pace,
    read: Pace,
    up: Path,
    down: Path,
}

/// The sizes of requests, which are too many to print.
#[derive(Clone)]
struct Sizes(Vec<usize>);

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.0.len(), self.0.iter().sum::<usize>())
    }
}

/// How a peer disconnects by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    Orderly,
    ByReset,
}

impl Plan {
    /// A peer that sends a limited number of requests.
    pub fn any(random: &mut Rng) -> Self {
        let sizes = match random.u8(..10) {
            0 => vec![],
            1 => vec![random.usize(..=LARGEST)],
            2 => vec![0; random.usize(1..2000)],
            3 => vec![random.usize(256 << 10..=1 << 20); random.usize(1..4)],
            _ => {
                let most = *random.choice(&[100, 1000, 20_000, 64 << 10, 200 << 10]).unwrap();
                (0..random.usize(1..200)).map(|_| random.usize(..=most)).collect()
            }
        };
        let mut total = 0;
        let fits = |size: &usize| {
            total += size + 9;
            total <= MOST
        };
        let sizes: Vec<usize> = sizes.into_iter().take_while(fits).collect();
        let total = sizes.iter().map(|size| size + 9).sum::<usize>().max(1000);
        let write = pace(random, total);
        let then = *random.choice(&[Then::HalfCloses, Then::Stays, Then::Pings]).unwrap();
        Self {
            late: None,
            leaves: None,
            sizes: Sizes(sizes),
            endless: false,
            frames: random.usize(1..4),
            depth: *random.choice(&[1, 4, u64::MAX, u64::MAX]).unwrap(),
            gap: Duration::ZERO,
            then,
            write,
            read: pace(random, total),
            up: path(random, total, write.chunk),
            down: path(random, total, write.chunk),
        }
    }

    /// A message in many small pieces, with pauses shorter than the quiet period.
    pub fn trickle(random: &mut Rng) -> Self {
        let size = random.usize(20..200);
        let rate = size as u64 * 1000 / random.u64(500..2000);
        let write = Pace { rate: rate.max(10), chunk: 1, pause: None };
        Self { sizes: Sizes(vec![size]), write, up: Path::FAST, ..Self::any(random) }
    }

    /// A peer that pauses after each request, on a path with a long delay. The drain may end
    /// meanwhile, so the next request is sent before the server's FIN has arrived.
    pub fn hesitant(random: &mut Rng) -> Self {
        let most = *random.choice(&[0, 1000, 60_000]).unwrap();
        let sizes: Vec<usize> = (0..random.usize(3..7)).map(|_| random.usize(..=most)).collect();
        let total = sizes.iter().sum::<usize>().max(1000);
        let takes = *random.choice(&[0, 300, 1500]).unwrap();
        let rate = (total as u64 * 1000).checked_div(takes).unwrap_or(u64::MAX);
        let write = Pace { rate, chunk: 1 + total / 100, pause: None };
        let delay = Duration::from_millis(random.u64(50..400));
        Self {
            sizes: Sizes(sizes),
            depth: u64::MAX,
            gap: Duration::from_millis(random.u64(250..600)),
            write,
            read: Pace { rate: u64::MAX, ..write },
            up: Path { delay: Duration::from_millis(random.u64(..20)), ..Path::FAST },
            down: Path { delay, ..Path::FAST },
            ..Self::any(random)
        }
    }

    /// A peer that only sends PINGs.
    pub fn ping(random: &mut Rng) -> Self {
        Self { sizes: Sizes(vec![]), then: Then::Pings, ..Self::any(random) }
    }

    /// A peer that sends until it reads the server's FIN. It reads and writes without
    /// pauses, because the server has little time left at its deadline.
    pub fn endless(random: &mut Rng) -> Self {
        let most = *random.choice(&[0, 100, 5000, 40_000]).unwrap();
        let at_once = Pace { rate: u64::MAX, chunk: 32 << 10, pause: None };
        let path = Path { delay: Duration::from_millis(random.u64(..3)), ..Path::FAST };
        Self {
            sizes: Sizes((0..random.usize(1..50)).map(|_| random.usize(..=most)).collect()),
            endless: true,
            depth: random.u64(1..20),
            then: Then::Stays,
            write: at_once,
            read: at_once,
            up: path,
            down: path,
            ..Self::any(random)
        }
    }

    /// A peer without pauses, throttles or delays, which half-closes at once.
    pub fn prompt(random: &mut Rng) -> Self {
        let at_once = Pace { rate: u64::MAX, chunk: 32 << 10, pause: None };
        let (write, read, depth) = (at_once, at_once, u64::MAX);
        let (up, down, then) = (Path::FAST, Path::FAST, Then::HalfCloses);
        Self { write, read, up, down, depth, then, ..Self::any(random) }
    }

    /// The same peer, connecting later than the others.
    pub fn late(self, after: Duration) -> Self {
        Self { late: Some(after), ..self }
    }

    /// The same peer, leaving by itself.
    pub fn leaving(self, after: Duration, how: Leaves) -> Self {
        Self { leaves: Some((after, how)), ..self }
    }

    /// Connects and completes the handshake, unless the server has already exited.
    pub fn connect(&self, server: SocketAddr) -> Option<Peer> {
        let (mut stream, passed) = match relay::connect(server, self.up, self.down) {
            Ok(relay::Relayed { stream, passed }) => (stream, passed),
            Err(_) if self.late.is_some() => return None,
            Err(error) => panic!("the peer cannot connect: {error}"),
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello = raw::hello(1, "DEALER", b"");
        stream.write_all(&hello).unwrap();
        match stream.read_exact(&mut [0; raw::SERVER_HELLO]) {
            Ok(()) => {}
            Err(error) if self.late.is_some() && has_ended(&error) => return None,
            Err(error) => panic!("the handshake failed: {error}"),
        }
        // From now on, it checks regularly whether it has left.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        Some(Peer {
            plan: self.clone(),
            stream,
            passed,
            hello: hello.len() as u64,
            received: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }
}

/// A pace at which `total` bytes take up to a few seconds, including pauses. Some pauses are longer
/// than the quiet period.
fn pace(random: &mut Rng, total: usize) -> Pace {
    let takes = *random.choice(&[0, 0, 300, 1000, 1500]).unwrap();
    let rate = (total as u64 * 1000).checked_div(takes).map_or(u64::MAX, |rate| rate.max(1));
    let chunk = *random.choice(&[1, 100, 1460, 32 << 10]).unwrap();
    let pause = match random.u8(..4) {
        0 => Some((total / random.usize(1..4) + 1, Duration::from_millis(random.u64(50..800)))),
        _ => None,
    };
    Pace { rate, chunk: chunk.max(total / 500), pause }
}

/// A path on which `total` bytes in chunks of this size take up to a few seconds.
fn path(random: &mut Rng, total: usize, chunk: usize) -> Path {
    let delay = Duration::from_millis(*random.choice(&[0, 0, 1, 5, 30]).unwrap());
    let chunks = (total / chunk.min(32 << 10)).max(1) as u32;
    let takes = *random.choice(&[0, 0, 500, 1500]).unwrap();
    let rate = (total as u64 * 1000).checked_div(takes).map_or(u64::MAX, |rate| rate.max(1000));
    let piece = *random.choice(&[1, 7, 100, 1460, 32 << 10]).unwrap();
    Path { delay: delay.min(Duration::from_secs(1) / chunks), rate, piece: piece.max(total / 2000) }
}

/// A connected peer.
pub struct Peer {
    plan: Plan,
    stream: TcpStream,
    /// How many of its bytes the kernel has taken for the server, and how many of them belong to
    /// the handshake.
    passed: Arc<AtomicU64>,
    hello: u64,
    received: AtomicU64,
    /// Set once it has read the server's FIN, or has disconnected by itself.
    ended: AtomicBool,
}

/// The outcome of a peer's requests.
#[derive(Debug, Default, Clone, Copy)]
pub struct Account {
    /// Requests whose last byte the peer has written.
    pub written: u64,
    /// Requests whose last byte the server's kernel has received.
    pub reached: u64,
    /// Bytes of a message that it has started but not finished.
    pub begun: u64,
    /// Replies, in order and intact.
    pub received: u64,
    /// It disconnected by itself.
    pub left: bool,
}

impl Peer {
    /// Sends and reads. Returns when the server has closed or the peer has left.
    pub fn run(self) -> Account {
        let mut account = Account { left: self.plan.leaves.is_some(), ..Account::default() };
        let (sent, ends) = thread::scope(|scope| {
            let writing = scope.spawn(|| self.write());
            scope.spawn(|| self.read());
            if let Some((after, how)) = self.plan.leaves {
                self.wait(after);
                self.leave(how);
            }
            writing.join().expect("the writing thread does not panic")
        });
        account.written = ends.len() as u64;
        account.begun = sent - ends.last().copied().unwrap_or(0);
        account.received = self.received.load(Ordering::SeqCst);
        // The relay passes on the data it holds, then the FIN.
        let _ = self.stream.shutdown(Shutdown::Write);
        let passed = self.passed;
        let deadline = Instant::now() + DEADLINE;
        drop(self.stream);
        // The count is final once the relay's thread has dropped its end of the connection.
        while Arc::strong_count(&passed) > 1 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let passed = passed.load(Ordering::SeqCst).saturating_sub(self.hello);
        account.reached = ends.iter().filter(|end| **end <= passed).count() as u64;
        account
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Waits for `time`, or until the connection has ended.
    fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.ended() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn leave(&self, how: Leaves) {
        if how == Leaves::ByReset {
            // The reset is sent when the socket is dropped.
            SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Sends until it is finished or the server has closed. Returns how many bytes it sent, without
    /// PINGs, and the position at which each request was complete.
    fn write(&self) -> (u64, Vec<u64>) {
        let mut pacer = Pacer::new(self.plan.write);
        let (mut sent, mut ends) = (0, Vec::new());
        let sizes = self.plan.sizes.0.iter().cycle();
        let count = if self.plan.endless { usize::MAX } else { self.plan.sizes.0.len() };
        for (number, size) in (0..).zip(sizes.take(count)) {
            while number - self.received.load(Ordering::SeqCst) >= self.plan.depth {
                if self.ended() {
                    return (sent, ends);
                }
                thread::sleep(Duration::from_micros(200));
            }
            let message = self.message(body(number, *size));
            for chunk in message.chunks(self.plan.write.chunk) {
                let count = self.send(chunk);
                sent += count as u64;
                if count < chunk.len() {
                    return (sent, ends);
                }
                pacer.moved(count);
            }
            ends.push(sent);
            self.wait(self.plan.gap);
        }
        match self.plan.then {
            Then::Stays => {}
            Then::HalfCloses => {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            Then::Pings => {
                while !self.ended() {
                    self.send(&raw::command(b"\x04PING\0\0"));
                    self.wait(Duration::from_millis(50));
                }
            }
        }
        (sent, ends)
    }

    fn message(&self, body: &[u8]) -> Vec<u8> {
        let first = body.len().div_ceil(self.plan.frames);
        let mut frames: Vec<&[u8]> = body.chunks(first.max(1)).collect();
        frames.resize(self.plan.frames, b"");
        raw::message(&frames)
    }

    /// Writes until the connection has ended. Returns how many bytes the kernel has taken.
    fn send(&self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() && !self.ended() {
            match (&self.stream).write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        sent
    }

    /// Reads replies to the end, and then reports the end.
    fn read(&self) {
        let mut input = Paced { peer: self, pacer: Pacer::new(self.plan.read) };
        let mut reply = Vec::new();
        while let Some((flags, bytes)) = next_frame(&mut input) {
            if flags & 0x04 != 0 {
                continue;
            }
            reply.push(bytes);
            if flags & 0x01 == 0 {
                let number = self.received.load(Ordering::SeqCst);
                let size = self.plan.sizes.0[number as usize % self.plan.sizes.0.len()];
                assert_eq!(
                    reply.len(),
                    self.plan.frames,
                    "reply {number} has another number of frames than its request"
                );
                assert!(
                    reply.concat() == body(number, size),
                    "reply {number} differs from its request"
                );
                self.received.store(number + 1, Ordering::SeqCst);
                reply.clear();
            }
        }
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// The data a peer reads, at its pace and until it has left.
struct Paced<'a> {
    peer: &'a Peer,
    pacer: Pacer,
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.pacer.pace.chunk);
        let deadline = Instant::now() + DEADLINE;
        while !self.peer.ended() && Instant::now() < deadline {
            match (&self.peer.stream).read(&mut buffer[..room]) {
                Ok(count) => {
                    self.pacer.moved(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Err(if self.peer.ended() { ErrorKind::UnexpectedEof } else { ErrorKind::TimedOut }.into())
    }
}

/// The next frame or command, or `None` at the end, even if it comes in the middle of one.
fn next_frame(input: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut next = || {
        let mut flags = [0];
        input.read_exact(&mut flags)?;
        let mut size = [0; 8];
        let width = if flags[0] & 0x02 == 0 { 1 } else { 8 };
        input.read_exact(&mut size[8 - width..])?;
        let mut bytes = vec![0; u64::from_be_bytes(size) as usize];
        input.read_exact(&mut bytes)?;
        Ok((flags[0], bytes))
    };
    match next() {
        Ok(frame) => Some(frame),
        Err(error) if has_ended(&error) => None,
        Err(error) => {
            panic!("the peer received neither data nor the end of the connection: {error}")
        }
    }
}

fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}
