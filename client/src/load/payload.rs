//! What is sent, and which replies are correct.
//!
//! By default, payloads are random and no two are equal. A file or a text template can be sent
//! instead.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;
use zmq_echo::units::{self, parse_bytes};

/// Length of the number at the start of a random payload.
const NUMBER: usize = size_of::<u64>();

/// The number of offsets in the random bytes at which a payload may start. Drawing an offset costs
/// less than filling each payload with random bytes.
const OFFSETS: usize = 64 << 10;

/// The largest payload: twice the server's default message limit.
const LARGEST: usize = 16 << 20;

/// The placeholder for the request's number.
const PLACE: &str = "{number}";

/// The most digits in a number.
const DIGITS: usize = 20;

/// Where payloads come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Random bytes of this size.
    Random(PayloadSize),
    /// The contents of this file, every time.
    File(PayloadFile),
    /// This text, with the request's number filled in.
    Template(Template),
}

impl Source {
    /// The size of the largest payload.
    pub fn most(&self) -> usize {
        match self {
            Self::Random(size) => size.most,
            Self::File(file) => file.0.len(),
            Self::Template(Template(text)) => text.len() + text.matches(PLACE).count() * DIGITS,
        }
    }
}

/// Draws payloads.
pub struct Payloads {
    source: Source,
    random: Vec<u8>,
    rng: Rng,
    next: u64,
}

/// One payload: its unique number, and the random bytes behind it, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    number: u64,
    offset: usize,
    rest: usize,
}

impl Payloads {
    /// Draws payloads from this source.
    pub fn new(source: Source) -> Self {
        let mut rng = Rng::new();
        let (mut random, mut next) = (Vec::new(), 0);
        if let Source::Random(size) = source {
            random = vec![0; OFFSETS + size.most];
            rng.fill(&mut random);
            // A random start, so that a reply from another run is noticed too.
            next = rng.u64(..);
        }
        Self { source, random, rng, next }
    }

    /// The next payload.
    pub fn draw(&mut self) -> Payload {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let Source::Random(size) = self.source else {
            return Payload { number, offset: 0, rest: 0 };
        };
        let bytes = self.rng.usize(size.least..=size.most);
        Payload { number, offset: self.rng.usize(..OFFSETS), rest: bytes - NUMBER }
    }

    /// The bytes of a payload.
    pub fn bytes(&self, payload: Payload) -> Bytes {
        match &self.source {
            Source::Random(_) => {
                let mut bytes = BytesMut::with_capacity(NUMBER + payload.rest);
                bytes.put_u64(payload.number);
                bytes.put_slice(self.rest(payload));
                bytes.freeze()
            }
            Source::File(file) => file.0.clone(),
            Source::Template(template) => template.with(payload.number).into(),
        }
    }

    /// Whether a reply equals this payload, byte for byte.
    pub fn matches(&self, payload: Payload, reply: &[u8]) -> bool {
        match &self.source {
            Source::Random(_) => reply.split_first_chunk().is_some_and(|(number, rest)| {
                *number == payload.number.to_be_bytes() && rest == self.rest(payload)
            }),
            Source::File(file) => file.0 == reply,
            Source::Template(template) => template.with(payload.number).as_bytes() == reply,
        }
    }

    fn rest(&self, payload: Payload) -> &[u8] {
        &self.random[payload.offset..][..payload.rest]
    }
}

/// A payload from a file. The file is read when the flag is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFile(Bytes);

impl FromStr for PayloadFile {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let read = || -> io::Result<Vec<u8>> {
            use io::Read;
            let mut bytes = Vec::new();
            // A device or a pipe may never end.
            let file = std::fs::File::open(Path::new(path))?;
            file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| format!("cannot be read: {error}"))?;
        if bytes.len() > LARGEST {
            return Err("expected a file of at most 16MiB".to_owned());
        }
        Ok(Self(bytes.into()))
    }
}

/// A text in which `{number}` is replaced with the request's number, starting at 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Arc<str>);

impl Template {
    fn with(&self, number: u64) -> String {
        self.0.replace(PLACE, &number.to_string())
    }
}

impl FromStr for Template {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("expected text, such as 'order {number}'");
        }
        Ok(Self(text.into()))
    }
}

/// Which replies are correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The request's own payload.
    Echo,
    /// Any reply that is not an error.
    Any,
    /// A reply that contains this text.
    Contains(Arc<str>),
}

impl FromStr for Expect {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once(':')) {
            ("echo", _) => Ok(Self::Echo),
            ("any", _) => Ok(Self::Any),
            (_, Some(("contains", part))) if !part.is_empty() => Ok(Self::Contains(part.into())),
            _ => Err("expected echo, any or contains:TEXT, such as contains:ok"),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("echo"),
            Self::Any => f.write_str("any"),
            Self::Contains(part) => write!(f, "contains:{part}"),
        }
    }
}

/// Whether `bytes` contain `part`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The size of a payload in bytes, drawn uniformly from `least` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadSize {
    /// The smallest.
    pub least: usize,
    /// The largest.
    pub most: usize,
}

impl PayloadSize {
    /// A random payload starts with its number, which is unique in the run.
    const LEAST: usize = NUMBER;
}

impl FromStr for PayloadSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = "expected 8 to 16MiB, such as 64 or 4KiB, or a rising range such as 64-4KiB";
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let bytes = |text| {
            let bytes = usize::try_from(parse_bytes(text)?).ok()?;
            (Self::LEAST..=LARGEST).contains(&bytes).then_some(bytes)
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
    fn a_payload_matches_only_itself() {
        let mut payloads = Payloads::new(Source::Random("64-4KiB".parse().unwrap()));
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
        let mut payloads = Payloads::new(Source::Random("8-10".parse().unwrap()));
        let drawn: std::collections::BTreeSet<_> = (0..1000)
            .map(|_| {
                let payload = payloads.draw();
                payloads.bytes(payload).len()
            })
            .collect();
        assert_eq!(drawn, [8, 9, 10].into());
    }

    #[test]
    fn a_template_numbers_its_payloads_and_each_matches_only_itself() {
        let source = Source::Template("{number}: order {number}".parse().unwrap());
        assert_eq!(source.most(), "{number}: order {number}".len() + 40);
        let mut payloads = Payloads::new(source);
        let drawn: Vec<_> = (0..11).map(|_| payloads.draw()).collect();
        assert_eq!(payloads.bytes(drawn[0]), "0: order 0");
        assert_eq!(payloads.bytes(drawn[10]), "10: order 10");
        assert!(payloads.matches(drawn[10], b"10: order 10"));
        assert!(!payloads.matches(drawn[1], b"10: order 10"));
        let mut same = Payloads::new(Source::Template("no number".parse().unwrap()));
        assert_eq!([(); 2].map(|()| same.draw()).map(|drawn| same.bytes(drawn)), ["no number"; 2]);
    }

    #[test]
    fn an_expectation_is_printed_as_it_was_parsed() {
        for text in ["echo", "any", "contains:ok", "contains:a:b", "contains: "] {
            assert_eq!(text.parse::<Expect>().unwrap().to_string(), text);
        }
        for text in ["", "ok", "contains", "contains:", "echo:", "regex:ok"] {
            assert!(text.parse::<Expect>().unwrap_err().contains("contains:TEXT"), "{text}");
        }
    }

    #[test]
    fn a_part_is_found_anywhere_in_a_reply() {
        for (bytes, found) in [("ok", true), ("not ok", true), ("ok then", true), ("o k", false)] {
            assert_eq!(contains(bytes.as_bytes(), b"ok"), found, "{bytes}");
        }
        assert!(!contains(b"", b"ok"));
    }
}
