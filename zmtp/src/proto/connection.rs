//! A complete connection, without I/O: bytes in, events out; messages in, bytes out.
//!
//! The caller reads into [`Connection::read_buffer`], takes events until there are none, and
//! writes what [`Connection::slices`] returns. Time belongs to the caller as well: it decides
//! when to send a PING and when a silent peer is lost.
//!
//! # Bounds
//!
//! A connection holds one unfinished message of at most [`ConnectionLimits::message_bytes`], plus
//! what one read brought after it. Its buffer grows with the bytes that arrive, never with the
//! size that a frame announces. Messages are not queued: one that the caller does not take stays
//! in the buffer, so the caller must then stop reading. PONGs that the peer does not read are
//! bounded too (see [`Connection::wants_bytes`]).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::command::{self, Command};
use super::frame::{self, MessageLimits, Scan, Scanned};
use super::handshake::Handshake;
use super::mechanism::Mechanism;
use super::mechanism::null::Null;
use super::out_queue::{OutQueue, SLICES};
use super::peer_info::{Local, PeerInfo};
use crate::message::Message;
use crate::reason::Reason;

/// Minimum room for a read.
const LEAST_READ: usize = 4 << 10;

/// Maximum room for a read after the bytes already held.
const MOST_READ: usize = 64 << 10;

/// Smaller frames are copied out of the buffer, because a slice would keep the whole buffer
/// alive.
const SLICED: usize = 16 << 10;

/// How many PONGs may be queued, about 8 KiB. If a peer sends PINGs and reads nothing, we stop
/// reading from it.
const PONGS: usize = 256;

/// What a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Total bytes of a message's frames.
    pub message_bytes: usize,
    /// Frames in a message.
    pub message_frames: usize,
    /// Bytes of a command during the handshake.
    pub metadata_bytes: usize,
}

/// What has arrived. `M` is the type that messages are converted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival<M = Message> {
    /// The handshake is complete.
    Connected(PeerInfo),
    /// A message.
    Message(M),
    /// A PING. Its PONG is queued. If there is a TTL, the peer asks to be disconnected when it
    /// stays silent for that long (RFC 37, "ping-ttl").
    Ping(Option<Duration>),
    /// The answer to one of our PINGs.
    Pong,
}

/// A complete message, before it is converted.
#[derive(Debug)]
pub enum Received<'a> {
    /// A small message: its headers and bodies, still in the buffer.
    Small(&'a [u8]),
    /// A large message, taken out of the buffer.
    Large(VecDeque<Bytes>),
}

impl Received<'_> {
    /// Converts it to a message with memory of its own.
    pub fn into_message(self) -> Message {
        match self {
            Self::Small(bytes) => {
                let mut frames = VecDeque::with_capacity(2);
                frame::copy_frames(bytes, &mut frames);
                frames.into()
            }
            Self::Large(frames) => frames.into(),
        }
    }

    /// Splits a message into a tag of N bytes, an empty frame, the first frame of the payload, if
    /// there is one, and the frames after it. Returns `None` if the message has another shape. A
    /// payload of one frame costs one allocation.
    pub fn into_tagged<const N: usize>(self) -> Option<([u8; N], Option<Bytes>, Vec<Bytes>)> {
        match self {
            Self::Small(bytes) => {
                let mut frames = frame::bodies(bytes);
                let tag = frames.next()?.try_into().ok()?;
                frames.next().filter(|delimiter| delimiter.is_empty())?;
                let payload = frames.next().map(Bytes::copy_from_slice);
                Some((tag, payload, frames.map(Bytes::copy_from_slice).collect()))
            }
            Self::Large(mut frames) => {
                let tag = frames.pop_front()?[..].try_into().ok()?;
                frames.pop_front().filter(Bytes::is_empty)?;
                Some((tag, frames.pop_front(), frames.into()))
            }
        }
    }
}

/// A connection, from its first byte.
#[derive(Debug)]
pub struct Connection {
    limits: ConnectionLimits,
    message_limits: MessageLimits,
    /// Present until the handshake is complete.
    handshake: Option<Box<Handshake>>,
    /// Bytes received and not yet taken.
    buffer: BytesMut,
    scan: Scan,
    /// How many bytes the message at the start of the buffer lacks, or zero if that is unknown.
    missing: usize,
    /// Room for the next read.
    appetite: usize,
    out: OutQueue,
    /// Where in the queue each unwritten PONG ends.
    pongs: VecDeque<u64>,
    /// Whether PINGs are answered.
    answers: bool,
    /// The reason that the peer gave when it refused us.
    refusal: Option<Bytes>,
}

