//! The socket: fairness, flow control and accounting. Accepting, handshakes, deadlines and
//! draining are in files of their own.
//!
//! Whatever wakes a peer, the listener or the clock puts its token on the ready list. A turn
//! takes one token, writes what is waiting for that peer, reads from it once, and makes the
//! result the current batch. `recv` and `try_recv` hand out the batch's messages. Replies gather
//! in the peer's queue and are written when the batch is done. So peers are served in turn, one
//! read each, and a batch costs one system call to read and one to write.
//!
//! A peer that does not take its replies is not read from, so TCP makes it wait.

mod accepting;
mod deadlines;
mod draining;
mod handshaking;
mod in_flight;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use slab::Slab;
use tokio::net::TcpListener;
use tracing::debug;

use super::busy_poll::BusyPoll;
use super::clock::Clock;
use super::limits::{ALLOWANCE, Limits, MESSAGES};
use super::peer::{Peer, Read, State};
use super::places::Places;
use super::progress::Meter;
use super::ready::{Bell, CLOCK, LISTENER, ReadyList, Token, Turns};
use crate::event::{Event, Observer, Totals};
use crate::message::Message;
use crate::proto::command::{self, Command};
use crate::proto::frame::{self, MessageLimits, Scan, Scanned};
use crate::proto::out_queue::OutQueue;
use crate::proto::peer_info::{PeerInfo, SocketType};
use crate::reason::Reason;

/// Maximum size of one turn's read: almost four messages of 64 KiB. Half of it would halve the
/// throughput of such messages, because a partial message at the end is copied.
const READ: usize = 256 << 10;

/// Replies are written before the batch is done once this many bytes are queued.
const WRITE: usize = READ;

/// In a batch of at least this size, the first half of the replies is written before the rest if
/// no other peer is waiting. The client then works on them in the meantime.
const HALVED: usize = 2 << 10;

/// How many turns without a message the socket takes before it yields to the runtime.
const TURNS: usize = 64;

/// When the pool is full, peers that began to hold memory less than this ago are spared, if another
/// peer can be closed.
const YOUNG: Duration = Duration::from_secs(1);

/// Upper bound on the reply buffer kept between batches.
const SPARE: usize = 1 << 20;

/// Identifies one connection of a [`Router`]. Unlike an identity, it is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId {
    slot: usize,
    /// Distinguishes the connections that have used this slot.
    generation: u64,
}

/// Where a message came from, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The connection.
    pub peer: PeerId,
    /// When the last bytes of the message were read, however long it has waited for its turn since
    /// then. A reply's latency is measured from here.
    pub read_at: Instant,
    /// Whether the peer is a monitor on this host (see [`Router::with_monitors`]).
    pub is_monitor: bool,
    /// A label that the caller may set before it replies. Initially zero. [`Event::Replied`]
    /// reports it.
    pub label: u32,
}

/// Address and identity of a connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedPeer {
    /// The peer's address.
    pub address: SocketAddr,
    /// The identity by which [`Router::send`] finds the peer.
    pub identity: Bytes,
}

/// Why a reply was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The reply has no payload frame.
    #[error("a reply needs at least one payload frame")]
    NoPayload,
    /// The peer is not connected.
    #[error("the peer is not connected")]
    NoPeer,
}

/// What was left when a socket was closed. All fields are zero if nothing was lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Replies to connected peers that the kernel had not accepted.
    pub owed: u64,
    /// Bytes of replies that connected peers had not acknowledged, including those in `owed`.
    pub owed_bytes: u64,
    /// Complete requests that were received and discarded.
    pub discarded: u64,
    /// Bytes that were discarded without counting the requests in them: partial messages, and
    /// bytes still in the kernel.
    pub discarded_bytes: u64,
}

impl Closed {
    /// Whether every request that was received has been answered.
    pub fn is_clean(&self) -> bool {
        self.owed + self.owed_bytes + self.discarded + self.discarded_bytes == 0
    }
}

