//! The DEALER against hand-made servers that misbehave in ways no library would.

#[path = "dealer/bounds.rs"]
mod bounds;
#[path = "dealer/conformance.rs"]
mod conformance;
#[path = "dealer/connecting.rs"]
mod connecting;
#[path = "dealer/heartbeats.rs"]
mod heartbeats;
#[allow(dead_code, reason = "shared with the tests of the service")]
#[path = "../../tests/support/raw.rs"]
mod raw;
#[allow(dead_code, reason = "shared with the tests of the service")]
#[path = "../../tests/support/waiting.rs"]
mod waiting;
#[path = "dealer/writing.rs"]
mod writing;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::time::timeout;
use waiting::DEADLINE;
use zmtp::dealer::{ConnectError, DealerConfig, connect_to};
use zmtp::{Dealer, Message, Reason};

/// Runs `behaviour` on the first connection, in a thread of its own.
fn server<T: Send + 'static>(
    behaviour: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Connections inherit this size, so they fill up quickly.
    socket2::SockRef::from(&listener).set_recv_buffer_size(32 << 10).unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        behaviour(stream)
    });
    (address, thread)
}

/// Acts as a ROUTER of ZMTP 3.`minor` in the handshake, until the other side's READY has arrived.
fn welcome(stream: &mut TcpStream, minor: u8) {
    stream.write_all(&raw::hello(minor, "ROUTER", b"")).unwrap();
    raw::read(stream, 64);
    raw::read_frame(stream);
}

/// A server that completes the handshake in this way and then runs `behaviour`.
fn router<T: Send + 'static>(
    minor: u8,
    behaviour: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    server(move |mut stream| {
        welcome(&mut stream, minor);
        behaviour(stream)
    })
}

/// Long timeouts and no heartbeats.
fn config() -> DealerConfig {
    DealerConfig {
        connect_timeout: DEADLINE,
        heartbeat_interval: Duration::ZERO,
        ..DealerConfig::default()
    }
}

async fn connected(address: SocketAddr) -> Dealer {
    connect_to(&[address], &config()).await.expect("the DEALER connects")
}

/// The next message, or the reason why there is none.
async fn next(dealer: &mut Dealer) -> Result<Message, Reason> {
    timeout(DEADLINE, dealer.recv())
        .await
        .expect("a message or the end of the connection arrives in time")
}

/// The last frame of the next message.
async fn payload(dealer: &mut Dealer) -> Vec<u8> {
    let message = next(dealer).await.expect("a message arrives");
    message.frames().back().expect("a message has a frame").to_vec()
}

/// The reason why the connection ends. Messages before that are ignored.
async fn end(dealer: &mut Dealer) -> Reason {
    loop {
        if let Err(reason) = next(dealer).await {
            return reason;
        }
    }
}

fn message(payload: &[u8]) -> Message {
    [payload.to_vec().into()].into()
}

/// Reads frames until there is a command of this name, and returns its data.
fn read_command(stream: &mut impl Read, name: &str) -> Vec<u8> {
    loop {
        let (flags, body) = raw::read_frame(stream);
        if flags & 4 != 0 && body[1..].starts_with(name.as_bytes()) {
            return body[1 + name.len()..].to_vec();
        }
    }
}

/// A PING with a TTL in tenths of a second.
fn ping(ttl: u16, context: &[u8]) -> Vec<u8> {
    raw::command(&[b"\x04PING", &ttl.to_be_bytes()[..], context].concat())
}
