//! Clients reconnect to a server that was replaced at its address, and a server that exits leaves
//! no request unanswered.

use std::time::Duration;

use zmq_echo_compare::process::Server;

use crate::support::{PATIENCE, client, eventually, server, server_on};

/// How long a client waits for a reply before it sends its request again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Replaces `old` with a new server at the same address. `old` drains first.
fn replaced(old: Server) -> Server {
    let endpoint = old.endpoint();
    old.terminate(PATIENCE).expect("the old server exits in time");
    server_on(&endpoint, &[])
}

fn echoes(socket: &zmq::Socket, message: &str) -> bool {
    socket.send(message, 0).unwrap();
    // Replies to earlier requests may come first.
    std::iter::from_fn(|| socket.recv_bytes(0).ok()).any(|reply| reply == message.as_bytes())
}

#[test]
fn clients_of_every_kind_reconnect_to_a_replaced_server() {
    let mut running = server(&[]);
    let context = zmq::Context::new();
    let ask_again = ASK_AGAIN.as_millis() as i32;
    let req = client(&context, zmq::REQ, &running.endpoint(), |req| {
        req.set_req_relaxed(true)?;
        req.set_req_correlate(true)?;
        req.set_rcvtimeo(ask_again)
    });
    let dealer = client(&context, zmq::DEALER, &running.endpoint(), |dealer| {
        dealer.set_immediate(true)?;
        dealer.set_rcvtimeo(ask_again)
    });
    for round in 0..3 {
        for (socket, kind) in [(&req, "REQ"), (&dealer, "DEALER")] {
            let mut attempt = 0;
            eventually(&format!("{kind} reaches the new server in round {round}"), || {
                attempt += 1;
                echoes(socket, &format!("{kind} {round} {attempt}"))
            });
        }
        running = replaced(running);
    }
}

#[test]
fn clients_reconnect_after_the_server_was_killed() {
    let old = server(&[]);
    let endpoint = old.endpoint();
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &endpoint, |dealer| {
        dealer.set_immediate(true)?;
        dealer.set_rcvtimeo(ASK_AGAIN.as_millis() as i32)
    });
    assert!(echoes(&dealer, "before"));
    drop(old);
    let _new = server_on(&endpoint, &[]);
    let mut attempt = 0;
    eventually("the new server echoes", || {
        attempt += 1;
        echoes(&dealer, &format!("after {attempt}"))
    });
}

#[test]
fn requests_pipelined_before_the_signal_are_answered() {
    const MESSAGES: usize = 20_000;
    let server = server(&[]);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |dealer| {
        dealer.set_sndhwm(0)?;
        dealer.set_rcvhwm(0)
    });
    for number in 0..MESSAGES {
        dealer.send(&number.to_string(), 0).unwrap();
    }
    // The first reply shows that the connection is established and the other requests are on their
    // way.
    assert_eq!(dealer.recv_bytes(0).unwrap(), b"0");
    let status = server.terminate(PATIENCE).expect("the server exits in time");
    assert!(status.success(), "the drain did not end cleanly: {status}");
    for number in 1..MESSAGES {
        assert_eq!(dealer.recv_bytes(0).unwrap(), number.to_string().as_bytes());
    }
}