/// A ROUTER socket whose memory is bounded by its [`Limits`].
///
/// It spawns no task: it works while one of its `recv` methods is polled. See [`crate::router`]
/// for an example.
///
/// A message can be answered in two ways:
///
/// - By identity: [`Router::recv`] puts the sender's identity in front of the message, and
///   [`Router::send`] takes it off again, as in other ZeroMQ libraries.
/// - By connection: [`Router::recv_from`] returns an [`Origin`], and [`Router::send_to`] replies
///   to exactly that connection. This is faster, and a reply never reaches a later connection
///   that uses the same identity.
pub struct Router<O> {
    limits: Limits,
    message_limits: MessageLimits,
    observer: O,
    monitors: Option<&'static [u8]>,
    listeners: Vec<TcpListener>,
    places: Places,
    listener_bell: Arc<Bell>,
    peers: Slab<Box<Peer>>,
    /// Total connections accepted, which number the next one.
    accepted: u64,
    identities: HashMap<Bytes, usize>,
    next_identity: u32,
    ready: ReadyList,
    clock: Clock,
    turns: Turns,
    busy_poll: BusyPoll,
    batch: Option<Batch>,
    /// The buffer that all peers are read into.
    scratch: BytesMut,
    /// Lent to the batch's peer for its replies.
    spare: OutQueue,
    /// Totals over all peers: bytes beyond the allowances, all bytes, and replies.
    pooled: usize,
    buffered: usize,
    owed: usize,
    /// Requests in flight, and the bytes that they hold.
    in_flight: usize,
    in_flight_bytes: usize,
    /// Whether no client is read from until some of these are answered, and whose turns are due
    /// then, in order.
    is_full: bool,
    unread: Turns,
    abandoned: Vec<PeerId>,
    /// Payload received from and sent to clients since the last [`Self::publish`].
    received: usize,
    sent: usize,
    closing: bool,
    /// What was owed and discarded while closing.
    closed: Closed,
    bound_at: Instant,
    /// The bytes that were unprocessed when the drain checked whether it could end.
    noted: Vec<Noted>,
}

/// The part of one read that has not been handed out yet.
struct Batch {
    origin: Origin,
    bytes: Bytes,
    /// Whether the memory belongs to the peer.
    own: bool,
    /// Its initial length.
    whole: usize,
    /// The messages and commands taken from it, and how many of them are commands.
    taken: usize,
    commands: usize,
    /// How many may be taken in this turn.
    most: usize,
    /// Replies are written once this many bytes are queued.
    write_at: usize,
}

impl Batch {
    /// The slot of its peer.
    #[inline(always)]
    fn slot(&self) -> usize {
        self.origin.peer.slot
    }
}

/// The bytes that a peer had sent by a given moment and that were not processed yet.
#[derive(Debug)]
struct Noted {
    peer_id: PeerId,
    /// The value of [`Peer::handled`] once all of these have been processed.
    handled: u64,
}

