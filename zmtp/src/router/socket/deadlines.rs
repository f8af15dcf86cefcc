//! Deadlines of handshakes, partial messages and peers that may be lost.

use std::time::{Duration, Instant};

use super::Router;
use crate::event::Observer;
use crate::proto::command::{encode_ping, encode_pong};
use crate::reason::Reason;
use crate::router::limits::RESERVED_PEERS;
use crate::router::peer::{Peer, State};
use crate::router::progress::Window;
use crate::router::ready::LISTENER;

/// How often to ask the kernel about a host that does not take its replies.
const LOOK: Duration = Duration::from_secs(10);

/// How long to wait before asking again about a host that seems lost. Its answer may be on the
/// way.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// How long to wait before checking a peer again whose bytes have arrived but have not been read.
const ANOTHER_TURN: Duration = Duration::from_millis(50);

/// The shortest time between two heartbeats for a peer that is not read, and before the first look
/// for its PINGs.
const LEAST_HEARTBEAT: Duration = Duration::from_millis(100);

/// How many of a peer's unread bytes are searched for a PING. This takes up to half a millisecond.
const PEEKED: usize = 256 << 10;

/// Maximum number of peers that are searched in one turn.
const SEARCHED: usize = 16;

/// What is due when a peer's alarm fires.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// Check whether a partial message has made progress.
    Window,
    /// Check whether the peer is alive.
    Look,
    /// Send a heartbeat, because the peer's PINGs may be unread.
    Heartbeat,
    /// Send our READY although the peer's has not arrived.
    Ready,
    /// Close the peer.
    Close(Reason),
}

