//! A socket that the test polls itself, on its own runtime.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use zmtp::Message;
use zmtp::router::{Limits, Router, SendError};

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
    in_flight_per_peer: 4,
    in_flight: 6,
    busy_poll: Duration::from_micros(10),
};

pub fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(async {
        tokio::time::timeout(DEADLINE, future).await.expect("the test ends in time")
    })
}

/// A socket, its address and its counters.
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
        message = socket.recv() => panic!("{message:?} was received before any message was sent"),
    }
}

#[test]
fn a_reply_to_a_connection_never_reaches_another_one_with_the_same_identity() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut first = dealer_of(&mut socket, address, b"me").await;
        first.write_all(&raw::frame(b"one", false)).unwrap();
        let mut message = Message::default();
        let asker = socket.recv_from(&mut message).await;
        assert_eq!(message, [b"one".as_slice().into()].into());
        socket.send_to(&asker, &mut message).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), socket.recv()).await.is_err());
        assert_eq!(raw::read_frame(&mut first).1, b"one");
        drop(first);
        while socket.connections() > 0 {
            let _ = tokio::time::timeout(Duration::from_millis(1), socket.recv()).await;
        }
        // With the same identity, in the same internal slot.
        let mut second = dealer_of(&mut socket, address, b"me").await;
        let mut late = Message::from([b"late".as_slice().into()]);
        assert_eq!(socket.send_to(&asker, &mut late), Err(SendError::NoPeer));
        assert_eq!(
            late.bytes(),
            b"late".len(),
            "a message that cannot be sent must stay with the caller"
        );
        second.write_all(&raw::frame(b"two", false)).unwrap();
        let asker = socket.recv_from(&mut message).await;
        assert_eq!(socket.send_to(&asker, &mut Message::default()), Err(SendError::NoPayload));
        socket.send_to(&asker, &mut message).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), socket.recv()).await.is_err());
        assert_eq!(raw::read_frame(&mut second).1, b"two");
    });
}

#[test]
fn a_reply_reaches_its_connection_while_another_one_is_served() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut one = dealer_of(&mut socket, address, b"one").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        one.write_all(&raw::frame(b"of one", false)).unwrap();
        let (mut request, mut another) = (Message::default(), Message::default());
        let first = socket.recv_from(&mut request).await;
        other.write_all(&raw::frame(b"of other", false)).unwrap();
        let second = socket.recv_from(&mut another).await;
        assert_ne!(first.peer, second.peer);
        // To a peer whose request was not the last one handed out.
        socket.send_to(&first, &mut request).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), socket.recv()).await.is_err());
        assert_eq!(raw::read_frame(&mut one).1, b"of one");
    });
}