impl<O: Observer> Router<O> {
    /// Creates a socket that accepts connections from `listeners` whenever it is polled. Must be
    /// called within a Tokio runtime with I/O and time enabled.
    ///
    /// `observer` receives the socket's events. Pass `()` to ignore them.
    ///
    /// # Errors
    ///
    /// The kernel's error if a listener cannot be used.
    pub fn bind(
        listeners: impl IntoIterator<Item = std::net::TcpListener>,
        limits: Limits,
        observer: O,
    ) -> io::Result<Self> {
        let listeners = listeners.into_iter().map(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let ready = ReadyList::default();
        let listener_bell = ready.bell(LISTENER);
        let mut turns = Turns::default();
        turns.push(LISTENER);
        Ok(Self {
            limits,
            message_limits: MessageLimits {
                bytes: limits.message_bytes,
                frames: limits.message_frames,
            },
            observer,
            monitors: None,
            listeners: listeners.collect::<io::Result<_>>()?,
            places: Places::new(limits.peers_per_address),
            listener_bell,
            peers: Slab::new(),
            accepted: 0,
            identities: HashMap::new(),
            next_identity: 0,
            clock: Clock::new(&ready),
            ready,
            turns,
            busy_poll: BusyPoll::new(limits.busy_poll),
            batch: None,
            scratch: BytesMut::new(),
            spare: OutQueue::default(),
            pooled: 0,
            buffered: 0,
            owed: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            is_full: false,
            unread: Turns::default(),
            abandoned: Vec::new(),
            received: 0,
            sent: 0,
            closing: false,
            closed: Closed::default(),
            bound_at: Instant::now(),
            noted: Vec::new(),
        })
    }

    /// Sets the prefix of the identities of monitors, such as liveness probes on this host.
    ///
    /// Messages of monitors do not count as activity and are not reported as events, apart from
    /// their connections. A peer on another host that claims such an identity gets a generated
    /// one.
    pub fn with_monitors(mut self, prefix: &'static [u8]) -> Self {
        self.monitors = Some(prefix);
        self
    }

    /// Queues a reply to the peer whose identity is the first frame, and takes the message's
    /// frames. The reply is written when its peer's batch is done.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the peer is not connected, or if the message has no frame after the
    /// identity. The message is then unchanged.
    pub fn send(&mut self, message: &mut Message) -> Result<(), SendError> {
        let frames = message.frames_mut();
        let identity = frames.pop_front().ok_or(SendError::NoPayload)?;
        let slot = self.identities.get(&identity).copied();
        let queued = self.queue(slot, None, frames);
        if queued.is_err() {
            frames.push_front(identity);
        }
        queued
    }

    /// Queues a reply to the connection that a message came from. Takes the message's frames,
    /// which do not include an identity. The reply is written when its peer's batch is done.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended, even if the peer has reconnected with the same
    /// identity, or if the message has no frames. The message is then unchanged.
    #[inline(always)]
    pub fn send_to(&mut self, to: &Origin, message: &mut Message) -> Result<(), SendError> {
        let frames = message.frames_mut();
        // Usually this is the peer whose request was handed out last.
        if let Some(batch) = &mut self.batch
            && batch.origin.peer == to.peer
            && !frames.is_empty()
            && let Some(peer) = self.peers.get_mut(batch.slot())
        {
            if let Some(slot) = queue_for_batch(batch, peer, to, frames, &mut self.sent) {
                // If this fails, it fails again when the batch is done.
                let _ = self.flush(slot);
            }
            return Ok(());
        }
        let slot = self.peer(to.peer).map(|_| to.peer.slot);
        self.queue(slot, Some((to.read_at, to.label)), frames)
    }

    /// Waits for the next message. Its first frame is the sender's identity.
    ///
    /// Cancel-safe: a message is returned as soon as it is taken, with no await in between.
    /// Everything else stays in the socket.
    pub async fn recv(&mut self) -> Message {
        let mut message = Message::default();
        self.recv_from(&mut message).await;
        self.with_identity(message)
    }

    /// Returns the next message that has already arrived, in the form of [`Router::recv`], or
    /// `None`. Never waits.
    pub fn try_recv(&mut self) -> Option<Message> {
        let mut message = Message::default();
        self.try_recv_from(&mut message)?;
        Some(self.with_identity(message))
    }

    /// Waits for the next message and stores its frames in `message`, replacing what was there.
    /// The frames do not include the sender's identity. Returns where the message came from.
    ///
    /// Cancel-safe, like [`Router::recv`].
    pub async fn recv_from(&mut self, message: &mut Message) -> Origin {
        let frames = message.frames_mut();
        if let Some(origin) = self.next_published(frames) {
            return origin;
        }
        if let Some(origin) = self.busy_poll(frames).await {
            return origin;
        }
        poll_fn(|cx| self.poll_recv(cx, frames)).await
    }

    /// Stores the next message that has already arrived, like [`Router::recv_from`], or returns
    /// `None`. Never waits.
    #[inline(always)]
    pub fn try_recv_from(&mut self, message: &mut Message) -> Option<Origin> {
        self.next(message.frames_mut())
    }

    /// Where the last message came from, unless its batch is done.
    pub fn batch_origin(&self) -> Option<Origin> {
        self.batch.as_ref().map(|batch| batch.origin)
    }

    /// Writes what is queued for the peer of the current batch. Use it for replies that must not
    /// wait for the rest of the batch.
    pub fn flush_batch(&mut self) {
        if let Some(batch) = &self.batch {
            // If this fails, it fails again when the batch is done.
            let _ = self.flush(batch.slot());
        }
    }

    /// Ends the turn of the current batch's peer. What is left of the batch waits behind the turns of
    /// other peers. Use it if handling a message takes so long that they should not wait for the
    /// whole batch.
    pub fn yield_batch(&mut self) {
        self.end_batch(0);
    }

    /// Address and identity of a connection's peer, or `None` if the connection has ended.
    pub fn connected_peer(&self, peer: PeerId) -> Option<ConnectedPeer> {
        let peer = self.peer(peer)?;
        Some(ConnectedPeer { address: peer.address, identity: peer.identity.clone() })
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.slot).filter(|peer| peer.generation == id.generation).map(|peer| &**peer)
    }

