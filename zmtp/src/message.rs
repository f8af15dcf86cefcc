//! The message type.

use std::collections::VecDeque;

use bytes::Bytes;

/// A message: one or more frames, in order.
///
/// A ROUTER adds the sender's identity as the first frame of each message that it receives, and
/// takes the first frame of each message that it sends as the receiver's identity (RFC 28).
/// [`Router::recv_from`](crate::Router::recv_from) and
/// [`Router::send_to`](crate::Router::send_to) work without that frame.
///
/// Frames are reference-counted, so cloning a message copies no payload.
///
/// ```
/// use zmtp::Message;
///
/// let message = Message::from(["to".into(), "".into(), "hello".into()]);
/// assert_eq!(message.frames().len(), 3);
/// assert_eq!(message.bytes(), 7);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    frames: VecDeque<Bytes>,
}

impl Message {
    /// The frames.
    pub fn frames(&self) -> &VecDeque<Bytes> {
        &self.frames
    }

    /// The frames, mutably.
    #[inline(always)]
    pub fn frames_mut(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.frames
    }

    /// Returns the frames.
    #[inline(always)]
    pub fn into_frames(self) -> VecDeque<Bytes> {
        self.frames
    }

    /// Total size of all frames, in bytes.
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(Bytes::len).sum()
    }
}

impl From<Vec<Bytes>> for Message {
    fn from(frames: Vec<Bytes>) -> Self {
        Self { frames: frames.into() }
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
