//! One connection: its stream, what has come of a message, what is to be sent.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::io::ioctl_fionread;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use super::limits::ALLOWANCE;
use super::places::Place;
use super::progress::{Meter, Window};
use super::ready::Bell;
use crate::proto::frame::{self, MessageLimits, Scan, Scanned};
use crate::proto::handshake::Handshake;
use crate::proto::mechanism::Mechanism;
use crate::proto::mechanism::null::Null;
use crate::proto::out_queue::{OutQueue, SLICES};
use crate::proto::peer_info::{Local, Role, SocketType};
use crate::reason::Reason;
use crate::tcp_info::{TcpInfo, keep_alive};

/// The least room for a read behind a message in memory of its own, so that small
/// frames behind a large one do not take a system call each.
const LEAST_READ: usize = 4 << 10;

/// Where a connection is in its life.
#[derive(Debug)]
pub enum State {
    /// Greeting and READY.
    Handshake(Box<Handshake>),
    /// The handshake has failed and is counted. The peer has a moment to read why.
    Refused(Refused),
    /// Messages.
    Established,
    /// We have said that nothing more comes from us, and wait for the same.
    HalfClosed,
}

/// How long a refused peer may stay.
#[derive(Debug)]
pub struct Refused {
    /// It is closed then at the latest.
    pub until: Instant,
    /// How many more bytes are read from it, and ignored, before it is closed.
    pub unread: usize,
    /// Whether we have said that nothing more comes from us.
    pub half_closed: bool,
}

/// How the body of a PING begins (RFC 37).
const PING: &[u8] = b"\x04PING";

/// What a first read takes at most, before it is known how large the messages are.
const FIRST_READ: usize = 16 << 10;

/// What a read brought.
#[derive(Debug)]
pub enum Read {
    /// The start of a message, whole frames mostly, and what follows it.
    Batch {
        /// What has been kept of the message, and what has come.
        bytes: Bytes,
        /// Whether the memory is this message's own.
        own: bool,
    },
    /// More of a large frame that is still not whole.
    More,
    /// The peer sends nothing more.
    End,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Which of the connections that have had its slot.
    pub generation: u64,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its share of the places, and whether it may have to give way.
    pub place: Place,
    /// Puts the peer on the ready list.
    pub bell: Arc<Bell>,
    waker: Waker,
    /// Where the connection is in its life.
    pub state: State,
    /// What routes replies to it. Empty until the handshake is done.
    pub identity: Bytes,
    /// Whether its requests count as a client's.
    pub is_client: bool,
    /// Whether it has shown that it knows PING, by a PING or PONG of its own.
    pub knows_ping: bool,
    /// Whether it is a REQ, whose messages have to be requests.
    pub is_req: bool,
    /// The start of a message that is not whole, as it came.
    pub partial: Vec<u8>,
    /// How far `partial` has been scanned.
    pub scan: Scan,
    /// How many bytes `partial` lacks at least.
    pub missing: usize,
    /// How fast half a message comes, while there is one.
    pub half_message: Option<Meter>,
    /// The window in which it has to bring a minimum of bytes.
    pub window: Window,
    /// Bytes that it has sent us since the connection was made.
    pub received: u64,
    /// What a read takes at most, so that its messages fit a turn.
    appetite: usize,
    /// What it is to be sent.
    pub out: OutQueue,
    /// Whether the last write left something behind.
    pub blocked: bool,
    /// When reading from it paused because too much waits to be sent to it.
    pub paused_at: Option<Instant>,
    /// How fast replies leave that the kernel did not take at once, while there are some.
    pub backlog: Option<Meter>,
    /// Bytes that we have sent it since the connection was made.
    pub written: u64,
    /// How many of them there were when a reply left last.
    pub replied: u64,
    /// Whether a reply has left since its bytes came last: it may be busy with that.
    pub has_replies: bool,
    /// It sends nothing more, and why it is to be closed when it has its replies.
    pub ended: Option<Reason>,
    /// When the connection was accepted.
    pub accepted_at: Instant,
    /// When it is sent our READY even if its own has not come.
    pub ready_at: Option<Instant>,
    /// When its bytes came last.
    pub read_at: Instant,
    /// When bytes to it left last, or began to wait.
    pub moved_at: Instant,
    /// When bytes of a client's requests or of replies to it moved last.
    pub active_at: Instant,
    /// When we last asked the kernel whether its host is there.
    pub looked_at: Instant,
    /// Whether its host seemed to be lost at that look, or its handshake to be late.
    pub doubted: bool,
    /// When we sent the PING that is not answered.
    pub pinged_at: Option<Instant>,
    /// How long it may be silent, by the PING that was the last to come from it.
    pub ttl: Option<Duration>,
    /// The deadline for it that the clock holds.
    pub alarm_at: Option<Instant>,
    /// Its requests that are being worked on, and what they hold.
    pub in_flight: usize,
    pub in_flight_bytes: usize,
    /// Whether these are so many that it is not read from.
    pub is_busy: bool,
    /// Bytes that were read since then, in search of PINGs.
    pub ahead: usize,
    /// What is dropped once it has room for more replies.
    pub tokens: Vec<Box<dyn Any + Send>>,
    /// The memory that it has been charged for.
    pub charged: usize,
    /// The replies it has been charged for.
    pub owed: usize,
}