    /// Puts the sender's identity in front of the message that was handed out last.
    fn with_identity(&self, mut message: Message) -> Message {
        let batch = self.batch.as_ref().expect("a message is of a batch");
        message.frames_mut().push_front(self.peers[batch.slot()].identity.clone());
        message
    }

    /// Queues a reply to the peer in `slot`. `request` is the time at which its request was read
    /// and its label. Without it, the time is that of the current batch or of the peer's last
    /// bytes.
    #[inline(never)]
    fn queue(
        &mut self,
        slot: Option<usize>,
        request: Option<(Instant, u32)>,
        frames: &mut VecDeque<Bytes>,
    ) -> Result<(), SendError> {
        if frames.is_empty() {
            return Err(SendError::NoPayload);
        }
        let slot = slot.ok_or(SendError::NoPeer)?;
        let batch = self.batch.as_ref();
        let is_of_batch = batch.is_some_and(|batch| batch.slot() == slot);
        let peer = &mut self.peers[slot];
        let (read_at, label) = request
            .unwrap_or_else(|| (batch.map_or(peer.read_at, |batch| batch.origin.read_at), 0));
        if !is_of_batch && peer.out.is_empty() {
            // The reply starts waiting now, however long ago the request arrived.
            peer.moved_at = Instant::now();
        }
        let sent = peer.queue(frames, read_at, label);
        self.sent += if peer.is_client { sent } else { 0 };
        if !is_of_batch {
            peer.bell.wake_by_ref();
            if peer.is_paused() {
                // Other peers may make it hold more before its turn comes.
                self.settle(slot);
            }
        }
        Ok(())
    }

    /// Number of open connections, including unfinished handshakes.
    pub fn connections(&self) -> usize {
        self.open()
    }

    /// The next message that is available without waiting.
    #[inline(always)]
    fn next(&mut self, frames: &mut VecDeque<Bytes>) -> Option<Origin> {
        if let Some(origin) = self.next_of_batch(frames) {
            return Some(origin);
        }
        self.next_of_turns(frames)
    }

    /// The first message from the turns that are due.
    #[inline(never)]
    fn next_of_turns(&mut self, frames: &mut VecDeque<Bytes>) -> Option<Origin> {
        for _ in 0..TURNS {
            self.ready.take(&mut self.turns);
            match self.next_turn()? {
                LISTENER => self.accept(),
                CLOCK => self.expire(),
                slot => self.visit(slot),
            }
            let origin = self.next_of_batch(frames);
            if origin.is_some() {
                return origin;
            }
        }
        None
    }

    /// The next turn that is due. Peers that have waited for room come first. Otherwise a peer
    /// with a turn of its own would take each place that becomes free, before they have had any.
    fn next_turn(&mut self) -> Option<Token> {
        let waiting = if self.is_full { None } else { self.unread.pop() };
        waiting.or_else(|| self.turns.pop())
    }

    /// Whether a turn is due now.
    fn has_turn(&self) -> bool {
        !self.turns.is_empty() || (!self.is_full && !self.unread.is_empty())
    }

