//! How a client sets a deadline for a request.
//!
//! It sends two frames between the envelope and the payload:
//!
//! ```text
//! TIME_LIMIT marker (16 bytes) | milliseconds as decimal digits
//! ```
//!
//! The time counts from the moment at which the server reads the request, because the clocks of two
//! hosts do not agree. The marker is a [reserved frame](super::rejection), so a payload cannot be
//! mistaken for it. The reply does not contain these frames.

use std::time::Duration;

use bytes::Bytes;
use zmtp::Message;

use super::rejection::{MARKER, Rejection};

/// The first of the two frames.
pub const TIME_LIMIT: &[u8; MARKER] = b"\0zmq-echo/limit\0";

/// The maximum number of digits, enough for 115 days.
const DIGITS: usize = 10;

/// The two frames that give a request the time limit `limit`, shortened to what the digits can
/// express.
pub fn frames(limit: Duration) -> [Bytes; 2] {
    // Round up, so that a limit that has not passed is never sent as zero.
    let milliseconds = limit.as_nanos().div_ceil(1_000_000).min(10_u128.pow(DIGITS as u32) - 1);
    [Bytes::from_static(TIME_LIMIT), milliseconds.to_string().into()]
}

/// Removes the two frames from a message whose payload begins with the marker, and returns the
/// limit.
pub(super) fn take(message: &mut Message, payload_at: usize) -> Result<Duration, Rejection> {
    let digits = message.frames().get(payload_at + 1);
    let limit = digits.and_then(|digits| parse(digits)).ok_or_else(|| {
        let text = format!("expected milliseconds after the marker, as 1 to {DIGITS} digits");
        Rejection::new("invalid_deadline", text)
    })?;
    message.frames_mut().drain(payload_at..payload_at + 2);
    Ok(limit)
}

fn parse(digits: &[u8]) -> Option<Duration> {
    if !(1..=DIGITS).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_survives_a_round_trip_and_its_frames_are_removed() {
        let ms = Duration::from_millis;
        for (limit, read) in [
            (Duration::ZERO, Duration::ZERO),
            (Duration::from_nanos(1), ms(1)),
            (ms(1500), ms(1500)),
            (Duration::MAX, ms(9_999_999_999)),
        ] {
            let [marker, digits] = frames(limit);
            let [id, delimiter, payload] = ["id", "", "payload"].map(Bytes::from);
            let mut message = Message::from([id, delimiter, marker, digits, payload]);
            assert_eq!(take(&mut message, 2), Ok(read));
            assert_eq!(message, ["id", "", "payload"].map(Bytes::from).into());
        }
    }

    #[test]
    fn anything_but_1_to_10_digits_is_rejected() {
        for digits in ["", "-1", "+1", "1.5", "12345678901", "1s", " 1"] {
            let mut message =
                Message::from([TIME_LIMIT.as_slice(), digits.as_bytes()].map(Bytes::from_static));
            assert_eq!(take(&mut message, 0).unwrap_err().code, "invalid_deadline", "{digits}");
        }
        let mut alone = Message::from([Bytes::from_static(TIME_LIMIT)]);
        assert_eq!(take(&mut alone, 0).unwrap_err().code, "invalid_deadline");
    }
}
