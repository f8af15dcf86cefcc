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

/// How much later a server is judged again if bytes may have come that have not been read: the
/// process may have stood still.
const ANOTHER_TURN: Duration = Duration::from_millis(50);

/// How many reads one poll makes without a message, before the caller's other futures have
/// their turn: a server may send commands without end.
const READS: usize = 32;

/// Longer than a connection lasts. The clock has an end, and "never" is often said by a very
/// long time.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A message that was not taken, because as many bytes wait to be written as may.
#[derive(Debug, thiserror::Error)]
#[error("the queue of unwritten messages is full")]
pub struct Unsent(pub Message);

/// A DEALER socket with one connection.
///
/// Messages are numbered from 0 in the order in which they are sent. [`Dealer::written`] says
/// how many of them the kernel has taken whole. A server cannot have seen any of the others, not
/// even if the connection breaks: it is safe to send those again elsewhere.
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
    /// Messages that were queued.
    sent: u64,
    /// Why writing has failed. What the server sent before is still read.
    unwritable: Option<Reason>,
    ended: Option<Reason>,
    heard_at: Instant,
    /// Messages that were written, without those that the server has answered or is known to
    /// have read.
    unanswered: u64,
    /// When the PING left whose PONG is waited for.
    pinged_at: Option<Instant>,
    /// PINGs that left and have no PONG.
    pings: u32,
    /// How many messages were queued before the last PING.
    sent_before_ping: u64,
    /// When it was last looked whether the server is lost.
    looked_at: Instant,
    /// How long the server may be silent, by the last PING that came from it.
    ttl: Option<Duration>,
    alarm: Pin<Box<Sleep>>,
    /// Whether the alarm is set for as early as may be needed.
    is_set: bool,
    /// Reads of this poll.
    reads: usize,
}

impl Dealer {
    /// A connection that was just made. The handshake comes first.
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
            // Nothing else comes before that.
            _ => Err(Reason::DataBeforeReady),
        }
    }

    pub(super) fn refusal(&self) -> Option<&Bytes> {
        self.connection.refusal()
    }

    /// The address that it is connected to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queues a message, and returns its number. It is written when [`Dealer::recv`] is polled.
    ///
    /// # Errors
    ///
    /// The message, if as many bytes wait to be written as may.
    pub fn send(&mut self, message: Message) -> Result<u64, Unsent> {
        let unwritten = self.connection.unwritten();
        if unwritten > 0 && unwritten + message.bytes() > self.send_bytes {
            return Err(Unsent(message));
        }
        self.connection.send(message, self.heard_at);
        self.sent += 1;
        Ok(self.sent - 1)
    }

    /// As [`Dealer::send`], for a message of a short first frame, an empty one, short `head`
    /// frames and a payload. It is always taken.
    pub fn send_tagged(&mut self, tag: &[u8], head: &[&[u8]], payload: &Bytes) -> u64 {
        self.connection.send_tagged(tag, head, payload, self.heard_at);
        self.sent += 1;
        self.sent - 1
    }

    /// Bytes that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.connection.unwritten()
    }

    /// The memory that it holds beyond its own struct, in bytes.
    pub fn held(&self) -> usize {
        self.connection.held()
    }

    /// How many messages the kernel has taken whole.
    pub fn written(&self) -> u64 {
        self.sent - self.connection.unwritten_messages() as u64
    }

    /// Waits for the next message; meanwhile it writes what waits, answers PINGs and sends its
    /// own.
    ///
    /// Cancel-safe: a message is returned as soon as it is taken, with no await between, and
    /// all else is the socket's.
    ///
    /// # Errors
    ///
    /// Why the connection has ended. It stays so.
    pub async fn recv(&mut self) -> Result<Message, Reason> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Dealer::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Reason>> {
        self.poll_recv_as(cx, |received| received.into_message())
    }

    /// As [`Dealer::recv`], with the message made into something else.
    ///
    /// # Errors
    ///
    /// As of [`Dealer::recv`].
    pub async fn recv_as<M>(&mut self, make: fn(Received<'_>) -> M) -> Result<M, Reason> {
        poll_fn(|cx| self.poll_recv_as(cx, make)).await
    }

    /// As [`Dealer::recv_as`], but also returns, with `None`, once fewer than `below` bytes wait
    /// to be written: there is room for the next message then.
    ///
    /// # Errors
    ///
    /// As of [`Dealer::recv`].
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

    /// The next message that has been read already, or `None`. Reads nothing.
    ///
    /// # Errors
    ///
    /// As of [`Dealer::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, Reason> {
        self.try_recv_as(|received| received.into_message())
    }

    /// As [`Dealer::try_recv`], with the message made into something else.
    ///
    /// # Errors
    ///
    /// As of [`Dealer::recv`].
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

    /// What has been read already.
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
            // It has left the buffer, and less never fails.
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

    /// The server has sent a PONG: it has read what was sent before the PING.
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
                    // It may tell the server why.
                    let _ = self.write(cx);
                    return Poll::Ready(Err(reason));
                }
            }
            let was_full = !self.connection.wants_bytes();
            self.try_to_write(cx);
            if was_full && self.connection.wants_bytes() {
                // Something may lie in the buffer behind the PINGs.
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
    /// may be messages to read, and reading then shows that it has ended.
    fn try_to_write(&mut self, cx: &mut Context<'_>) {
        if self.unwritable.is_none()
            && let Err(reason) = self.write(cx)
        {
            self.unwritable = Some(reason);
            self.connection.stop_answering();
            self.is_set = false;
        }
    }

    /// Writes as much as the kernel takes.
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

    /// Reads once; whether anything came.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        if !self.connection.wants_bytes() {
            return Ok(false);
        }
        // Outside of the runtime's budget: `READS` bounds a poll. The runtime knows that a read
        // which does not fill the buffer was the last one, and saves a system call.
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

    /// Charges the pool for what is buffered.
    fn charge(&mut self) -> Result<(), Reason> {
        let Some(share) = &mut self.memory else { return Ok(()) };
        let beyond = self.connection.buffered().saturating_sub(ALLOWANCE);
        if share.resize(beyond) { Ok(()) } else { Err(Reason::PoolFull) }
    }

    /// Looks whether the server is lost, and sees to it that it is looked at again. The alarm is
    /// only ever set for later when it has rung: traffic does not touch it.
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
                // The process has stood still: the server may have spoken, but unheard.
                self.alarm.as_mut().reset((now + ANOTHER_TURN).into());
                self.is_set = true;
                continue;
            }
            if let Some(reason) = self.unwritable.or_else(|| self.look(now)) {
                return Some(reason);
            }
            // A PING.
            self.try_to_write(cx);
        }
    }

    /// When the server is to be looked at next. Never, if nothing may be asked of it.
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

    /// Whether the server is lost; asks it if it has been silent.
    ///
    /// A host that acknowledges what it is sent is up, and a server that works on requests may
    /// take its time: libzmq answers no PING while its pipe is full. So a PONG is waited for
    /// only if the server has answered all messages, or has read them as far as is known.
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