    /// The next message of the batch. Without one, the batch is done.
    #[inline(always)]
    fn next_of_batch(&mut self, frames: &mut VecDeque<Bytes>) -> Option<Origin> {
        let batch = self.batch.as_mut()?;
        let slot = batch.slot();
        let peer = &mut self.peers[slot];
        let reason = loop {
            if batch.taken == batch.most && !batch.bytes.is_empty() {
                self.end_batch(0);
                return None;
            }
            match peer.scan.step(&batch.bytes, &self.message_limits) {
                Ok(Scanned::Message(end)) => {
                    // Usually a reply has already taken them.
                    if !frames.is_empty() {
                        frames.clear();
                    }
                    let payload = frame::split_frames(&mut batch.bytes, end, frames);
                    self.received += if peer.is_client { payload } else { 0 };
                    batch.taken += 1;
                    if peer.is_req && !is_request(frames) {
                        count_malformed(&mut self.observer, &peer.identity);
                        continue;
                    }
                    if batch.own {
                        disown(frames, batch.whole);
                    }
                    return Some(batch.origin);
                }
                Ok(Scanned::Command(body)) => {
                    batch.taken += 1;
                    batch.commands += 1;
                    let is_last = body.end == batch.bytes.len();
                    if let Err(reason) = obey(peer, &batch.bytes[body], is_last) {
                        break reason;
                    }
                    if let Some(end) = peer.scan.between_messages() {
                        batch.bytes.advance(end);
                    }
                }
                Ok(Scanned::Partial(missing)) => {
                    self.end_batch(missing);
                    return None;
                }
                Err(reason) => break reason,
            }
        };
        // Requests that came before the error have been answered. Write their replies.
        let _ = self.flush(slot);
        self.close_peer(slot, reason);
        None
    }

    /// Ends the batch's turn. What is left of it is kept: part of a message that lacks at least
    /// `missing` bytes, or complete messages.
    fn end_batch(&mut self, missing: usize) {
        let Some(batch) = self.batch.take() else { return };
        let slot = batch.slot();
        let Batch { origin, bytes, whole, taken, commands, .. } = batch;
        let peer = &mut self.peers[slot];
        peer.adapt(whole - bytes.len(), taken);
        peer.missing = missing;
        // The batch's own memory goes back to the peer if most of it is still needed. Otherwise
        // the rest is copied, because the whole buffer would stay allocated and charged. A slice
        // of the scratch buffer is copied in any case.
        peer.partial = if bytes.len() < whole / 2 { bytes.to_vec() } else { bytes.into() };
        if peer.ahead > 0 {
            peer.keep_ahead(peer.ahead.min(peer.partial.len()));
        }
        peer.kept_at = origin.read_at;
        peer.track_message(taken > commands, peer.read_at);
        let flushed = self.flush(slot);
        let peer = &mut self.peers[slot];
        self.spare = if peer.out.is_empty() {
            std::mem::take(&mut peer.out)
        } else {
            let backlog = peer.out.take_backlog(READ);
            std::mem::replace(&mut peer.out, backlog)
        };
        if self.spare.held() > SPARE {
            self.spare = OutQueue::default();
        }
        match flushed {
            Ok(()) => self.settle(slot),
            Err(reason) => self.close_peer(slot, reason),
        }
    }

    /// One peer's turn.
    fn visit(&mut self, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.bell.answer();
        peer.blocked = false;
        match self.serve(slot) {
            Err(reason) => self.close_peer(slot, reason),
            Ok(()) if self.batch.is_none() => self.settle(slot),
            Ok(()) => {}
        }
    }

