//! The model that the targets compare the socket with: a second, simple implementation of ZMTP as
//! this server speaks it, for a stream that is completely available.
//!
//! It shares no code with the socket except the names of the reasons.

use zmtp::Reason;

/// Maximum bytes of a command's body after the handshake.
const COMMAND_BYTES: u64 = 255;

/// Maximum bytes of a PING's context (RFC 37).
const CONTEXT_BYTES: usize = 16;

/// The server's READY.
pub const READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER";

/// The READY of a DEALER without an identity.
pub const DEALER_READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";

/// How a stream of bytes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After a complete message or command, or without any bytes.
    Whole,
    /// In the middle of a message or command.
    Within,
    /// With a protocol error.
    Fault(Reason),
}

/// The result of a peer's greeting and READY.
#[derive(Debug, PartialEq, Eq)]
pub struct Hello {
    /// What this side sends during the handshake, if the peer does not make it wait.
    pub sent: Vec<u8>,
    /// Whether the greeting is complete and valid. If the server then has to wait for the peer's
    /// READY, it sends its own READY after its greeting, and later no ERROR.
    pub greeted: bool,
    /// What the peer announced and the length of the handshake, or how the stream ends.
    pub result: Result<Announced, End>,
}

/// What a complete handshake says about the peer.
#[derive(Debug, PartialEq, Eq)]
pub struct Announced {
    /// Length of the handshake in bytes.
    pub bytes: usize,
    /// Whether the peer speaks ZMTP 3.1.
    pub knows_ping: bool,
    /// Whether the peer is a REQ socket.
    pub is_req: bool,
    /// The peer's identity; empty if it has none.
    pub identity: Vec<u8>,
}

/// The result of the frames after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The messages, frame by frame.
    pub messages: Vec<Vec<Vec<u8>>>,
    /// What an echo service sends: each message as it came, with the shortest headers, and a PONG
    /// for each PING. Nothing for a message from a REQ socket that is not a valid request.
    pub replies: Vec<u8>,
    /// How the stream ends.
    pub end: End,
    /// Whether a PING set a TTL, after which a silent peer may be disconnected.
    pub ttl: bool,
}

/// How many bytes of its greeting the server sends before it knows the peer's version.
pub const START: usize = 11;

/// The ERROR that the server sends instead of its READY, or nothing.
fn error(reason: Reason) -> Vec<u8> {
    let word = match reason {
        Reason::SocketType => "socket_type",
        Reason::Metadata => "metadata",
        Reason::Identity => "identity",
        Reason::DataBeforeReady => "data_before_ready",
        Reason::ReservedFlags => "reserved_flags",
        Reason::Command => "command",
        _ => return Vec::new(),
    };
    let mut bytes = Vec::new();
    frame(&mut bytes, 4, &[b"\x05ERROR", &[word.len() as u8][..], word.as_bytes()].concat());
    bytes
}

/// The greeting of a client that speaks ZMTP 3.`minor`. The server's own is the same with minor 1.
pub fn greeting(minor: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[9], bytes[10], bytes[11]) = (0xff, 0x7f, 3, minor);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// The READY of a client.
pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    let mut bytes = Vec::new();
    frame(&mut bytes, 4, &body);
    bytes
}

