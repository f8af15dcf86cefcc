//! Security mechanisms: the commands that two peers exchange between the greeting and the first
//! message (RFC 37, "Security Mechanisms").
//!
//! Each mechanism is a variant of [`Mechanism`] in a file of its own. The greeting names it, and
//! [`Handshake`](super::handshake::Handshake) passes it each command until the peer is known.
//! [`null`] is the only one so far. A mechanism that encrypts would also have to seal each
//! outgoing message and open each incoming one, which NULL does not need.

pub mod null;

use super::peer_info::{Local, PeerInfo};
use crate::reason::Reason;
use null::Null;

/// The mechanism of one connection, with its state.
#[derive(Debug)]
pub enum Mechanism {
    /// No authentication and no encryption.
    Null(Null),
}

impl Mechanism {
    /// The mechanism's name in the greeting, at most 20 characters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null(_) => "NULL",
        }
    }

    /// Appends the commands that the connecting side sends right after its greeting.
    pub fn start(&mut self, local: &Local, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.send_ready(local, out),
        }
    }

    /// Processes a command's body and appends the answer to `out`. Returns the peer once it is
    /// known.
    ///
    /// # Errors
    ///
    /// Why the peer is refused. `out` then contains the ERROR, if there is one to send.
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

    /// Whether we still have to send a command, but are waiting for the peer to go first.
    pub fn is_waiting(&self) -> bool {
        match self {
            Self::Null(null) => !null.has_sent_ready(),
        }
    }

    /// Appends that command without waiting any longer.
    pub fn stop_waiting(&mut self, local: &Local, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.send_ready(local, out),
        }
    }

    /// Appends an ERROR for `reason`, if one may still be sent.
    pub fn refuse(&mut self, reason: Reason, out: &mut Vec<u8>) {
        match self {
            Self::Null(null) => null.refuse(reason, out),
        }
    }
}