    fn serve(&mut self, slot: usize) -> Result<(), Reason> {
        let flushed = self.flush(slot);
        let peer = &mut self.peers[slot];
        let shaking = matches!(peer.state, State::Handshake(_));
        match peer.state {
            // What the peer sent before it left decides the reason, not our failed write. So read
            // first.
            State::Handshake(_) => {}
            State::Refused(_) => return flushed.and_then(|()| self.dismiss(slot)),
            State::Established | State::HalfClosed => flushed?,
        }
        if peer.out.is_empty() {
            if let Some(reason) = peer.ended {
                return Err(reason);
            }
            if self.closing && !matches!(peer.state, State::HalfClosed) {
                peer.half_close().map_err(|_| Reason::Error)?;
                peer.state = State::HalfClosed;
            }
        }
        let half_closed = matches!(peer.state, State::HalfClosed);
        if peer.is_behind() || peer.ended.is_some() || (self.closing && !half_closed) {
            return Ok(());
        }
        if peer.must_wait(self.is_full) && !shaking {
            return self.read_ahead(slot);
        }
        if !peer.has_messages() && peer.ahead > 0 {
            peer.keep_ahead(0);
        }
        let messages = if self.in_flight == 0 { MESSAGES } else { self.room_for_requests(slot) };
        let peer = &mut self.peers[slot];
        let received = peer.received;
        let kept = peer.has_messages().then(|| peer.next_kept(&self.message_limits));
        let (mut bytes, own) = match peer.poll_read(&mut self.scratch, READ, messages) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Err(error)) => return Err(Reason::of(&error)),
            Poll::Ready(Ok(Read::End)) => {
                let whole = !shaking && peer.partial.is_empty();
                let reason = if whole { Reason::Closed } else { Reason::Error };
                peer.ended = Some(reason);
                let begun = if peer.has_part_of_message() { peer.partial.len() } else { 0 };
                (peer.partial, peer.missing, peer.scan) = (Vec::new(), 0, Scan::default());
                let is_done = shaking || peer.out.is_empty();
                if half_closed {
                    // It stopped in the middle of a message because we are closing.
                    self.discard(0, begun as u64);
                }
                return if is_done { Err(reason) } else { Ok(()) };
            }
            Poll::Ready(Ok(Read::More)) => (Bytes::new(), true),
            Poll::Ready(Ok(Read::Batch { bytes, own })) => (bytes, own),
        };
        let (read_at, most) = kept.unwrap_or_else(|| {
            peer.heard(Instant::now(), (peer.received - received) as usize);
            (peer.read_at, None)
        });
        match peer.state {
            State::Refused(_) => return Ok(()),
            State::Established | State::HalfClosed => {}
            State::Handshake(_) => self.shake_hands(slot, &mut bytes)?,
        }
        if !bytes.is_empty() {
            let whole = bytes.len();
            let taken = 0;
            let alone = !self.has_turn() && whole >= HALVED;
            let write_at = if alone { WRITE.min(whole / 2) } else { WRITE };
            let (commands, most) = (0, most.map_or(MESSAGES, |most| most.min(MESSAGES)));
            let peer = &self.peers[slot];
            let origin = Origin {
                peer: PeerId { slot, generation: peer.generation },
                read_at,
                is_monitor: !peer.is_client,
                label: 0,
            };
            let batch = Batch { origin, bytes, own, whole, taken, commands, most, write_at };
            self.begin_batch(batch);
        }
        Ok(())
    }

    fn begin_batch(&mut self, batch: Batch) {
        let peer = &mut self.peers[batch.slot()];
        if peer.out.is_empty() {
            std::mem::swap(&mut peer.out, &mut self.spare);
        }
        self.batch = Some(batch);
    }

    fn establish(&mut self, slot: usize, info: PeerInfo) {
        let peer = &mut self.peers[slot];
        peer.is_req = info.socket_type == SocketType::Req;
        peer.doubted = false;
        peer.state = State::Established;
        self.places.keep(&mut peer.place);
        let mut identity = info.identity;
        let claims = self.monitors.is_some_and(|prefix| identity.starts_with(prefix));
        let is_monitor = claims && peer.place.of_this_host;
        if claims && !is_monitor {
            identity = Bytes::new();
        }
        let is_taken = self.identities.contains_key(&identity);
        while identity.is_empty() || self.identities.contains_key(&identity) {
            self.next_identity = self.next_identity.wrapping_add(1);
            identity = [&[0], &self.next_identity.to_be_bytes()[..]].concat().into();
        }
        debug!(identity = %identity.escape_ascii(), "peer connected");
        if !self.limits.heartbeat_interval.is_zero() {
            peer.keep_alive(self.limits.heartbeat_interval);
        }
        peer.is_client = !is_monitor || is_taken;
        peer.identity = identity.clone();
        self.identities.insert(identity, slot);
        self.observer.event(Event::Connected);
        self.observer.event(Event::Peers(self.identities.len()));
    }

    /// Writes what is waiting for the peer, as far as the kernel accepts it.
    fn flush(&mut self, slot: usize) -> Result<(), Reason> {
        let peer = &mut self.peers[slot];
        let before = peer.out.len();
        if before == 0 {
            return Ok(());
        }
        let (is_client, observer) = (peer.is_client, &mut self.observer);
        let owed = peer.out.replies();
        let mut written_at = None;
        let result = peer.flush(|read_at, label, replies| {
            let now = *written_at.get_or_insert_with(Instant::now);
            if is_client {
                let latency = now - read_at;
                observer.event(Event::Replied { replies, label, latency });
            }
        });
        if peer.out.len() < before {
            peer.moved_at = written_at.unwrap_or_else(Instant::now);
            peer.track_replies(before - peer.out.len(), owed);
        }
        if peer.paused_at.is_some() {
            peer.pause_or_resume(peer.moved_at);
        }
        if !peer.tokens.is_empty() && !peer.is_behind() {
            peer.tokens.clear();
        }
        result.map_err(|error| Reason::of(&error))
    }

    /// Updates the accounts after a turn, schedules the peer's next turn, and makes sure that the
    /// pool is not exceeded.
    fn settle(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        if peer.out.is_empty() {
            if peer.out.held() > 0 {
                peer.out = OutQueue::default();
            }
        } else if peer.backlog.is_none() {
            peer.backlog = Some(Meter::new(peer.moved_at));
        }
        if peer.is_paused() && peer.paused_at.is_none() {
            peer.pause_or_resume(Instant::now());
        }
        let (held, owed) = (peer.held(), peer.out.replies());
        // Before the rest, because it decides whether there is room for more requests.
        self.account(slot, held, owed);
        let peer = &self.peers[slot];
        // A closing socket reads again once the peer has its replies.
        let reads = !self.closing || matches!(peer.state, State::HalfClosed);
        let waits = peer.must_wait(self.is_full);
        let readable = reads
            && !peer.is_behind()
            && peer.ended.is_none()
            && if waits { peer.can_read_ahead() && peer.has_unread() } else { peer.is_readable() };
        if self.is_full && peer.is_client {
            self.unread.push(slot);
        }
        if readable {
            self.turns.push(slot);
        }
        self.set_alarm(slot);
        while self.pooled > self.limits.buffer_bytes {
            self.evict();
        }
    }

    /// Closes the peer whose memory would take longest to be free again at its current rate.
    /// Peers that began to hold memory a moment ago come last, because their rate is not known
    /// yet.
    fn evict(&mut self) {
        // This looks at every peer, but only when a connection is closed as a result.
        let now = Instant::now();
        let holders = self.peers.iter().filter_map(|(slot, peer)| {
            let peer = Some(peer).filter(|peer| peer.charged > ALLOWANCE)?;
            let age = peer.holds_since().map_or(Duration::ZERO, |since| now - since);
            Some((age >= YOUNG, peer.seconds_to_clear(now), age, slot))
        });
        let slowest = holders.max_by(|one, other| {
            (one.0.cmp(&other.0)).then(one.1.total_cmp(&other.1)).then(one.2.cmp(&other.2))
        });
        let (.., slot) = slowest.expect("an overdrawn pool has holders");
        self.close_peer(slot, Reason::PoolFull);
    }

    fn account(&mut self, slot: usize, held: usize, owed: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        self.pooled += held.saturating_sub(ALLOWANCE);
        self.pooled -= peer.charged.saturating_sub(ALLOWANCE);
        self.buffered = self.buffered + held - peer.charged;
        self.owed = self.owed + owed - peer.owed;
        (peer.charged, peer.owed) = (held, owed);
        if self.in_flight > 0 || self.is_full {
            self.check_room();
        }
    }

    fn close_peer(&mut self, slot: usize, reason: Reason) {
        self.account(slot, 0, 0);
        let Some(mut peer) = self.peers.try_remove(slot) else { return };
        if self.batch.as_ref().is_some_and(|batch| batch.slot() == slot) {
            self.batch = None;
        }
        self.places.leave(&mut peer.place);
        self.abandon(slot, &peer);
        self.observer.event(Event::Undeliverable(peer.out.replies() as u64));
        if peer.has_messages() {
            self.observer.event(Event::Lost(peer.take_kept(&self.message_limits).0));
        }
        match &peer.state {
            State::Handshake(handshake) => return self.fail(handshake, reason),
            // It has been counted already.
            State::Refused(_) => return,
            State::Established | State::HalfClosed => {}
        }
        let identity = peer.identity.escape_ascii();
        debug!(%identity, reason = reason.as_str(), "peer disconnected");
        self.identities.remove(&peer.identity);
        self.observer.event(Event::Disconnected(reason));
        self.observer.event(Event::Peers(self.identities.len()));
    }

    fn open(&self) -> usize {
        self.peers.len()
    }

    /// Reports the totals, which are only accumulated while there is work.
    fn publish(&mut self) {
        self.observer.event(Event::Turned(Totals {
            received_bytes: std::mem::take(&mut self.received),
            sent_bytes: std::mem::take(&mut self.sent),
            pending_replies: self.owed,
            buffered_bytes: self.buffered,
        }));
    }

    /// Like [`Self::next`], but also reports the totals, even if there is a message: under
    /// constant load there always is one.
    fn next_published(&mut self, frames: &mut VecDeque<Bytes>) -> Option<Origin> {
        let origin = self.next(frames);
        self.publish();
        origin
    }

    /// Spins for the next message, if that seems worth it.
    async fn busy_poll(&mut self, frames: &mut VecDeque<Bytes>) -> Option<Origin> {
        let until = Instant::now() + self.busy_poll.begin()?;
        loop {
            // Lets the runtime check for I/O without sleeping.
            tokio::task::yield_now().await;
            let origin = self.next_published(frames);
            if origin.is_some() || Instant::now() >= until {
                self.busy_poll.end(origin.is_some());
                return origin;
            }
        }
    }

    fn poll_recv(&mut self, cx: &Context<'_>, frames: &mut VecDeque<Bytes>) -> Poll<Origin> {
        if let Some(origin) = self.next_published(frames) {
            return Poll::Ready(origin);
        }
        if self.has_turn() {
            cx.waker().wake_by_ref();
        } else {
            self.ready.wake_next(cx.waker());
        }
        Poll::Pending
    }
}

