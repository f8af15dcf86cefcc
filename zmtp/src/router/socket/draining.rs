//! Draining: which peers are quiet, which bytes have arrived, and how the socket is closed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use super::{Closed, Noted, PeerId, Router};
use crate::event::{Event, Observer};
use crate::reason::Reason;
use crate::router::peer::{Peer, State};

/// How many requests are discarded before the deadline is checked again.
const DISCARDS: usize = 256;

impl<O: Observer> Router<O> {
    /// When a byte of a client's request or of a reply to it last moved. `None` while a request
    /// is in flight or incomplete, or a reply is unacknowledged. Unread bytes in the kernel are
    /// not considered.
    ///
    /// PINGs, PONGs, handshakes and monitors do not count as activity.
    pub fn active_at(&self) -> Option<Instant> {
        // Without peers, the last activity is the creation of the socket.
        let mut last = self.bound_at;
        for (_, peer) in &self.peers {
            if !peer.is_client || !matches!(peer.state, State::Established) {
                continue;
            }
            if peer.in_flight > 0 || peer.has_part_of_message() || unacknowledged(peer) > 0 {
                return None;
            }
            last = last.max(peer.active_at);
        }
        Some(last)
    }

    /// Notes which bytes have arrived without being processed, here or in the kernel. Afterwards,
    /// [`Router::has_arrived`] tells whether they are still unprocessed.
    pub fn note_arrived(&mut self) {
        // So that the rest of the batch in hand is among the bytes that are noted.
        self.end_batch(0);
        let peers = self.peers.iter();
        self.noted = peers
            .filter_map(|(slot, peer)| {
                let handled = peer.received + peer.unread() as u64;
                let peer_id = PeerId { slot, generation: peer.generation };
                (handled > peer.handled()).then_some(Noted { peer_id, handled })
            })
            .collect();
    }

    /// Whether some of the bytes noted by [`Router::note_arrived`] are still unprocessed.
    pub fn has_arrived(&mut self) -> bool {
        let peers = &self.peers;
        self.noted.retain(|noted| {
            let peer = peers.get(noted.peer_id.slot);
            let peer = peer.filter(|peer| peer.generation == noted.peer_id.generation);
            peer.is_some_and(|peer| peer.ended.is_none() && peer.handled() < noted.handled)
        });
        let in_hand = self.batch.as_ref().is_some_and(|batch| !batch.bytes.is_empty());
        in_hand || !self.noted.is_empty()
    }

    /// Closes the socket by `deadline` at the latest. Writes every reply, then closes our
    /// direction of each connection, and reads until the peer closes the other one: closing at
    /// once would destroy replies that the peer has not read. Requests that still arrive are
    /// discarded and counted.
    pub async fn close(mut self, deadline: Instant) -> Closed {
        self.closing = true;
        self.end_batch(0);
        let slots: Vec<usize> = self.peers.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            match &self.peers[slot].state {
                State::Handshake(_) | State::Refused(_) => self.close_peer(slot, Reason::Closed),
                State::Established | State::HalfClosed => self.turns.push(slot),
            }
        }
        let mut frames = VecDeque::new();
        let left = poll_fn(|cx| {
            for _ in 0..DISCARDS {
                match self.poll_recv(cx, &mut frames) {
                    Poll::Ready(_) => self.discard(1, 0),
                    Poll::Pending if self.open() == 0 => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let _ = tokio::time::timeout_at(deadline.into(), left).await;
        self.end_batch(0);
        let counted = self.closed;
        for (_, peer) in &mut self.peers {
            let (messages, payload, bytes) = peer.take_kept(&self.message_limits);
            self.received += if peer.is_client { payload } else { 0 };
            self.closed.discarded += messages;
            self.closed.discarded_bytes += (bytes + peer.unread()) as u64;
            self.closed.owed += peer.out.replies() as u64;
            self.closed.owed_bytes += unacknowledged(peer);
        }
        self.observer.event(Event::Discarded {
            requests: self.closed.discarded - counted.discarded,
            bytes: self.closed.discarded_bytes - counted.discarded_bytes,
        });
        self.publish();
        self.closed
    }

    /// Counts discarded requests, or bytes if it is unknown how many requests they contain.
    pub(super) fn discard(&mut self, requests: u64, bytes: u64) {
        self.closed.discarded += requests;
        self.closed.discarded_bytes += bytes;
        self.observer.event(Event::Discarded { requests, bytes });
    }
}

/// Bytes of replies that the peer's host has not acknowledged, in the queue and in the kernel.
fn unacknowledged(peer: &Peer) -> u64 {
    let queued = if peer.out.replies() > 0 { peer.out.len() as u64 } else { 0 };
    if peer.replied == 0 {
        return queued;
    }
    // If the kernel does not say, what it accepted counts as delivered.
    let acknowledged = peer.tcp_info().map_or(u64::MAX, |info| info.acknowledged);
    queued + peer.replied.saturating_sub(acknowledged)
}
