//! A socket that the test itself polls, on the test's runtime.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use zmtp::router::{Limits, Router};

use crate::counts::Counts;
use crate::support::{DEADLINE, raw, runtime};

pub const LIMITS: Limits = Limits {
    message_bytes: 8 << 20,
    message_frames: 64,
    metadata_bytes: 4 << 10,
    peers: 100,
    peers_per_address: 0,
    handshake_timeout: Duration::from_secs(30),
    stall_timeout: Duration::from_secs(30),
    stall_bytes: 32 << 10,
    buffer_bytes: 16 << 20,
    socket_buffer: 64 << 10,
    heartbeat_interval: Duration::ZERO,
    busy_poll: Duration::from_micros(10),
};

pub fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(DEADLINE, future).await.expect("in time") })
}

/// A socket, where it listens, and what it counts.
pub fn bound(limits: Limits) -> (Router<Counts>, SocketAddr, Counts) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let counts = Counts::default();
    (Router::bind([listener], limits, counts.clone()).unwrap(), address, counts)
}

/// An established DEALER on such a socket.
pub async fn dealer_of(
    socket: &mut Router<Counts>,
    address: SocketAddr,
    identity: &'static [u8],
) -> TcpStream {
    let shaking = tokio::task::spawn_blocking(move || raw::dealer(address, 0, identity));
    tokio::select! {
        stream = shaking => stream.unwrap(),
        message = socket.recv() => panic!("{message:?} before any was sent"),
    }
}
