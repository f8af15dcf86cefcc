//! What the poll loop needs of a ROUTER socket.
//!
//! The loop receives with [`zeromq::SocketRecv`] and sends with [`zeromq::SocketSend`], as any
//! user of the zeromq crate would. [`LoopSocket`] adds the little that those two lack. The
//! server's socket is [`zmtp::Router`]; any other that implements the trait will do.

use std::time::Instant;

use zeromq::{SocketRecv, SocketSend, ZmqMessage, ZmqResult};
use zmtp::event::Observer;
use zmtp::router::{Closed, Router};

/// A ROUTER socket that can work in batches and leave in good order.
///
/// `recv` must be cancel-safe: the loop drops it whenever something else comes
/// first.
#[expect(async_fn_in_trait, reason = "the loop runs on one thread and needs no Send")]
pub trait LoopSocket: SocketRecv + SocketSend {
    /// The next message that is already here, or `None`. Does not wait.
    fn try_recv(&mut self) -> Option<ZmqResult<ZmqMessage>>;

    /// Sends a reply if that takes no waiting, as [`SocketSend::send`] does but without
    /// a future on the heap for each message.
    ///
    /// # Errors
    ///
    /// The reply, for `send` to take.
    fn try_send(&mut self, reply: ZmqMessage) -> Result<ZmqResult<()>, ZmqMessage> {
        Err(reply)
    }

    /// How many connections are open that may still bring a message, those in
    /// the handshake included. Before [`LoopSocket::stop_listening`] it may be one too many.
    fn connections(&self) -> usize;

    /// Stops accepting. Connected peers stay connected and are served.
    async fn stop_listening(&mut self);

    /// When a byte of a client's request or of a reply to one moved last, or `None` while half
    /// a message is here or a client has not got its reply. What lies in the kernel unread is
    /// not known here.
    fn active_at(&mut self) -> Option<Instant>;

    /// Notes what has arrived by now and lies in the kernel.
    fn note_arrived(&mut self) {}

    /// Whether something of what was noted is still to be received, be it requests or not.
    fn has_arrived(&mut self) -> bool {
        false
    }

    /// Closes every connection once its replies are out and the peer has closed its side, by
    /// `deadline` at the latest.
    async fn close(self, deadline: Instant) -> Closed;
}

impl<O: Observer + Send> LoopSocket for Router<O> {
    #[inline(always)]
    fn try_recv(&mut self) -> Option<ZmqResult<ZmqMessage>> {
        Some(Router::try_recv(self)?.try_into())
    }

    #[inline(always)]
    fn try_send(&mut self, reply: ZmqMessage) -> Result<ZmqResult<()>, ZmqMessage> {
        Ok(Router::send(self, reply.into()).map_err(Into::into))
    }

    fn connections(&self) -> usize {
        Router::connections(self)
    }

    async fn stop_listening(&mut self) {
        Router::stop_listening(self);
    }

    fn active_at(&mut self) -> Option<Instant> {
        Router::active_at(self)
    }

    fn note_arrived(&mut self) {
        Router::note_arrived(self);
    }

    fn has_arrived(&mut self) -> bool {
        Router::has_arrived(self)
    }

    async fn close(self, deadline: Instant) -> Closed {
        Router::close(self, deadline).await
    }
}

/// Bytes of all frames but the first, which is the identity.
pub fn payload_bytes(message: &ZmqMessage) -> u64 {
    message.iter().skip(1).map(|frame| frame.len() as u64).sum()
}