impl<O: Observer> Router<O> {
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
            // The socket is closing, which has its own deadline.
            State::HalfClosed => return None,
            State::Established => {}
        }
        let interval = Some(limits.heartbeat_interval).filter(|interval| !interval.is_zero());
        let look = if peer.doubted {
            Some((peer.looked_at + SECOND_LOOK, Due::Look))
        } else if peer.out.is_empty() {
            interval.map(|interval| (peer.read_at.max(peer.looked_at) + interval, Due::Look))
        } else {
            // A peer that takes its replies is alive, whether or not it is read from.
            let heard_at = peer.moved_at.max(peer.looked_at);
            Some((heard_at + interval.unwrap_or(LOOK).min(LOOK), Due::Look))
        };
        let heartbeat = self.heartbeat_at(peer).map(|at| (at, Due::Heartbeat));
        if peer.is_paused() || peer.ended.is_some() {
            // We do not read from it, so the other deadlines do not apply.
            return [heartbeat, look].into_iter().flatten().min_by_key(|(at, _)| *at);
        }
        // Its last bytes may have been read ahead. Then it waits for its turn, not for the peer.
        let window = peer.half_message.as_ref().filter(|_| !peer.has_messages());
        let window = window.map(|_| (peer.window.since + limits.stall_timeout, Due::Window));
        let silent = peer.ttl.map(|ttl| (peer.read_at + ttl, Due::Close(Reason::Vanished)));
        [window, silent, heartbeat, look].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When a heartbeat for a peer is due, if its requests must wait. Its PINGs may then be unread,
    /// and a client that gets no traffic after a PING disconnects. libzmq waits for one interval,
    /// unless it is configured, so a quarter of the interval is in time.
    ///
    /// Only peers that have sent a PING get heartbeats, because others may not know them, whatever
    /// version they announce. If none has been seen, it is time to look for one.
    fn heartbeat_at(&self, peer: &Peer) -> Option<Instant> {
        if !peer.must_wait(self.is_full) || !peer.out.is_empty() || peer.ended.is_some() {
            return None;
        }
        let (since, interval) = match peer.ping_interval {
            Some(interval) => (peer.moved_at, interval),
            // The first PING comes one interval after the start. So the time between two looks grows
            // with the age of the connection, and looking costs little.
            None => (peer.peeked_at, peer.peeked_at - peer.accepted_at),
        };
        Some(since + (interval / 4).max(LEAST_HEARTBEAT))
    }

    /// Sends a PONG to a peer whose requests must wait, if it is known to send PINGs or if there is
    /// one among its unread bytes.
    fn send_heartbeat(&mut self, slot: usize, now: Instant) {
        let peer = &mut self.peers[slot];
        if peer.ping_interval.is_none() {
            peer.peeked_at = now;
            // A long message has its own memory, and copying it would take too long.
            let is_short = peer.partial.len() <= PEEKED;
            if is_short && peer.has_unread_ping(PEEKED, &self.message_limits) {
                peer.saw_ping(now, true);
            }
        }
        if peer.ping_interval.is_some() {
            peer.moved_at = now;
            peer.out.push_bytes(|out| encode_pong(out, b""));
            self.turns.push(slot);
        }
        self.set_alarm(slot);
    }

    /// Sets the peer's alarm, unless an earlier one is set. That one sets it again when it fires,
    /// so a busy peer's alarm is not changed with each message.
    pub(super) fn set_alarm(&mut self, slot: usize) {
        let peer = &self.peers[slot];
        let Some((at, _)) = self.next_due(peer) else { return };
        if peer.alarm_at.is_some_and(|alarm| alarm <= at) {
            return;
        }
        self.alarm(slot, at);
        if self.clock.alarms() > 4 * (self.peers.len() + RESERVED_PEERS) {
            let peers = &self.peers;
            let is_wanted = |peer: &Peer, at| peer.alarm_at == Some(at);
            self.clock.retain(|at, token| {
                token == LISTENER || peers.get(token).is_some_and(|peer| is_wanted(peer, at))
            });
        }
    }

    fn alarm(&mut self, slot: usize, at: Instant) {
        self.peers[slot].alarm_at = Some(at);
        self.clock.set(at, slot);
    }

    /// The clock's turn: does what is due.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let mut searched = 0;
        while let Some((at, token)) = self.clock.due(now) {
            if token == LISTENER {
                self.turns.push(LISTENER);
                continue;
            }
            let Some(peer) = self.peers.get_mut(token) else { continue };
            if peer.alarm_at != Some(at) {
                continue;
            }
            peer.alarm_at = None;
            let peer = &self.peers[token];
            match self.next_due(peer).filter(|(at, _)| *at <= now) {
                None => self.set_alarm(token),
                Some((_, Due::Window)) => self.judge_window(token, now),
                Some((_, Due::Look)) => self.look(token, now),
                // After the process was stopped, every deadline has passed, and the runtime
                // reports events for 1,024 connections at a time. Other peers have sent bytes
                // that were not read yet.
                Some((_, Due::Close(Reason::Vanished))) if peer.unread() > 0 => {
                    self.alarm(token, now + ANOTHER_TURN);
                }
                // The same, but only once, because a handshake may arrive very slowly.
                Some((_, Due::Close(Reason::HandshakeTimeout)))
                    if !peer.doubted && peer.unread() > 0 =>
                {
                    self.peers[token].doubted = true;
                    self.alarm(token, now + ANOTHER_TURN);
                }
                Some((_, Due::Ready)) => self.send_ready(token),
                Some((_, Due::Heartbeat)) if peer.ping_interval.is_some() => {
                    self.send_heartbeat(token, now);
                }
                Some((_, Due::Heartbeat)) if searched == SEARCHED => {
                    self.alarm(token, now + ANOTHER_TURN);
                }
                Some((_, Due::Heartbeat)) => {
                    searched += 1;
                    self.send_heartbeat(token, now);
                }
                Some((_, Due::Close(reason))) => self.close_peer(token, reason),
            }
        }
    }

    /// A partial message's window is over. Starts the next one or closes the peer.
    fn judge_window(&mut self, slot: usize, now: Instant) {
        let least = self.limits.stall_bytes;
        let peer = &mut self.peers[slot];
        let (received, unread) = (peer.received, peer.unread());
        if !peer.window.has_progress(received, unread, peer.missing, least) {
            self.close_peer(slot, Reason::Stalled);
            return;
        }
        peer.window = Window::new(now, received);
        self.set_alarm(slot);
    }

    /// Checks whether the peer is alive: asks the kernel about its host, and the peer itself if
    /// it has shown that it knows PING.
    ///
    /// A host that acknowledges data is up, and a client with replies to work on may take its
    /// time: libzmq reads them by the hundred and answers no PING meanwhile. So a PONG is only
    /// expected if no reply has left since the peer last sent something.
    fn look(&mut self, slot: usize, now: Instant) {
        let interval = self.limits.heartbeat_interval;
        let peer = &mut self.peers[slot];
        let is_read = !peer.is_paused() && peer.ended.is_none();
        if is_read && peer.unread() > 0 {
            self.alarm(slot, now + ANOTHER_TURN);
            return;
        }
        peer.looked_at = now;
        if peer.tcp_info().is_ok_and(|info| info.host_is_lost()) {
            if std::mem::replace(&mut peer.doubted, true) {
                self.close_peer(slot, Reason::Vanished);
            } else {
                self.set_alarm(slot);
            }
            return;
        }
        peer.doubted = false;
        if is_read && peer.knows_ping && !interval.is_zero() {
            match peer.pinged_at {
                None if now >= peer.read_at + interval => {
                    if peer.out.is_empty() {
                        peer.moved_at = now;
                    }
                    peer.out.push_bytes(encode_ping);
                    peer.pinged_at = Some(now);
                    self.turns.push(slot);
                }
                Some(at) if now >= at + interval && !peer.has_replies => {
                    self.close_peer(slot, Reason::Vanished);
                    return;
                }
                _ => {}
            }
        }
        self.set_alarm(slot);
    }
}
