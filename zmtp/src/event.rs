//! The events that a socket reports.

use std::time::Duration;

use crate::reason::Reason;

/// An event that a [`Router`](crate::Router) reports to its [`Observer`].
///
/// Byte counts cover message payloads. They exclude the identity frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A handshake succeeded.
    Connected,
    /// A handshake failed.
    HandshakeFailed(Reason),
    /// An established connection ended.
    Disconnected(Reason),
    /// The number of established connections is now this.
    Peers(usize),
    /// A REQ peer sent a message that is not a request. It was dropped.
    Malformed,
    /// The kernel accepted the last bytes of these replies. Replies to monitors are not reported.
    Replied {
        /// How many replies.
        replies: usize,
        /// The [`Origin::label`](crate::router::Origin::label) of their requests.
        label: u32,
        /// Time from reading the request to writing the reply.
        latency: Duration,
    },
    /// A connection ended before these replies were written.
    Undeliverable(u64),
    /// A connection ended before these requests were handed out.
    Lost(u64),
    /// A closing socket discarded these.
    Discarded {
        /// Complete requests.
        requests: u64,
        /// Bytes for which the number of requests is unknown.
        bytes: u64,
    },
    /// The socket has nothing more to hand out for now, or it is handing out the first message of
    /// a batch.
    Turned(Totals),
}

/// What moved since the last [`Event::Turned`], and what is held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes received since then, excluding monitors.
    pub received_bytes: usize,
    /// Bytes sent since then, excluding monitors.
    pub sent_bytes: usize,
    /// Replies that the kernel has not accepted yet.
    pub pending_replies: usize,
    /// Bytes held for peers: partial messages, replies and requests in flight.
    pub buffered_bytes: usize,
}

/// Receives a socket's events, on the thread that polls the socket. It must not block.
///
/// ```
/// use zmtp::{Event, Observer};
///
/// #[derive(Default)]
/// struct Connections(u64);
///
/// impl Observer for Connections {
///     fn event(&mut self, event: Event) {
///         if event == Event::Connected {
///             self.0 += 1;
///         }
///     }
/// }
/// # let mut connections = Connections::default();
/// # connections.event(Event::Connected);
/// # assert_eq!(connections.0, 1);
/// ```
pub trait Observer {
    /// Called for each event.
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
