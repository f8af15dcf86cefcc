//! A request as a service sees it: the payload to work on, and the ways to answer.
//!
//! A client's message may begin with an envelope: all frames up to the first empty one (the
//! delimiter of a REQ, an id in front of it, the identities that proxies add). The service does not
//! see the envelope, and each reply returns it. If a message has no empty frame, all of it is
//! payload.

use std::time::Instant;

use bytes::Bytes;
use zmtp::Message;
use zmtp::router::{ConnectedPeer, Origin, PeerId};

use super::in_flight::{InFlight, Ticket};
use super::rejection::Rejection;
use crate::metrics::methods::Label;

/// Tells the loop what to do with a request. The methods of [`Request`] create it.
#[derive(Debug)]
#[must_use]
pub struct Answer(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    /// The reply has replaced the request in the message.
    Reply,
    /// Replies will come from [`Service::completed`](super::Service::completed), with this ticket.
    Later(Ticket),
    /// The reply is an error.
    Reject(Rejection),
}

/// Looks up the peers of requests. The socket implements it.
pub(super) trait Peers {
    /// The peer of a connection, or `None` if it has left.
    fn peer(&self, id: PeerId) -> Option<ConnectedPeer>;
}

/// One request. To answer it, call one of the methods that take it by value.
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
    /// Identifies the request. Each of its [`Completion`](super::Completion)s needs it.
    pub ticket: Ticket,
    /// The payload, copied from the socket's read buffer.
    pub payload: Message,
    /// The index of the method that the request asks for: see [`Request::method`].
    pub method: usize,
    /// The client's address and identity, or `None` if it has left.
    pub peer: Option<ConnectedPeer>,
    /// When the request was read.
    pub read_at: Instant,
    /// The deadline, set by the client or by `--request-deadline`. After it, a reply is probably
    /// useless. `None` if there is none.
    pub deadline: Option<Instant>,
}

/// The number of frames in the envelope, including the delimiter. Zero if there is no envelope.
#[inline(always)]
pub(super) fn envelope(message: &Message) -> usize {
    message.frames().iter().position(Bytes::is_empty).map_or(0, |at| at + 1)
}

impl Request<'_> {
    /// The frames of the payload. They are in the socket's read buffer, so copy what you keep.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.message.frames().range(self.payload_at..).map(|frame| &frame[..])
    }

    /// The payload's frame at `index`, or `None` if the payload has fewer frames.
    pub fn frame(&self, index: usize) -> Option<&[u8]> {
        self.message.frames().get(self.payload_at + index).map(|frame| &frame[..])
    }

    /// A copy of the payload, which does not keep the socket's read buffer in memory.
    pub fn payload(&self) -> Message {
        owned(self.frames())
    }

    /// The index of the method that the request asks for, as
    /// [`Service::method`](super::Service::method) has returned it.
    pub fn method(&self) -> usize {
        Label::of_number(self.origin.label).method()
    }

    /// The client's address and identity, or `None` if it has left.
    pub fn peer(&self) -> Option<ConnectedPeer> {
        self.peers.peer(self.origin.peer)
    }

    /// When the request was read.
    pub fn read_at(&self) -> Instant {
        self.origin.read_at
    }

    /// The deadline that the client has set, if any. After it, the client no longer needs a reply.
    /// The deadline had not passed when the service was called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Replies with the request's own payload.
    #[inline(always)]
    pub fn echo(self) -> Answer {
        Answer(Kind::Reply)
    }

    /// Replies with `payload`. If it has no frame, or begins with a
    /// [reserved](super::rejection) one, the client gets the error `failed` instead.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use zmq_echo::service::{Answer, Request};
    ///
    /// fn upper(request: Request<'_>) -> Answer {
    ///     let frames: Vec<Bytes> =
    ///         request.frames().map(|frame| frame.to_ascii_uppercase().into()).collect();
    ///     request.reply(frames)
    /// }
    /// ```
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

    /// Accepts the request, to answer it later. Returns the call to work on, and the answer that
    /// [`Service::call`](super::Service::call) returns to the loop.
    pub fn later(self) -> (Call, Answer) {
        let payload = self.payload();
        let (peer, method) = (self.peer(), self.method());
        let envelope = self.message.frames().range(..self.payload_at);
        let envelope = owned(envelope.map(|frame| &frame[..]));
        let read_at = self.origin.read_at;
        let ticket = self.in_flight.add(self.origin, envelope, &payload);
        let deadlines = [self.deadline, self.in_flight.deadline(read_at)];
        let deadline = deadlines.into_iter().flatten().min();
        let call = Call { ticket, payload, method, peer, read_at, deadline };
        (call, Answer(Kind::Later(ticket)))
    }
}

/// Checks whether a service may reply with `payload`.
pub(super) fn check_payload(payload: &Message) -> Result<(), Rejection> {
    match payload.frames().front() {
        None => Err(Rejection::failed("the service replied without frames")),
        Some(frame) if super::rejection::is_reserved(frame) => {
            Err(Rejection::failed("the service's reply begins with a reserved frame"))
        }
        Some(_) => Ok(()),
    }
}

/// Copies frames, so that they do not keep the socket's read buffer in memory.
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
    fn the_envelope_ends_at_the_first_empty_frame() {
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
