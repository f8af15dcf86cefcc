//! Handshakes, and how a refused peer learns the reason.
//!
//! Closing a connection that has unread bytes resets it, and a reset may destroy what was sent
//! before. So a refused peer is counted at once but not closed yet. We close our direction after
//! the last byte, and discard input until the peer closes too, or its time is up.

use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::debug;

use super::{MESSAGES, READ, Router};
use crate::event::{Event, Observer};
use crate::proto::handshake::Handshake;
use crate::reason::Reason;
use crate::router::peer::{Read, Refused, State};

/// How long our READY waits for the peer's, counted from its greeting. A peer that sends its
/// READY unasked needs one round trip, which is less than this within a continent. A peer that
/// waits for ours first loses this much time, once per connection.
const READY_WAIT: Duration = Duration::from_millis(100);

/// How long a refused peer may take to read the reason and close: a few round trips.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// How many bytes are read from it meanwhile: enough for what it sent before it learned of the
/// refusal, but not for a flood.
const REFUSED_BYTES: usize = READ;

impl<O: Observer> Router<O> {
    /// Takes the handshake's bytes from `bytes`. When the handshake is complete, the peer is
    /// established and `bytes` contains its first messages. Otherwise the peer may be refused.
    pub(super) fn shake_hands(&mut self, slot: usize, bytes: &mut Bytes) -> Result<(), Reason> {
        let peer = &mut self.peers[slot];
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
        // If this fails, the peer has left, and its next read says so.
        let _ = self.flush(slot);
        Ok(())
    }

    /// The peer's READY has not arrived. It may be waiting for ours.
    pub(super) fn send_ready(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        peer.ready_at = None;
        if let State::Handshake(handshake) = &mut peer.state {
            peer.out.push_bytes(|out| handshake.send_ready(out));
            self.turns.push(slot);
        }
    }

    /// Counts a failed handshake.
    pub(super) fn fail(&mut self, handshake: &Handshake, reason: Reason) {
        // A TCP probe connects and closes, or resets the connection because our greeting is
        // unread. It repeats this forever and is not an error.
        if handshake.untouched() && reason == Reason::Error {
            return;
        }
        debug!(reason = reason.as_str(), "handshake failed");
        self.observer.event(Event::HandshakeFailed(reason));
    }

    fn refuse(&mut self, slot: usize, reason: Reason) {
        let timeout = self.limits.handshake_timeout;
        let peer = &mut self.peers[slot];
        let until = (Instant::now() + REFUSED_FOR).min(peer.accepted_at + timeout);
        let refused = Refused { until, unread: REFUSED_BYTES, half_closed: false };
        let before = std::mem::replace(&mut peer.state, State::Refused(refused));
        if let State::Handshake(handshake) = &before {
            self.fail(handshake, reason);
        }
        self.turns.push(slot);
    }

    /// A refused peer's turn, after writing what the kernel accepts.
    pub(super) fn dismiss(&mut self, slot: usize) -> Result<(), Reason> {
        let peer = &mut self.peers[slot];
        let all_sent = peer.out.is_empty();
        let State::Refused(refused) = &mut peer.state else { return Ok(()) };
        if all_sent && !std::mem::replace(&mut refused.half_closed, true) {
            peer.half_close().map_err(|_| Reason::Error)?;
        }
        let read = peer.poll_read(&mut self.scratch, READ, MESSAGES);
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