/// Appends a frame with the shortest header.
pub fn frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(size) => out.extend_from_slice(&[flags, size]),
        Err(_) => {
            out.push(flags | 2);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

/// The result of the start of a connection.
pub fn hello(stream: &[u8], metadata_bytes: usize) -> Hello {
    let ends = |greeted, end| {
        let right = stream.iter().zip(greeting(1)).take(START);
        let known = right.enumerate().all(|(at, (byte, right))| match at {
            0 | 9 => *byte == right,
            10 => *byte >= 3,
            _ => true,
        });
        let whole = stream.len() >= START && known;
        let mut sent = greeting(1)[..if whole { 64 } else { START }].to_vec();
        if let (true, End::Fault(reason)) = (greeted, end) {
            sent.extend_from_slice(&error(reason));
        }
        Hello { sent, greeted, result: Err(end) }
    };
    for (at, byte) in stream.iter().take(64).enumerate() {
        let mechanism = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let fault = match at {
            0 if *byte != 0xff => Reason::NotZmtp,
            9 if *byte != 0x7f => Reason::NotZmtp,
            10 if *byte < 3 => Reason::Version,
            12..32 if *byte != mechanism[at - 12] => Reason::Mechanism,
            _ => continue,
        };
        return ends(false, End::Fault(fault));
    }
    if stream.len() < 64 {
        return ends(false, if stream.is_empty() { End::Whole } else { End::Within });
    }
    let knows_ping = stream[10] > 3 || stream[11] > 0;
    let rest = &stream[64..];
    let (flags, header, size) = match head(rest) {
        Ok(Some(head)) => head,
        Ok(None) => return ends(true, End::Within),
        Err(reason) => return ends(true, End::Fault(reason)),
    };
    if flags & 4 == 0 {
        return ends(true, End::Fault(Reason::DataBeforeReady));
    }
    if size > metadata_bytes as u64 {
        return ends(true, End::Fault(Reason::Metadata));
    }
    let Some(body) = rest.get(header..header + size as usize) else {
        return ends(true, End::Within);
    };
    match announced(body, &["REQ", "DEALER", "ROUTER"]) {
        Ok((is_req, identity)) => {
            let bytes = 64 + header + body.len();
            let sent = [&greeting(1), READY].concat();
            let result = Ok(Announced { bytes, knows_ping, is_req, identity });
            Hello { sent, greeted: true, result }
        }
        Err(reason) => ends(true, End::Fault(reason)),
    }
}

/// Like [`hello`], for a DEALER that connects. It sends everything first, and accepts other socket
/// types.
pub fn hello_to_dealer(stream: &[u8], metadata_bytes: usize) -> Hello {
    let sent = [&greeting(1)[..], DEALER_READY].concat();
    let mut result = hello(stream, metadata_bytes).result;
    // The two differ only in what READY may announce.
    if stream.len() > 64
        && matches!(result, Ok(_) | Err(End::Fault(Reason::SocketType | Reason::Identity)))
        && let Ok(Some((_, header, size))) = head(&stream[64..])
    {
        let end = 64 + header + size as usize;
        result = announced(&stream[64 + header..end], &["REP", "DEALER", "ROUTER"])
            .map(|(is_req, identity)| Announced {
                bytes: end,
                knows_ping: stream[10] > 3 || stream[11] > 0,
                is_req,
                identity,
            })
            .map_err(End::Fault);
    }
    Hello { sent, greeted: true, result }
}

/// What a READY announces: whether the peer is a REQ socket, and its identity. The socket type must
/// be one of `types`.
fn announced(body: &[u8], types: &[&str]) -> Result<(bool, Vec<u8>), Reason> {
    let mut cursor = Cursor(body);
    let name = cursor.short().ok_or(Reason::Command)?;
    match name {
        b"READY" => {}
        b"ERROR" => return Err(Reason::PeerError),
        _ => return Err(Reason::Command),
    }
    let (mut socket_types, mut identities): (Vec<&[u8]>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    while !cursor.0.is_empty() {
        let name = cursor.short().ok_or(Reason::Metadata)?;
        let named = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'+');
        if name.is_empty() || !name.iter().all(named) {
            return Err(Reason::Metadata);
        }
        let size = cursor.take(4).ok_or(Reason::Metadata)?;
        let size = size.iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
        let value = cursor.take(size).ok_or(Reason::Metadata)?;
        match name.to_ascii_lowercase().as_slice() {
            b"socket-type" => socket_types.push(value),
            b"identity" => identities.push(value),
            _ => {}
        }
        if socket_types.len() > 1 || identities.len() > 1 {
            return Err(Reason::Metadata);
        }
    }
    let socket_type = socket_types.pop().unwrap_or_default();
    let identity = identities.pop().unwrap_or_default();
    if !types.iter().any(|name| name.as_bytes() == socket_type) {
        return Err(Reason::SocketType);
    }
    if identity.len() > 255 {
        return Err(Reason::Identity);
    }
    Ok((socket_type == b"REQ", identity.to_vec()))
}

/// The result of `stream` after the handshake, from a REQ socket or another one.
pub fn outcome(
    stream: &[u8],
    message_bytes: usize,
    message_frames: usize,
    is_req: bool,
) -> Outcome {
    let mut outcome =
        Outcome { messages: Vec::new(), replies: Vec::new(), end: End::Whole, ttl: false };
    let mut rest = stream;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    // Bytes of the current message, including commands between its frames.
    let mut bytes = 0;
    outcome.end = loop {
        if rest.is_empty() {
            break if frames.is_empty() { End::Whole } else { End::Within };
        }
        let (flags, header, size) = match head(rest) {
            Ok(Some(head)) => head,
            Ok(None) => break End::Within,
            Err(reason) => break End::Fault(reason),
        };
        let command = flags & 4 != 0;
        if command && size > COMMAND_BYTES {
            break End::Fault(Reason::Command);
        }
        if !command && size > (message_bytes - bytes) as u64 {
            break End::Fault(Reason::MessageLimit);
        }
        if !command && frames.len() == message_frames {
            break End::Fault(Reason::FrameLimit);
        }
        let Some(body) = rest.get(header..header + size as usize) else { break End::Within };
        rest = &rest[header + body.len()..];
        if command {
            if !frames.is_empty() {
                bytes += header + body.len();
                if bytes > message_bytes {
                    break End::Fault(Reason::MessageLimit);
                }
            }
            if let Err(reason) = apply_command(body, &mut outcome) {
                break End::Fault(reason);
            }
            continue;
        }
        bytes += body.len();
        frames.push(body.to_vec());
        if flags & 1 == 0 {
            let is_request = match frames.as_slice() {
                [delimiter, _, ..] if delimiter.is_empty() => true,
                [_, delimiter, _, ..] => delimiter.is_empty(),
                _ => false,
            };
            let echoed = if is_req && !is_request { &[][..] } else { &frames[..] };
            for (index, body) in echoed.iter().enumerate() {
                frame(&mut outcome.replies, u8::from(index + 1 < frames.len()), body);
            }
            outcome.messages.push(std::mem::take(&mut frames));
            bytes = 0;
        }
    };
    outcome
}

fn apply_command(body: &[u8], outcome: &mut Outcome) -> Result<(), Reason> {
    let mut cursor = Cursor(body);
    match cursor.short() {
        Some(b"PING") => {
            let ttl = cursor.take(2).ok_or(Reason::Command)?;
            if cursor.0.len() > CONTEXT_BYTES {
                return Err(Reason::Command);
            }
            outcome.ttl |= ttl != [0, 0];
            frame(&mut outcome.replies, 4, &[b"\x04PONG", cursor.0].concat());
            Ok(())
        }
        Some(b"PONG") => Ok(()),
        Some(b"ERROR") => Err(Reason::PeerError),
        _ => Err(Reason::Command),
    }
}

/// A frame's flags, and the sizes of its header and body. `None` if the header is incomplete.
fn head(bytes: &[u8]) -> Result<Option<(u8, usize, u64)>, Reason> {
    let Some(flags) = bytes.first() else { return Ok(None) };
    if !matches!(flags, 0 | 1 | 2 | 3 | 4 | 6) {
        return Err(Reason::ReservedFlags);
    }
    let digits = if flags & 2 == 0 { 1 } else { 8 };
    let Some(size) = bytes.get(1..1 + digits) else { return Ok(None) };
    let size = size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Ok(Some((*flags, 1 + digits, size)))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let size = self.take(1)?[0];
        self.take(usize::from(size))
    }
}

/// Splits an input that begins with the number of cuts and the cuts. Returns how many bytes each
/// read gets, in turn, and the rest of the input, which is the stream that is read.
pub fn cuts(input: &[u8]) -> Option<(Vec<usize>, &[u8])> {
    let (count, rest) = input.split_first()?;
    let (cuts, rest) = rest.split_at_checked(1 + usize::from(count % 8))?;
    Some((cuts.iter().map(|cut| 1 + usize::from(*cut)).collect(), rest))
}
