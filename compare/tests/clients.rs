//! Each kind of client gets back what it sent, including the envelope.

use crate::support::{client, eventually, metric, server};

#[test]
fn a_req_client_gets_its_message_back() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let req = client(&context, zmq::REQ, &server.endpoint(), |_| Ok(()));
    for number in 0..1000 {
        let request = format!("request {number}");
        req.send(&request, 0).unwrap();
        assert_eq!(req.recv_bytes(0).unwrap(), request.as_bytes());
    }
}

#[test]
fn a_req_client_that_correlates_gets_the_reply_to_its_last_request() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let req = client(&context, zmq::REQ, &server.endpoint(), |req| {
        req.set_req_relaxed(true)?;
        req.set_req_correlate(true)
    });
    for number in 0..1000 {
        // The first request is abandoned. Its reply must not be mistaken for that of a later
        // request, so the request id must come back in front of it.
        req.send("given up", 0).unwrap();
        let request = format!("request {number}");
        req.send(&request, 0).unwrap();
        assert_eq!(req.recv_bytes(0).unwrap(), request.as_bytes());
    }
}

#[test]
fn a_dealer_that_pipelines_gets_every_reply_in_order() {
    const MESSAGES: usize = 50_000;
    /// Less than libzmq's high-water marks, at which a DEALER's send would block.
    const IN_FLIGHT: usize = 500;
    let server = server(&[]);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    for number in 0..MESSAGES + IN_FLIGHT {
        if number < MESSAGES {
            dealer.send(&number.to_string(), 0).unwrap();
        }
        if let Some(number) = number.checked_sub(IN_FLIGHT) {
            assert_eq!(dealer.recv_bytes(0).unwrap(), number.to_string().as_bytes());
        }
    }
}

#[test]
fn frames_come_back_with_the_same_number_and_lengths() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
    let messages: [&[usize]; 6] =
        [&[0], &[0, 0, 0], &[0, 5], &[1, 255, 256, 0, 70_000], &[3; 100], &[65_536, 0]];
    for lengths in messages {
        let frames: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(at, length)| vec![at as u8; *length]).collect();
        dealer.send_multipart(&frames, 0).unwrap();
        assert_eq!(dealer.recv_multipart(0).unwrap(), frames, "{lengths:?}");
    }
}

#[test]
fn a_router_client_can_address_the_server() {
    let server = server(&[]);
    let context = zmq::Context::new();
    // The client sends an empty message first, and learns from the echo which identity the server
    // has.
    let router = client(&context, zmq::ROUTER, &server.endpoint(), |router| {
        router.set_probe_router(true)?;
        router.set_router_mandatory(true)
    });
    let mut greeting = router.recv_multipart(0).unwrap();
    assert_eq!(greeting.split_off(1), [Vec::<u8>::new()]);
    let message = [greeting.remove(0), b"envelope".to_vec(), Vec::new(), b"payload".to_vec()];
    for _ in 0..1000 {
        router.send_multipart(&message, 0).unwrap();
        assert_eq!(router.recv_multipart(0).unwrap(), message);
    }
}

#[test]
fn a_req_client_that_probes_a_router_gets_its_replies() {
    const REQUESTS: usize = 1000;
    for correlates in [false, true] {
        let server = server(&[]);
        let context = zmq::Context::new();
        let req = client(&context, zmq::REQ, &server.endpoint(), |req| {
            req.set_probe_router(true)?;
            req.set_req_correlate(correlates)
        });
        for number in 0..REQUESTS {
            let request = format!("request {number}");
            req.send(&request, 0).unwrap();
            assert_eq!(req.recv_bytes(0).unwrap(), request.as_bytes());
        }
        assert_eq!(metric(&server, "zmq_echo_malformed_requests_total"), 1.0);
        let requests = r#"zmq_echo_requests_total{source="client"}"#;
        eventually("all requests are counted", || metric(&server, requests) == REQUESTS as f64);
        let established = metric(&server, r#"zmq_echo_connections_total{outcome="established"}"#);
        assert_eq!(established, 1.0, "the client had to reconnect");
    }
}

#[test]
fn a_dealer_client_that_probes_a_router_gets_its_empty_message_back_first() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let probes = |dealer: &zmq::Socket| dealer.set_probe_router(true);
    let dealer = client(&context, zmq::DEALER, &server.endpoint(), probes);
    dealer.send("request", 0).unwrap();
    assert_eq!(dealer.recv_multipart(0).unwrap(), [b""]);
    assert_eq!(dealer.recv_multipart(0).unwrap(), [b"request"]);
    assert_eq!(metric(&server, "zmq_echo_malformed_requests_total"), 0.0);
}

#[test]
fn identities_that_begin_with_a_zero_byte_are_served_even_if_two_are_equal() {
    let server = server(&[]);
    let context = zmq::Context::new();
    // UUIDs may start with a zero byte, as big-endian numbers do, and so do the server's own
    // identities.
    let identities: [&[u8]; 5] =
        [b"\0\x9d\xc1\x15", b"\0\0\0\x07", b"\0\0\0\x07", b"", b"\0\0\0\0\x01"];
    let clients = identities.map(|identity| {
        client(&context, zmq::DEALER, &server.endpoint(), |dealer| match identity {
            b"" => Ok(()),
            _ => dealer.set_identity(identity),
        })
    });
    for round in 0..100 {
        for (number, client) in clients.iter().enumerate() {
            client.send(&format!("{round} {number}"), 0).unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(client.recv_bytes(0).unwrap(), format!("{round} {number}").as_bytes());
        }
    }
    let established = metric(&server, r#"zmq_echo_connections_total{outcome="established"}"#);
    assert_eq!(established, clients.len() as f64, "a client had to reconnect");
}

#[test]
fn clients_that_claim_one_identity_each_get_their_own_replies() {
    let server = server(&[]);
    let context = zmq::Context::new();
    let claim = |dealer: &zmq::Socket| dealer.set_identity(b"the same");
    let first = client(&context, zmq::DEALER, &server.endpoint(), claim);
    first.send("first", 0).unwrap();
    assert_eq!(first.recv_bytes(0).unwrap(), b"first");
    let second = client(&context, zmq::DEALER, &server.endpoint(), claim);
    for _ in 0..100 {
        second.send("second", 0).unwrap();
        first.send("first", 0).unwrap();
        assert_eq!(second.recv_bytes(0).unwrap(), b"second");
        assert_eq!(first.recv_bytes(0).unwrap(), b"first");
    }
    // A client that is disconnected would reconnect and disconnect the other one.
    let established = metric(&server, r#"zmq_echo_connections_total{outcome="established"}"#);
    assert_eq!(established, 2.0, "a client was disconnected and reconnected");
}
