//! What a socket reports while it works, as one closed set.

use std::time::Duration;

use crate::reason::Reason;

/// What a [`Router`](crate::Router) reports to its [`Observer`].
///
/// Requests, replies and bytes are those of messages. Bytes are the bytes of frames without
/// the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A handshake succeeded.
    Connected,
    /// A handshake failed.
    HandshakeFailed(Reason),
    /// An established connection ended.
    Disconnected(Reason),
    /// The number of established connections changed to this.
    Peers(usize),
    /// A message of a REQ peer was dropped because it is no request.
    Malformed,
    /// The kernel took the last bytes of `replies` replies, this long after their requests
    /// were read. Replies to monitors are not reported.
    Replied {
        /// How many.
        replies: usize,
        /// The [`Origin::label`](crate::router::Origin::label) of their requests.
        label: u32,
        /// From the read of the request to the write of the reply.
        latency: Duration,
    },
    /// A connection ended before these replies had left.
    Undeliverable(u64),
    /// A connection ended before these requests were handed out.
    Lost(u64),
    /// A socket that is closing threw these away.
    Discarded {
        /// Whole requests.
        requests: u64,
        /// Bytes of which it is unknown how many requests they are.
        bytes: u64,
    },
    /// The socket has nothing more to hand out for now, or hands out the first message
    /// of a batch.
    Turned(Totals),
}

/// What has moved since the last [`Event::Turned`], and what is held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes received since then, without those of monitors.
    pub received_bytes: usize,
    /// Bytes sent since then, without those to monitors.
    pub sent_bytes: usize,
    /// Replies that the kernel has not taken.
    pub pending_replies: usize,
    /// Bytes held for peers: parts of messages, and replies.
    pub buffered_bytes: usize,
}

/// Takes a socket's events, on the thread that polls the socket. It must not block.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: Event);
}

/// Ignores every event.
impl Observer for () {
    fn event(&mut self, _: Event) {}
}

impl<F: FnMut(Event)> Observer for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}
