//! Splits a stream of bytes into lines, looking at each byte only once.

use bytes::{Buf, BytesMut};
use memchr::memchr;

/// The part of a stream that is not a complete line yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    unread: BytesMut,
    /// Length of the prefix of `unread` that is known to hold no line end. Without it, a line that
    /// comes in many frames would be scanned from its start for each of them.
    scanned: usize,
    /// Bytes that `memchr` has scanned.
    #[cfg(test)]
    looked_at: usize,
}

impl Lines {
    /// Appends the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Removes the next complete line and returns it without its line end.
    pub(super) fn next(&mut self) -> Option<BytesMut> {
        let found = memchr(b'\n', &self.unread[self.scanned..]);
        #[cfg(test)]
        {
            self.looked_at += found.map_or(self.unread.len() - self.scanned, |at| at + 1);
        }
        let Some(at) = found else {
            self.scanned = self.unread.len();
            return None;
        };
        let line = self.unread.split_to(self.scanned + at);
        self.unread.advance(1);
        self.scanned = 0;
        Some(line)
    }

    /// Length of the incomplete line. Call it only right after [`Self::next`] returned `None`.
    pub(super) fn unfinished(&self) -> usize {
        self.unread.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of a stream that comes in these frames, and the splitter afterwards.
    fn lines<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Lines) {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for frame in frames {
            lines.push(frame);
            found.extend(std::iter::from_fn(|| lines.next()).map(|line| line.to_vec()));
        }
        (found, lines)
    }

    #[test]
    fn frame_boundaries_do_not_change_the_lines() {
        let stream = b"one\n\nthree is longer\nunfinished";
        for size in 1..=stream.len() {
            let (found, rest) = lines(stream.chunks(size));
            assert_eq!(found, [&b"one"[..], b"", b"three is longer"], "frames of {size}");
            assert_eq!(rest.unfinished(), "unfinished".len());
            assert_eq!(rest.looked_at, stream.len(), "frames of {size}");
        }
    }

    #[test]
    fn each_byte_of_a_line_in_many_frames_is_scanned_once() {
        let frame = [b'a'; 16 << 10];
        let (found, unfinished) = lines(std::iter::repeat_n(&frame[..], 512));
        assert!(found.is_empty());
        assert_eq!(unfinished.unfinished(), 8 << 20);
        assert_eq!(unfinished.looked_at, 8 << 20);
    }
}
