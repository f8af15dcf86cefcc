//! Encoding and decoding of frames (RFC 37, "Framing").

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Buf, Bytes};

use crate::reason::Reason;

/// The longest body of a command in traffic. PING and PONG, the only known ones, need at most 23
/// bytes.
pub const COMMAND_BYTES: usize = 255;

/// The longest header: flags and an eight-byte size.
const LONGEST_HEADER: usize = 9;

const MORE: u8 = 1;
const LONG: u8 = 2;
/// The flag that marks a command frame.
pub const COMMAND: u8 = 4;

/// A frame's flags and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether this is a command frame rather than a message frame.
    pub command: bool,
    /// Whether more frames of the same message follow.
    pub more: bool,
    /// Size of the header itself, in bytes.
    pub bytes: usize,
    /// Size of the body as announced. Never reserve memory for it: a peer can announce anything.
    pub body: u64,
}

impl Header {
    /// Decodes the header at the start of `bytes`, or returns `None` if it is incomplete.
    ///
    /// # Errors
    ///
    /// [`Reason::ReservedFlags`], as soon as the first byte is there: bits 7 to 3 must be zero,
    /// and a command must not set MORE (RFC 23, "Framing").
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Reason> {
        let Some((&flags, rest)) = bytes.split_first() else { return Ok(None) };
        let command = flags & COMMAND != 0;
        let more = flags & MORE != 0;
        if flags & !(MORE | LONG | COMMAND) != 0 || (command && more) {
            return Err(Reason::ReservedFlags);
        }
        let size = if flags & LONG == 0 {
            rest.first().map(|size| (2, u64::from(*size)))
        } else {
            rest.first_chunk().map(|size| (LONGEST_HEADER, u64::from_be_bytes(*size)))
        };
        Ok(size.map(|(bytes, body)| Self { command, more, bytes, body }))
    }
}

/// The length of the header of a command whose body starts at `body`. The body has at most
/// [`COMMAND_BYTES`] bytes, so the last but one byte of a long header, which is part of its size,
/// is zero. That tells the two forms apart.
pub fn command_header(bytes: &[u8], body: usize) -> usize {
    if bytes[body - 2] == COMMAND { 2 } else { LONGEST_HEADER }
}

/// Appends the header of a frame with `body` bytes.
#[inline]
pub fn encode_header(out: &mut Vec<u8>, flags: u8, body: usize) {
    if let Ok(short) = u8::try_from(body) {
        out.extend_from_slice(&[flags, short]);
    } else {
        let mut header = [flags | LONG; LONGEST_HEADER];
        header[1..].copy_from_slice(&(body as u64).to_be_bytes());
        out.extend_from_slice(&header);
    }
}

/// The flags of a message frame.
#[inline]
pub fn message_flags(more: bool) -> u8 {
    if more { MORE } else { 0 }
}

/// The limits that each header is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// Total bytes of a message's frames.
    pub bytes: usize,
    /// Frames in a message.
    pub frames: usize,
}

/// How far a message has been scanned.
///
/// The next step continues there, so each byte is examined once, however slowly the message
/// arrives.
#[derive(Debug, Default, Clone)]
pub struct Scan {
    at: usize,
    frames: usize,
    bytes: usize,
}

/// What [`Scan::step`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// A complete message, and how many bytes it occupies from the start. The scan restarts.
    Message(usize),
    /// The position of a command's body. If [`Scan::between_messages`] returns an offset, drop
    /// the bytes up to it.
    Command(Range<usize>),
    /// At least this many bytes are missing.
    Partial(usize),
}

impl Scan {
    /// Looks for the end of the message at the start of `bytes`. They must begin with the bytes
    /// of the previous step.
    ///
    /// # Errors
    ///
    /// The limit or rule that a header breaks. It is reported at the header, before any of the
    /// body has to be held.
    #[inline]
    pub fn step(&mut self, bytes: &[u8], limits: &MessageLimits) -> Result<Scanned, Reason> {
        loop {
            let Some(header) = Header::decode(&bytes[self.at..])? else {
                return Ok(Scanned::Partial(1));
            };
            let room = if header.command { COMMAND_BYTES } else { limits.bytes - self.bytes };
            let body = match usize::try_from(header.body) {
                Ok(body) if body <= room => body,
                _ if header.command => return Err(Reason::Command),
                _ => return Err(Reason::MessageLimit),
            };
            if !header.command && self.frames == limits.frames {
                return Err(Reason::FrameLimit);
            }
            let start = self.at + header.bytes;
            let end = start + body;
            if end > bytes.len() {
                return Ok(Scanned::Partial(end - bytes.len()));
            }
            self.at = end;
            if header.command {
                // libzmq may send PINGs between two frames of a message. They count towards the
                // message's size, because otherwise a peer could send them endlessly.
                if self.frames > 0 {
                    self.bytes += header.bytes + body;
                    if self.bytes > limits.bytes {
                        return Err(Reason::MessageLimit);
                    }
                }
                return Ok(Scanned::Command(start..end));
            }
            self.frames += 1;
            self.bytes += body;
            if !header.more {
                *self = Self::default();
                return Ok(Scanned::Message(end));
            }
        }
    }

