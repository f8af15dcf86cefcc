//! NULL: each side sends READY with its metadata, or ERROR instead (RFC 37, "The NULL Security
//! Mechanism").

use bytes::Bytes;

use crate::proto::command::{self, Command};
use crate::proto::metadata;
use crate::proto::peer_info::{IDENTITY_BYTES, Local, PeerInfo, SocketType};
use crate::reason::Reason;

/// The state of a NULL handshake.
#[derive(Debug, Default)]
pub struct Null {
    ready_sent: bool,
}

impl Null {
    /// Whether our READY, or the ERROR in its place, has been sent.
    pub fn has_sent_ready(&self) -> bool {
        self.ready_sent
    }

    /// Appends our READY, unless it has been sent.
    pub fn send_ready(&mut self, local: &Local, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.ready_sent, true) {
            return;
        }
        let name = local.socket_type.as_str().as_bytes();
        let mut properties = vec![(&b"Socket-Type"[..], name)];
        if !local.identity.is_empty() {
            properties.push((b"Identity", &local.identity));
        }
        command::encode_command(out, b"READY", &[&metadata::encode(&properties)]);
    }

    pub(super) fn receive(
        &mut self,
        local: &Local,
        minor: u8,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<PeerInfo, Reason> {
        let info = peer_info(local, minor, body)?;
        self.send_ready(local, out);
        Ok(info)
    }

    pub(super) fn refuse(&mut self, reason: Reason, out: &mut Vec<u8>) {
        if reason.sends_error() && !std::mem::replace(&mut self.ready_sent, true) {
            command::encode_error(out, reason.as_str());
        }
    }
}

/// Reads the peer's READY.
fn peer_info(local: &Local, minor: u8, body: &[u8]) -> Result<PeerInfo, Reason> {
    let data = match Command::decode(body)? {
        Command::Ready(data) => data,
        Command::Error(_) => return Err(Reason::PeerError),
        Command::Ping { .. } | Command::Pong => return Err(Reason::Command),
    };
    let (mut socket_type, mut identity) = (None, None);
    for property in metadata::properties(data) {
        let (name, value) = property?;
        // "Metadata names SHALL be case-insensitive" (RFC 37).
        let known = if name.eq_ignore_ascii_case(b"Socket-Type") {
            &mut socket_type
        } else if name.eq_ignore_ascii_case(b"Identity") {
            &mut identity
        } else {
            continue;
        };
        if known.replace(value).is_some() {
            return Err(Reason::Metadata);
        }
    }
    let socket_type = SocketType::from_name(socket_type.unwrap_or_default());
    let socket_type =
        socket_type.filter(|peer| local.socket_type.talks_to(*peer)).ok_or(Reason::SocketType)?;
    let identity = identity.unwrap_or_default();
    if identity.len() > IDENTITY_BYTES {
        return Err(Reason::Identity);
    }
    Ok(PeerInfo { minor, socket_type, identity: Bytes::copy_from_slice(identity) })
}
