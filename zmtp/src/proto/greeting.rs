//! The greeting (RFC 37, "Version Negotiation" and "Overall Format of the Greeting").

use crate::reason::Reason;

/// The length of a greeting (RFC 23, "Version Negotiation").
pub const GREETING: usize = 64;

/// The signature and the major version, which a peer needs before it reveals its own version.
/// libzmq sends its mechanism only after it has read these bytes.
pub const GREETING_START: usize = 11;

/// The length of a mechanism's name, padded with zeros.
const MECHANISM: usize = 20;

/// Our greeting: ZMTP 3.1 with the given mechanism. The as-server field is zero because NULL has
/// no server role.
pub fn greeting(mechanism: &str) -> [u8; GREETING] {
    let mut bytes = [0; GREETING];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[11] = 1;
    bytes[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    bytes
}

/// Whether the first [`GREETING_START`] bytes of a greeting are there. Each byte is checked as
/// soon as it arrives.
///
/// # Errors
///
/// [`Reason::NotZmtp`] or [`Reason::Version`].
pub fn decode_version(bytes: &[u8]) -> Result<bool, Reason> {
    let differs = |at: usize, right: u8| bytes.get(at).is_some_and(|byte| *byte != right);
    if differs(0, 0xff) || differs(9, 0x7f) {
        return Err(Reason::NotZmtp);
    }
    // "A ZMTP peer MUST accept higher protocol versions as valid" (RFC 23).
    match bytes.get(10) {
        Some(0..3) => Err(Reason::Version),
        major => Ok(major.is_some()),
    }
}

/// The peer's minor version, once its greeting is complete and names `mechanism`. Each byte is
/// checked as soon as it arrives.
///
/// # Errors
///
/// [`Reason::NotZmtp`], [`Reason::Version`] or [`Reason::Mechanism`].
pub fn decode_greeting(bytes: &[u8], mechanism: &str) -> Result<Option<u8>, Reason> {
    if !decode_version(bytes)? {
        return Ok(None);
    }
    let padding = std::iter::repeat_n(0, MECHANISM - mechanism.len());
    let mechanism = mechanism.bytes().chain(padding);
    if mechanism.zip(bytes.iter().skip(12)).any(|(right, byte)| right != *byte) {
        return Err(Reason::Mechanism);
    }
    // A peer of a higher major version must speak ours.
    let minor = if bytes[10] > 3 { Some(1) } else { bytes.get(11).copied() };
    Ok(minor.filter(|_| bytes.len() >= GREETING))
}
