//! Deadlines: of handshakes, of what stands still, of who is silent.

use std::time::{Duration, Instant};

use super::BoundedRouter;
use crate::router::peer::{Peer, State};
use crate::router::ready::LISTENER;
use crate::router::reason::Reason;
use crate::router::{RESERVED_PEERS, wire};

/// How long a peer that has all of its replies has to close its side as well. A
/// client that still sends would have unread replies destroyed by a reset.
const LINGER: Duration = Duration::from_millis(250);

/// How much later a peer that seems to be silent, but is not, is looked at again.
const ANOTHER_TURN: Duration = Duration::from_millis(50);

/// What is due when a peer's alarm comes.
enum Due {
    Ping,
    Ready,
    Close(Reason),
}

impl BoundedRouter {
    /// What is due next for the peer, and when.
    fn next_due(&self, peer: &Peer) -> Option<(Instant, Due)> {
        let limits = &self.limits;
        match &peer.state {
            State::Handshake(_) => {
                let at = peer.accepted_at + limits.handshake_timeout;
                let ready = peer.ready_at.filter(|ready_at| *ready_at < at);
                return Some(match ready {
                    Some(ready_at) => (ready_at, Due::Ready),
                    None => (at, Due::Close(Reason::HandshakeTimeout)),
                });
            }
            State::Refused(refused) => return Some((refused.until, Due::Close(Reason::Closed))),
            State::HalfClosed => return Some((peer.moved_at + LINGER, Due::Close(Reason::Closed))),
            State::Established => {}
        }
        let holds = !peer.out.is_empty() || !peer.partial.is_empty();
        let stalled =
            holds.then(|| (peer.progress_at() + limits.stall_timeout, Due::Close(Reason::Stalled)));
        if peer.is_paused() || peer.ended.is_some() {
            return stalled;
        }
        let silent = peer.ttl.map(|ttl| (peer.read_at + ttl, Due::Close(Reason::Vanished)));
        let interval = limits.heartbeat_interval;
        let heartbeat = (peer.knows_ping && !interval.is_zero()).then(|| match peer.pinged_at {
            None => (peer.read_at + interval, Due::Ping),
            Some(at) => (at + interval, Due::Close(Reason::Vanished)),
        });
        [stalled, silent, heartbeat].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Sets the peer's alarm, unless one comes before what is due next: it is set
    /// again then. So a busy peer's alarm is not touched with each message.
    pub(super) fn set_alarm(&mut self, slot: usize) {
        let peer = self.peers[slot].as_ref().expect("the caller has looked");
        let Some((at, _)) = self.next_due(peer) else { return };
        if peer.alarm_at.is_some_and(|alarm| alarm <= at) {
            return;
        }
        self.alarm(slot, at);
        if self.clock.alarms() > 4 * (self.peers.len() + RESERVED_PEERS) {
            let peers = &self.peers;
            self.clock.retain(|at, token| match peers.get(token) {
                Some(peer) => peer.as_ref().is_some_and(|peer| peer.alarm_at == Some(at)),
                None => true,
            });
        }
    }

    fn alarm(&mut self, slot: usize, at: Instant) {
        self.peers[slot].as_mut().expect("the caller has looked").alarm_at = Some(at);
        self.clock.set(at, slot);
    }

    /// The clock's turn: does what is due.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, token)) = self.clock.due(now) {
            if token == LISTENER {
                self.turns.push(LISTENER);
                continue;
            }
            let Some(peer) = self.peers[token].as_mut() else { continue };
            if peer.alarm_at != Some(at) {
                continue;
            }
            peer.alarm_at = None;
            let peer = self.peers[token].as_ref().expect("as above");
            match self.next_due(peer) {
                Some((at, Due::Close(reason))) if at <= now && has_spoken(peer, reason) => {
                    self.alarm(token, now + ANOTHER_TURN);
                }
                Some((at, Due::Close(reason))) if at <= now => self.close_peer(token, reason),
                Some((at, Due::Ping)) if at <= now => self.ping(token, now),
                Some((at, Due::Ready)) if at <= now => self.send_ready(token),
                _ => self.set_alarm(token),
            }
        }
    }

    fn ping(&mut self, slot: usize, now: Instant) {
        let peer = self.peers[slot].as_mut().expect("whose alarm came is there");
        if peer.out.is_empty() {
            peer.moved_at = now;
        }
        peer.out.push_bytes(wire::encode_ping);
        peer.pinged_at = Some(now);
        self.turns.push(slot);
    }
}

/// Whether the silence that a peer is to be closed for is over. After a standstill of
/// the process deadlines have passed for all, but the runtime tells of 1,024
/// connections at a time, and of those that have spoken then the others seem silent.
fn has_spoken(peer: &Peer, reason: Reason) -> bool {
    let silent = match reason {
        Reason::Vanished => true,
        Reason::Stalled => peer.out.is_empty(),
        _ => false,
    };
    silent && peer.has_unread()
}
