//! The zeromq crate's traits for our sockets, on its message type. They let users of that crate
//! switch to this one and back.
//!
//! Conversions do not copy payloads.

use async_trait::async_trait;
use zeromq::{SocketRecv, SocketSend, ZmqError, ZmqMessage, ZmqResult};

use crate::dealer::{Dealer, Unsent};
use crate::event::Observer;
use crate::message::Message;
use crate::router::{Router, SendError};

impl From<ZmqMessage> for Message {
    #[inline(always)]
    fn from(message: ZmqMessage) -> Self {
        message.into_vecdeque().into()
    }
}

/// # Errors
///
/// If the message has no frames.
impl TryFrom<Message> for ZmqMessage {
    type Error = ZmqError;

    #[inline(always)]
    fn try_from(message: Message) -> ZmqResult<Self> {
        Self::try_from(message.into_frames())
            .map_err(|_| ZmqError::Socket("a message needs at least one frame"))
    }
}

#[async_trait]
impl<O: Observer + Send> SocketRecv for Router<O> {
    /// Cancel-safe, see [`Router::recv`].
    async fn recv(&mut self) -> ZmqResult<ZmqMessage> {
        Router::recv(self).await.try_into()
    }
}

#[async_trait]
impl<O: Observer + Send> SocketSend for Router<O> {
    /// Never waits, see [`Router::send`].
    async fn send(&mut self, message: ZmqMessage) -> ZmqResult<()> {
        let mut message = message.into();
        match Router::send(self, &mut message) {
            Ok(()) => Ok(()),
            Err(SendError::NoPayload) => {
                Err(ZmqError::Socket("a reply needs at least one frame after the identity"))
            }
            Err(SendError::NoPeer) => {
                let message = message.try_into()?;
                Err(ZmqError::ReturnToSender { reason: "the peer is not connected", message })
            }
        }
    }
}

#[async_trait]
impl SocketRecv for Dealer {
    /// Cancel-safe, see [`Dealer::recv`].
    async fn recv(&mut self) -> ZmqResult<ZmqMessage> {
        match Dealer::recv(self).await {
            Ok(message) => message.try_into(),
            Err(reason) => Err(ZmqError::Socket(reason.as_str())),
        }
    }
}

#[async_trait]
impl SocketSend for Dealer {
    /// Never waits. The message is queued, and written while [`Dealer::recv`] is polled.
    async fn send(&mut self, message: ZmqMessage) -> ZmqResult<()> {
        match Dealer::send(self, message.into()) {
            Ok(_) => Ok(()),
            Err(Unsent(message)) => Err(ZmqError::ReturnToSender {
                reason: "the connection has ended or its send queue is full",
                message: message.try_into()?,
            }),
        }
    }
}
