//! Just enough of ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) to act as a DEALER that has prepared
//! all its bytes before the clock starts.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

/// The protocol on top of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// ZMTP 3.0, mechanism NULL, socket type DEALER.
    Zmtp,
    /// The same frames, without a handshake.
    Raw,
}

/// Signature, version 3.0, mechanism NULL, not a server, filler. A ZMTP 3.0 peer gets no
/// heartbeats, so only replies come back.
const GREETING: [u8; 64] = {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12] = b'N';
    greeting[13] = b'U';
    greeting[14] = b'L';
    greeting[15] = b'L';
    greeting
};

/// The READY command, with an empty identity, so that the server chooses one.
const READY: &[u8] =
    b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00";

/// The longest READY that is accepted from a server, in bytes.
const READY_LIMIT: usize = 512;

const LARGE: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// Sends the greeting and READY, and waits for the server's.
///
/// # Errors
///
/// If an I/O operation fails, or the server does not send a valid handshake.
pub fn handshake(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[&GREETING[..], READY].concat()).context("sending the greeting")?;
    let mut greeting = [0; 64];
    stream.read_exact(&mut greeting).context("reading the greeting")?;
    ensure!(greeting[0] == 0xff && greeting[9] == 0x7f, "the server's greeting is not ZMTP");
    let mut header = [0; 2];
    stream.read_exact(&mut header).context("reading READY")?;
    let length = match header {
        [COMMAND, length] => usize::from(length),
        [flags, first] if flags == COMMAND | LARGE => {
            let mut rest = [0; 7];
            stream.read_exact(&mut rest).context("reading READY")?;
            rest.iter().fold(usize::from(first), |length, byte| length << 8 | usize::from(*byte))
        }
        [flags, _] => anyhow::bail!("expected READY, got a frame with flags {flags:#x}"),
    };
    ensure!(length <= READY_LIMIT, "READY announces {length} bytes; the limit is {READY_LIMIT}");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("reading READY")?;
    ensure!(body.starts_with(b"\x05READY"), "expected READY, got another command");
    Ok(())
}

/// A message of one frame, in its shortest encoding, as every ZMTP 3 peer writes it.
pub fn message(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    match u8::try_from(payload.len()) {
        Ok(length) => frame.extend([0, length]),
        Err(_) => {
            frame.push(LARGE);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_command_is_as_long_as_it_says() {
        assert_eq!(usize::from(READY[1]), READY.len() - 2);
    }

    #[test]
    fn a_frame_is_short_up_to_255_bytes() {
        assert_eq!(message(&[7; 255])[..3], [0, 255, 7]);
        assert_eq!(message(&[7; 256])[..10], [LARGE, 0, 0, 0, 0, 0, 0, 1, 0, 7]);
    }
}
