//! Requests that are being worked on elsewhere, and back-pressure from them.
//!
//! The caller says which requests it has not answered yet: [`Router::hold`] and
//! [`Router::release`]. A peer with too many is not read from, as a slow reader is not, and
//! nobody is while there are too many of all peers together. So requests wait in the kernel and
//! at the client, and TCP makes the client wait.

use std::any::Any;
use std::task::Poll;
use std::time::Instant;

use super::{Origin, PeerId, Router, obey};
use crate::event::Observer;
use crate::reason::Reason;
use crate::router::peer::Peer;

/// What a held request costs beside its bytes.
const REQUEST: usize = 256;

impl<O: Observer> Router<O> {
    /// Counts a request as in flight: it is not answered yet, and `bytes` of it are kept. They
    /// count towards the pool. Call it before the next message is received.
    pub fn hold(&mut self, request: &Origin, bytes: usize) {
        let Some(peer) = self.peer_mut(request.peer) else { return };
        peer.in_flight += 1;
        peer.in_flight_bytes += bytes + REQUEST;
        self.in_flight += 1;
        self.in_flight_bytes += bytes + REQUEST;
        self.limit_in_flight(request.peer.slot);
    }

    /// The request has been answered or given up. Has no effect if its connection has ended.
    pub fn release(&mut self, request: &Origin, bytes: usize) {
        let Some(peer) = self.peer_mut(request.peer) else { return };
        peer.in_flight -= 1;
        peer.in_flight_bytes -= bytes + REQUEST;
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes + REQUEST;
        self.limit_in_flight(request.peer.slot);
    }

    /// Keeps `token` while so many replies wait for the peer that it is not read from, and drops
    /// it then: at once, if there is room. Whoever makes many replies to one request waits for
    /// that, and so for a client that reads slowly. It is dropped as well if the connection ends.
    pub fn keep_until_room(&mut self, request: &Origin, token: Box<dyn Any + Send>) {
        if let Some(peer) = self.peer_mut(request.peer).filter(|peer| peer.is_behind()) {
            peer.tokens.push(token);
        }
    }

    /// Connections that have ended since the last call while requests of theirs were in flight.
    pub fn take_abandoned(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.abandoned)
    }

    /// Pauses and resumes reading after a change of what is in flight.
    fn limit_in_flight(&mut self, slot: usize) {
        self.check_room();
        let peer = &mut self.peers[slot];
        let is_busy = peer.in_flight >= self.limits.in_flight_per_peer;
        let was_busy = std::mem::replace(&mut peer.is_busy, is_busy);
        if is_busy || self.is_full {
            // What has been read and not handed out waits with the peer.
            if self.batch.as_ref().is_some_and(|batch| batch.slot() == slot) {
                self.end_batch(0);
            }
        } else if was_busy {
            if peer.paused_at.is_some() {
                peer.pause_or_resume(Instant::now());
            }
            self.turns.push(slot);
        }
        let Some(peer) = self.peers.get(slot) else { return };
        let (held, owed) = (peer.held(), peer.out.replies());
        self.account(slot, held, owed);
    }

    /// Whether requests of all peers together leave room for more. If they do again, the peers
    /// that waited for it get their turns.
    fn check_room(&mut self) {
        let is_full = self.in_flight >= self.limits.in_flight
            || self.in_flight_bytes >= self.limits.buffer_bytes / 2;
        if std::mem::replace(&mut self.is_full, is_full) && !is_full {
            while let Some(slot) = self.unread.pop() {
                self.turns.push(slot);
            }
        }
    }

    /// Looks for PINGs behind the requests that wait: a client that gets no PONG would leave.
    pub(super) fn read_ahead(&mut self, slot: usize) -> Result<(), Reason> {
        if self.is_full {
            self.unread.push(slot);
        }
        let peer = &mut self.peers[slot];
        if !peer.can_read_ahead() {
            return Ok(());
        }
        match peer.poll_read_ahead() {
            Poll::Pending => return Ok(()),
            Poll::Ready(Err(error)) => return Err(Reason::of(&error)),
            // It has left, and waits for nothing.
            Poll::Ready(Ok(false)) => return Err(Reason::Closed),
            Poll::Ready(Ok(true)) => {}
        }
        peer.heard(Instant::now(), 0);
        for ping in peer.take_pings(&self.message_limits) {
            obey(peer, &ping, true)?;
        }
        self.flush(slot)
    }

    /// Gives up what is in flight of a peer whose connection ends.
    pub(super) fn abandon(&mut self, slot: usize, peer: &Peer) {
        if peer.in_flight > 0 {
            self.in_flight -= peer.in_flight;
            self.in_flight_bytes -= peer.in_flight_bytes;
            self.abandoned.push(PeerId { slot, generation: peer.generation });
            self.check_room();
        }
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(id.slot).filter(|peer| peer.generation == id.generation)?;
        Some(peer)
    }
}