/// Queues a reply to the peer whose request was handed out last. Returns its slot if enough is
/// queued to write at once.
#[inline(always)]
fn queue_for_batch(
    batch: &mut Batch,
    peer: &mut Peer,
    to: &Origin,
    frames: &mut VecDeque<Bytes>,
    sent: &mut usize,
) -> Option<usize> {
    let bytes = peer.queue(frames, to.read_at, to.label);
    *sent += if peer.is_client { bytes } else { 0 };
    if peer.out.len() < batch.write_at || peer.blocked {
        return None;
    }
    batch.write_at = WRITE;
    Some(batch.slot())
}

/// Counts a dropped message. Not inlined, because this is rare.
#[cold]
#[inline(never)]
fn count_malformed(observer: &mut impl Observer, identity: &Bytes) {
    observer.event(Event::Malformed);
    debug!(identity = %identity.escape_ascii(), "malformed request");
}

/// Whether a REQ's message is a request: an empty frame followed by at least one frame (RFC 28,
/// "The REQ Socket Type"). With ZMQ_REQ_CORRELATE, the request's number comes before the empty
/// frame. ZMQ_PROBE_ROUTER sends a single empty frame, which is not a request.
fn is_request(frames: &VecDeque<Bytes>) -> bool {
    let is_delimiter = |at: usize| frames.len() > at + 1 && frames[at].is_empty();
    is_delimiter(0) || is_delimiter(1)
}

