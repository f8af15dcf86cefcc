//! One connection: its stream, its partial message and its replies.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::io::ioctl_fionread;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use super::limits::{ALLOWANCE, MESSAGES};
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

/// Minimum size of a read, so that small frames do not cost a system call each: after a message
/// in memory of its own, and at the end of a message that is larger than others were.
const LEAST_READ: usize = 4 << 10;

/// The stages of a connection.
#[derive(Debug)]
pub enum State {
    /// Exchanging greeting and READY.
    Handshake(Box<Handshake>),
    /// The handshake failed and has been counted. The peer has a moment to read why.
    Refused(Refused),
    /// Exchanging messages.
    Established,
    /// We have closed our direction, and wait for the peer to close the other one.
    HalfClosed,
}

/// How long a refused peer may stay.
#[derive(Debug)]
pub struct Refused {
    /// The connection is closed at this time at the latest.
    pub until: Instant,
    /// How many more bytes are read and discarded before it is closed.
    pub unread: usize,
    /// Whether we have closed our direction.
    pub half_closed: bool,
}

/// How the body of a PING begins (RFC 37).
const PING: &[u8] = b"\x04PING";

/// Assumed size of a message before any has come. The first reads are then 16 KiB.
const FIRST_SIZE: usize = 32;

/// The maximum number of reads ahead whose times are kept. Bytes of further ones get the time of
/// the last.
const AHEAD_READS: usize = 8;

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    /// Usually whole frames: the start of a message, and what follows it.
    Batch {
        /// The bytes kept of the message, and the bytes just read.
        bytes: Bytes,
        /// Whether the memory belongs to this message alone.
        own: bool,
    },
    /// More of a large frame that is still incomplete.
    More,
    /// The peer closed its direction.
    End,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    /// Distinguishes the connections that have used this slot.
    pub generation: u64,
    /// The peer's address.
    pub address: SocketAddr,
    /// Its place among the connections, and whether it may be dropped to make room for another.
    pub place: Place,
    /// Puts the peer on the ready list.
    pub bell: Arc<Bell>,
    waker: Waker,
    /// The connection's stage.
    pub state: State,
    /// The identity that routes replies to it. Empty until the handshake is complete.
    pub identity: Bytes,
    /// Whether it is a client rather than a monitor.
    pub is_client: bool,
    /// Whether it has shown that it knows PING, by sending a PING or PONG.
    pub knows_ping: bool,
    /// The shortest time between two of its PINGs, or from the start to the first one. `None` if
    /// none has been seen.
    pub ping_interval: Option<Duration>,
    /// When its last PING was seen.
    ping_at: Instant,
    /// Whether that PING is still among its unread bytes.
    has_seen_ping: bool,
    /// When we last looked for a PING among its unread bytes.
    pub peeked_at: Instant,
    /// Whether it is a REQ, whose messages must be requests.
    pub is_req: bool,
    /// The bytes of an incomplete message.
    pub partial: Vec<u8>,
    /// How far `partial` has been scanned.
    pub scan: Scan,
    /// The minimum number of bytes that `partial` lacks.
    pub missing: usize,
    /// How fast the partial message arrives, while there is one.
    pub half_message: Option<Meter>,
    /// The window in which it must grow by a minimum number of bytes.
    pub window: Window,
    /// Bytes received since the connection was made.
    pub received: u64,
    /// Average size of the messages of its last batch, so that a read fits what one turn takes.
    pub message_size: usize,
    /// Bytes to send.
    pub out: OutQueue,
    /// Whether the last write left something behind.
    pub blocked: bool,
    /// When reading paused, because too much is waiting to be sent or is in flight.
    pub paused_at: Option<Instant>,
    /// How fast replies leave that the kernel did not accept at once, while there are some.
    pub backlog: Option<Meter>,
    /// Bytes sent since the connection was made.
    pub written: u64,
    /// The value of `written` when the last reply was complete.
    pub replied: u64,
    /// Whether a reply has been sent since bytes last came. The peer may be busy with it.
    pub has_replies: bool,
    /// Set when the peer has closed its direction: why to close once it has its replies.
    pub ended: Option<Reason>,
    /// When the connection was accepted.
    pub accepted_at: Instant,
    /// When to send our READY even if the peer's has not arrived.
    pub ready_at: Option<Instant>,
    /// When bytes last came from the peer.
    pub read_at: Instant,
    /// When bytes last left for the peer, or began to wait.
    pub moved_at: Instant,
    /// When bytes of a client's request or of a reply to it last moved.
    pub active_at: Instant,
    /// When we last asked the kernel whether the host is reachable.
    pub looked_at: Instant,
    /// Whether the host seemed lost at that time, or the handshake had already been late once.
    pub doubted: bool,
    /// When we sent the PING that is unanswered.
    pub pinged_at: Option<Instant>,
    /// How long the peer may stay silent, according to its last PING.
    pub ttl: Option<Duration>,
    /// The deadline that the clock holds for this peer.
    pub alarm_at: Option<Instant>,
    /// Requests in flight, and the bytes that they hold.
    pub in_flight: usize,
    pub in_flight_bytes: usize,
    /// Whether the peer is not read from because too many of its requests are in flight.
    pub is_busy: bool,
    /// How many of the waiting bytes were read in that state, only to look for PINGs.
    pub ahead: usize,
    /// When these were read, in order, and how many each time. At most [`AHEAD_READS`].
    ahead_reads: VecDeque<(Instant, usize)>,
    /// When the waiting bytes before them were read.
    pub kept_at: Instant,
    /// Dropped once the peer has room for more replies.
    pub tokens: Vec<Box<dyn Any + Send>>,
    /// The memory charged for this peer.
    pub charged: usize,
    /// The replies counted for this peer.
    pub owed: usize,
}

