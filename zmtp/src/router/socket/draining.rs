//! Leaving in good order: which peers are quiet, what has arrived, and the last bytes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use super::{Closed, Noted, PeerId, Router};
use crate::event::{Event, Observer};
use crate::reason::Reason;
use crate::router::peer::{Peer, State};

/// How many requests are thrown away before the deadline is looked at again.
const DISCARDS: usize = 256;

impl<O: Observer> Router<O> {
    /// When a byte of a client's request or of a reply to one moved last, or `None` while there
    /// is a part of a message, or a reply that its host has not acknowledged. Bytes that lie in
    /// the kernel unread are not known here.
    ///
    /// PING, PONG, handshakes and probes are no activity.
    pub fn active_at(&self) -> Option<Instant> {
        // Without a peer there has been nothing since the connections were made.
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

    /// Notes what has come by now and not been looked at, here or in the kernel. Whether it
    /// holds requests is known afterwards.
    pub fn note_arrived(&mut self) {
        let peers = self.peers.iter();
        self.noted = peers
            .filter_map(|(slot, peer)| {
                let handled = peer.received + peer.unread() as u64;
                let peer_id = PeerId { slot, generation: peer.generation };
                (handled > peer.handled()).then_some(Noted { peer_id, handled })
            })
            .collect();
    }

    /// Whether something of what was noted is still to be read.
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

    /// Writes every reply, then tells each peer that nothing more comes, and reads until it says
    /// the same: closing at once would destroy what it has not read. Requests that still arrive
    /// are thrown away and counted.
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

    /// Counts requests that were thrown away, or bytes if nobody knows how many they are.
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
    // If the kernel does not say, what it took counts as delivered.
    let acknowledged = peer.tcp_info().map_or(u64::MAX, |info| info.acknowledged);
    queued + peer.replied.saturating_sub(acknowledged)
}