/// Copies frames that are a small part of a `whole` buffer. Otherwise whoever keeps such a frame
/// would keep the whole buffer, and the accounts would not show it.
fn disown(frames: &mut VecDeque<Bytes>, whole: usize) {
    for frame in frames.iter_mut().filter(|frame| frame.len() + ALLOWANCE < whole) {
        *frame = Bytes::copy_from_slice(frame);
    }
}

/// Carries out a command that came between messages. `is_last` says that nothing came after it:
/// any traffic after a PING cancels its TTL (RFC 37, "ping-ttl").
fn obey(peer: &mut Peer, body: &[u8], is_last: bool) -> Result<(), Reason> {
    match Command::decode(body)? {
        Command::Ping { ttl, context } => {
            if peer.out.is_empty() {
                peer.moved_at = peer.read_at;
            }
            peer.ttl = ttl.filter(|_| is_last);
            peer.saw_ping(peer.read_at, false);
            if !matches!(peer.state, State::HalfClosed) {
                peer.out.push_bytes(|out| command::encode_pong(out, context));
            }
            Ok(())
        }
        Command::Pong => {
            peer.knows_ping = true;
            Ok(())
        }
        Command::Error(_) => Err(Reason::PeerError),
        Command::Ready(_) => Err(Reason::Command),
    }
}
