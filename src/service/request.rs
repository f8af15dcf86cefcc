//! A request as a service sees it: the payload to work on, and the ways to answer.
//!
//! What a client sends may begin with an envelope: all frames up to the first empty one (the
//! delimiter of a REQ, an id before it, the identities that proxies add). The service does not
//! see it, and every reply gets it back. A message without an empty frame is all payload.

use std::time::Instant;

use bytes::Bytes;
use zmtp::Message;
use zmtp::router::{ConnectedPeer, Origin, PeerId};

use super::in_flight::{InFlight, Ticket};
use super::rejection::Rejection;
use crate::metrics::methods::Label;

/// What the loop does about a request. A [`Request`] makes it.
#[derive(Debug)]
#[must_use]
pub struct Answer(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    /// The reply stands in the request's place.
    Reply,
    /// The ticket's replies come from [`Service::completed`](super::Service::completed).
    Later(Ticket),
    /// An error reply.
    Reject(Rejection),
}

/// Tells who a request's peer is. The socket implements it.
pub(super) trait Peers {
    /// Who a connection's peer is.
    fn peer(&self, id: PeerId) -> Option<ConnectedPeer>;
}

/// One request, to be answered by one of the methods that take it.
pub struct Request<'a> {
    pub(super) message: &'a mut Message,
    pub(super) payload_at: usize,
    pub(super) origin: Origin,
    pub(super) peers: &'a dyn Peers,
    pub(super) in_flight: &'a mut InFlight,
    pub(super) deadline: Option<Instant>,
}

/// A request that is answered later.
#[derive(Debug)]
pub struct Call {
    /// Which request it is.
    pub ticket: Ticket,
    /// The payload, in memory of its own.
    pub payload: Message,
    /// Which of the service's methods it asks for: see [`Request::method`].
    pub method: usize,
    /// Who sent it, or `None` if it has left.
    pub peer: Option<ConnectedPeer>,
    /// When it was read.
    pub read_at: Instant,
    /// When it is not worth working on any more, if ever.
    pub deadline: Option<Instant>,
}

/// The number of frames up to the delimiter, the delimiter included.
#[inline(always)]
pub(super) fn envelope(message: &Message) -> usize {
    message.frames().iter().position(Bytes::is_empty).map_or(0, |at| at + 1)
}

impl Request<'_> {
    /// The frames of the payload. They lie in the socket's read buffer: to keep one, copy it.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.message.frames().range(self.payload_at..).map(|frame| &frame[..])
    }

    /// A frame of the payload.
    pub fn frame(&self, index: usize) -> Option<&[u8]> {
        self.message.frames().get(self.payload_at + index).map(|frame| &frame[..])
    }

    /// A copy of the payload, in memory of its own.
    pub fn payload(&self) -> Message {
        owned(self.frames())
    }

    /// Which of the service's methods it asks for, as
    /// [`Service::method`](super::Service::method) has said.
    pub fn method(&self) -> usize {
        Label::of_number(self.origin.label).method()
    }

    /// Who sent it.
    pub fn peer(&self) -> Option<ConnectedPeer> {
        self.peers.peer(self.origin.peer)
    }

    /// When it was read.
    pub fn read_at(&self) -> Instant {
        self.origin.read_at
    }

    /// When it is not worth working on any more, if its client has said so. It was not over when
    /// the service was called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Replies with the request's own payload.
    #[inline(always)]
    pub fn echo(self) -> Answer {
        Answer(Kind::Reply)
    }

    /// Replies with `payload`, which has at least one frame.
    pub fn reply(self, payload: impl Into<Message>) -> Answer {
        let payload = payload.into();
        if let Err(rejection) = check_payload(&payload) {
            return self.reject(rejection);
        }
        let frames = self.message.frames_mut();
        frames.truncate(self.payload_at);
        frames.extend(payload.into_frames());
        Answer(Kind::Reply)
    }

    /// Replies with an error.
    pub fn reject(self, rejection: Rejection) -> Answer {
        Answer(Kind::Reject(rejection))
    }

    /// Takes the request for an answer later: what to work on, and what to tell the loop now.
    pub fn later(self) -> (Call, Answer) {
        let payload = self.payload();
        let (peer, method) = (self.peer(), self.method());
        let envelope = self.message.frames().range(..self.payload_at);
        let envelope = owned(envelope.map(|frame| &frame[..]));
        let read_at = self.origin.read_at;
        let ticket = self.in_flight.add(self.origin, envelope, payload.bytes());
        let deadlines = [self.deadline, self.in_flight.deadline(read_at)];
        let deadline = deadlines.into_iter().flatten().min();
        let call = Call { ticket, payload, method, peer, read_at, deadline };
        (call, Answer(Kind::Later(ticket)))
    }
}

/// Whether a service may reply with this.
pub(super) fn check_payload(payload: &Message) -> Result<(), Rejection> {
    match payload.frames().front() {
        None => Err(Rejection::failed("the service replied with nothing")),
        Some(frame) if super::rejection::is_reserved(frame) => {
            Err(Rejection::failed("the service's reply begins with a reserved frame"))
        }
        Some(_) => Ok(()),
    }
}

/// Copies frames into memory of their own. Nothing keeps the socket's read buffer then.
fn owned<'a>(frames: impl Iterator<Item = &'a [u8]>) -> Message {
    frames.map(Bytes::copy_from_slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(frames: &[&'static [u8]]) -> Message {
        frames.iter().map(|frame| Bytes::from_static(frame)).collect()
    }

    #[test]
    fn the_envelope_ends_with_the_first_empty_frame() {
        for (frames, payload_at) in [
            (&[&b"payload"[..]][..], 0),
            (&[b"two", b"frames"], 0),
            (&[b"", b"of a REQ"], 1),
            (&[b"id", b"", b"payload", b"", b"more"], 2),
            (&[b""], 1),
        ] {
            assert_eq!(envelope(&message(frames)), payload_at, "{frames:?}");
        }
    }
}
