//! The zeromq crate's ROUTER as a socket of the server's own poll loop, to be measured against.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tracing::debug;
use zeromq::util::PeerIdentity;
use zeromq::{
    RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend, ZmqError, ZmqMessage, ZmqResult,
};
use zmq_echo::metrics::{SocketMetrics, is_probe};
use zmq_echo::service::socket::{LoopSocket, payload_bytes};
use zmtp::Reason;
use zmtp::router::Closed;

/// The zeromq crate's [`RouterSocket`], with what it does not tell by itself:
/// who is connected, and when the last reply has left.
///
/// Its limits are the crate's. It does not bound what a peer makes it hold,
/// `send` waits where a peer's queue of 100,000 messages is full, and it tells
/// neither how a connection ended nor what is still queued.
pub struct ZeromqRouter {
    socket: RouterSocket,
    events: futures_channel::mpsc::Receiver<SocketEvent>,
    peers: HashSet<PeerIdentity>,
    metrics: SocketMetrics,
    /// When the last request was taken from the crate.
    received_at: Instant,
}

/// How many connection events may wait to be counted. The crate's own 1,024 are
/// fewer than the peers that one lost node takes away, and what does not fit is
/// lost and leaves the gauge wrong; this is more than a process has descriptors.
const EVENTS: usize = 1 << 16;

/// How often [`ZeromqRouter::close`] looks whether the last writer has ended.
const CLOSE_TICK: Duration = Duration::from_millis(2);

impl ZeromqRouter {
    /// Takes over `listeners` and begins to accept on the current runtime, which
    /// must run nothing else: its tasks are counted as this socket's.
    ///
    /// # Errors
    ///
    /// What the crate or the kernel says of a listener.
    pub async fn bind(
        listeners: impl IntoIterator<Item = TcpListener>,
        metrics: SocketMetrics,
    ) -> io::Result<Self> {
        let mut socket = RouterSocket::new();
        let (sender, events) = futures_channel::mpsc::channel(EVENTS);
        *socket.backend().monitor().lock() = Some(sender);
        for listener in listeners {
            socket.bind_listener(listener).await.map_err(io::Error::other)?;
        }
        let peers = HashSet::new();
        Ok(Self { socket, events, peers, metrics, received_at: Instant::now() })
    }

    fn account(&mut self, event: SocketEvent) {
        match event {
            SocketEvent::Accepted(endpoint, identity) => {
                debug!(%endpoint, identity = %identity.escape_ascii(), "peer connected");
                self.metrics.established.inc();
                self.peers.insert(identity);
            }
            SocketEvent::Disconnected(identity) => {
                debug!(identity = %identity.escape_ascii(), "peer disconnected");
                self.metrics.disconnected(Reason::Closed);
                self.peers.remove(&identity);
            }
            SocketEvent::AcceptFailed(error) if left_before_the_greeting(&error) => {}
            SocketEvent::AcceptFailed(error) => {
                debug!(%error, "handshake failed");
                self.metrics.handshake_failed(Reason::Error);
            }
            _ => {}
        }
        self.metrics.peers.set(self.peers.len() as i64);
    }

    fn account_received(&mut self, message: &ZmqResult<ZmqMessage>) {
        self.received_at = Instant::now();
        if let Ok(message) = message
            && is_from_a_client(message)
        {
            self.metrics.received_bytes.inc_by(payload_bytes(message));
        }
    }

    fn account_ready(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.account(event);
        }
    }
}

fn is_from_a_client(message: &ZmqMessage) -> bool {
    !message.get(0).is_some_and(|identity| is_probe(identity))
}

/// Whether this is what a TCP probe leaves behind: it connects and closes, or
/// resets because our greeting lies unread. It is no fault and comes for ever.
/// (The crate does not tell whether a byte had come before a reset.)
fn left_before_the_greeting(error: &ZmqError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    if matches!(error, ZmqError::Other("Failed Greeting exchange")) {
        return true;
    }
    std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| matches!(error.kind(), BrokenPipe | ConnectionReset))
}

/// The tasks of the current runtime: one that accepts, one for each handshake
/// under way, and one for each peer, which writes its replies.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[async_trait]
impl SocketRecv for ZeromqRouter {
    async fn recv(&mut self) -> ZmqResult<ZmqMessage> {
        loop {
            // Both are cancel-safe: a channel's `next`, and the crate's `recv`.
            tokio::select! {
                Some(event) = self.events.next() => self.account(event),
                message = self.socket.recv() => {
                    self.account_received(&message);
                    return message;
                }
            }
        }
    }
}

#[async_trait]
impl SocketSend for ZeromqRouter {
    /// Observes the time to the crate's queue: it does not tell when a reply leaves.
    async fn send(&mut self, message: ZmqMessage) -> ZmqResult<()> {
        let (client, bytes) = (is_from_a_client(&message), payload_bytes(&message));
        self.socket.send(message).await?;
        if client {
            self.metrics.request_duration.observe(self.received_at.elapsed().as_secs_f64());
            self.metrics.sent_bytes.inc_by(bytes);
        }
        Ok(())
    }
}

impl LoopSocket for ZeromqRouter {
    fn try_recv(&mut self) -> Option<ZmqResult<ZmqMessage>> {
        self.account_ready();
        let message = self.socket.recv().now_or_never()?;
        self.account_received(&message);
        Some(message)
    }

    fn connections(&self) -> usize {
        tasks()
    }

    fn active_at(&mut self) -> Option<Instant> {
        Some(self.received_at)
    }

    async fn stop_listening(&mut self) {
        for error in self.socket.unbind_all().await {
            debug!(%error, "could not stop listening");
        }
    }

    /// Takes the crate's queues away from their writers, which write what is
    /// left and end. A writer that has not ended by `deadline` counts as one
    /// reply owed; it may be more, the crate does not tell.
    async fn close(mut self, deadline: Instant) -> Closed {
        self.account_ready();
        // A handshake that hangs owes nothing and must not be waited for.
        let handshakes = tasks().saturating_sub(self.peers.len());
        drop(self);
        loop {
            let owed = tasks().saturating_sub(handshakes);
            if owed == 0 || Instant::now() >= deadline {
                return Closed { owed: owed as u64, ..Closed::default() };
            }
            tokio::time::sleep(CLOSE_TICK).await;
        }
    }
}