impl Connection {
    /// Creates a connection with the NULL mechanism, and queues what we send first.
    pub fn new(local: Local, limits: ConnectionLimits) -> Self {
        let mut handshake = Handshake::new(local, Mechanism::Null(Null::default()));
        let mut out = OutQueue::default();
        out.push_bytes(|out| handshake.start(out));
        Self {
            limits,
            message_limits: MessageLimits {
                bytes: limits.message_bytes,
                frames: limits.message_frames,
            },
            handshake: Some(Box::new(handshake)),
            buffer: BytesMut::new(),
            scan: Scan::default(),
            missing: 0,
            appetite: LEAST_READ,
            out,
            pongs: VecDeque::new(),
            answers: true,
            refusal: None,
        }
    }

    /// The buffer to append received bytes to, with room for one read. Call
    /// [`Connection::received`] afterwards.
    pub fn read_buffer(&mut self) -> &mut BytesMut {
        let held = self.buffer.len();
        if self.buffer.capacity() - held < self.appetite {
            // It grows with what has arrived, not with what was announced.
            self.buffer.reserve(self.missing.min(held).max(self.appetite));
        }
        &mut self.buffer
    }

    /// Call this after appending `count` bytes to the read buffer. If they fill it, the next read
    /// gets more room.
    pub fn received(&mut self, count: usize) {
        if self.buffer.len() == self.buffer.capacity() && self.appetite < MOST_READ {
            self.appetite *= 2;
        }
        self.missing = self.missing.saturating_sub(count);
    }

    /// Whether the caller may read more bytes. `false` while so many PONGs are waiting that the
    /// peer seems to read nothing.
    pub fn wants_bytes(&self) -> bool {
        self.pongs.len() < PONGS
    }

    /// The next event from the bytes received so far, or `None` if more bytes are needed.
    ///
    /// # Errors
    ///
    /// Why the connection cannot continue. Close it after writing what is queued, which may tell
    /// the peer why.
    pub fn poll(&mut self) -> Result<Option<Arrival>, Reason> {
        self.poll_as(|received| received.into_message())
    }

