//! Requests in flight, which are being worked on elsewhere, and back-pressure from them.
//!
//! The caller reports which requests are not answered yet with [`Router::hold`] and
//! [`Router::release`]. A peer with too many of them is not read from, like a slow reader. With
//! too many of all peers together, no client is read from, and when there is room, they take turns.
//! Further requests then wait in the kernel and at the clients, because TCP makes them wait.
//!
//! So a slow service does not fill the pool. Requests in flight may hold half of what everything
//! else leaves of it. While there are some, a turn reads no more than it can hand out, because the
//! rest would wait in memory, for each peer again.

use std::any::Any;
use std::task::Poll;
use std::time::Instant;

use super::{Origin, PeerId, Router, obey};
use crate::event::Observer;
use crate::reason::Reason;
use crate::router::limits::MESSAGES;
use crate::router::peer::Peer;

/// What a held request costs in addition to its bytes.
const REQUEST: usize = 256;

impl<O: Observer> Router<O> {
    /// Counts a request as in flight: it is not answered yet, and `bytes` of memory are kept for it.
    /// They count towards the pool. Call this before you receive the next message.
    pub fn hold(&mut self, request: &Origin, bytes: usize) {
        let Some(peer) = self.peer_mut(request.peer) else { return };
        peer.in_flight += 1;
        peer.in_flight_bytes += bytes + REQUEST;
        self.in_flight += 1;
        self.in_flight_bytes += bytes + REQUEST;
        self.limit_in_flight(request.peer.slot);
    }

    /// Call this once when the request has been answered or abandoned, with the same `bytes`. Has
    /// no effect if its connection has ended, or has no request in flight.
    pub fn release(&mut self, request: &Origin, bytes: usize) {
        let Some(peer) = self.peer_mut(request.peer).filter(|peer| peer.in_flight > 0) else {
            return;
        };
        peer.in_flight -= 1;
        // All that is left, if this was the last one. So a wrong size cannot stay in the accounts.
        let is_last = peer.in_flight == 0;
        let left = peer.in_flight_bytes;
        let bytes = if is_last { left } else { left.min(bytes + REQUEST) };
        peer.in_flight_bytes -= bytes;
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes;
        self.limit_in_flight(request.peer.slot);
    }

    /// Keeps `token` while the peer has too many unread replies to be read from, and drops it
    /// then, or at once if there is room. Use it to pace several replies to one request. It is
    /// also dropped if the connection ends.
    pub fn keep_until_room(&mut self, request: &Origin, token: Box<dyn Any + Send>) {
        if let Some(peer) = self.peer_mut(request.peer).filter(|peer| peer.is_behind()) {
            peer.tokens.push(token);
        }
    }

    /// Connections that have ended since the last call while requests of theirs were in flight.
    pub fn take_abandoned(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.abandoned)
    }

    /// Pauses or resumes reading after a change in what is in flight.
    fn limit_in_flight(&mut self, slot: usize) {
        let peer = &self.peers[slot];
        let (held, owed) = (peer.held(), peer.out.replies());
        self.account(slot, held, owed);
        let peer = &mut self.peers[slot];
        let is_busy = peer.in_flight >= self.limits.in_flight_per_peer;
        let was_busy = std::mem::replace(&mut peer.is_busy, is_busy);
        if was_busy && !is_busy {
            if peer.paused_at.is_some() {
                peer.pause_or_resume(Instant::now());
            }
            let waits = peer.must_wait(self.is_full);
            let turns = if waits { &mut self.unread } else { &mut self.turns };
            turns.push(slot);
        }
        // Messages that were read but not handed out stay with the peer.
        let has_batch = self.batch.as_ref().is_some_and(|batch| batch.slot() == slot);
        if has_batch && (is_busy || self.is_full) {
            self.end_batch(0);
        }
    }

    /// How many bytes requests in flight may hold: half of what partial messages and unread
    /// replies leave of the pool, but at least an eighth of it. Otherwise peers that almost fill
    /// the pool and then stop would slow down the service for all others. With the eighth, the
    /// pool overflows and these peers are closed.
    fn most_in_flight(&self) -> usize {
        let pool = self.limits.buffer_bytes;
        let others = self.pooled.saturating_sub(self.in_flight_bytes);
        (pool.saturating_sub(others) / 2).max(pool / 8)
    }

    /// How many of a peer's next requests fit before a limit is reached, at least one.
    pub(super) fn room_for_requests(&self, slot: usize) -> usize {
        let (peer, limits) = (&self.peers[slot], &self.limits);
        let bytes = self.most_in_flight().saturating_sub(self.in_flight_bytes);
        (bytes / (peer.message_size + REQUEST))
            .min(limits.in_flight.saturating_sub(self.in_flight))
            .min(limits.in_flight_per_peer.saturating_sub(peer.in_flight))
            .clamp(1, MESSAGES)
    }

    /// Updates whether there is room for more requests of all peers together. While there is, the
    /// waiting peers have their turns: see [`Self::next_turn`].
    pub(super) fn check_room(&mut self) {
        // With none in flight nothing would make room.
        self.is_full = self.in_flight > 0
            && (self.in_flight >= self.limits.in_flight
                || self.in_flight_bytes >= self.most_in_flight());
    }

    /// Looks for PINGs behind waiting requests. A client that gets no PONG would disconnect.
    pub(super) fn read_ahead(&mut self, slot: usize) -> Result<(), Reason> {
        let peer = &mut self.peers[slot];
        if !peer.can_read_ahead() {
            return Ok(());
        }
        let now = match peer.poll_read_ahead() {
            Poll::Pending => return Ok(()),
            Poll::Ready(Err(error)) => return Err(Reason::of(&error)),
            // The peer has left, so nobody waits for replies to these requests.
            Poll::Ready(Ok(None)) => return Err(Reason::Closed),
            Poll::Ready(Ok(Some(now))) => now,
        };
        peer.heard(now, 0);
        for ping in peer.take_pings(&self.message_limits) {
            obey(peer, &ping, true)?;
        }
        self.flush(slot)
    }

    /// Drops what is in flight for a peer whose connection has ended.
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
