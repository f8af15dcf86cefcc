//! Encoding and decoding of commands (RFC 37, "Commands" and "Connection Heartbeating").

use std::time::Duration;

use super::frame::{COMMAND, encode_header};
use crate::reason::Reason;

/// The longest context of a PING (RFC 37, "ping-context = 0*16OCTET").
const CONTEXT_BYTES: usize = 16;

/// A command, decoded from the body of its frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The metadata of the NULL handshake.
    Ready(&'a [u8]),
    /// The peer refuses the connection. The reason may contain any bytes.
    Error(&'a [u8]),
    /// The peer asks for a PONG with the same context. If there is a TTL, it asks to be
    /// disconnected when it stays silent for that long.
    Ping {
        /// Never zero.
        ttl: Option<Duration>,
        /// To be sent back in the PONG.
        context: &'a [u8],
    },
    /// The answer to one of our PINGs.
    Pong,
}

impl<'a> Command<'a> {
    /// Decodes a command's body.
    ///
    /// # Errors
    ///
    /// [`Reason::Command`] if the command is unknown or malformed.
    pub fn decode(body: &'a [u8]) -> Result<Self, Reason> {
        let (name, data) = split_short(body).ok_or(Reason::Command)?;
        match name {
            b"READY" => Ok(Command::Ready(data)),
            // Some peers leave out the length of the reason.
            b"ERROR" => Ok(Command::Error(split_short(data).map_or(data, |(reason, _)| reason))),
            b"PING" => {
                let (ttl, context) = data.split_first_chunk().ok_or(Reason::Command)?;
                if context.len() > CONTEXT_BYTES {
                    return Err(Reason::Command);
                }
                // In tenths of a second (RFC 37, "ping-ttl").
                let tenths = u64::from(u16::from_be_bytes(*ttl));
                let ttl = (tenths > 0).then(|| Duration::from_millis(tenths * 100));
                Ok(Command::Ping { ttl, context })
            }
            b"PONG" => Ok(Command::Pong),
            _ => Err(Reason::Command),
        }
    }
}

/// Appends an ERROR frame, which takes the place of READY.
///
/// `reason` must consist of at most 255 visible ASCII characters (RFC 37, "error-reason =
/// short-size 0*255VCHAR"). A space is not allowed.
pub fn encode_error(out: &mut Vec<u8>, reason: &str) {
    encode_command(out, b"ERROR", &[&[reason.len() as u8], reason.as_bytes()]);
}

/// Appends a PONG frame that answers a PING with `context`.
pub fn encode_pong(out: &mut Vec<u8>, context: &[u8]) {
    encode_command(out, b"PONG", &[context]);
}

/// Appends a PING frame without TTL and context.
pub fn encode_ping(out: &mut Vec<u8>) {
    encode_command(out, b"PING", &[&[0, 0]]);
}

/// Appends a command frame.
pub fn encode_command(out: &mut Vec<u8>, name: &[u8], data: &[&[u8]]) {
    let body = 1 + name.len() + data.iter().map(|part| part.len()).sum::<usize>();
    encode_header(out, COMMAND, body);
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    data.iter().for_each(|part| out.extend_from_slice(part));
}

/// Splits off a string with a one-byte length, and returns it and the rest.
pub(super) fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_decoded_with_its_ttl_and_context() {
        let ping = |data: &[u8]| [b"\x04PING", data].concat();
        let ttl = Some(Duration::from_millis(300));
        assert_eq!(
            Command::decode(&ping(b"\x00\x03hello")),
            Ok(Command::Ping { ttl, context: b"hello" })
        );
        assert_eq!(Command::decode(&ping(b"\x00")), Err(Reason::Command));
        assert_eq!(Command::decode(&ping(&[0; 2 + 17])), Err(Reason::Command));
        for body in [&b""[..], b"\x05", b"\x09SUBSCRIBE", b"\x04PIN"] {
            assert_eq!(Command::decode(body), Err(Reason::Command));
        }
        let mut pong = Vec::new();
        encode_pong(&mut pong, b"hello");
        assert_eq!(pong, b"\x04\x0a\x04PONGhello");
    }
}
