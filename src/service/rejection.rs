//! The error replies that tell a client why its request was not answered.
//!
//! An error reply is the request's envelope, followed by four frames:
//!
//! ```text
//! ERROR marker (16 bytes) | code | text | "retry" or "final"
//! ```
//!
//! Code and text are UTF-8. A frame of 16 bytes that starts with [`RESERVED`] is reserved, and no
//! payload may begin with one: such a request is rejected, and a service that sends such a reply
//! has failed. So no payload looks like an error reply, not even an echoed one.
//!
//! There are two other reserved frames. A payload that begins with [`CHECK`] is not passed to the
//! service. The loop returns it, or rejects it if the service is unhealthy. Clients use this to
//! find out whether a server answers. The other frame is in [`time_limit`](super::time_limit): it
//! sets a deadline for the request.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use zmtp::Message;

/// The prefix of every reserved frame.
pub const RESERVED: &[u8] = b"\0zmq-echo/";

/// The length of a reserved frame, in bytes.
pub const MARKER: usize = 16;

/// The first payload frame of an error reply.
pub const ERROR: &[u8; MARKER] = b"\0zmq-echo/error\0";

/// The first payload frame of a request that only asks whether the server answers.
pub const CHECK: &[u8; MARKER] = b"\0zmq-echo/check\0";

/// Whether a frame is reserved.
#[inline]
pub fn is_reserved(frame: &[u8]) -> bool {
    frame.len() == MARKER && frame.starts_with(RESERVED)
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The code, for programs, such as `overloaded`. It is in lower case, with underscores.
    pub code: Cow<'static, str>,
    /// The explanation, for people.
    pub text: String,
    /// Whether the same request may succeed if it is sent again, here or elsewhere.
    pub retry: bool,
}

impl Rejection {
    /// A final error: the request is wrong and fails wherever it is sent.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), text: text.into(), retry: false }
    }

    /// The same error, but the request may be sent again.
    #[must_use]
    pub fn retryable(self) -> Self {
        Self { retry: true, ..self }
    }

    /// `failed`: the service could not do its work.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new("failed", text)
    }

    /// `panicked`: the handler panicked on this request.
    pub fn panicked() -> Self {
        Self::new("panicked", "the handler panicked on this request")
    }

    /// `deadline`: the request waited for longer than its deadline.
    pub fn deadline() -> Self {
        Self::new("deadline", "the request waited for longer than its deadline").retryable()
    }

    /// `draining`: the server is shutting down and has not finished this request.
    pub fn draining() -> Self {
        Self::new("draining", "the server is shutting down").retryable()
    }

    /// `reserved`: the payload begins with a reserved frame.
    pub fn reserved() -> Self {
        Self::new("reserved", "the payload begins with a reserved frame")
    }

    /// `unhealthy`: the service says that it cannot do its work.
    pub fn unhealthy(text: impl Into<String>) -> Self {
        Self::new("unhealthy", text).retryable()
    }

    /// The four frames that follow the envelope.
    pub fn frames(&self) -> [Bytes; 4] {
        [
            Bytes::from_static(ERROR),
            Bytes::copy_from_slice(self.code.as_bytes()),
            Bytes::copy_from_slice(self.text.as_bytes()),
            Bytes::from_static(if self.retry { b"retry" } else { b"final" }),
        ]
    }

    /// Reads the rejection from the frames after a reply's envelope. Returns `None` if they are an
    /// ordinary payload.
    pub fn of_payload<'a>(mut payload: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        if payload.next()? != ERROR {
            return None;
        }
        let mut text = || String::from_utf8_lossy(payload.next().unwrap_or_default()).into_owned();
        let (code, text, retry) = (text(), text(), text());
        Some(Self { code: code.into(), text, retry: retry == "retry" })
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for Rejection {}

/// Converts an error of a service or of a layer around it. A [`Rejection`] stays as it is. Any
/// other error gets the code `failed`, and the request may be sent again.
impl From<Box<dyn std::error::Error + Send + Sync>> for Rejection {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(rejection) => *rejection,
            Err(error) => Self::failed(crate::log::chain(&*error)).retryable(),
        }
    }
}

impl From<std::convert::Infallible> for Rejection {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<&Rejection> for Message {
    fn from(rejection: &Rejection) -> Self {
        rejection.frames().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_survives_a_round_trip_and_a_payload_is_not_read_as_one() {
        for rejection in [
            Rejection::new("odd", "expected an even length"),
            Rejection::draining(),
            Rejection::failed(""),
        ] {
            let frames = rejection.frames();
            assert_eq!(
                Rejection::of_payload(frames.iter().map(|frame| &frame[..])),
                Some(rejection)
            );
        }
        for payload in [&[][..], &[&b"hello"[..]], &[&CHECK[..]], &[&b""[..], ERROR]] {
            assert_eq!(Rejection::of_payload(payload.iter().copied()), None);
        }
    }

    #[test]
    fn only_frames_of_16_bytes_with_the_prefix_are_reserved() {
        assert!(is_reserved(ERROR) && is_reserved(CHECK));
        for frame in [&ERROR[1..], &ERROR[..15], b"\0zmq-echo/error\0\0", b"", b"zmq-echo-probe/1"]
        {
            assert!(!is_reserved(frame), "{frame:?}");
        }
    }
}
