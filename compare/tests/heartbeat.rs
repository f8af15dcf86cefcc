//! The server answers libzmq's PING (ZMTP 3.1). If it did not, libzmq would disconnect and
//! reconnect forever.

use std::thread;
use std::time::Duration;

use crate::support::{client, metric, server};

const INTERVAL: Duration = Duration::from_millis(100);

/// How long an answer may take on either side; a busy machine delays both.
const LIMIT: Duration = Duration::from_secs(3);

/// How many intervals to stay silent, with a PING in each. This is longer than the limit, so an
/// unanswered PING would close the connection.
const INTERVALS: u32 = 40;

#[test]
fn a_connection_with_heartbeats_survives_silence() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let milliseconds = INTERVAL.as_millis() as i32;
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |dealer| {
        dealer.set_heartbeat_ivl(milliseconds)?;
        dealer.set_heartbeat_timeout(LIMIT.as_millis() as i32)?;
        dealer.set_heartbeat_ttl(LIMIT.as_millis() as i32)?;
        dealer.monitor("inproc://heartbeat", zmq::SocketEvent::DISCONNECTED as i32)
    });
    let monitor = context.socket(zmq::PAIR).unwrap();
    monitor.connect("inproc://heartbeat").unwrap();

    for _ in 0..2 {
        dealer.send("alive", 0).unwrap();
        assert_eq!(dealer.recv_bytes(0).unwrap(), b"alive");
        // This test is about time: the heartbeats of a silent connection.
        thread::sleep(INTERVAL * INTERVALS);
    }

    let lost = std::iter::from_fn(|| monitor.recv_multipart(zmq::DONTWAIT).ok()).count();
    assert_eq!(lost, 0, "the client was disconnected within {} intervals", 2 * INTERVALS);
    let established = metric(&server, r#"zmq_echo_connections_total{outcome="established"}"#);
    assert_eq!(established, 1.0, "the client had to reconnect");
}

/// Pipelined requests that take four seconds each. While four are in progress, the others wait in
/// the server, and so do the PINGs after them. No reply is sent for longer than the limit. Checks
/// the first eight replies, because the four of one round may come in any order.
fn keeps_its_connection(name: &str, count: usize, padding: &str) {
    let server = server(&["--work", "4s", "--work-threads", "4", "--peer-in-flight-limit", "4"]);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |dealer| {
        dealer.set_heartbeat_ivl(500)?;
        dealer.set_heartbeat_timeout(LIMIT.as_millis() as i32)?;
        dealer.monitor(&format!("inproc://{name}"), zmq::SocketEvent::DISCONNECTED as i32)
    });
    let monitor = context.socket(zmq::PAIR).unwrap();
    monitor.connect(&format!("inproc://{name}")).unwrap();

    for number in 0..count {
        dealer.send_multipart(["id", "", &number.to_string(), padding], 0).unwrap();
    }
    let mut replies: Vec<_> = (0..8).map(|_| dealer.recv_multipart(0).unwrap()).collect();
    replies.sort();
    for (number, reply) in replies.iter().enumerate() {
        assert_eq!(reply[2], number.to_string().as_bytes());
    }
    let lost = std::iter::from_fn(|| monitor.recv_multipart(zmq::DONTWAIT).ok()).count();
    assert_eq!(lost, 0, "the client was disconnected during slow work");
}

#[test]
fn a_client_whose_requests_wait_for_slow_work_keeps_its_connection() {
    keeps_its_connection("few-requests", 10, "");
}

/// The PINGs come after more bytes than the server reads while requests wait.
#[test]
fn a_client_with_many_large_requests_that_wait_keeps_its_connection() {
    keeps_its_connection("many-requests", 200, &"x".repeat(200));
}
