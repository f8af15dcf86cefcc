//! Bytes waiting to be sent to a peer, without I/O and without a clock.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Instant;

use bytes::Bytes;

use super::frame::{encode_header, message_flags};

/// Frames of at least this size are queued as they are. Smaller ones are copied one after the
/// other, which costs no more than an entry of their own.
const LARGE: usize = 8 << 10;

/// The maximum number of slices in one write. The kernel allows 1,024.
pub const SLICES: usize = 32;

/// What an entry of `parts` costs in addition to its bytes, including its allocation.
const PART: usize = 64;

/// Replies to requests that were read at the same time and have the same label.
#[derive(Debug)]
struct Reads {
    at: Instant,
    label: u32,
    replies: u32,
}

/// Bytes in the order in which they are sent, and where each reply ends.
#[derive(Debug, Default)]
pub struct OutQueue {
    /// Sent before `tail`.
    parts: VecDeque<Bytes>,
    /// Small frames, copied one after the other.
    tail: Vec<u8>,
    /// How much of the first part has been sent, or of `tail` if there are no parts.
    front_sent: usize,
    /// Total bytes queued and sent since the start.
    queued: u64,
    sent: u64,
    /// Where each reply ends, counted like `queued`.
    ends: VecDeque<u64>,
    /// The replies, grouped by their requests, in the order in which they are sent.
    reads: VecDeque<Reads>,
}

impl OutQueue {
    /// Bytes not sent yet.
    pub fn len(&self) -> usize {
        (self.queued - self.sent) as usize
    }

    /// Total bytes queued since the start.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Total bytes sent since the start.
    pub fn left(&self) -> u64 {
        self.sent
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.queued == self.sent
    }

    /// Replies that are not completely sent.
    pub fn replies(&self) -> usize {
        self.ends.len()
    }

    /// Memory held by the queue. A large part counts in full until its last byte is sent, because
    /// it occupies its memory until then.
    pub fn held(&self) -> usize {
        self.parts.iter().map(|part| part.len() + PART).sum::<usize>()
            + self.tail.capacity()
            + self.ends.capacity() * size_of::<u64>()
            + self.reads.capacity() * size_of::<Reads>()
    }

    /// Appends a reply to a request that was read at `read_at`, counted under `label`. Takes the
    /// frames and returns their payload size.
    #[inline(always)]
    pub fn push_reply(
        &mut self,
        frames: &mut VecDeque<Bytes>,
        read_at: Instant,
        label: u32,
    ) -> usize {
        let before = self.tail.len();
        let (mut parted, mut payload) = (0, 0);
        while let Some(frame) = frames.pop_front() {
            let flags = message_flags(!frames.is_empty());
            encode_header(&mut self.tail, flags, frame.len());
            payload += frame.len();
            if frame.len() < LARGE {
                self.tail.extend_from_slice(&frame);
            } else {
                parted += self.tail.len() + frame.len();
                self.part_tail();
                self.parts.push_back(frame);
            }
        }
        self.end_message(parted + self.tail.len() - before, read_at, label);
        payload
    }

    /// Appends a message of a short tag, an empty frame, short `head` frames and a payload. The
    /// tag and the head are copied.
    #[inline]
    pub fn push_tagged(&mut self, tag: &[u8], head: &[&[u8]], payload: &Bytes, read_at: Instant) {
        let before = self.tail.len();
        encode_header(&mut self.tail, message_flags(true), tag.len());
        self.tail.extend_from_slice(tag);
        encode_header(&mut self.tail, message_flags(true), 0);
        for frame in head {
            encode_header(&mut self.tail, message_flags(true), frame.len());
            self.tail.extend_from_slice(frame);
        }
        encode_header(&mut self.tail, message_flags(false), payload.len());
        let mut parted = 0;
        if payload.len() < LARGE {
            self.tail.extend_from_slice(payload);
        } else {
            parted = self.tail.len() + payload.len();
            self.part_tail();
            self.parts.push_back(payload.clone());
        }
        self.end_message(parted + self.tail.len() - before, read_at, 0);
    }

    #[inline(always)]
    fn end_message(&mut self, bytes: usize, read_at: Instant, label: u32) {
        self.queued += bytes as u64;
        self.ends.push_back(self.queued);
        match self.reads.back_mut() {
            Some(last) if last.at == read_at && last.label == label => last.replies += 1,
            _ => self.reads.push_back(Reads { at: read_at, label, replies: 1 }),
        }
    }