    /// Whether `bytes`, which [`Scan::step`] called partial, contain part of a message, rather
    /// than only part of a command between two messages.
    pub fn is_in_message(&self, bytes: &[u8]) -> bool {
        let begins_message = |flags: &u8| flags & COMMAND == 0;
        self.frames > 0 || bytes.get(self.at).is_some_and(begins_message)
    }

    /// If no message has begun, returns how many bytes of commands the caller can drop. The scan
    /// restarts after them.
    pub fn between_messages(&mut self) -> Option<usize> {
        (self.frames == 0).then(|| std::mem::take(&mut self.at))
    }
}

/// Removes the message at the start of `bytes`, whose end a [`Scan`] found, and appends its
/// frames to `frames` as slices. Returns the size of its payload.
#[inline]
pub fn split_frames(bytes: &mut Bytes, end: usize, frames: &mut VecDeque<Bytes>) -> usize {
    let (mut at, mut payload) = (0, 0);
    while let Ok(Some(header)) = Header::decode(&bytes[at..end]) {
        let start = at + header.bytes;
        at = start + header.body as usize;
        if !header.command {
            payload += at - start;
            frames.push_back(bytes.slice(start..at));
        }
    }
    bytes.advance(end);
    payload
}

/// Like [`split_frames`], for a message that occupies all of `bytes`. Copies the frames into
/// memory of their own.
pub fn copy_frames(bytes: &[u8], frames: &mut VecDeque<Bytes>) {
    frames.extend(bodies(bytes).map(Bytes::copy_from_slice));
}

