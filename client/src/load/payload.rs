//! What is sent: payloads of which no two are the same, and that tell whether a
//! reply is theirs.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;
use zmq_echo::units::{self, parse_bytes};

/// The bytes of a payload's number, with which it starts.
const NUMBER: usize = size_of::<u64>();

/// Where in the random bytes a payload may start: drawing an offset costs less than
/// drawing every payload anew.
const OFFSETS: usize = 64 << 10;

/// Draws payloads.
pub struct Payloads {
    random: Vec<u8>,
    size: PayloadSize,
    rng: Rng,
    next: u64,
}

/// One payload: a number of its own, then random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    number: u64,
    offset: usize,
    rest: usize,
}

impl Payloads {
    /// Payloads of this size.
    pub fn new(size: PayloadSize) -> Self {
        let mut rng = Rng::new();
        let mut random = vec![0; OFFSETS + size.most];
        rng.fill(&mut random);
        // Starts anywhere, so that a reply from another run is found out too.
        let next = rng.u64(..);
        Self { random, size, rng, next }
    }

    /// The next payload.
    pub fn draw(&mut self) -> Payload {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let size = self.rng.usize(self.size.least..=self.size.most);
        Payload { number, offset: self.rng.usize(..OFFSETS), rest: size - NUMBER }
    }

    /// The payload as it is sent.
    pub fn bytes(&self, payload: Payload) -> Bytes {
        let mut bytes = BytesMut::with_capacity(NUMBER + payload.rest);
        bytes.put_u64(payload.number);
        bytes.put_slice(self.rest(payload));
        bytes.freeze()
    }

    /// Whether a reply is this payload, byte by byte.
    pub fn matches(&self, payload: Payload, reply: &[u8]) -> bool {
        reply.split_first_chunk().is_some_and(|(number, rest)| {
            *number == payload.number.to_be_bytes() && rest == self.rest(payload)
        })
    }

    fn rest(&self, payload: Payload) -> &[u8] {
        &self.random[payload.offset..][..payload.rest]
    }
}

/// How large a payload is, in bytes: drawn evenly from `least` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadSize {
    /// The smallest.
    pub least: usize,
    /// The largest.
    pub most: usize,
}

impl PayloadSize {
    /// A payload starts with its number, which no other of the run has.
    const LEAST: usize = NUMBER;

    /// Twice the largest message that the server takes at its defaults.
    const MOST: usize = 16 << 20;
}

impl FromStr for PayloadSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = "expected 8 to 16MiB, such as 64 or 4KiB, or a rising range such as 64-4KiB";
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let bytes = |text| {
            let bytes = usize::try_from(parse_bytes(text)?).ok()?;
            (Self::LEAST..=Self::MOST).contains(&bytes).then_some(bytes)
        };
        let size = Self { least: bytes(least).ok_or(right)?, most: bytes(most).ok_or(right)? };
        if size.least > size.most { Err(right) } else { Ok(size) }
    }
}

impl fmt::Display for PayloadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::bytes(self.least as u64))?;
        if self.least < self.most {
            write!(f, "-{}", units::bytes(self.most as u64))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_matched_by_itself_and_by_nothing_else() {
        let mut payloads = Payloads::new("64-4KiB".parse().unwrap());
        let (one, other) = (payloads.draw(), payloads.draw());
        let bytes = payloads.bytes(one);
        assert!((64..=4096).contains(&bytes.len()));
        assert!(payloads.matches(one, &bytes));
        assert!(!payloads.matches(other, &bytes));
        assert!(!payloads.matches(one, &[]));
        assert!(!payloads.matches(one, &bytes[..bytes.len() - 1]));
        for at in 0..bytes.len() {
            let mut altered = bytes.to_vec();
            altered[at] ^= 1;
            assert!(!payloads.matches(one, &altered), "byte {at}");
        }
    }

    #[test]
    fn both_ends_of_a_range_are_drawn() {
        let mut payloads = Payloads::new("8-10".parse().unwrap());
        let drawn: std::collections::BTreeSet<_> = (0..1000)
            .map(|_| {
                let payload = payloads.draw();
                payloads.bytes(payload).len()
            })
            .collect();
        assert_eq!(drawn, [8, 9, 10].into());
    }
}
