//! A message.

use std::collections::VecDeque;

use bytes::Bytes;

/// A message: its frames, in order.
///
/// What a ROUTER receives begins with the identity of the sender, and what it sends with the
/// identity of the receiver (RFC 28). Frames are reference-counted: cloning one copies no bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    frames: VecDeque<Bytes>,
}

impl Message {
    /// The frames.
    pub fn frames(&self) -> &VecDeque<Bytes> {
        &self.frames
    }

    /// The frames, to be changed.
    #[inline(always)]
    pub fn frames_mut(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.frames
    }

    /// The frames, taken apart.
    #[inline(always)]
    pub fn into_frames(self) -> VecDeque<Bytes> {
        self.frames
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(Bytes::len).sum()
    }
}

impl From<VecDeque<Bytes>> for Message {
    #[inline(always)]
    fn from(frames: VecDeque<Bytes>) -> Self {
        Self { frames }
    }
}

impl<const N: usize> From<[Bytes; N]> for Message {
    fn from(frames: [Bytes; N]) -> Self {
        Self { frames: frames.into() }
    }
}

impl FromIterator<Bytes> for Message {
    fn from_iter<I: IntoIterator<Item = Bytes>>(frames: I) -> Self {
        Self { frames: frames.into_iter().collect() }
    }
}