/// The bodies of the frames of a message that occupies all of `bytes`. A [`Scan`] must have found
/// its end.
#[inline]
pub fn bodies(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let header = Header::decode(rest).ok().flatten()?;
            let (frame, behind) = rest.split_at(header.bytes + header.body as usize);
            rest = behind;
            if !header.command {
                return Some(&frame[header.bytes..]);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::command::{Command, encode_ping};
    use super::*;

    use proptest::collection::vec;
    use proptest::prelude::*;

    const LIMITS: MessageLimits = MessageLimits { bytes: 1000, frames: 4 };

    fn scan(bytes: &[u8]) -> Result<Scanned, Reason> {
        Scan::default().step(bytes, &LIMITS)
    }

    #[test]
    fn a_frame_over_the_limit_is_rejected_at_its_header() {
        for size in [1001, 1 << 31, 1 << 40, 1 << 47, 1 << 63, u64::MAX] {
            let mut header = vec![LONG];
            header.extend_from_slice(&size.to_be_bytes());
            assert_eq!(scan(&header), Err(Reason::MessageLimit), "{size}");
        }
        let mut header = vec![LONG];
        header.extend_from_slice(&1000u64.to_be_bytes());
        assert_eq!(scan(&header), Ok(Scanned::Partial(1000)));
    }

    #[test]
    fn a_message_may_have_the_maximum_number_of_frames_but_no_more() {
        let frames = |count: usize| [1, 0].repeat(count - 1).into_iter().chain([0, 0]);
        assert_eq!(scan(&frames(4).collect::<Vec<_>>()), Ok(Scanned::Message(8)));
        assert_eq!(scan(&frames(5).collect::<Vec<_>>()), Err(Reason::FrameLimit));
    }

    #[test]
    fn reserved_flags_are_rejected_at_the_first_byte() {
        for flags in (8..=255).chain([COMMAND | MORE, COMMAND | MORE | LONG]) {
            assert_eq!(scan(&[flags]), Err(Reason::ReservedFlags), "{flags}");
        }
        for flags in [0, MORE, LONG, MORE | LONG, COMMAND, COMMAND | LONG] {
            assert_eq!(scan(&[flags]), Ok(Scanned::Partial(1)), "{flags}");
        }
    }

    #[test]
    fn a_command_between_two_frames_is_not_part_of_the_message() {
        let mut bytes = vec![1, 1, b'a'];
        encode_ping(&mut bytes);
        bytes.extend_from_slice(&[0, 1, b'b']);
        let mut state = Scan::default();
        let Ok(Scanned::Command(body)) = state.step(&bytes, &LIMITS) else { panic!() };
        assert_eq!(Command::decode(&bytes[body]), Ok(Command::Ping { ttl: None, context: b"" }));
        assert_eq!(state.between_messages(), None);
        let end = bytes.len();
        assert_eq!(state.step(&bytes, &LIMITS), Ok(Scanned::Message(end)));
        bytes.extend_from_slice(b"next");
        let mut frames = VecDeque::new();
        let mut bytes = Bytes::from(bytes);
        assert_eq!(split_frames(&mut bytes, end, &mut frames), 2);
        assert_eq!((frames, &bytes[..]), (["a", "b"].map(Bytes::from).into(), &b"next"[..]));
    }

    #[test]
    fn endless_commands_inside_a_message_hit_its_limit() {
        let mut bytes = vec![1, 1, b'a'];
        for _ in 0..200 {
            encode_ping(&mut bytes);
        }
        bytes.extend_from_slice(&[0, 1, b'b']);
        let mut state = Scan::default();
        let end = loop {
            match state.step(&bytes, &LIMITS) {
                Ok(Scanned::Command(_)) => {}
                end => break end,
            }
        };
        assert_eq!(end, Err(Reason::MessageLimit));
    }

    proptest! {
        #[test]
        fn messages_survive_any_split_into_reads(
            messages in vec(vec(vec(any::<u8>(), 0..300), 1..=4), 0..8),
            ping_before in any::<usize>(),
            cuts in vec(1usize..400, 1..20),
        ) {
            let limits = MessageLimits { bytes: 4 * 300, frames: 4 };
            let mut stream = Vec::new();
            for (number, message) in messages.iter().enumerate() {
                if number == ping_before % 8 {
                    encode_ping(&mut stream);
                }
                for (index, frame) in message.iter().enumerate() {
                    encode_header(&mut stream, message_flags(index + 1 < message.len()), frame.len());
                    stream.extend_from_slice(frame);
                }
            }
            let (decoded, error) = session(&stream, &cuts, &limits);
            prop_assert_eq!(error, None);
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn any_bytes_yield_messages_or_a_reason_within_the_limits(
            stream in vec(prop_oneof![0u8..8, any::<u8>()], 0..4000),
            cuts in vec(1usize..400, 1..20),
        ) {
            let limits = MessageLimits { bytes: 100, frames: 3 };
            let (decoded, _) = session(&stream, &cuts, &limits);
            for message in decoded {
                prop_assert!(message.len() <= limits.frames);
                prop_assert!(message.iter().map(Vec::len).sum::<usize>() <= limits.bytes);
            }
        }
    }

    /// What a connection makes of `stream`, read in pieces of `cuts` bytes in turn: its messages,
    /// and the reason for its end.
    fn session(
        stream: &[u8],
        cuts: &[usize],
        limits: &MessageLimits,
    ) -> (Vec<Vec<Vec<u8>>>, Option<Reason>) {
        let mut held = Vec::new();
        let mut scan = Scan::default();
        let mut messages = Vec::new();
        let mut rest = stream;
        for cut in cuts.iter().cycle() {
            let (read, left) = rest.split_at((*cut).min(rest.len()));
            rest = left;
            held.extend_from_slice(read);
            loop {
                match scan.step(&held, limits) {
                    Err(reason) => return (messages, Some(reason)),
                    Ok(Scanned::Message(end)) => {
                        let mut frames = VecDeque::new();
                        split_frames(&mut Bytes::copy_from_slice(&held), end, &mut frames);
                        held.drain(..end);
                        messages.push(frames.iter().map(|frame| frame.to_vec()).collect());
                    }
                    Ok(Scanned::Command(body)) => {
                        if let Err(reason) = Command::decode(&held[body]) {
                            return (messages, Some(reason));
                        }
                        if let Some(end) = scan.between_messages() {
                            held.drain(..end);
                        }
                    }
                    Ok(Scanned::Partial(missing)) => {
                        let headers = LONGEST_HEADER * (limits.frames + 1);
                        let most = limits.bytes + headers + COMMAND_BYTES;
                        assert!(missing > 0 && held.len() + missing <= most);
                        break;
                    }
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        (messages, None)
    }
}
