//! One connection to one server.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::ioctl_fionread;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use super::DealerConfig;
use crate::memory_pool::Share;
use crate::message::Message;
use crate::proto::connection::{Arrival, Connection, Received};
use crate::proto::out_queue::SLICES;
use crate::proto::peer_info::{Local, PeerInfo, Role};
use crate::reason::Reason;
use crate::tcp_info::{TcpInfo, keep_alive};

/// What each socket may buffer without drawing on the pool: one read.
const ALLOWANCE: usize = 64 << 10;

/// How much longer to wait for a server if unread bytes may have arrived. The process may have
/// been stopped for a while.
const ANOTHER_TURN: Duration = Duration::from_millis(50);

/// How many reads one poll makes without a message before it yields to the caller's other
/// futures. A server may send endless commands.
const READS: usize = 32;

/// Longer than any connection lasts. The clock cannot represent every time, and callers express
/// "never" as a very long duration.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A message that was not queued, because the connection has ended or the maximum number of bytes is
/// already waiting.
#[derive(Debug, thiserror::Error)]
#[error("the connection has ended or its send queue is full")]
pub struct Unsent(pub Message);

/// A DEALER socket with one connection. See [`crate::dealer`] for an example.
///
/// Messages are numbered from 0 in the order in which they are sent. [`Dealer::written`] returns
/// how many of them the kernel has accepted completely. The server cannot have seen any of the
/// others, even if the connection breaks, so it is safe to send those again elsewhere.
#[derive(Debug)]
pub struct Dealer {
    stream: TcpStream,
    address: SocketAddr,
    connection: Connection,
    peer: Option<PeerInfo>,
    heartbeat_interval: Duration,
    heartbeat_timeout: Duration,
    send_bytes: usize,
    memory: Option<Share>,
    /// Messages queued since the start.
    sent: u64,
    /// Why writing failed. What the server sent before is still read.
    unwritable: Option<Reason>,
    ended: Option<Reason>,
    heard_at: Instant,
    /// Messages that were written, minus those that the server has answered or is known to have
    /// read.
    unanswered: u64,
    /// When the unanswered PING was sent.
    pinged_at: Option<Instant>,
    /// PINGs that were sent and not answered.
    pings: u32,
    /// How many messages were queued before the last PING.
    sent_before_ping: u64,
    /// When we last checked whether the server is lost.
    looked_at: Instant,
    /// How long the server may stay silent, according to its last PING.
    ttl: Option<Duration>,
    alarm: Pin<Box<Sleep>>,
    /// Whether the alarm is set for as early as necessary.
    is_set: bool,
    /// Reads in the current poll.
    reads: usize,
}

impl Dealer {
    /// Wraps a new connection. The handshake comes first.
    pub(super) fn new(stream: TcpStream, address: SocketAddr, config: &DealerConfig) -> Self {
        let _ = stream.set_nodelay(true);
        if !config.heartbeat_interval.is_zero() {
            keep_alive(&stream, config.heartbeat_interval);
        }
        let local = Local {
            role: Role::Connecting,
            socket_type: config.socket_type,
            identity: config.identity.clone(),
        };
        let now = Instant::now();
        Self {
            stream,
            address,
            connection: Connection::new(local, config.limits),
            peer: None,
            heartbeat_interval: config.heartbeat_interval.min(YEAR),
            heartbeat_timeout: config.heartbeat_timeout.min(YEAR),
            send_bytes: config.send_bytes,
            memory: config.memory.as_ref().map(|pool| pool.share()),
            sent: 0,
            unwritable: None,
            ended: None,
            heard_at: now,
            unanswered: 0,
            pinged_at: None,
            pings: 0,
            sent_before_ping: 0,
            looked_at: now,
            ttl: None,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            is_set: false,
            reads: 0,
        }
    }

    pub(super) async fn shake_hands(&mut self) -> Result<(), Reason> {
        let arrival = poll_fn(|cx| {
            self.reads = 0;
            self.poll_arrival(cx, |received| received.into_message())
        });
        match arrival.await? {
            Arrival::Connected(peer) => {
                self.peer = Some(peer);
                Ok(())
            }
            // Nothing else can arrive before that.
            _ => Err(Reason::DataBeforeReady),
        }
    }

