//! Requirements of the ZMTP and request-reply RFCs that no other test of the ROUTER shows.
//! `docs/conformance.md` lists all of them.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use zmtp::Message;
use zmtp::router::{Limits, SendError};

use crate::polled::{LIMITS, bound, dealer_of, on_runtime};
use crate::socket::Echo;
use crate::support::raw;

/// A greeting of RFC 37, byte by byte: signature with zero padding, version 3.1, mechanism NULL,
/// as-server zero, filler.
const GREETING: &[u8; 64] = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01\
    NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \0\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A DEALER whose greeting has these bytes in place of others is served like any other.
fn assert_served(changes: &[(usize, u8)]) {
    let echo = Echo::start(LIMITS);
    let mut greeting = *GREETING;
    changes.iter().for_each(|(at, byte)| greeting[*at] = *byte);
    let mut stream = echo.stream();
    stream.write_all(&greeting).unwrap();
    stream.write_all(&raw::ready("DEALER", b"")).unwrap();
    let hello = raw::read(&mut stream, raw::SERVER_HELLO);
    assert_eq!(hello, [GREETING, raw::SERVER_READY].concat());
    // Our own framing, whatever version the peer announces.
    raw::echoes(&mut stream, &raw::message(&[b"a", b"", &[7; 300]]));
}

#[test]
fn the_server_greets_with_zmtp_3_1_and_null_and_zeros_elsewhere() {
    assert_served(&[]);
}

#[test]
fn the_padding_of_a_greeting_is_ignored() {
    let padding: Vec<_> = (1..9).map(|at| (at, 0xa5)).collect();
    assert_served(&padding);
}

#[test]
fn the_as_server_field_of_a_client_is_ignored() {
    assert_served(&[(32, 1)]);
}

#[test]
fn clients_of_higher_versions_are_served_with_our_own_framing() {
    for version in [(3, 2), (3, 255), (4, 0), (255, 255)] {
        assert_served(&[(10, version.0), (11, version.1)]);
    }
}

#[test]
fn a_resource_and_properties_of_applications_are_accepted() {
    let echo = Echo::start(LIMITS);
    let mut body = raw::ready_body("DEALER", b"me");
    for (name, value) in [("Resource", "system/name-service/test"), ("X-Trace", "on"), ("Y", "")] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    let mut stream = echo.stream();
    raw::shake_hands(&mut stream, &[raw::greeting(1), raw::command(&body)].concat());
    raw::echoes(&mut stream, &raw::frame(b"served", false));
}

#[test]
fn a_message_is_delivered_whole_or_not_at_all() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut leaving = dealer_of(&mut socket, address, b"leaving").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        leaving.write_all(&raw::message(&[b"whole", b"message"])).unwrap();
        leaving.write_all(&raw::frame(b"only the first frame", true)).unwrap();
        leaving.shutdown(Shutdown::Write).unwrap();
        let expected = ["leaving", "whole", "message"].map(Into::into);
        assert_eq!(socket.recv().await, Message::from(expected));
        while counts.get().disconnections("error") == 0 {
            let next = tokio::time::timeout(Duration::from_millis(1), socket.recv()).await;
            assert!(next.is_err(), "part of a message was delivered: {next:?}");
        }
        other.write_all(&raw::frame(b"next", false)).unwrap();
        assert_eq!(socket.recv().await, Message::from(["other".into(), "next".into()]));
    });
}

#[test]
fn a_received_message_begins_with_the_peers_own_or_a_unique_generated_identity() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut identities = Vec::new();
        for announced in [&b"me"[..], b"", b""] {
            let mut peer = dealer_of(&mut socket, address, announced).await;
            peer.write_all(&raw::message(&[b"a", b"b"])).unwrap();
            let message = socket.recv().await;
            assert_eq!(message.frames().iter().skip(1).collect::<Vec<_>>(), ["a", "b"]);
            identities.push((message.frames()[0].clone(), peer));
        }
        assert_eq!(identities[0].0, "me");
        let [one, other] = [&identities[1].0, &identities[2].0];
        assert!(
            one != other && one[0] == 0 && other[0] == 0,
            "the generated identities must be unique and start with zero: {one:?} {other:?}"
        );
    });
}

#[test]
fn a_message_goes_to_the_identity_in_its_first_frame_or_is_returned_with_an_error() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut one = dealer_of(&mut socket, address, b"one").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        for to in ["other", "one"] {
            socket.send(&mut [to.into(), "for".into(), to.into()].into()).unwrap();
        }
        let nobody = Message::from(["nobody".into(), "a".into()]);
        let mut message = nobody.clone();
        assert_eq!(socket.send(&mut message), Err(SendError::NoPeer));
        assert_eq!(message, nobody, "a message that cannot be sent must stay with the caller");
        // Sending never blocks: the replies are written while the socket is polled.
        let reading = tokio::task::spawn_blocking(move || {
            assert_eq!(raw::read_message(&mut one), [&b"for"[..], b"one"]);
            assert_eq!(raw::read_message(&mut other), [&b"for"[..], b"other"]);
        });
        tokio::select! {
            read = reading => read.unwrap(),
            message = socket.recv() => panic!("unexpected message: {message:?}"),
        }
    });
}

#[test]
fn traffic_other_than_a_pong_answers_a_ping() {
    let limits = Limits { heartbeat_interval: Duration::from_secs(1), ..LIMITS };
    let echo = Echo::start(limits);
    let ping = raw::command(b"\x04PING\0\0");
    let mut peer = echo.dealer(1, b"");
    peer.write_all(&ping).unwrap();
    assert_eq!(raw::read(&mut peer, 7), raw::command(b"\x04PONG"));
    for _ in 0..2 {
        assert_eq!(raw::read(&mut peer, ping.len()), ping);
        // Part of a message, which gets no reply.
        peer.write_all(&raw::frame(b"part", true)).unwrap();
    }
    // It is pinged again, not closed, an interval after each of them.
    assert_eq!(raw::read(&mut peer, ping.len()), ping);
    assert_eq!(echo.counts.get().disconnections("vanished"), 0);
}
