//! Hand-written ZMTP (RFC 23), for peers that behave as no library does.
//!
//! Everything here works on bytes and blocks, even in tests of the async client: a hand-written
//! peer has its own thread.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};

use super::DEADLINE;

/// What the server sends before it knows the peer's ZMTP version.
pub const GREETING_START: usize = 11;

/// The server's READY.
pub const SERVER_READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER";

/// Length of the server's greeting and READY.
pub const SERVER_HELLO: usize = 64 + SERVER_READY.len();

/// A greeting of ZMTP 3.`minor`.
pub fn greeting(minor: u8) -> Vec<u8> {
    let mut greeting = vec![0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, minor);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// The header of a long frame with these flags that announces `size` bytes.
pub fn announced(flags: u8, size: u64) -> Vec<u8> {
    [&[flags | 0x02], &size.to_be_bytes()[..]].concat()
}

/// A message frame, encoded as the server encodes it.
pub fn frame(body: &[u8], more: bool) -> Vec<u8> {
    with_header(u8::from(more), body)
}

pub fn command(body: &[u8]) -> Vec<u8> {
    with_header(0x04, body)
}

/// Uses an eight-byte size if one byte is not enough.
fn with_header(flags: u8, body: &[u8]) -> Vec<u8> {
    let header = match u8::try_from(body.len()) {
        Ok(size) => vec![flags, size],
        Err(_) => announced(flags, body.len() as u64),
    };
    [&header, body].concat()
}

/// The ERROR that the server sends to a peer that it refuses.
pub fn error(reason: &str) -> Vec<u8> {
    command(&[b"\x05ERROR", &[reason.len() as u8][..], reason.as_bytes()].concat())
}

/// A greeting that names another mechanism than NULL.
pub fn mechanism(name: &[u8]) -> Vec<u8> {
    let mut greeting = greeting(1);
    greeting[12..32].fill(0);
    greeting[12..12 + name.len()].copy_from_slice(name);
    greeting
}

pub fn message(frames: &[&[u8]]) -> Vec<u8> {
    let last = frames.len() - 1;
    frames.iter().enumerate().flat_map(|(at, body)| frame(body, at < last)).collect()
}

/// Encodes a message in the form that [`read_message`] returns.
pub fn echo(frames: &[Vec<u8>]) -> Vec<u8> {
    message(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// READY as a long command, which is allowed however short it is.
pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let body = ready_body(socket_type, identity);
    [announced(0x04, body.len() as u64), body].concat()
}

pub fn ready_body(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    body
}

/// Greeting and READY of a peer of ZMTP 3.`minor`.
pub fn hello(minor: u8, socket_type: &str, identity: &[u8]) -> Vec<u8> {
    [greeting(minor), ready(socket_type, identity)].concat()
}

/// A connection that has sent nothing, with small kernel buffers. If the kernel could enlarge them,
/// a write would block only after megabytes.
pub fn stream(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the kernel accepts");
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(32 << 10).unwrap();
    socket.set_send_buffer_size(32 << 10).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A DEALER of ZMTP 3.`minor` on such a connection, with a completed handshake.
pub fn dealer(address: SocketAddr, minor: u8, identity: &[u8]) -> TcpStream {
    let mut stream = stream(address);
    shake_hands(&mut stream, &hello(minor, "DEALER", identity));
    stream
}

/// `count` connected peers of ZMTP 3.0.
pub fn crowd(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| dealer(address, 0, b"")).collect()
}

/// A DEALER of ZMTP 3.0 on a connection with default kernel buffers.
pub fn connect(address: SocketAddr, identity: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    shake_hands(&mut stream, &hello(0, "DEALER", identity));
    stream
}

/// Sends `hello` and reads the server's greeting and READY.
#[track_caller]
pub fn shake_hands(stream: &mut TcpStream, hello: &[u8]) {
    stream.write_all(hello).unwrap();
    read(stream, SERVER_HELLO);
}

/// Greets and completes the handshake as a ROUTER. Returns the READY of the connecting peer.
pub fn welcome(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.write_all(&greeting(0))?;
    stream.read_exact(&mut [0; 64])?;
    stream.write_all(&ready("ROUTER", b""))?;
    Ok(read_frame(stream).1)
}

#[track_caller]
pub fn read(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the expected number of bytes arrives in time");
    bytes
}

/// Reads one frame or command. Returns its flags and its body.
#[track_caller]
pub fn read_frame(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let flags = read(stream, 1)[0];
    let mut size = [0; 8];
    let width = if flags & 0x02 == 0 { 1 } else { 8 };
    size[8 - width..].copy_from_slice(&read(stream, width));
    (flags, read(stream, u64::from_be_bytes(size) as usize))
}

/// Reads a whole message and returns its frames.
pub fn read_message(stream: &mut impl Read) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = read_frame(stream);
        frames.push(body);
        if flags & 1 == 0 {
            return frames;
        }
    }
}

#[track_caller]
pub fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the peer can write");
    assert!(read(stream, bytes.len()) == bytes, "the echo differs from the request");
}

/// Writes `bytes` repeatedly, in a thread of its own, until the other side closes.
pub fn flood(stream: &TcpStream, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut writer = stream.try_clone().unwrap();
    thread::spawn(move || while writer.write_all(&bytes).is_ok() {})
}

/// Starts `count` peers that always have another request and read every reply, until the other
/// side is gone.
pub fn keep_busy(address: SocketAddr, count: usize) {
    for mut peer in crowd(address, count) {
        flood(&peer, frame(b"", false).repeat(1000));
        thread::spawn(move || read_until_closed(&mut peer));
    }
}

/// Closes the connection as soon as the other side has closed its direction.
#[track_caller]
pub fn leave_when_closed(mut stream: TcpStream) {
    read_until_closed(&mut stream);
}

/// Reads until the other side has closed. Returns how many bytes came before.
#[track_caller]
pub fn read_until_closed(stream: &mut TcpStream) -> u64 {
    let mut bytes = vec![0; 64 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return count,
            Ok(more) => count += more as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return count,
            Err(error) => panic!("the server did not close the connection: {error}"),
        }
    }
}
