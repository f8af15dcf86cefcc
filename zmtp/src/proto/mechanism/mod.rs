//! Security mechanisms: what two peers say to each other between the greeting and the first
//! message (RFC 37, "Security Mechanisms").
//!
//! Each mechanism is a variant of [`Mechanism`] with a file of its own. The greeting names it;
//! [`Handshake`](super::handshake::Handshake) hands it each command until it knows the peer.
//! [`null`] is the only one so far. One that encrypts has two more things to do, to seal each
//! message on its way out and to open each on its way in; with NULL both do nothing.

pub mod null;

use super::peer_info::{Local, PeerInfo};
use crate::reason::Reason;
use null::Null;

/// The mechanism of one connection, with its state.
#[derive(Debug)]
pub enum Mechanism {
    /// No authentication, no encryption.
    Null(Null),
}

impl Mechanism {
    /// Its name in the greeting: at most 20 characters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null(_) => "NULL",
        }
    }

    /// Appends what the side that connects sends behind its greeting.
    pub fn start(&mut self, local: &Local, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.send_ready(local, out),
        }
    }

    /// Takes the body of a command, appends the answer to `out`, and returns the peer once it
    /// is known.
    ///
    /// # Errors
    ///
    /// Why the peer is refused. `out` has what tells the peer, if anything does.
    pub fn receive(
        &mut self,
        local: &Local,
        minor: u8,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<PeerInfo>, Reason> {
        match self {
            Self::Null(null) => null.receive(local, minor, body, out).map(Some),
        }
    }

    /// Whether we have something to say that waits for the peer to speak first.
    pub fn is_waiting(&self) -> bool {
        match self {
            Self::Null(null) => !null.has_sent_ready(),
        }
    }

    /// Appends that, without waiting any longer.
    pub fn stop_waiting(&mut self, local: &Local, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.send_ready(local, out),
        }
    }

    /// Appends that the peer is refused for `reason`, if it may still be told.
    pub fn refuse(&mut self, reason: Reason, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.refuse(reason, out),
        }
    }
}
