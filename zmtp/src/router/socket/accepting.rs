//! Accepts connections in turns, like all other work. Each turn is bounded, and errors do not stop
//! it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::net::TcpStream;
use tracing::debug;

use super::Router;
use crate::event::{Event, Observer};
use crate::listeners::ACCEPT_PAUSE;
use crate::reason::Reason;
use crate::router::limits::RESERVED_PEERS;
use crate::router::peer::Peer;
use crate::router::ready::LISTENER;

/// How many connections one turn accepts from each listener.
const ACCEPTS: usize = 16;

/// More connections than a listener's queue holds. Linux limits it to 4,096 by default
/// (net.core.somaxconn).
const QUEUED: usize = 8 << 10;

impl<O: Observer> Router<O> {
    /// The listeners' turn.
    pub(super) fn accept(&mut self) {
        self.listener_bell.answer();
        for number in 0..self.listeners.len() {
            self.accept_from(number);
        }
    }

    fn accept_from(&mut self, number: usize) {
        let waker = Waker::from(Arc::clone(&self.listener_bell));
        for _ in 0..ACCEPTS {
            match self.listeners[number].poll_accept(&mut Context::from_waker(&waker)) {
                Poll::Pending => return,
                Poll::Ready(Ok((stream, from))) => self.admit(stream, from),
                Poll::Ready(Err(error)) if ended_in_the_queue(&error) => {}
                Poll::Ready(Err(error)) => {
                    debug!(%error, "cannot accept a connection");
                    self.clock.set(Instant::now() + ACCEPT_PAUSE, LISTENER);
                    return;
                }
            }
        }
        self.turns.push(LISTENER);
    }

    fn admit(&mut self, stream: TcpStream, from: SocketAddr) {
        let now = Instant::now();
        let of_this_host = is_of_this_host(&stream, from);
        if self.places.are_used_up(from.ip(), of_this_host) {
            self.observer.event(Event::HandshakeFailed(Reason::AddressLimit));
            return;
        }
        let left = self.limits.peers.saturating_sub(self.open());
        if left == 0 || (left <= RESERVED_PEERS && !of_this_host) {
            let Some(slot) = self.places.giving_way(of_this_host, now) else {
                self.observer.event(Event::HandshakeFailed(Reason::PeerLimit));
                return;
            };
            self.close_peer(slot, Reason::PeerLimit);
        }
        let slot = self.peers.vacant_key();
        let place = self.places.take(from.ip(), of_this_host, slot, now);
        self.accepted += 1;
        let peer = Peer::new(stream, self.accepted, from, place, self.ready.bell(slot), now);
        peer.bound_kernel_buffers(self.limits.socket_buffer);
        self.peers.insert(Box::new(peer));
        self.turns.push(slot);
    }

    /// Stops accepting connections. Connected peers stay connected and are served.
    ///
    /// Connections waiting in the listeners' queues are accepted first, because closing the
    /// listeners would reset them.
    pub fn stop_listening(&mut self) {
        for listener in std::mem::take(&mut self.listeners) {
            // The kernel may have connections that the runtime does not know about yet.
            let Ok(listener) = listener.into_std() else { continue };
            for _ in 0..QUEUED {
                let accepted = listener.accept().and_then(|(stream, from)| {
                    stream.set_nonblocking(true)?;
                    Ok((TcpStream::from_std(stream)?, from))
                });
                match accepted {
                    Ok((stream, from)) => self.admit(stream, from),
                    Err(error) if ended_in_the_queue(&error) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// Whether accept failed because the connection itself ended.
fn ended_in_the_queue(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// Whether the peer connected from loopback, or from the address at which it was accepted.
fn is_of_this_host(stream: &TcpStream, from: SocketAddr) -> bool {
    let ip = from.ip().to_canonical();
    ip.is_loopback() || stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == ip)
}