    pub(super) fn refusal(&self) -> Option<&Bytes> {
        self.connection.refusal()
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queues a message and returns its number. It is written while [`Dealer::recv`] is polled.
    ///
    /// # Errors
    ///
    /// The message, if the connection has ended or [`DealerConfig::send_bytes`] are already waiting.
    pub fn send(&mut self, message: Message) -> Result<u64, Unsent> {
        let unwritten = self.connection.unwritten();
        let is_full = unwritten > 0 && unwritten + message.bytes() > self.send_bytes;
        if is_full || self.ended.is_some() {
            return Err(Unsent(message));
        }
        self.connection.send(message, self.heard_at);
        self.sent += 1;
        Ok(self.sent - 1)
    }

    /// Like [`Dealer::send`], for a message of a short tag, an empty frame, short `head` frames
    /// and a payload of one frame. The tag and the head are copied. The message is always
    /// accepted.
    pub fn send_tagged(&mut self, tag: &[u8], head: &[&[u8]], payload: &Bytes) -> u64 {
        self.connection.send_tagged(tag, head, payload, self.heard_at);
        self.sent += 1;
        self.sent - 1
    }

    /// Bytes waiting to be written.
    pub fn unwritten(&self) -> usize {
        self.connection.unwritten()
    }

    /// Memory held beyond the struct itself, in bytes.
    pub fn held(&self) -> usize {
        self.connection.held()
    }

    /// How many messages the kernel has accepted completely.
    pub fn written(&self) -> u64 {
        self.sent - self.connection.unwritten_messages() as u64
    }

    /// Waits for the next message. Meanwhile it writes queued messages, answers PINGs and sends
    /// its own.
    ///
    /// Cancel-safe: a message is returned as soon as it is taken, with no await in between.
    /// Everything else stays in the socket.
    ///
    /// # Errors
    ///
    /// Why the connection has ended. Later calls return the same reason.
    pub async fn recv(&mut self) -> Result<Message, Reason> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Polls for the next message, like [`Dealer::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Reason>> {
        self.poll_recv_as(cx, |received| received.into_message())
    }

    /// Like [`Dealer::recv`], but converts the message with `make`.
    ///
    /// # Errors
    ///
    /// See [`Dealer::recv`].
    pub async fn recv_as<M>(&mut self, make: fn(Received<'_>) -> M) -> Result<M, Reason> {
        poll_fn(|cx| self.poll_recv_as(cx, make)).await
    }

    /// Like [`Dealer::recv_as`], but also returns, with `None`, once fewer than `below` bytes are
    /// waiting to be written. Use it to wait for room for the next message.
    ///
    /// # Errors
    ///
    /// See [`Dealer::recv`].
    pub async fn recv_or_room<M>(
        &mut self,
        below: usize,
        make: fn(Received<'_>) -> M,
    ) -> Result<Option<M>, Reason> {
        poll_fn(|cx| match self.poll_recv_as(cx, make) {
            Poll::Ready(received) => Poll::Ready(received.map(Some)),
            Poll::Pending if self.unwritten() < below => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn poll_recv_as<M>(
        &mut self,
        cx: &mut Context<'_>,
        make: fn(Received<'_>) -> M,
    ) -> Poll<Result<M, Reason>> {
        self.reads = 0;
        loop {
            match std::task::ready!(self.poll_arrival(cx, make))? {
                Arrival::Message(message) => return Poll::Ready(Ok(message)),
                Arrival::Ping(_) | Arrival::Pong => {}
                Arrival::Connected(_) => return Poll::Ready(Err(Reason::Command)),
            }
        }
    }

    /// Returns the next message that has already been read, or `None`. Reads nothing.
    ///
    /// # Errors
    ///
    /// See [`Dealer::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, Reason> {
        self.try_recv_as(|received| received.into_message())
    }

    /// Like [`Dealer::try_recv`], but converts the message with `make`.
    ///
    /// # Errors
    ///
    /// See [`Dealer::recv`].
    #[inline]
    pub fn try_recv_as<M>(
        &mut self,
        make: impl FnOnce(Received<'_>) -> M + Copy,
    ) -> Result<Option<M>, Reason> {
        loop {
            match self.next_arrival(make)? {
                Some(Arrival::Message(message)) => return Ok(Some(message)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// What has already been read.
    #[inline]
    fn next_arrival<M>(
        &mut self,
        make: impl FnOnce(Received<'_>) -> M,
    ) -> Result<Option<Arrival<M>>, Reason> {
        if let Some(reason) = self.ended {
            return Err(reason);
        }
        let arrival =
            self.connection.poll_as(make).inspect_err(|reason| self.ended = Some(*reason))?;
        match &arrival {
            Some(Arrival::Message(_)) => {
                self.ttl = None;
                self.unanswered = self.unanswered.saturating_sub(1);
            }
            Some(Arrival::Ping(ttl)) => self.pinged(*ttl),
            Some(Arrival::Pong) => self.ponged(),
            Some(Arrival::Connected(_)) | None => {}
        }
        if arrival.is_some() {
            // A message has left the buffer, and a smaller charge never fails.
            let _ = self.charge();
        }
        Ok(arrival)
    }

    /// The server has sent a PING.
    fn pinged(&mut self, ttl: Option<Duration>) {
        self.ttl = ttl;
        if ttl.is_some_and(|ttl| self.alarm.deadline() > (self.heard_at + ttl).into()) {
            self.is_set = false;
        }
    }

    /// The server has sent a PONG, so it has read everything sent before the PING.
    fn ponged(&mut self) {
        self.ttl = None;
        self.pings = self.pings.saturating_sub(1);
        if self.pings == 0 {
            self.unanswered = self.unanswered.min(self.sent - self.sent_before_ping);
        }
    }

    fn poll_arrival<M>(
        &mut self,
        cx: &mut Context<'_>,
        make: fn(Received<'_>) -> M,
    ) -> Poll<Result<Arrival<M>, Reason>> {
        loop {
            match self.next_arrival(make) {
                Ok(Some(arrival)) => return Poll::Ready(Ok(arrival)),
                Ok(None) => {}
                Err(reason) => {
                    // This may tell the server why.
                    let _ = self.write(cx);
                    return Poll::Ready(Err(reason));
                }
            }
            let was_full = !self.connection.wants_bytes();
            self.try_to_write(cx);
            if was_full && self.connection.wants_bytes() {
                // There may be messages in the buffer behind the PINGs.
                continue;
            }
            if self.reads == READS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.reads += 1;
            let ended = match self.read(cx) {
                Ok(true) => continue,
                Ok(false) => self.keep_watch(cx),
                Err(reason) => Some(self.unwritable.unwrap_or(reason)),
            };
            let Some(reason) = ended else { return Poll::Pending };
            self.ended = Some(reason);
            return Poll::Ready(Err(reason));
        }
    }

    /// Writes, unless that has failed before. A failure does not end the connection yet: there
    /// may be messages to read. Reading then shows that the connection has ended.
    fn try_to_write(&mut self, cx: &mut Context<'_>) {
        if self.unwritable.is_none()
            && let Err(reason) = self.write(cx)
        {
            self.unwritable = Some(reason);
            self.connection.stop_answering();
            self.is_set = false;
        }
    }

    /// Writes as much as the kernel accepts.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        while self.connection.unwritten() > 0 {
            let written = match self.connection.only_slice() {
                Some(only) => self.stream.try_write(only),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = self.connection.slices(&mut slices);
                    self.stream.try_write_vectored(&slices[..count])
                }
            };
            match written {
                Ok(0) => return Err(Reason::Error),
                Ok(count) => {
                    let before = self.connection.unwritten_messages();
                    self.connection.advance(count);
                    self.unanswered += (before - self.connection.unwritten_messages()) as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.stream.poll_write_ready(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Err(Reason::of(&error)),
                        Poll::Pending => return Ok(()),
                    }
                }
                Err(error) => return Err(Reason::of(&error)),
            }
        }
        Ok(())
    }

    /// Reads once. Returns whether anything came.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        if !self.connection.wants_bytes() {
            return Ok(false);
        }
        // This bypasses the runtime's budget, because `READS` bounds a poll. A read that does not
        // fill the buffer tells the runtime that nothing more is there, which saves a system
        // call.
        let reading = unconstrained(self.stream.read_buf(self.connection.read_buffer()));
        let read = pin!(reading).poll(cx);
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => {
                let is_whole = self.peer.is_some() && !self.connection.has_part_of_message();
                Err(if is_whole { Reason::Closed } else { Reason::Error })
            }
            Poll::Ready(Ok(count)) => {
                self.connection.received(count);
                self.heard();
                self.charge().map(|()| true)
            }
            Poll::Ready(Err(error)) => Err(Reason::of(&error)),
        }
    }

    fn heard(&mut self) {
        self.heard_at = Instant::now();
        self.pinged_at = None;
        self.ttl = None;
    }

    /// Charges the pool for the buffer.
    fn charge(&mut self) -> Result<(), Reason> {
        let Some(share) = &mut self.memory else { return Ok(()) };
        let beyond = self.connection.buffered().saturating_sub(ALLOWANCE);
        if share.resize(beyond) { Ok(()) } else { Err(Reason::PoolFull) }
    }

    /// Checks whether the server is lost, and makes sure to check again later. The alarm only
    /// moves when it fires, so traffic does not touch it.
    fn keep_watch(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        loop {
            if !self.is_set {
                let at = self.next_look()?;
                self.alarm.as_mut().reset(at.into());
                self.is_set = true;
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return None;
            }
            self.is_set = false;
            let now = Instant::now();
            if self.connection.wants_bytes()
                && ioctl_fionread(&self.stream).is_ok_and(|unread| unread > 0)
            {
                // The process was stopped for a while. The server may have sent something that
                // was not read yet.
                self.alarm.as_mut().reset((now + ANOTHER_TURN).into());
                self.is_set = true;
                continue;
            }
            if let Some(reason) = self.unwritable.or_else(|| self.look(now)) {
                return Some(reason);
            }
            // A PING may be queued.
            self.try_to_write(cx);
        }
    }

    /// When to check the server next, or `None` if it is never checked.
    fn next_look(&self) -> Option<Instant> {
        if self.unwritable.is_some() {
            return Some(Instant::now() + ANOTHER_TURN);
        }
        let ttl = self.ttl.map(|ttl| self.heard_at + ttl);
        let beat = (!self.heartbeat_interval.is_zero()).then(|| match self.pinged_at {
            Some(at) => (at + self.heartbeat_timeout).min(self.looked_at + self.heartbeat_interval),
            None => self.heard_at + self.heartbeat_interval,
        });
        let earliest = Instant::now() + Duration::from_millis(1);
        ttl.into_iter().chain(beat).min().map(|at| at.max(earliest))
    }

    /// Whether the server is lost. Sends a PING if it has been silent.
    ///
    /// A host that acknowledges data is up, and a server that is working on requests may take its
    /// time: libzmq answers no PING while its pipe is full. So a PONG is only expected once the
    /// server has answered all messages, or is known to have read them.
    fn look(&mut self, now: Instant) -> Option<Reason> {
        self.looked_at = now;
        if self.ttl.is_some_and(|ttl| now >= self.heard_at + ttl) {
            return Some(Reason::Vanished);
        }
        if self.heartbeat_interval.is_zero() || now < self.heard_at + self.heartbeat_interval {
            return None;
        }
        let info = TcpInfo::of(&self.stream);
        if info.is_ok_and(|info| info.is_unanswered_for(self.heartbeat_timeout)) {
            return Some(Reason::Vanished);
        }
        match self.pinged_at {
            None => {
                if self.knows_ping() {
                    self.connection.ping();
                    self.pings = self.pings.saturating_add(1);
                    self.sent_before_ping = self.sent;
                }
                self.pinged_at = Some(now);
            }
            Some(at) if now >= at + self.heartbeat_timeout => {
                let is_idle = self.unanswered == 0 && self.connection.unwritten() == 0;
                if is_idle && self.knows_ping() {
                    return Some(Reason::Vanished);
                }
                self.pinged_at = Some(now);
            }
            Some(_) => {}
        }
        None
    }

    fn knows_ping(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.minor > 0)
    }
}