    /// Like [`Connection::poll`], but converts messages with `make`.
    ///
    /// # Errors
    ///
    /// See [`Connection::poll`].
    #[inline]
    pub fn poll_as<M>(
        &mut self,
        make: impl FnOnce(Received<'_>) -> M,
    ) -> Result<Option<Arrival<M>>, Reason> {
        if self.handshake.is_some() {
            return Ok(self.shake_hands()?.map(Arrival::Connected));
        }
        if !self.wants_bytes() {
            return Ok(None);
        }
        match self.scan.step(&self.buffer, &self.message_limits)? {
            Scanned::Message(end) => {
                self.missing = 0;
                Ok(Some(Arrival::Message(self.take_message(end, make))))
            }
            Scanned::Command(body) => {
                let ping = self.obey(body)?;
                if let Some(end) = self.scan.between_messages() {
                    self.buffer.advance(end);
                }
                Ok(Some(ping.map_or(Arrival::Pong, Arrival::Ping)))
            }
            Scanned::Partial(missing) => {
                self.missing = missing;
                Ok(None)
            }
        }
    }

    fn shake_hands(&mut self) -> Result<Option<PeerInfo>, Reason> {
        let Some(handshake) = &mut self.handshake else { return Ok(None) };
        let mut input = self.buffer.split().freeze();
        let limit = self.limits.metadata_bytes;
        let told = self.out.push_bytes(|out| handshake.feed(&mut input, limit, out));
        // Usually nothing is left.
        self.buffer.extend_from_slice(&input);
        match told {
            Ok(Some(info)) => {
                self.handshake = None;
                Ok(Some(info))
            }
            Ok(None) => Ok(None),
            Err(reason) => {
                self.refusal = handshake.refusal();
                Err(reason)
            }
        }
    }

    #[inline]
    fn take_message<M>(&mut self, end: usize, make: impl FnOnce(Received<'_>) -> M) -> M {
        if end < SLICED {
            let made = make(Received::Small(&self.buffer[..end]));
            self.buffer.advance(end);
            return made;
        }
        let mut frames = VecDeque::with_capacity(2);
        let mut bytes = self.buffer.split_to(end).freeze();
        if end > MOST_READ && self.buffer.len() <= MOST_READ {
            // Otherwise the rest would keep the memory of a large message alive.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        frame::split_frames(&mut bytes, end, &mut frames);
        for frame in frames.iter_mut().filter(|frame| frame.len() < SLICED) {
            *frame = Bytes::copy_from_slice(frame);
        }
        make(Received::Large(frames))
    }

    /// Carries out a command. Returns `Some` with the TTL for a PING, and `None` for a PONG.
    fn obey(&mut self, body: std::ops::Range<usize>) -> Result<Option<Option<Duration>>, Reason> {
        match Command::decode(&self.buffer[body])? {
            Command::Ping { ttl, context } => {
                if self.answers {
                    self.out.push_bytes(|out| command::encode_pong(out, context));
                    self.pongs.push_back(self.out.queued());
                }
                Ok(Some(ttl))
            }
            Command::Pong => Ok(None),
            Command::Error(reason) => {
                self.refusal = Some(Bytes::copy_from_slice(reason));
                Err(Reason::PeerError)
            }
            Command::Ready(_) => Err(Reason::Command),
        }
    }

    /// Whether part of a message has arrived, but not all of it.
    pub fn has_part_of_message(&self) -> bool {
        self.handshake.is_none() && self.scan.is_in_message(&self.buffer)
    }

    /// The reason that the peer gave when it refused us. It may contain any bytes.
    pub fn refusal(&self) -> Option<&Bytes> {
        self.refusal.as_ref()
    }

    /// Queues a message.
    pub fn send(&mut self, message: Message, now: Instant) {
        self.out.push_reply(&mut message.into_frames(), now, 0);
    }

    /// Like [`Connection::send`], for a message of a short tag, an empty frame, short `head`
    /// frames and a payload of one frame. The tag and the head are copied.
    pub fn send_tagged(&mut self, tag: &[u8], head: &[&[u8]], payload: &Bytes, now: Instant) {
        self.out.push_tagged(tag, head, payload, now);
    }

    /// Queues a PING without TTL and context.
    pub fn ping(&mut self) {
        self.out.push_bytes(command::encode_ping);
    }

    /// Stops answering PINGs, because nothing can be written any more. Bytes already received can
    /// still be taken.
    pub fn stop_answering(&mut self) {
        self.answers = false;
        self.pongs = VecDeque::new();
    }

    /// On the listening side, queues our READY although the peer's has not arrived.
    pub fn stop_waiting(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            self.out.push_bytes(|out| handshake.send_ready(out));
        }
    }

    /// Bytes waiting to be written.
    pub fn unwritten(&self) -> usize {
        self.out.len()
    }

    /// Messages that are not completely written.
    pub fn unwritten_messages(&self) -> usize {
        self.out.replies()
    }

    /// The bytes to write next, for one vectored write. Returns how many slices are set.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        self.out.slices(slices)
    }

    /// The bytes to write next, if they are contiguous.
    pub fn only_slice(&self) -> Option<&[u8]> {
        self.out.only_slice()
    }

    /// Call this after writing the first `count` of these bytes.
    pub fn advance(&mut self, count: usize) {
        self.out.advance(count, |_, _, _| {});
        while self.pongs.front().is_some_and(|end| *end <= self.out.left()) {
            self.pongs.pop_front();
        }
    }

    /// Memory of bytes received and not yet taken.
    pub fn buffered(&self) -> usize {
        self.buffer.capacity()
    }

    /// Memory held beyond the struct itself, in bytes.
    pub fn held(&self) -> usize {
        let handshake = self.handshake.as_ref().map_or(0, |handshake| handshake.held());
        let pongs = self.pongs.capacity() * size_of::<u64>();
        self.buffer.capacity() + self.out.held() + pongs + handshake
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::peer_info::{Role, SocketType};

    const LIMITS: ConnectionLimits =
        ConnectionLimits { message_bytes: 100_000, message_frames: 8, metadata_bytes: 512 };

    fn side(role: Role, socket_type: SocketType) -> Connection {
        Connection::new(Local { role, socket_type, identity: Bytes::new() }, LIMITS)
    }

    /// Moves up to `most` bytes from one side to the other.
    fn carry(from: &mut Connection, to: &mut Connection, most: usize) -> usize {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = from.slices(&mut slices);
        let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
        let count = bytes.len().min(most);
        to.read_buffer().extend_from_slice(&bytes[..count]);
        to.received(count);
        from.advance(count);
        count
    }

    fn message() -> impl Strategy<Value = Message> {
        let small = vec(any::<u8>(), 0..300);
        let large = (any::<u8>(), 8_000usize..20_000).prop_map(|(byte, size)| vec![byte; size]);
        vec(prop_oneof![4 => small, 1 => large].prop_map(Bytes::from), 1..=4)
            .prop_map(Message::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn two_sides_receive_each_others_messages_wherever_bytes_are_split(
            sent in [vec(message(), 0..6), vec(message(), 0..6)],
            pings in vec(0usize..2, 0..4),
            cuts in vec(1usize..20_000, 1..12),
        ) {
            let mut sides =
                [side(Role::Connecting, SocketType::Dealer), side(Role::Listening, SocketType::Router)];
            let mut got = [Vec::new(), Vec::new()];
            let (mut pongs, mut connected) = (0, 0);
            let mut cuts = cuts.iter().cycle();
            let mut idle = 0;
            while idle < 4 {
                for me in [0, 1] {
                    let [one, other] = &mut sides;
                    let (from, to) = if me == 0 { (other, one) } else { (one, other) };
                    let moved = carry(from, to, *cuts.next().unwrap());
                    idle = if moved == 0 { idle + 1 } else { 0 };
                    let before = sides[me].held();
                    while let Some(arrival) = sides[me].poll().unwrap() {
                        match arrival {
                            Arrival::Message(message) => got[1 - me].push(message),
                            Arrival::Pong => pongs += 1,
                            Arrival::Ping(ttl) => prop_assert_eq!(ttl, None),
                            Arrival::Connected(_) => {
                                connected += 1;
                                for message in &sent[me] {
                                    sides[me].send(message.clone(), Instant::now());
                                }
                                pings.iter().filter(|side| **side == me).for_each(|_| sides[me].ping());
                            }
                        }
                    }
                    // One read, or one incomplete message.
                    prop_assert!(sides[me].buffered() <= 2 * LIMITS.message_bytes + before + MOST_READ);
                }
            }
            prop_assert_eq!(connected, 2);
            prop_assert_eq!(pongs, pings.len());
            let [one, other] = &sent;
            prop_assert_eq!(&got[0], one);
            prop_assert_eq!(&got[1], other);
            prop_assert!(sides.iter().all(|side| side.unwritten_messages() == 0));
        }

        #[test]
        fn any_bytes_yield_events_or_a_reason_in_both_roles(
            listens in any::<bool>(),
            greeted in any::<bool>(),
            noise in vec(prop_oneof![0u8..8, any::<u8>()], 0..3_000),
            cuts in vec(1usize..500, 1..12),
        ) {
            let (role, socket_type, peer) = match listens {
                true => (Role::Listening, SocketType::Router, side(Role::Connecting, SocketType::Dealer)),
                false => (Role::Connecting, SocketType::Dealer, side(Role::Listening, SocketType::Router)),
            };
            let mut peer = peer;
            let mut connection = side(role, socket_type);
            if greeted {
                for _ in 0..4 {
                    carry(&mut connection, &mut peer, usize::MAX);
                    let _ = peer.poll();
                    carry(&mut peer, &mut connection, usize::MAX);
                    prop_assert!(connection.poll().is_ok());
                }
            }
            let mut rest = &noise[..];
            for cut in cuts.iter().cycle() {
                let (read, left) = rest.split_at((*cut).min(rest.len()));
                rest = left;
                connection.read_buffer().extend_from_slice(read);
                connection.received(read.len());
                loop {
                    match connection.poll() {
                        Ok(Some(Arrival::Message(message))) => {
                            prop_assert!(message.bytes() <= LIMITS.message_bytes);
                            prop_assert!(message.frames().len() <= LIMITS.message_frames);
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
    }
}
