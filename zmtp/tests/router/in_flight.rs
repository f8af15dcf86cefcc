//! Requests that are answered later delay only the peers that sent them.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use zmtp::Message;
use zmtp::router::{Origin, Router};

use crate::counts::Counts;
use crate::polled::{LIMITS, bound, dealer_of, on_runtime};
use crate::support::raw;

/// Holds requests until none arrives for a while, and adds them to `requests`.
async fn hold_all(socket: &mut Router<Counts>, requests: &mut Vec<(Origin, Message)>) {
    let mut message = Message::default();
    let quiet = Duration::from_millis(100);
    while let Ok(origin) = tokio::time::timeout(quiet, socket.recv_from(&mut message)).await {
        socket.hold(&origin, message.bytes());
        requests.push((origin, std::mem::take(&mut message)));
    }
}

/// Answers the oldest request and returns its payload.
fn answer(socket: &mut Router<Counts>, requests: &mut Vec<(Origin, Message)>) -> Vec<u8> {
    let (origin, mut reply) = requests.remove(0);
    let bytes = reply.bytes();
    let payload = reply.frames()[0].to_vec();
    socket.send_to(&origin, &mut reply).unwrap();
    socket.release(&origin, bytes);
    payload
}

/// Sends requests that consist of a letter and a digit.
fn pipeline(client: &mut TcpStream, letter: char, count: usize) {
    let frames = (0..count).flat_map(|n| raw::frame(format!("{letter}{n}").as_bytes(), false));
    client.write_all(&frames.collect::<Vec<u8>>()).unwrap();
}

#[test]
fn a_peer_with_many_requests_in_flight_waits_and_others_do_not() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut busy = dealer_of(&mut socket, address, b"busy").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        pipeline(&mut busy, 'b', 9);
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer);
        pipeline(&mut other, 'o', 1);
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer + 1);
        assert!(
            counts.get().buffered_bytes > 5 * 256,
            "requests in flight do not count towards the memory"
        );
        // Each answer makes room for one more request, in order.
        let mut answered = Vec::new();
        while !requests.is_empty() {
            answered.push(answer(&mut socket, &mut requests));
            hold_all(&mut socket, &mut requests).await;
            assert!(requests.len() <= LIMITS.in_flight_per_peer + 1);
        }
        let of_busy = answered.iter().filter(|payload| payload[0] == b'b');
        let of_busy: Vec<_> = of_busy.map(|payload| payload[1]).collect();
        assert_eq!(of_busy, *b"012345678");
        assert_eq!(counts.get().buffered_bytes, 0);
    });
}

#[test]
fn at_the_limit_for_all_peers_no_peer_is_read_until_there_is_room() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut clients = Vec::new();
        for identity in [b"a", b"b", b"c"] {
            clients.push(dealer_of(&mut socket, address, identity).await);
        }
        clients.iter_mut().zip('a'..).for_each(|(client, letter)| pipeline(client, letter, 3));
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight);
        let mut answered = 0;
        while !requests.is_empty() {
            answer(&mut socket, &mut requests);
            answered += 1;
            hold_all(&mut socket, &mut requests).await;
            assert!(requests.len() <= LIMITS.in_flight);
        }
        assert_eq!(answered, 9);
        for client in &mut clients {
            for _ in 0..3 {
                raw::read_frame(client);
            }
        }
    });
}

#[test]
fn the_requests_of_a_disconnected_peer_are_no_longer_in_flight() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut leaving = dealer_of(&mut socket, address, b"leaving").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        pipeline(&mut leaving, 'l', 3);
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(socket.take_abandoned(), []);
        drop(leaving);
        while socket.connections() > 1 {
            let _ = tokio::time::timeout(Duration::from_millis(1), socket.recv()).await;
        }
        assert_eq!(socket.take_abandoned(), [requests[0].0.peer]);
        assert_eq!(socket.take_abandoned(), []);
        // Releasing them late does not affect what others have in flight.
        for (origin, request) in requests.drain(..) {
            socket.release(&origin, request.bytes());
        }
        pipeline(&mut other, 'o', 1);
        hold_all(&mut socket, &mut requests).await;
        answer(&mut socket, &mut requests);
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(raw::read_frame(&mut other).1, b"o0");
        assert_eq!(counts.get().buffered_bytes, 0);
    });
}

#[test]
fn a_peer_with_waiting_requests_gets_its_pongs_and_loses_nothing() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        pipeline(&mut client, 'c', 9);
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer);
        // After the waiting requests, between two more, and within a message of two frames.
        let between = [raw::command(b"\x04PING\0\0one"), raw::frame(b"c9", false)];
        client.write_all(&between.concat()).unwrap();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(raw::read_frame(&mut client).1, b"\x04PONGone");
        let within =
            [raw::frame(b"d", true), raw::command(b"\x04PING\0\0two"), raw::frame(b"0", false)];
        client.write_all(&within.concat()).unwrap();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(raw::read_frame(&mut client).1, b"\x04PONGtwo");
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer, "a request over the limit was taken");
        let mut answered = Vec::new();
        while !requests.is_empty() {
            answered.push(answer(&mut socket, &mut requests));
            hold_all(&mut socket, &mut requests).await;
        }
        let expected = (0..10).map(|n| format!("c{n}").into_bytes()).chain([b"d".to_vec()]);
        assert_eq!(answered, expected.collect::<Vec<_>>());
        for _ in 0..10 {
            raw::read_frame(&mut client);
        }
        assert_eq!(raw::read_message(&mut client), [b"d", b"0"]);
        assert_eq!(counts.get().buffered_bytes, 0);
    });
}