impl Peer {
    /// A connection that was accepted at `now`. The start of the greeting is queued.
    pub fn new(
        stream: TcpStream,
        generation: u64,
        address: SocketAddr,
        place: Place,
        bell: Arc<Bell>,
        now: Instant,
    ) -> Self {
        let local = Local {
            role: Role::Listening,
            socket_type: SocketType::Router,
            identity: Bytes::new(),
        };
        let mut handshake = Handshake::new(local, Mechanism::Null(Null::default()));
        let mut out = OutQueue::default();
        out.push_bytes(|out| handshake.start(out));
        Self {
            stream,
            generation,
            address,
            place,
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            state: State::Handshake(Box::new(handshake)),
            identity: Bytes::new(),
            is_client: true,
            knows_ping: false,
            is_req: false,
            partial: Vec::new(),
            scan: Scan::default(),
            missing: 0,
            half_message: None,
            window: Window::new(now, 0),
            received: 0,
            appetite: FIRST_READ,
            out,
            blocked: false,
            paused_at: None,
            backlog: None,
            written: 0,
            replied: 0,
            has_replies: false,
            ended: None,
            accepted_at: now,
            ready_at: None,
            read_at: now,
            moved_at: now,
            active_at: now,
            looked_at: now,
            doubted: false,
            pinged_at: None,
            ttl: None,
            alarm_at: None,
            in_flight: 0,
            in_flight_bytes: 0,
            is_busy: false,
            ahead: 0,
            tokens: Vec::new(),
            charged: 0,
            owed: 0,
        }
    }

    /// Has the kernel hold `bytes` of requests, and a quarter of that of replies, and
    /// no more (Linux doubles both), and send small replies at once. A connection that
    /// is broken already says so when it is read.
    ///
    /// Room for requests keeps a peer's window open while others have their turns.
    /// Replies leave as they are written; room for more of them only cools the caches.
    pub fn bound_kernel_buffers(&self, bytes: usize) {
        let socket = SockRef::from(&self.stream);
        let _ = socket.set_recv_buffer_size(bytes);
        let _ = socket.set_send_buffer_size(bytes / 4);
        let _ = socket.set_tcp_nodelay(true);
    }

    /// Has the kernel probe the peer when it is silent.
    pub fn keep_alive(&self, interval: Duration) {
        keep_alive(&self.stream, interval);
    }

