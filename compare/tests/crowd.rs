//! Thousands of libzmq clients at the same time, each with its own connection.

use zmq_echo_compare::pin;

use crate::support::{client, eventually, metric, server};

/// libzmq allows a context at most 1,023 sockets.
const CONTEXTS: usize = 3;
const CLIENTS_EACH: usize = 1000;

#[test]
fn thousands_of_clients_are_served_at_once() {
    pin::raise_open_files().unwrap();
    // A busy machine may need time for so many handshakes.
    let server = server(&["--handshake-timeout", "1m"]);
    let endpoint = server.endpoint();
    let contexts: Vec<_> = (0..CONTEXTS).map(|_| zmq::Context::new()).collect();
    let clients: Vec<zmq::Socket> = contexts
        .iter()
        .flat_map(|context| {
            (0..CLIENTS_EACH).map(|_| client(context, zmq::DEALER, &endpoint, |_| Ok(())))
        })
        .collect();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            client.send(&format!("{round} {number}"), 0).unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let reply = client.recv_bytes(0).unwrap();
            assert_eq!(reply, format!("{round} {number}").as_bytes());
        }
    }
    assert_eq!(metric(&server, "zmq_echo_peers"), clients.len() as f64);
    drop(clients);
    eventually("all clients are disconnected", || metric(&server, "zmq_echo_peers") == 0.0);
}
