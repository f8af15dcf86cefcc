//! How long a request is worth working on, as its client says.
//!
//! Two frames between the envelope and the payload:
//!
//! ```text
//! TIME_LIMIT marker (16 bytes) | milliseconds as decimal digits
//! ```
//!
//! The time counts from the moment at which the server reads the request: the clocks of two
//! hosts do not agree. The marker is a [reserved frame](super::rejection), so no payload can be
//! taken for it, and the reply does not have these frames.

use std::time::Duration;

use bytes::Bytes;
use zmtp::Message;

use super::rejection::{MARKER, Rejection};

/// The first of the two frames.
pub const TIME_LIMIT: &[u8; MARKER] = b"\0zmq-echo/limit\0";

/// The most digits: a hundred days.
const DIGITS: usize = 10;

/// The two frames for a request that is worth working on for this long.
pub fn frames(limit: Duration) -> [Bytes; 2] {
    // A limit that is not over yet is not shown as one that is.
    let milliseconds = limit.as_nanos().div_ceil(1_000_000).min(10_u128.pow(DIGITS as u32) - 1);
    [Bytes::from_static(TIME_LIMIT), milliseconds.to_string().into()]
}

/// Takes the two frames out of a message whose payload begins with the marker.
pub(super) fn take(message: &mut Message, payload_at: usize) -> Result<Duration, Rejection> {
    let digits = message.frames().get(payload_at + 1);
    let limit = digits.and_then(|digits| parse(digits)).ok_or_else(|| {
        let text = format!("expected 1 to {DIGITS} digits, the milliseconds, behind the marker");
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
    fn a_limit_is_read_as_it_was_written_and_its_frames_are_gone() {
        let ms = Duration::from_millis;
        for (limit, read) in [
            (Duration::ZERO, Duration::ZERO),
            (Duration::from_nanos(1), ms(1)),
            (ms(1500), ms(1500)),
            (Duration::MAX, ms(9_999_999_999)),
        ] {
            let [marker, digits] = frames(limit);
            let [id, delimiter, payload] = ["id", "", "payload"].map(Bytes::from_static);
            let mut message = Message::from([id, delimiter, marker, digits, payload]);
            assert_eq!(take(&mut message, 2), Ok(read));
            assert_eq!(message, ["id", "", "payload"].map(Bytes::from_static).into());
        }
    }

    #[test]
    fn anything_but_digits_is_rejected() {
        for digits in ["", "-1", "+1", "1.5", "12345678901", "1s", " 1"] {
            let mut message =
                Message::from([TIME_LIMIT.as_slice(), digits.as_bytes()].map(Bytes::from_static));
            assert_eq!(take(&mut message, 0).unwrap_err().code, "invalid_deadline", "{digits}");
        }
        let mut alone = Message::from([Bytes::from_static(TIME_LIMIT)]);
        assert_eq!(take(&mut alone, 0).unwrap_err().code, "invalid_deadline");
    }
}