    /// Reads once into `scratch`, which is the socket's and has `limit` bytes, or
    /// into memory of its own where the frame that comes is larger than that.
    /// What has been kept of a message moves to the front of the batch. Messages
    /// that an earlier turn has left come first, without a read.
    pub fn poll_read(&mut self, scratch: &mut BytesMut, limit: usize) -> Poll<io::Result<Read>> {
        if self.has_messages() {
            let bytes = std::mem::take(&mut self.partial).into();
            return Poll::Ready(Ok(Read::Batch { bytes, own: true }));
        }
        if self.partial.len() + self.missing > limit {
            return self.poll_read_own();
        }
        scratch.clear();
        scratch.reserve(limit);
        scratch.extend_from_slice(&self.partial);
        let room = (limit - self.partial.len()).min(self.appetite.max(self.missing));
        let mut room = (&mut *scratch).limit(room);
        let read = ready!(poll_once(&self.waker, self.stream.read_buf(&mut room)))?;
        if read == 0 {
            return Poll::Ready(Ok(Read::End));
        }
        self.received += read as u64;
        self.partial = Vec::new();
        Poll::Ready(Ok(Read::Batch { bytes: scratch.split().freeze(), own: false }))
    }

    /// Grows with what has come, not with what has been announced.
    fn poll_read_own(&mut self) -> Poll<io::Result<Read>> {
        if self.partial.len() == self.partial.capacity() {
            self.partial.reserve_exact(self.missing.min(self.partial.len()).max(LEAST_READ));
        }
        let room = self.partial.capacity() - self.partial.len();
        let mut own = (&mut self.partial).limit(room.min(self.missing.max(LEAST_READ)));
        let read = ready!(poll_once(&self.waker, self.stream.read_buf(&mut own)))?;
        self.received += read as u64;
        self.missing = self.missing.saturating_sub(read);
        Poll::Ready(Ok(match read {
            0 => Read::End,
            _ if self.missing > 0 => Read::More,
            _ => Read::Batch { bytes: std::mem::take(&mut self.partial).into(), own: true },
        }))
    }

    /// Reads what comes behind the requests that wait, up to [`ALLOWANCE`] bytes, so that PINGs
    /// in there are seen. Returns whether anything has come.
    pub fn poll_read_ahead(&mut self) -> Poll<io::Result<bool>> {
        let room = ALLOWANCE - self.ahead;
        self.partial.reserve(room);
        let mut ahead = (&mut self.partial).limit(room);
        let read = ready!(poll_once(&self.waker, self.stream.read_buf(&mut ahead)))?;
        self.received += read as u64;
        self.ahead += read;
        // How many bytes are missing is found out when their turn comes.
        self.missing = 0;
        Poll::Ready(Ok(read > 0))
    }

    /// Whether it may be read from in search of PINGs, while its requests wait.
    pub fn can_read_ahead(&self) -> bool {
        self.ahead < ALLOWANCE && self.ended.is_none() && matches!(self.state, State::Established)
    }

    /// Takes the PINGs out of what waits, each with its time to live and its context.
    pub fn take_pings(&mut self, limits: &MessageLimits) -> Vec<Vec<u8>> {
        let mut pings = Vec::new();
        let mut scan = self.scan.clone();
        let mut from = 0;
        // What is wrong in there is found out when its turn comes.
        while let Ok(scanned) = scan.step(&self.partial[from..], limits) {
            match scanned {
                Scanned::Message(end) => from += end,
                Scanned::Partial(_) => break,
                Scanned::Command(body) => {
                    let command = from + body.start..from + body.end;
                    if self.partial[command.clone()].starts_with(PING) {
                        pings.push(self.partial[command.clone()].to_vec());
                        let header = frame::command_header(&self.partial, command.start);
                        self.partial.drain(command.start - header..command.end);
                        scan.take_back(header, body.len());
                    }
                }
            }
        }
        pings
    }

    /// Whether a turn has ended before the messages that it had read.
    pub fn has_messages(&self) -> bool {
        self.missing == 0 && !self.partial.is_empty()
    }

    /// Whether there may be more for a turn; if not, the bell rings when there is.
    pub fn is_readable(&self) -> bool {
        self.has_messages() || self.has_unread()
    }

    /// Whether there may be more in the kernel; if not, the bell rings when there is.
    pub fn has_unread(&self) -> bool {
        let readable = std::future::poll_fn(|cx| self.stream.poll_read_ready(cx));
        poll_once(&self.waker, readable).is_ready()
    }

