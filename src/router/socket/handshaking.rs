//! Handshakes, and how a peer is let down that is refused in one.
//!
//! To close a connection with bytes unread resets it, which may destroy what was sent to
//! the peer before. So a peer that has been told why it is refused is not closed at once.
//! It is counted, our side is closed behind the last byte, and what it sends is read and
//! thrown away until it closes too, or has had its time.

use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::debug;

use super::{BoundedRouter, READ};
use crate::router::handshake::Handshake;
use crate::router::peer::{Read, Refused, State};
use crate::router::reason::Reason;

/// How long our READY waits for the peer's, from its greeting on. Every implementation
/// that we know of sends its own at once, so it is a round trip's time: longer than most
/// within a continent, and short for a peer that waits for ours first.
const READY_WAIT: Duration = Duration::from_millis(100);

/// How long a refused peer may take to read why, and to close: a few round trips.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// How much more it may send meanwhile: what it had sent before it knew, a socket's
/// buffers full at most.
const REFUSED_BYTES: usize = READ;

impl BoundedRouter {
    /// Takes from `bytes` what belongs to the handshake of the peer, which is established
    /// or refused if that was all. What is left are its first messages.
    pub(super) fn shake_hands(&mut self, slot: usize, bytes: &mut Bytes) -> Result<(), Reason> {
        let peer = self.peers[slot].as_mut().expect("who was read from is there");
        let State::Handshake(handshake) = &mut peer.state else { return Ok(()) };
        let metadata = self.limits.metadata_bytes;
        match peer.out.push_bytes(|out| handshake.feed(bytes, metadata, out)) {
            Ok(Some(info)) => {
                self.establish(slot, info);
                return self.flush(slot);
            }
            Ok(None) if handshake.owes_ready() => {
                peer.ready_at.get_or_insert(peer.read_at + READY_WAIT);
            }
            Ok(None) => {}
            Err(reason) if handshake.has_greeted() => {
                bytes.clear();
                self.refuse(slot, reason);
            }
            Err(reason) => return Err(reason),
        }
        // If the peer has left, its next read says so, behind what it has still sent.
        let _ = self.flush(slot);
        Ok(())
    }

    /// The peer's READY has not come: it may be waiting for ours.
    pub(super) fn send_ready(&mut self, slot: usize) {
        let peer = self.peers[slot].as_mut().expect("whose alarm came is there");
        peer.ready_at = None;
        if let State::Handshake(handshake) = &mut peer.state {
            peer.out.push_bytes(|out| handshake.send_ready(out));
            self.turns.push(slot);
        }
    }

    /// Counts a handshake that has failed.
    pub(super) fn fail(&self, handshake: &Handshake, reason: Reason) {
        // A TCP probe connects and closes, or resets because our greeting lies unread.
        // It is no fault and comes for ever.
        if handshake.untouched() && reason == Reason::Error {
            return;
        }
        debug!(reason = reason.as_str(), "handshake failed");
        self.metrics.handshake_failed(reason);
    }

    fn refuse(&mut self, slot: usize, reason: Reason) {
        let timeout = self.limits.handshake_timeout;
        let peer = self.peers[slot].as_mut().expect("who was read from is there");
        let until = (Instant::now() + REFUSED_FOR).min(peer.accepted_at + timeout);
        let refused = Refused { until, unread: REFUSED_BYTES, half_closed: false };
        let before = std::mem::replace(&mut peer.state, State::Refused(refused));
        if let State::Handshake(handshake) = &before {
            self.fail(handshake, reason);
        }
        self.turns.push(slot);
    }

    /// A refused peer's turn, when it has been sent what the kernel takes.
    pub(super) fn dismiss(&mut self, slot: usize) -> Result<(), Reason> {
        let peer = self.peers[slot].as_mut().expect("the visit has looked");
        let all_sent = peer.out.is_empty();
        let State::Refused(refused) = &mut peer.state else { return Ok(()) };
        if all_sent && !std::mem::replace(&mut refused.half_closed, true) {
            peer.half_close().map_err(|_| Reason::Error)?;
        }
        let read = peer.poll_read(&mut self.scratch, READ);
        let State::Refused(refused) = &mut peer.state else { return Ok(()) };
        match read {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(Read::Batch { bytes, .. })) if bytes.len() <= refused.unread => {
                refused.unread -= bytes.len();
                Ok(())
            }
            Poll::Ready(_) => Err(Reason::Closed),
        }
    }
}