impl Peer {
    /// Creates a connection that was accepted at `now`, and queues the start of the greeting.
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
            ping_interval: None,
            ping_at: now,
            has_seen_ping: false,
            peeked_at: now,
            is_req: false,
            partial: Vec::new(),
            scan: Scan::default(),
            missing: 0,
            half_message: None,
            window: Window::new(now, 0),
            received: 0,
            message_size: FIRST_SIZE,
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
            ahead_reads: VecDeque::new(),
            kept_at: now,
            tokens: Vec::new(),
            charged: 0,
            owed: 0,
        }
    }

    /// Limits the kernel's buffers to `bytes` for requests and a quarter of that for replies
    /// (Linux doubles both), and sends small replies at once. Errors are ignored, because a
    /// broken connection shows at the next read.
    ///
    /// Room for requests keeps a peer's window open while others have their turns. Replies leave
    /// as they are written, so more room for them would only waste cache.
    pub fn bound_kernel_buffers(&self, bytes: usize) {
        let socket = SockRef::from(&self.stream);
        let _ = socket.set_recv_buffer_size(bytes);
        let _ = socket.set_send_buffer_size(bytes / 4);
        let _ = socket.set_tcp_nodelay(true);
    }

    /// Makes the kernel probe the peer when it is silent.
    pub fn keep_alive(&self, interval: Duration) {
        keep_alive(&self.stream, interval);
    }

    /// Reads about `messages` messages once into `scratch`, which the socket owns and which has
    /// `limit` bytes. If the arriving frame is larger than that, it reads into memory of its own
    /// instead. Bytes kept of a message go to the front of the batch. Messages that an earlier
    /// turn left behind come first, without a read.
    pub fn poll_read(
        &mut self,
        scratch: &mut BytesMut,
        limit: usize,
        messages: usize,
    ) -> Poll<io::Result<Read>> {
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
        let wanted = self.message_size.saturating_mul(messages).saturating_sub(self.partial.len());
        let room = (limit - self.partial.len()).min(wanted.max(self.missing).max(LEAST_READ));
        let mut room = (&mut *scratch).limit(room);
        let read = ready!(poll_once(&self.waker, self.stream.read_buf(&mut room)))?;
        if read == 0 {
            return Poll::Ready(Ok(Read::End));
        }
        self.received += read as u64;
        self.partial = Vec::new();
        Poll::Ready(Ok(Read::Batch { bytes: scratch.split().freeze(), own: false }))
    }

    /// The memory grows with what has arrived, not with what was announced.
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

    /// Reads up to [`ALLOWANCE`] bytes after the waiting requests, to find PINGs among them.
    /// Returns when bytes came, or `None` if the peer closed its direction.
    pub fn poll_read_ahead(&mut self) -> Poll<io::Result<Option<Instant>>> {
        let room = ALLOWANCE - self.ahead;
        // Exactly, because `reserve` would double the memory of a partial message.
        self.partial.reserve_exact(room);
        let mut ahead = (&mut self.partial).limit(room);
        let read = poll_once(&self.waker, self.stream.read_buf(&mut ahead));
        if read.is_pending() && self.partial.is_empty() {
            self.partial = Vec::new();
        }
        let read = ready!(read)?;
        if read == 0 {
            return Poll::Ready(Ok(None));
        }
        let now = Instant::now();
        self.received += read as u64;
        self.ahead += read;
        let is_full = self.ahead_reads.len() == AHEAD_READS;
        match self.ahead_reads.back_mut().filter(|_| is_full) {
            Some((_, bytes)) => *bytes += read,
            None => self.ahead_reads.push_back((now, read)),
        }
        // The next turn finds out how many bytes are missing.
        self.missing = 0;
        Poll::Ready(Ok(Some(now)))
    }

    /// Keeps the times of the last `ahead` bytes that were read ahead.
    pub fn keep_ahead(&mut self, ahead: usize) {
        let mut processed = self.ahead - ahead;
        self.ahead = ahead;
        while let Some((_, bytes)) = self.ahead_reads.front_mut() {
            let part = processed.min(*bytes);
            *bytes -= part;
            processed -= part;
            if *bytes > 0 {
                break;
            }
            self.ahead_reads.pop_front();
        }
    }

    /// Removes these bytes, which may have been read ahead, from the waiting ones. The ranges are in
    /// order. Each byte is moved at most once, because there may be thousands of ranges.
    fn remove(&mut self, ranges: &[Range<usize>]) {
        let Some(first) = ranges.first() else { return };
        let mut start = self.partial.len() - self.ahead;
        for (_, bytes) in &mut self.ahead_reads {
            let end = start + *bytes;
            let within =
                |range: &Range<usize>| range.end.min(end).saturating_sub(range.start.max(start));
            let removed: usize = ranges.iter().map(within).sum();
            *bytes -= removed;
            self.ahead -= removed;
            start = end;
        }
        self.ahead_reads.retain(|(_, bytes)| *bytes > 0);
        let mut to = first.start;
        for (at, range) in ranges.iter().enumerate() {
            let end = ranges.get(at + 1).map_or(self.partial.len(), |next| next.start);
            self.partial.copy_within(range.end..end, to);
            to += end - range.end;
        }
        self.partial.truncate(to);
    }

    /// When the next of the waiting messages were read, and how many messages and commands were
    /// complete by then. `None` if no later ones are waiting.
    pub fn next_kept(&self, limits: &MessageLimits) -> (Instant, Option<usize>) {
        let mut reads = self.ahead_reads.iter();
        let (mut read_at, mut complete_at) = (self.kept_at, self.partial.len() - self.ahead);
        let (mut scan, mut from, mut count) = (self.scan.clone(), 0, 0);
        while !self.ahead_reads.is_empty() && count < MESSAGES {
            let end = match scan.step(&self.partial[from..], limits) {
                Ok(Scanned::Message(bytes)) => {
                    from += bytes;
                    from
                }
                Ok(Scanned::Command(body)) => from + body.end,
                // Errors are handled once these bytes are processed in order.
                Ok(Scanned::Partial(_)) | Err(_) => break,
            };
            while end > complete_at {
                if count > 0 {
                    return (read_at, Some(count));
                }
                let Some((later, bytes)) = reads.next() else { break };
                (read_at, complete_at) = (*later, complete_at + bytes);
            }
            count += 1;
        }
        (read_at, None)
    }

    /// Whether bytes may be read to look for PINGs while requests wait.
    pub fn can_read_ahead(&self) -> bool {
        self.ahead < ALLOWANCE && self.ended.is_none() && matches!(self.state, State::Established)
    }

    /// Removes the PINGs from the waiting bytes and returns their bodies.
    pub fn take_pings(&mut self, limits: &MessageLimits) -> Vec<Vec<u8>> {
        let bodies: Vec<_> = pings(self.scan.clone(), &self.partial, limits).collect();
        let taken = bodies.iter().map(|body| self.partial[body.clone()].to_vec()).collect();
        let whole = |body: &Range<usize>| {
            let header = frame::command_header(&self.partial, body.start);
            body.start - header..body.end
        };
        let ranges: Vec<_> = bodies.iter().map(whole).collect();
        self.remove(&ranges);
        taken
    }

    /// Whether there is a PING among the unread bytes, of which the first `limit` are examined. They
    /// stay unread.
    pub fn has_unread_ping(&self, limit: usize, limits: &MessageLimits) -> bool {
        let kept = self.partial.len();
        let mut bytes = self.partial.clone();
        bytes.resize(kept + limit, 0);
        let mut unread = ReadBuf::new(&mut bytes[kept..]);
        let peek = std::future::poll_fn(|cx| self.stream.poll_peek(cx, &mut unread));
        let Poll::Ready(Ok(count)) = poll_once(&self.waker, peek) else { return false };
        bytes.truncate(kept + count);
        pings(self.scan.clone(), &bytes, limits).next().is_some()
    }

    /// Notes that a PING was read at `now`, or seen before it was read. One that was seen is read
    /// later, and several may be read at the same time. Their distance is not the peer's interval.
    pub fn saw_ping(&mut self, now: Instant, is_unread: bool) {
        let interval = now.saturating_duration_since(self.ping_at);
        let was_seen = std::mem::replace(&mut self.has_seen_ping, is_unread);
        let counts = !was_seen && !interval.is_zero();
        self.ping_interval = match self.ping_interval {
            Some(known) if counts => Some(known.min(interval)),
            Some(known) => Some(known),
            None => Some(interval),
        };
        self.ping_at = now;
        self.knows_ping = true;
    }

    /// Whether complete messages are left that an earlier turn read but did not hand out.
    pub fn has_messages(&self) -> bool {
        self.missing == 0 && !self.partial.is_empty()
    }

    /// Whether another turn may have something to read. If not, the bell rings once there is.
    pub fn is_readable(&self) -> bool {
        self.has_messages() || self.has_unread()
    }

    /// Whether the kernel may have more bytes. If not, the bell rings when it does.
    pub fn has_unread(&self) -> bool {
        let readable = std::future::poll_fn(|cx| self.stream.poll_read_ready(cx));
        poll_once(&self.waker, readable).is_ready()
    }

    /// Number of received bytes that are still in the kernel. The runtime may not know about them
    /// yet.
    pub fn unread(&self) -> usize {
        ioctl_fionread(&self.stream).map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// What the kernel knows about the connection.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        TcpInfo::of(&self.stream)
    }

    /// Writes as much as the kernel accepts. The bell rings when it accepts more. For `replied`,
    /// see [`OutQueue::advance`].
    pub fn flush(&mut self, mut replied: impl FnMut(Instant, u32, usize)) -> io::Result<()> {
        while !self.out.is_empty() {
            let stream = &mut self.stream;
            let out = &self.out;
            let write = std::future::poll_fn(|cx| match out.only_slice() {
                // The usual case. The kernel handles it faster than a list of slices.
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
        // A handshake may arrive very slowly, so it gets extra time only once.
        self.doubted &= matches!(self.state, State::Handshake(_));
        self.has_replies = false;
        if let Some(meter) = &mut self.half_message {
            meter.add(now, bytes);
        }
    }

    /// Call this when a batch that was read at `now` is done. `messages` says whether it
    /// contained any. The remaining bytes are in `partial`.
    pub fn track_message(&mut self, messages: bool, now: Instant) {
        let left = self.partial.len();
        if self.is_client && (messages || self.has_part_of_message()) {
            self.active_at = now;
        }
        // After many commands, a batch may end within a message. That message continues.
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

    /// Queues a reply to a request that was read at `read_at`. Takes the frames and returns their
    /// payload size.
    #[inline(always)]
    pub fn queue(&mut self, frames: &mut VecDeque<Bytes>, read_at: Instant, label: u32) -> usize {
        if self.out.is_empty() {
            // The request may have waited for its turn, but the reply begins to wait now.
            self.moved_at = read_at.max(self.moved_at).max(self.read_at);
        }
        self.out.push_reply(frames, read_at, label)
    }

    /// Closes our direction.
    pub fn half_close(&mut self) -> io::Result<()> {
        let stream = &mut self.stream;
        let shutdown = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx));
        // A TCP shutdown is never pending.
        match poll_once(&self.waker, shutdown) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Adapts the size of the next reads. The last `count` messages took `bytes` bytes.
    pub fn adapt(&mut self, bytes: usize, count: usize) {
        if let Some(average) = bytes.checked_div(count) {
            self.message_size = average;
        }
    }

    /// Whether the peer is not read from, because too many replies are waiting for it or too many
    /// of its requests are in flight.
    pub fn is_paused(&self) -> bool {
        self.is_busy || self.is_behind()
    }

    /// Whether its requests must wait. `is_full` says that the limit for all peers is reached. It
    /// does not apply to monitors: a busy server would fail their checks and be restarted.
    pub fn must_wait(&self, is_full: bool) -> bool {
        self.is_busy || (is_full && self.is_client)
    }

    /// Whether so many replies are waiting that the peer is not read from.
    pub fn is_behind(&self) -> bool {
        self.out.len() > ALLOWANCE
    }

    /// Memory held beyond the struct itself, in bytes.
    pub fn held(&self) -> usize {
        let handshake = match &self.state {
            State::Handshake(handshake) => handshake.held(),
            _ => 0,
        };
        self.partial.capacity() + self.out.held() + handshake + self.in_flight_bytes
    }

    /// Notes that reading has paused or resumed. While it is paused, a message cannot make
    /// progress.
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
                // We were not reading, so the peer's silence during the pause does not count.
                self.read_at = now;
                self.pinged_at = None;
            }
            _ => {}
        }
    }

    /// Since when the peer has held memory between its turns: for a handshake, a partial message or
    /// replies that the kernel has not accepted. `None` if it holds none.
    pub fn holds_since(&self) -> Option<Instant> {
        if matches!(self.state, State::Handshake(_)) {
            return Some(self.accepted_at);
        }
        let meters = [&self.half_message, &self.backlog];
        meters.into_iter().flatten().map(Meter::since).min()
    }

    /// How many seconds it would take to free the peer's memory at its current rate.
    pub fn seconds_to_clear(&self, now: Instant) -> f64 {
        if matches!(self.state, State::Handshake(_)) {
            // It holds more than its allowance, so its metadata is larger than any client needs.
            return f64::INFINITY;
        }
        let seconds = |held: usize, rate: f64| if held == 0 { 0.0 } else { held as f64 / rate };
        let message = self.half_message.as_ref().map_or(0.0, |meter| {
            // An upload has no reason to pause, unlike a reader that works on its replies.
            let rate = meter.lowest_rate(self.paused_at.unwrap_or(now));
            seconds(self.partial.len(), rate)
        });
        let replies =
            self.backlog.as_ref().map_or(0.0, |meter| seconds(self.out.len(), meter.rate(now)));
        message.max(replies)
    }

    /// Whether part of a message has been read, but not all of it.
    pub fn has_part_of_message(&self) -> bool {
        self.missing > 0 && self.scan.is_in_message(&self.partial)
    }

    /// How many of the received bytes have been processed, except those of an unfinished frame.
    pub fn handled(&self) -> u64 {
        let waiting = if self.has_messages() { self.partial.len() } else { 0 };
        self.received - waiting as u64
    }

    /// Takes the bytes that were read but not handed out. Returns the number of complete
    /// messages, their payload size, and the number of bytes of an incomplete message after them.
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
                // The peer broke the protocol. What follows is not a request.
                Err(_) => return (messages, payload, 0),
                Ok(Scanned::Partial(_)) => {
                    let left = if self.scan.is_in_message(&bytes) { bytes.len() } else { 0 };
                    return (messages, payload, left);
                }
            }
        }
    }
}

/// The bodies of the PINGs among `bytes`, in order. They follow what `scan` has scanned. Ends at an
/// error, which is handled once these bytes are processed in order.
fn pings(
    mut scan: Scan,
    bytes: &[u8],
    limits: &MessageLimits,
) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            match scan.step(&bytes[from..], limits) {
                Ok(Scanned::Message(end)) => from += end,
                Ok(Scanned::Command(body)) => {
                    let body = from + body.start..from + body.end;
                    if bytes[body.clone()].starts_with(PING) {
                        return Some(body);
                    }
                }
                Ok(Scanned::Partial(_)) | Err(_) => return None,
            }
        }
    })
}

/// Polls `future` once with `waker`, outside the runtime's cooperative budget. The socket limits
/// its turns itself.
fn poll_once<T>(waker: &Waker, future: impl Future<Output = T>) -> Poll<T> {
    pin!(unconstrained(future)).poll(&mut Context::from_waker(waker))
}
