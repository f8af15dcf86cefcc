//! Complete sessions over TCP: one or two peers do what the input says, while a well-behaved peer
//! must be served as usual.
//!
//! The socket, its listener and the well-behaved peer stay from input to input, on the same thread
//! and runtime as the peers. After each input the socket must be in the same state as before, so
//! that an input that finds a fault reproduces it alone.
#![no_main]

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use zmq_echo::metrics::{LATENCY_BUCKETS, Metrics, SocketObserver, log_records_dropped};
use zmq_echo_fuzz::{End, READY, frame, greeting, hello, outcome, ready};
use zmtp::Reason;
use zmtp::router::{ALLOWANCE, Limits, Router};

/// A deadline for every step, generous enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Limits with a pool for everything that two peers can send.
const ROOMY: Limits = Limits {
    message_bytes: 512 << 10,
    message_frames: 64,
    metadata_bytes: 4 << 10,
    peers: 20,
    peers_per_address: 0,
    handshake_timeout: DEADLINE,
    stall_timeout: DEADLINE,
    stall_bytes: 1,
    buffer_bytes: 4 << 20,
    socket_buffer: 64 << 10,
    heartbeat_interval: Duration::ZERO,
    in_flight_per_peer: 16,
    in_flight: 64,
    busy_poll: Duration::ZERO,
};

/// Limits with a pool that is too small for one large message.
const TIGHT: Limits = Limits {
    message_bytes: 64 << 10,
    message_frames: 4,
    metadata_bytes: 64,
    buffer_bytes: 32 << 10,
    ..ROOMY
};

/// Maximum bytes that one peer sends, so that each input runs fast.
const STREAM: usize = 1 << 20;

/// Once a peer has more bytes to send than this, an input no longer waits for replies between
/// steps, because the model starts from the beginning each time.
const SETTLED: usize = 64 << 10;

/// How many bytes are certain to be delivered before a fault. More may be lost in the kernel,
/// because closing a connection with unread bytes resets it.
const DELIVERED: usize = 16 << 10;

/// The identity of the well-behaved peer.
const WELL_BEHAVED: &[u8] = b"well-behaved";

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    WORLD.with_borrow_mut(|world| world.get_or_insert_with(World::new).play(input));
});

struct World {
    runtime: Runtime,
    roomy: Service,
    tight: Service,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        // Rust's own start-up code makes a process ignore SIGPIPE, but libFuzzer's does not.
        runtime.block_on(async { drop(signal(SignalKind::pipe()).unwrap()) });
        let [roomy, tight] = [ROOMY, TIGHT].map(|limits| runtime.block_on(Service::start(limits)));
        Self { runtime, roomy, tight }
    }

    fn play(&mut self, input: &[u8]) {
        let Some((choice, script)) = input.split_first() else { return };
        let service = if choice & 1 == 0 { &mut self.roomy } else { &mut self.tight };
        self.runtime.block_on(service.play(choice >> 1, script));
    }
}

/// A socket and its peers.
struct Service {
    limits: Limits,
    address: SocketAddr,
    metrics: Metrics,
    router: Router<SocketObserver>,
    peers: Vec<Peer>,
    /// It is not one of `peers`, and stays connected throughout.
    well_behaved: Peer,
    /// How many messages the well-behaved peer has sent.
    messages_sent: u64,
}

/// How one connection ended, as the socket counts it: whether it was established,
/// and the reason.
type Ended = (bool, Reason);

