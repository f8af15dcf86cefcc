//! Requirements of the ZMTP and request-reply RFCs that no other test of the DEALER shows.
//! `docs/conformance.md` lists all of them.

use std::sync::mpsc;

use bytes::Bytes;

use super::*;

#[tokio::test]
async fn the_whole_greeting_and_ready_are_sent_before_anything_is_read() {
    for identity in [&b""[..], &[b'i'; 255]] {
        let (address, server) = server(move |mut stream| {
            let greeting = raw::read(&mut stream, 64);
            // READY names the socket type, and the identity only if there is one.
            let mut body = raw::ready_body("DEALER", identity);
            if identity.is_empty() {
                body.truncate(body.len() - b"\x08Identity\0\0\0\0".len());
            }
            // A command takes a short size up to 255 bytes, and a long one beyond.
            let ready = raw::command(&body);
            assert_eq!(ready[0], if body.len() > 255 { 6 } else { 4 });
            assert_eq!(raw::read(&mut stream, ready.len()), ready);
            stream.write_all(&raw::hello(1, "ROUTER", b"")).unwrap();
            greeting
        });
        let config = DealerConfig { identity: Bytes::from_static(identity), ..config() };
        connect_to(&[address], &config).await.unwrap();
        let mut expected = [0; 64];
        expected[..16].copy_from_slice(b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL");
        assert_eq!(server.join().unwrap(), expected);
    }
}

/// The result of connecting to a ROUTER whose greeting has these bytes in place of others.
async fn greeted_with(changes: &[(usize, u8)]) -> Result<Dealer, ConnectError> {
    let mut greeting = raw::greeting(1);
    changes.iter().for_each(|(at, byte)| greeting[*at] = *byte);
    let (address, server) = server(move |mut stream| {
        stream.write_all(&greeting).unwrap();
        let _ = stream.write_all(&raw::ready("ROUTER", b""));
        stream.write_all(&raw::frame(b"welcome", false)).map(|()| stream)
    });
    let connected = connect_to(&[address], &config()).await;
    let _ = server.join().unwrap();
    connected
}

#[tokio::test]
async fn the_padding_and_as_server_of_a_server_and_its_higher_version_are_accepted() {
    let padding: Vec<_> = (1..9).map(|at| (at, 0x5a)).collect();
    let changes = [&padding[..], &[(32, 1)], &[(11, 9)], &[(10, 4), (11, 0)], &[(10, 255)]];
    for change in changes {
        let mut dealer = greeted_with(change).await.expect("the DEALER connects");
        assert_eq!(payload(&mut dealer).await, b"welcome", "{change:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_protocol_version_or_mechanism_is_refused() {
    for (change, expected) in [
        (&[(0, b'H')][..], Reason::NotZmtp),
        (&[(9, 0x7e)], Reason::NotZmtp),
        (&[(10, 1)], Reason::Version),
        (&[(10, 2)], Reason::Version),
        (&[(16, b'X')], Reason::Mechanism),
        (&[(12, b'P'), (13, b'L'), (14, b'A'), (15, b'I'), (16, b'N')], Reason::Mechanism),
    ] {
        let error = greeted_with(change).await.expect_err("the DEALER refuses this server");
        assert!(
            matches!(error, ConnectError::Handshake { reason, .. } if reason == expected),
            "{error:?} for {change:?}"
        );
    }
}

#[tokio::test]
async fn an_error_from_the_server_ends_the_connection_before_and_after_ready() {
    let (address, early) = server(|mut stream| {
        stream.write_all(&[raw::greeting(1), raw::error("no")].concat()).unwrap();
        raw::read_until_closed(&mut stream);
    });
    let error = connect_to(&[address], &config()).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Handshake { reason: Reason::PeerError, .. }),
        "{error:?}"
    );
    early.join().unwrap();
    let (address, late) = router(1, |mut stream| {
        stream.write_all(&raw::error("no")).unwrap();
        raw::read_until_closed(&mut stream);
    });
    let mut dealer = connected(address).await;
    assert_eq!(next(&mut dealer).await, Err(Reason::PeerError));
    drop(dealer);
    late.join().unwrap();
}

#[tokio::test]
async fn messages_are_sent_and_received_unchanged_and_in_order() {
    let large = vec![9; 100_000];
    let messages: Vec<Vec<&[u8]>> =
        vec![vec![b""], vec![b"a", b"", b"b"], vec![&large, b"", &large], vec![b"last"]];
    let bytes = messages.iter().flat_map(|message| raw::message(message)).collect::<Vec<_>>();
    let expected = bytes.clone();
    let (address, server) = router(1, move |mut stream| {
        let received = raw::read(&mut stream, expected.len());
        assert!(received == expected, "the received messages differ from those that were sent");
        stream.write_all(&bytes).unwrap();
        stream
    });
    let mut dealer = connected(address).await;
    for message in &messages {
        dealer.send(message.iter().map(|frame| Bytes::copy_from_slice(frame)).collect()).unwrap();
    }
    for message in &messages {
        assert!(next(&mut dealer).await.unwrap().frames() == message);
    }
    server.join().unwrap();
}

#[tokio::test]
async fn a_message_that_cannot_be_queued_is_returned() {
    let (go, may_go) = mpsc::channel();
    let (address, server) = router(1, move |mut stream| {
        may_go.recv().unwrap();
        raw::read(&mut stream, 2 + 1)
    });
    let config = DealerConfig { send_bytes: 10, ..config() };
    let mut dealer = connect_to(&[address], &config).await.unwrap();
    // Nothing is written until the socket is polled.
    dealer.send(message(b"1")).unwrap();
    let refused =
        dealer.send(message(b"0123456789")).expect_err("a full queue must reject the message");
    assert_eq!(refused.0, message(b"0123456789"));
    go.send(()).unwrap();
    assert_eq!(next(&mut dealer).await, Err(Reason::Closed));
    assert_eq!(server.join().unwrap(), raw::frame(b"1", false));
    // The connection has ended, so there is no peer to send to.
    let refused =
        dealer.send(message(b"2")).expect_err("an ended connection must reject the message");
    assert_eq!(refused.0, message(b"2"));
    assert_eq!(dealer.written(), 1);
}