    /// Appends the output of `write`: a greeting or a command, which does not count as a reply.
    pub fn push_bytes<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.tail.len();
        let result = write(&mut self.tail);
        self.queued += (self.tail.len() - before) as u64;
        result
    }

    /// All unsent bytes, if they are contiguous.
    pub fn only_slice(&self) -> Option<&[u8]> {
        self.parts.is_empty().then(|| &self.tail[self.front_sent..])
    }

    /// The bytes to send next, for one vectored write. Returns how many slices are set.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut skip = self.front_sent;
        let mut count = 0;
        for bytes in self.parts.iter().map(|part| &part[..]).chain([&self.tail[..]]) {
            let bytes = &bytes[std::mem::take(&mut skip)..];
            if bytes.is_empty() || count == SLICES {
                break;
            }
            slices[count] = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// Call this after sending the first `count` bytes. Calls `replied` with the time at which
    /// requests were read, their label, and how many of their replies are now complete.
    pub fn advance(&mut self, count: usize, mut replied: impl FnMut(Instant, u32, usize)) {
        self.sent += count as u64;
        self.front_sent += count;
        while let Some(part) = self.parts.front()
            && part.len() <= self.front_sent
        {
            self.front_sent -= part.len();
            self.parts.pop_front();
        }
        if self.parts.is_empty() && self.front_sent == self.tail.len() {
            self.tail.clear();
            self.front_sent = 0;
        }
        let left = if self.is_empty() {
            self.ends.len()
        } else {
            self.ends.iter().take_while(|end| **end <= self.sent).count()
        };
        self.ends.drain(..left);
        let mut left = left;
        while left > 0
            && let Some(first) = self.reads.front_mut()
        {
            let now = left.min(first.replies as usize);
            replied(first.at, first.label, now);
            left -= now;
            first.replies -= now as u32;
            if first.replies == 0 {
                self.reads.pop_front();
            }
        }
    }

    /// Moves the unsent bytes into a queue with memory of its own, no larger than necessary, and
    /// leaves the old memory here for the next peer. A part of at most `shared` bytes may be a
    /// slice of a shared buffer. It is copied, so that it does not keep that buffer alive.
    pub fn take_backlog(&mut self, shared: usize) -> Self {
        let mut skip = std::mem::take(&mut self.front_sent);
        let mut backlog = Self { queued: self.queued, sent: self.sent, ..Self::default() };
        for (index, part) in self.parts.drain(..).enumerate() {
            if part.len() <= shared {
                backlog.parts.push_back(Bytes::copy_from_slice(&part[skip..]));
            } else {
                if index == 0 {
                    backlog.front_sent = skip;
                }
                backlog.parts.push_back(part);
            }
            skip = 0;
        }
        backlog.tail = self.tail[skip..].to_vec();
        backlog.ends = self.ends.drain(..).collect();
        backlog.reads = self.reads.drain(..).collect();
        self.tail.clear();
        (self.queued, self.sent) = (0, 0);
        backlog
    }

    fn part_tail(&mut self) {
        if self.parts.is_empty() {
            self.tail.drain(..std::mem::take(&mut self.front_sent));
        }
        if !self.tail.is_empty() {
            self.parts.push_back(Bytes::copy_from_slice(&self.tail));
            self.tail.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(queue: &OutQueue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = queue.slices(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn replies_leave_in_order_and_are_counted_once_however_writes_are_split() {
        let frames = |sizes: &[usize]| -> VecDeque<Bytes> {
            sizes.iter().map(|size| vec![*size as u8; *size].into()).collect()
        };
        let read_at = Instant::now();
        let replies = [frames(&[0, 5]), frames(&[LARGE]), frames(&[3, LARGE + 1, 7])];
        let mut whole = OutQueue::default();
        for reply in &replies {
            whole.push_reply(&mut reply.clone(), read_at, 7);
        }
        let bytes = written(&whole);
        assert_eq!(whole.len(), bytes.len());
        for cut in [1, 2, 9, 10, 100, LARGE, 3 * LARGE] {
            for settle in [false, true] {
                let mut queue = OutQueue::default();
                for reply in &replies {
                    queue.push_reply(&mut reply.clone(), read_at, 7);
                }
                let (mut out, mut counted) = (Vec::new(), 0);
                while !queue.is_empty() {
                    let next = written(&queue);
                    let count = cut.min(next.len());
                    out.extend_from_slice(&next[..count]);
                    queue.advance(count, |at, label, replies| {
                        assert_eq!((at, label), (read_at, 7));
                        counted += replies;
                    });
                    assert_eq!(counted + queue.replies(), replies.len());
                    if settle {
                        queue = queue.take_backlog(LARGE);
                    }
                }
                assert_eq!(out, bytes);
                assert_eq!(counted, replies.len());
            }
        }
    }

    #[test]
    fn a_backlog_holds_little_more_than_its_bytes() {
        let mut queue = OutQueue::default();
        for _ in 0..10_000 {
            let mut frames = VecDeque::from([Bytes::from_static(b"0123456789")]);
            queue.push_reply(&mut frames, Instant::now(), 0);
        }
        queue.advance(12 * 9_990, |_, _, _| {});
        let backlog = queue.take_backlog(LARGE);
        assert_eq!((backlog.len(), backlog.replies()), (120, 10));
        assert!(backlog.held() < 2_000, "{}", backlog.held());
        assert!(queue.is_empty() && queue.replies() == 0);
    }
}