impl Service {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new(&LATENCY_BUCKETS, &["echo"], log_records_dropped());
        let router =
            Router::bind([listener], limits, SocketObserver::new(metrics.socket.clone())).unwrap();
        let mut well_behaved = Peer::connect(address);
        well_behaved.write(&greeting(1));
        well_behaved.write(&ready("DEALER", WELL_BEHAVED));
        let mut service = Self {
            limits,
            address,
            metrics,
            router,
            peers: Vec::new(),
            well_behaved,
            messages_sent: 0,
        };
        service.drive(|service| service.well_behaved.received.len() == 64 + READY.len()).await;
        service.well_behaved.forget();
        service
    }

    async fn play(&mut self, choice: u8, script: &[u8]) {
        let before = self.ended();
        let lost = self.metrics.socket.undeliverable_peer_gone.get();
        let mut script = Script(script);
        for _ in 0..=choice & 1 {
            let mut peer = Peer::connect(self.address);
            match script.byte() % 8 {
                0 => {}
                1 => peer.write(&greeting(1)),
                2 => peer.write(&[&greeting(0)[..], &ready("REQ", WELL_BEHAVED)].concat()),
                3 => peer.write(&[&greeting(3)[..], &ready("ROUTER", b"me")].concat()),
                _ => peer.write(&[&greeting(1)[..], &ready("DEALER", b"")].concat()),
            }
            self.peers.push(peer);
        }
        while !script.0.is_empty() {
            self.step(&mut script).await;
        }
        self.well_behaved_is_served().await;
        for index in 0..self.peers.len() {
            self.leave(index, choice >> (1 + 2 * index)).await;
        }
        self.drive(|service| service.router.connections() == 1).await;
        self.well_behaved_is_served().await;

        let metrics = &self.metrics.socket;
        assert_eq!(metrics.peers.get(), 1);
        assert_eq!(metrics.pending_replies.get(), 0);
        assert_eq!(metrics.buffered_bytes.get(), 0);
        let ended: Vec<Ended> = difference(&before, &self.ended());
        let expectations: Vec<Expectation> =
            self.peers.iter().map(|peer| self.expectation(peer)).collect();
        assert!(
            explained(&ended, &expectations),
            "connections ended with {ended:?}, expected {expectations:?}"
        );
        if expectations.iter().all(|peer| peer.whole) && !ended.contains(&(true, Reason::PoolFull))
        {
            assert_eq!(metrics.undeliverable_peer_gone.get(), lost);
        }
        self.peers.clear();
    }

    /// Runs the next step of the script.
    async fn step(&mut self, script: &mut Script<'_>) {
        let step = script.byte();
        let index = usize::from(step >> 3) % self.peers.len();
        let peer = &mut self.peers[index];
        match step % 8 {
            0 => {
                let count = script.byte();
                peer.write(script.take(usize::from(count)));
            }
            1 => {
                let frames = 1 + script.byte() % 4;
                let mut message = Vec::new();
                for number in 1..=frames {
                    let size = match script.byte() {
                        small @ 0..200 => usize::from(small),
                        large => (usize::from(large) - 199) * 10_000,
                    };
                    let body: Vec<u8> = (0..size).map(|at| at as u8 ^ frames).collect();
                    frame(&mut message, u8::from(number < frames), &body);
                }
                peer.write(&message);
            }
            2 => {
                let context = script.take(usize::from(step >> 4));
                let mut ping = Vec::new();
                frame(&mut ping, 4, &[b"\x04PING\0\0", context].concat());
                peer.write(&ping);
            }
            3 => {
                let last = peer.stream[peer.last_write..].to_vec();
                let most = if last.len() < 1 << 10 { SETTLED } else { STREAM };
                let times = usize::from(script.byte()).min(most / last.len().max(1));
                peer.write(&last.repeat(times));
            }
            4 => {
                self.settle(index).await;
                self.well_behaved_is_served().await;
            }
            5 => self.pump(index, true).await,
            6 => self.pump(index, false).await,
            _ => {
                let abort = script.byte().is_multiple_of(16);
                peer.half_close |= !abort;
                peer.abort |= abort;
                self.pump(index, true).await;
            }
        }
    }

    /// Sends everything that the peer has to send, and waits for all replies.
    async fn settle(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.stream.len() > SETTLED || peer.abort {
            return self.pump(index, true).await;
        }
        peer.released = peer.stream.len();
        peer.reads = true;
        let expected = self.expectation(&self.peers[index]).least;
        self.drive(|service| {
            let peer = &service.peers[index];
            peer.ended || peer.received.len() >= expected
        })
        .await;
    }

    /// Sends as much of what the peer has to send as possible in a few turns.
    async fn pump(&mut self, index: usize, reads: bool) {
        let peer = &mut self.peers[index];
        peer.released = peer.stream.len();
        peer.reads = reads;
        peer.read_always &= reads;
        let mut turns = 0;
        poll_fn(|cx| {
            self.turn(cx);
            turns += 1;
            if turns == 4 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Disconnects the peer, in one of three ways.
    async fn leave(&mut self, index: usize, way: u8) {
        match way % 4 {
            // As most peers do: closes its direction and reads all replies.
            0 | 1 => {
                let peer = &mut self.peers[index];
                peer.half_close = true;
            }
            // Reads all replies, then resets the connection.
            2 => {
                self.settle(index).await;
                self.peers[index].abort = true;
            }
            // Resets the connection without waiting.
            _ => self.peers[index].abort = true,
        }
        let peer = &mut self.peers[index];
        peer.released = peer.stream.len();
        peer.reads = true;
        self.drive(|service| service.peers[index].ended).await;
    }

    async fn well_behaved_is_served(&mut self) {
        self.messages_sent += 1;
        let mut message = Vec::new();
        frame(&mut message, 1, &self.messages_sent.to_be_bytes());
        frame(&mut message, 0, WELL_BEHAVED);
        self.well_behaved.write(&message);
        self.well_behaved.released = message.len();
        self.drive(|service| service.well_behaved.received.len() >= message.len()).await;
        assert!(!self.well_behaved.ended);
        assert_eq!(self.well_behaved.received, message);
        self.well_behaved.forget();
    }

    async fn drive(&mut self, mut until: impl FnMut(&Self) -> bool) {
        let work = poll_fn(|cx| {
            self.turn(cx);
            if until(self) { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::time::timeout(DEADLINE, work).await.expect("the socket does what is due in time");
    }

    /// One turn of all peers, and of the socket with an echo handler.
    fn turn(&mut self, cx: &mut Context<'_>) {
        for peer in self.peers.iter_mut().chain([&mut self.well_behaved]) {
            peer.turn(cx);
        }
        loop {
            let received = pin!(self.router.recv()).poll(cx);
            let Poll::Ready(request) = received else { break };
            let mut next = Some(request);
            while let Some(mut request) = next {
                self.router
                    .send(&mut request)
                    .expect("the peer that sent the request is connected");
                next = self.router.try_recv();
            }
        }
        // The gauges are updated when the socket has to wait, as it does now.
        self.check_buffered();
    }

    fn check_buffered(&self) {
        let buffered = self.metrics.socket.buffered_bytes.get() as usize;
        let open = self.router.connections();
        assert!(
            buffered <= open * ALLOWANCE + self.limits.buffer_bytes,
            "{buffered} bytes are held"
        );
        // Bytes that were only announced reserve no memory. An empty message takes two bytes in
        // each direction, and eight to count its reply.
        let sent: usize = self.peers.iter().map(|peer| peer.sent).sum();
        assert!(
            buffered <= 8 * sent + open * (16 << 10),
            "{buffered} bytes are held for {sent} bytes"
        );
    }

    /// How many connections have ended in each way.
    fn ended(&self) -> Vec<(Ended, u64)> {
        let metrics = &self.metrics.socket;
        let count = |family: &prometheus::IntCounterVec, reason: Reason| {
            family.get_metric_with_label_values(&[reason.as_str()]).map_or(0, |count| count.get())
        };
        let failed = Reason::ALL.iter().filter(|reason| reason.before_ready());
        let left = Reason::ALL.iter().filter(|reason| reason.after_ready());
        failed
            .map(|reason| ((false, *reason), count(&metrics.failures, *reason)))
            .chain(left.map(|reason| ((true, *reason), count(&metrics.disconnections, *reason))))
            .collect()
    }

    /// The expected result of the peer's stream. Also checks the bytes that it received.
    fn expectation(&self, peer: &Peer) -> Expectation {
        let limits = &self.limits;
        let hello = hello(&peer.stream, limits.metadata_bytes);
        let mut expected = hello.sent;
        // If the peer was slow, our READY did not wait for its own. If it is then refused, nothing
        // follows our READY, which is longer than any ERROR.
        let waited = if hello.greeted && hello.result.is_err() {
            [&greeting(1), READY].concat()
        } else {
            Vec::new()
        };
        let (end, mut may_end) = match hello.result {
            Err(end @ End::Fault(reason)) => (end, vec![Some((false, reason))]),
            Err(End::Whole) => (End::Whole, vec![None]),
            Err(End::Within) => (End::Within, vec![Some((false, Reason::Error))]),
            Ok(announced) => {
                let rest = &peer.stream[announced.bytes..];
                let is_req = announced.is_req;
                let outcome = outcome(rest, limits.message_bytes, limits.message_frames, is_req);
                expected.extend_from_slice(&outcome.replies);
                let reason = match outcome.end {
                    End::Whole => Reason::Closed,
                    End::Within => Reason::Error,
                    End::Fault(reason) => reason,
                };
                let mut may_end = vec![Some((true, reason))];
                if outcome.ttl {
                    may_end.push(Some((true, Reason::Vanished)));
                }
                (outcome.end, may_end)
            }
        };
        let least = expected.len();
        // Only `play` evaluates this, at the end; before that, more bytes may follow.
        let fault = matches!(end, End::Fault(_));
        let certain = !fault || (peer.read_always && least <= DELIVERED);
        if self.limits == TIGHT {
            may_end.push(Some((true, Reason::PoolFull)));
        }
        if peer.abort {
            // The reset may overtake bytes that the peer sent before.
            may_end.push(None);
            may_end.extend([false, true].map(|established| Some((established, Reason::Error))));
            may_end.push(Some((true, Reason::Closed)));
        }
        assert!(
            expected.starts_with(&peer.received) || waited.starts_with(&peer.received),
            "of {} received and {} expected bytes, some differ",
            peer.received.len(),
            expected.len()
        );
        let all = peer.received.len() >= least;
        // If replies are missing, only the ends that explain it remain.
        let whole = all && !peer.abort;
        if !all && certain && !peer.abort && peer.ended {
            may_end.retain(|end| matches!(end, Some((_, Reason::PoolFull | Reason::Vanished))));
        }
        Expectation { least, whole, may_end }
    }
}

/// The possible results for a peer.
#[derive(Debug)]
struct Expectation {
    /// Minimum bytes that the peer must receive.
    least: usize,
    /// Whether it received them and did not abort.
    whole: bool,
    /// How its connection may be counted; `None` for not at all.
    may_end: Vec<Option<Ended>>,
}

/// The ends that were counted between two readings.
fn difference(before: &[(Ended, u64)], after: &[(Ended, u64)]) -> Vec<Ended> {
    let counts = before.iter().zip(after).map(|((end, before), (_, after))| (*end, after - before));
    counts.flat_map(|(end, count)| (0..count).map(move |_| end)).collect()
}

/// Whether the ends can be assigned to the peers, one to each.
fn explained(ended: &[Ended], expected: &[Expectation]) -> bool {
    let Some((first, rest)) = expected.split_first() else { return ended.is_empty() };
    first.may_end.iter().any(|end| match end {
        None => explained(ended, rest),
        Some(end) => ended
            .iter()
            .position(|other| other == end)
            .is_some_and(|at| explained(&[&ended[..at], &ended[at + 1..]].concat(), rest)),
    })
}

/// A peer of the socket.
struct Peer {
    socket: Option<TcpStream>,
    /// All bytes that it has to send. `released` of them may be sent, and `sent` have been.
    stream: Vec<u8>,
    released: usize,
    sent: usize,
    /// The position in `stream` where the last write began.
    last_write: usize,
    received: Vec<u8>,
    reads: bool,
    read_always: bool,
    /// Whether to close its direction when everything is sent.
    half_close: bool,
    /// Whether to reset the connection at the next turn.
    abort: bool,
    /// Whether the socket has closed the connection, or this peer has.
    ended: bool,
}

impl Peer {
    fn connect(address: SocketAddr) -> Self {
        let socket = std::net::TcpStream::connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        SockRef::from(&socket).set_recv_buffer_size(64 << 10).unwrap();
        Self {
            socket: Some(TcpStream::from_std(socket).unwrap()),
            stream: Vec::new(),
            released: usize::MAX,
            sent: 0,
            last_write: 0,
            received: Vec::new(),
            reads: true,
            read_always: true,
            half_close: false,
            abort: false,
            ended: false,
        }
    }

    /// Adds bytes to send, unless the peer is already disconnecting.
    fn write(&mut self, bytes: &[u8]) {
        if self.half_close || self.abort || self.stream.len() + bytes.len() > STREAM {
            return;
        }
        self.last_write = self.stream.len();
        self.stream.extend_from_slice(bytes);
    }

    fn forget(&mut self) {
        self.stream.clear();
        self.received.clear();
        self.sent = 0;
    }

    fn turn(&mut self, cx: &mut Context<'_>) {
        let Some(socket) = &self.socket else { return };
        let released = self.released.min(self.stream.len());
        while self.sent < released && socket.poll_write_ready(cx).is_ready() {
            match socket.try_write(&self.stream[self.sent..released]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The socket has closed the connection. Read what is left.
                Err(_) => break,
            }
        }
        if self.half_close && self.sent == self.stream.len() {
            // This fails if it was done before, or if the connection is closed.
            let _ = SockRef::from(socket).shutdown(Shutdown::Write);
        }
        while self.reads && !self.ended && socket.poll_read_ready(cx).is_ready() {
            let mut bytes = [0; 16 << 10];
            match socket.try_read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.ended = true,
            }
        }
        if self.abort || self.ended {
            // A reset, which leaves no port in TIME_WAIT.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            self.socket = None;
            self.ended = true;
        }
    }
}

/// The rest of the input. After its end, it gives zeros.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }
}