    /// How many bytes it has sent that lie in the kernel. The runtime may not have heard of
    /// them yet.
    pub fn unread(&self) -> usize {
        ioctl_fionread(&self.stream).map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// What the kernel knows of the connection.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        TcpInfo::of(&self.stream)
    }

    /// Writes what there is and the kernel takes; the bell rings when it takes more.
    /// `replied` is [`OutQueue::advance`]'s.
    pub fn flush(&mut self, mut replied: impl FnMut(Instant, u32, usize)) -> io::Result<()> {
        while !self.out.is_empty() {
            let stream = &mut self.stream;
            let out = &self.out;
            let write = std::future::poll_fn(|cx| match out.only_slice() {
                // Nearly always, and the kernel does it faster than a list.
                Some(only) => Pin::new(&mut *stream).poll_write(cx, only),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = out.slices(&mut slices);
                    Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count])
                }
            });
            match poll_once(&self.waker, write) {
                Poll::Pending => {
                    self.blocked = true;
                    return Ok(());
                }
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    let written = written?;
                    self.written += written as u64;
                    self.out.advance(written, &mut replied);
                }
            }
        }
        Ok(())
    }

    /// Counts `bytes` that were read at `now`.
    pub fn heard(&mut self, now: Instant, bytes: usize) {
        self.read_at = now;
        self.pinged_at = None;
        self.ttl = None;
        // A handshake may be trickled: it is given more time only once.
        self.doubted &= matches!(self.state, State::Handshake(_));
        self.has_replies = false;
        if let Some(meter) = &mut self.half_message {
            meter.add(now, bytes);
        }
    }

    /// Notes that a batch which was read at `now` is through, and whether it had messages. What
    /// is left of it is in `partial`.
    pub fn track_message(&mut self, messages: bool, now: Instant) {
        let left = self.partial.len();
        if self.is_client && (messages || self.has_part_of_message()) {
            self.active_at = now;
        }
        // A batch may end within a message, after many commands: that message goes on.
        let goes_on = self.missing > 0 || self.scan.is_in_message(&self.partial);
        if messages || left == 0 || !goes_on {
            self.half_message = None;
        }
        if self.missing > 0 && left > 0 && self.half_message.is_none() {
            let mut meter = Meter::new(now);
            meter.add(now, left);
            self.half_message = Some(meter);
            self.window = Window::new(now, self.received - left as u64);
        }
    }

    /// Counts `bytes` that left at [`Peer::moved_at`], when `owed` replies were queued.
    pub fn track_replies(&mut self, bytes: usize, owed: usize) {
        if owed > 0 {
            self.has_replies = true;
            if self.is_client {
                self.active_at = self.moved_at;
            }
        }
        if self.out.replies() < owed {
            self.replied = self.written;
        }
        if self.out.is_empty() {
            self.backlog = None;
        } else {
            let meter = self.backlog.get_or_insert_with(|| Meter::new(self.moved_at));
            meter.add(self.moved_at, bytes);
        }
    }

    /// Queues a reply to a request that was read at `read_at`. Takes the frames, and
    /// returns their bytes.
    #[inline]
    pub fn queue(&mut self, frames: &mut VecDeque<Bytes>, read_at: Instant, label: u32) -> usize {
        if self.out.is_empty() {
            self.moved_at = read_at.max(self.moved_at);
        }
        self.out.push_reply(frames, read_at, label)
    }

    /// Tells the peer that nothing more comes.
    pub fn half_close(&mut self) -> io::Result<()> {
        let stream = &mut self.stream;
        let shutdown = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx));
        // A TCP shutdown is never pending.
        match poll_once(&self.waker, shutdown) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Reads from now on, up to `limit` bytes, what makes about `messages` of the size
    /// of the last ones: `count` in `bytes`.
    pub fn adapt(&mut self, bytes: usize, count: usize, messages: usize, limit: usize) {
        if let Some(average) = bytes.checked_div(count) {
            self.appetite = (average * messages).clamp(LEAST_READ, limit);
        }
    }

    /// Whether it is not read from: so many replies wait for it, or so many of its requests are
    /// being worked on.
    pub fn is_paused(&self) -> bool {
        self.is_busy || self.is_behind()
    }

    /// Whether so many replies wait for it that it is not read from.
    pub fn is_behind(&self) -> bool {
        self.out.len() > ALLOWANCE
    }

    /// The memory that this connection holds beyond its own struct.
    pub fn held(&self) -> usize {
        let handshake = match &self.state {
            State::Handshake(handshake) => handshake.held(),
            _ => 0,
        };
        self.partial.capacity() + self.out.held() + handshake + self.in_flight_bytes
    }

    /// Notes that reading has paused or resumed: meanwhile a message cannot make progress.
    pub fn pause_or_resume(&mut self, now: Instant) {
        match (self.is_paused(), self.paused_at) {
            (true, None) => self.paused_at = Some(now),
            (false, Some(paused_at)) => {
                let paused = now.saturating_duration_since(paused_at);
                self.paused_at = None;
                self.window.since += paused;
                if let Some(meter) = &mut self.half_message {
                    meter.suspend(paused);
                }
                // It could not be heard.
                self.read_at = now;
                self.pinged_at = None;
            }
            _ => {}
        }
    }

    /// When it began to hold what it holds now, if it is more than it gets by its turns.
    pub fn holds_since(&self) -> Option<Instant> {
        if matches!(self.state, State::Handshake(_)) {
            return Some(self.accepted_at);
        }
        let meters = [&self.half_message, &self.backlog];
        meters.into_iter().flatten().map(Meter::since).min()
    }

    /// How many seconds it takes at the peer's rate until what it holds is free again.
    pub fn seconds_to_clear(&self, now: Instant) -> f64 {
        if matches!(self.state, State::Handshake(_)) {
            // More metadata than any client needs.
            return f64::INFINITY;
        }
        let seconds = |held: usize, rate: f64| if held == 0 { 0.0 } else { held as f64 / rate };
        let message = self.half_message.as_ref().map_or(0.0, |meter| {
            // It has no reason to pause, unlike a reader that works on its replies.
            let rate = meter.lowest_rate(self.paused_at.unwrap_or(now));
            seconds(self.partial.len(), rate)
        });
        let replies =
            self.backlog.as_ref().map_or(0.0, |meter| seconds(self.out.len(), meter.rate(now)));
        message.max(replies)
    }

    /// Whether a part of a message has been read whose rest has not come.
    pub fn has_part_of_message(&self) -> bool {
        self.missing > 0 && self.scan.is_in_message(&self.partial)
    }

    /// How many of the bytes that have come have been looked at, but for an unfinished frame.
    pub fn handled(&self) -> u64 {
        let waiting = if self.has_messages() { self.partial.len() } else { 0 };
        self.received - waiting as u64
    }

    /// Takes what has been read and not handed out: how many whole messages, the payload of
    /// these, and how many bytes of another message are left behind them.
    pub fn take_kept(&mut self, limits: &MessageLimits) -> (u64, usize, usize) {
        let mut bytes = Bytes::from(std::mem::take(&mut self.partial));
        let (mut messages, mut payload) = (0, 0);
        loop {
            match self.scan.step(&bytes, limits) {
                Ok(Scanned::Message(end)) => {
                    messages += 1;
                    payload += frame::split_frames(&mut bytes, end, &mut VecDeque::new());
                }
                Ok(Scanned::Command(_)) => {
                    if let Some(end) = self.scan.between_messages() {
                        bytes.advance(end);
                    }
                }
                // The peer has broken the protocol: what is behind that is no request.
                Err(_) => return (messages, payload, 0),
                Ok(Scanned::Partial(_)) => {
                    let left = if self.scan.is_in_message(&bytes) { bytes.len() } else { 0 };
                    return (messages, payload, left);
                }
            }
        }
    }
}

/// Polls `future` once with `waker`, outside the runtime's cooperative budget: a
/// turn of the socket is bounded by the socket.
fn poll_once<T>(waker: &Waker, future: impl Future<Output = T>) -> Poll<T> {
    pin!(unconstrained(future)).poll(&mut Context::from_waker(waker))
}
