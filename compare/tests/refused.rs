//! How libzmq's clients react if they are rejected: which event they see, and whether they
//! reconnect. docs/refused-peers.md describes the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use zmq::SocketEvent::{
    CONNECTED, DISCONNECTED, HANDSHAKE_FAILED_NO_DETAIL, HANDSHAKE_FAILED_PROTOCOL,
    HANDSHAKE_SUCCEEDED,
};
use zmq_echo_compare::process::Server;

use crate::support::{client, eventually, metric, server};

/// ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH.
const MECHANISM_MISMATCH: u32 = 0x1100_0002;

/// How many clients connect. Each of them must be counted exactly once.
const CLIENTS: usize = 30;

/// How soon a client reconnects, if it does.
const RECONNECT: Duration = Duration::from_millis(10);

/// How many of these intervals to wait before concluding that a client does not reconnect.
const RECONNECTS: u32 = 50;

/// A client whose monitor events are read.
struct Monitored {
    socket: zmq::Socket,
    monitor: zmq::Socket,
    events: Vec<(u16, u32)>,
}

impl Monitored {
    fn new(
        context: &zmq::Context,
        kind: zmq::SocketType,
        endpoint: &str,
        set: impl FnOnce(&zmq::Socket) -> zmq::Result<()>,
    ) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("inproc://monitor-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let monitor = context.socket(zmq::PAIR).unwrap();
        let socket = client(context, kind, endpoint, |socket| {
            socket.set_reconnect_ivl(RECONNECT.as_millis() as i32)?;
            set(socket)?;
            socket.monitor(&name, zmq::SocketEvent::ALL as i32)?;
            monitor.connect(&name)
        });
        Self { socket, monitor, events: Vec::new() }
    }

    /// How often it has seen this event.
    fn count(&mut self, event: zmq::SocketEvent) -> usize {
        self.read();
        self.events.iter().filter(|(seen, _)| *seen == event.to_raw()).count()
    }

    fn read(&mut self) {
        while let Ok(event) = self.monitor.recv_multipart(zmq::DONTWAIT) {
            let (number, value) = event[0].split_first_chunk().unwrap();
            let value = value.try_into().unwrap();
            self.events.push((u16::from_ne_bytes(*number), u32::from_ne_bytes(value)));
        }
    }
}

fn failures(server: &Server, reason: &str) -> f64 {
    metric(server, &format!("zmq_echo_handshake_failures_total{{reason=\"{reason}\"}}"))
}

/// Checks that clients rejected for `reason` do not reconnect.
#[track_caller]
fn assert_no_reconnect(server: &Server, clients: &mut [Monitored], reason: &str) {
    // This test is about time: a client that reconnects would have done so by then.
    thread::sleep(RECONNECT * RECONNECTS);
    for client in clients.iter_mut() {
        assert_eq!(client.count(CONNECTED), 1, "{:x?}", client.events);
        assert_eq!(client.count(HANDSHAKE_SUCCEEDED), 0, "{:x?}", client.events);
    }
    assert_eq!(failures(server, reason), clients.len() as f64);
    let failed = metric(server, r#"zmq_echo_connections_total{outcome="failed"}"#);
    assert_eq!(failed, clients.len() as f64);
}

#[test]
fn a_client_with_another_mechanism_gets_an_error_does_not_reconnect_and_is_counted_once() {
    let server = server(&[]);
    let context = zmq::Context::new();
    // With CURVE, libzmq's greeting would differ only in the mechanism's name. This build of libzmq
    // has no CURVE, so the socket's own tests cover it.
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            Monitored::new(&context, zmq::DEALER, &server.endpoint(), |client| {
                client.set_plain_username(Some("user"))?;
                client.set_plain_password(Some("password"))
            })
        })
        .collect();
    for client in &mut clients {
        eventually("the client is disconnected", || client.count(DISCONNECTED) == 1);
        let mismatch = (HANDSHAKE_FAILED_PROTOCOL.to_raw(), MECHANISM_MISMATCH);
        assert!(client.events.contains(&mismatch), "{:x?}", client.events);
    }
    assert_no_reconnect(&server, &mut clients, "mechanism");
}

#[test]
fn a_client_of_another_socket_type_is_disconnected_and_does_not_reconnect() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let kinds =
        [zmq::PUB, zmq::SUB, zmq::PUSH, zmq::PULL, zmq::REP, zmq::PAIR, zmq::XPUB, zmq::XSUB];
    let mut clients: Vec<_> = kinds
        .map(|kind| Monitored::new(&context, kind, &server.endpoint(), |_| Ok(())))
        .into_iter()
        .collect();
    for client in &mut clients {
        // libzmq reports an ERROR with no other event. (If its READY is late, ours comes first, and
        // it finds the same fault in that; the result is the same.)
        eventually("the client is disconnected", || client.count(DISCONNECTED) == 1);
    }
    assert_no_reconnect(&server, &mut clients, "socket_type");
}

#[test]
fn a_client_over_the_peer_limit_reconnects_until_there_is_room() {
    let server = server(&["--peer-limit", "10"]);
    let context = zmq::Context::new();
    let dealer = || Monitored::new(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    let mut inside: Vec<_> = (0..10).map(|_| dealer()).collect();
    for client in &mut inside {
        eventually("the client is accepted", || client.count(HANDSHAKE_SUCCEEDED) == 1);
    }
    let mut outside = dealer();
    eventually("a client over the limit keeps reconnecting", || outside.count(DISCONNECTED) > 3);
    assert!(outside.count(HANDSHAKE_FAILED_NO_DETAIL) > 3, "{:x?}", outside.events);
    assert_eq!(outside.count(HANDSHAKE_SUCCEEDED), 0);
    inside.pop();
    eventually("the client is accepted once there is room", || {
        outside.count(HANDSHAKE_SUCCEEDED) == 1
    });
    outside.socket.send("in", 0).unwrap();
    assert_eq!(outside.socket.recv_bytes(0).unwrap(), b"in");
    assert!(failures(&server, "peer_limit") > 3.0);
}

#[test]
fn a_client_that_is_closed_after_the_handshake_reconnects() {
    let server = server(&["--message-limit", "1MiB"]);
    let context = zmq::Context::new();
    let mut dealer = Monitored::new(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    dealer.socket.send(vec![0; (1 << 20) + 1], 0).unwrap();
    eventually("the client reconnects and is accepted", || dealer.count(HANDSHAKE_SUCCEEDED) == 2);
    dealer.socket.send("small", 0).unwrap();
    assert_eq!(dealer.socket.recv_bytes(0).unwrap(), b"small");
    let closed = metric(&server, r#"zmq_echo_disconnections_total{reason="message_limit"}"#);
    assert_eq!(closed, 1.0);
    assert_eq!(metric(&server, r#"zmq_echo_connections_total{outcome="failed"}"#), 0.0);
}
