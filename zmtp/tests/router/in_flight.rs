//! Requests that are answered later delay only the peers that sent them.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use zmtp::Message;
use zmtp::router::{ALLOWANCE, Limits, Origin, Router};

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

/// Connects three clients with three requests each, and holds as many requests as may be in flight.
async fn full(
    socket: &mut Router<Counts>,
    address: SocketAddr,
) -> (Vec<TcpStream>, Vec<(Origin, Message)>) {
    let mut clients = Vec::new();
    for identity in [b"a", b"b", b"c"] {
        clients.push(dealer_of(socket, address, identity).await);
    }
    clients.iter_mut().zip('a'..).for_each(|(client, letter)| pipeline(client, letter, 3));
    let mut requests = Vec::new();
    hold_all(socket, &mut requests).await;
    assert_eq!(requests.len(), LIMITS.in_flight);
    (clients, requests)
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
fn at_the_limit_for_all_peers_no_client_is_read_until_there_is_room() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let (mut clients, mut requests) = full(&mut socket, address).await;
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
fn a_monitor_is_read_at_the_limit_for_all_peers() {
    on_runtime(async {
        let (socket, address, _) = bound(LIMITS);
        let mut socket = socket.with_monitors(b"monitor");
        let mut monitor = dealer_of(&mut socket, address, b"monitor 1").await;
        let (_clients, _requests) = full(&mut socket, address).await;
        for number in 0..3_u8 {
            monitor.write_all(&raw::frame(&[number], false)).unwrap();
            let mut message = Message::default();
            let origin = socket.recv_from(&mut message).await;
            assert!(origin.is_monitor, "a request over the limit was taken");
            socket.send_to(&origin, &mut message).unwrap();
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
            assert_eq!(raw::read_frame(&mut monitor).1, [number]);
        }
    });
}

#[test]
fn a_message_that_is_complete_does_not_count_as_stalled_while_its_peer_waits() {
    let stall_timeout = Duration::from_millis(200);
    on_runtime(async {
        let (mut socket, address, _) = bound(Limits { stall_timeout, ..LIMITS });
        let mut slow = dealer_of(&mut socket, address, b"slow").await;
        let message = raw::frame(&[7; 1000], false);
        let (first, rest) = message.split_at(100);
        slow.write_all(first).unwrap();
        assert!(poll(&mut socket).await.is_none(), "the message is incomplete");
        let (_clients, mut requests) = full(&mut socket, address).await;
        slow.write_all(rest).unwrap();
        let waiting = Instant::now();
        while waiting.elapsed() < 3 * stall_timeout {
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
        }
        let mut payloads = Vec::new();
        while !requests.is_empty() {
            payloads.push(answer(&mut socket, &mut requests));
            hold_all(&mut socket, &mut requests).await;
        }
        assert!(payloads.contains(&vec![7; 1000]), "the message is lost");
        assert_eq!(payloads.len(), 10);
    });
}

#[test]
fn at_the_limit_for_all_peers_clients_take_turns() {
    const CLIENTS: usize = 10;
    on_runtime(async {
        let limits = Limits { in_flight_per_peer: LIMITS.in_flight, ..LIMITS };
        let (mut socket, address, _) = bound(limits);
        flood(&mut socket, address, CLIENTS, 64).await;
        let mut requests = Vec::new();
        let (mut taken, mut rounds_at) = (HashMap::new(), None);
        for number in 0.. {
            hold(&mut socket, &mut requests, LIMITS.in_flight).await;
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
            let (newest, _) = requests.last().unwrap();
            *taken.entry(newest.peer).or_insert(0) += 1;
            // Once every client has sent something, the turns are counted.
            if rounds_at.is_none() && taken.len() == CLIENTS {
                rounds_at = Some(number);
                taken.clear();
            }
            if rounds_at.is_some_and(|at| number == at + 10 * CLIENTS) {
                break;
            }
            answer(&mut socket, &mut requests);
        }
        assert!(taken.values().all(|turns| (8..=12).contains(turns)), "uneven turns: {taken:?}");
    });
}

#[test]
fn a_client_that_reaches_both_limits_is_read_again_once_there_is_room() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        let mut other = dealer_of(&mut socket, address, b"other").await;
        pipeline(&mut client, 'c', 9);
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer);
        // One request of the other client takes all the memory that requests in flight may take.
        pipeline(&mut other, 'o', 1);
        let mut message = Message::default();
        let large = socket.recv_from(&mut message).await;
        socket.hold(&large, LIMITS.buffer_bytes / 2);
        // The client is below its own limit before there is room. No reply wakes it.
        let (origin, request) = requests.remove(0);
        socket.release(&origin, request.bytes());
        assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
        socket.release(&large, LIMITS.buffer_bytes / 2);
        hold(&mut socket, &mut requests, LIMITS.in_flight_per_peer).await;
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
fn a_release_of_a_request_that_is_not_held_has_no_effect() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        pipeline(&mut client, 'c', 2);
        let mut requests = Vec::new();
        hold_all(&mut socket, &mut requests).await;
        // The first one is released with a wrong size, and both are released twice.
        socket.release(&requests[0].0, 1 << 20);
        for (origin, request) in requests.iter().chain(&requests) {
            socket.release(origin, request.bytes());
        }
        assert!(poll(&mut socket).await.is_none());
        assert_eq!(counts.get().buffered_bytes, 0);
        // The limits are those of before.
        requests.clear();
        pipeline(&mut client, 'd', 9);
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer);
    });
}

#[test]
fn a_waiting_request_keeps_the_time_at_which_it_was_read() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        let (mut requests, mut read_by) = (Vec::new(), HashMap::new());
        let mut before = Instant::now();
        // The requests of each letter arrive together. Half of the first ones are read while there
        // is room, and all others wait. A PING is between them, and removed.
        for letter in 'a'..='d' {
            pipeline(&mut client, letter, 8);
            client.write_all(&raw::command(b"\x04PING\0\0")).unwrap();
            hold_all(&mut socket, &mut requests).await;
            read_by.insert(letter, (before, Instant::now()));
            before = Instant::now();
        }
        let mut count = 0;
        while !requests.is_empty() {
            let read_at = requests[0].0.read_at;
            let payload = answer(&mut socket, &mut requests);
            let (from, until) = read_by[&char::from(payload[0])];
            let payload = String::from_utf8(payload).unwrap();
            assert!(from <= read_at, "{payload} is dated {:?} too early", from - read_at);
            assert!(read_at <= until, "{payload} is dated {:?} too late", read_at - until);
            hold_all(&mut socket, &mut requests).await;
            count += 1;
        }
        assert_eq!(count, 4 * 8);
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
        assert_eq!(next_frame(&mut client), b"\x04PONGone");
        let within =
            [raw::frame(b"d", true), raw::command(b"\x04PING\0\0two"), raw::frame(b"0", false)];
        client.write_all(&within.concat()).unwrap();
        hold_all(&mut socket, &mut requests).await;
        assert_eq!(next_frame(&mut client), b"\x04PONGtwo");
        assert_eq!(requests.len(), LIMITS.in_flight_per_peer, "a request over the limit was taken");
        let mut answered = Vec::new();
        while !requests.is_empty() {
            answered.push(answer(&mut socket, &mut requests));
            hold_all(&mut socket, &mut requests).await;
        }
        let expected = (0..10).map(|n| format!("c{n}").into_bytes()).chain([b"d".to_vec()]);
        assert_eq!(answered, expected.collect::<Vec<_>>());
        for _ in 0..10 {
            next_frame(&mut client);
        }
        assert_eq!([next_frame(&mut client), next_frame(&mut client)], [b"d", b"0"]);
        assert_eq!(counts.get().buffered_bytes, 0);
    });
}

/// The body of the next frame that is not a heartbeat of the server's own.
fn next_frame(client: &mut TcpStream) -> Vec<u8> {
    loop {
        let (_, body) = raw::read_frame(client);
        if body != b"\x04PONG" {
            return body;
        }
    }
}

/// Waits until the client has its next `count` PONGs. Other frames may come before them.
async fn read_pongs(socket: &mut Router<Counts>, client: &TcpStream, count: usize) {
    let mut client = client.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut pongs = 0;
        while pongs < count {
            pongs += usize::from(raw::read_frame(&mut client).1.starts_with(b"\x04PONG"));
        }
    });
    while !reading.is_finished() {
        assert!(poll(socket).await.is_none(), "a request over the limit was taken");
    }
    reading.join().unwrap();
}

#[test]
fn a_peer_with_waiting_requests_gets_its_pongs_however_many_there_are() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        pipeline(&mut client, 'c', 9);
        hold(&mut socket, &mut Vec::new(), LIMITS.in_flight_per_peer).await;
        // Twice what is read ahead.
        let ping = raw::command(b"\x04PING\0\0sixteen bytes...");
        let count = 2 * ALLOWANCE / ping.len();
        client.write_all(&ping.repeat(count)).unwrap();
        read_pongs(&mut socket, &client, count).await;
    });
}

#[test]
fn a_client_whose_pings_are_unread_gets_pongs_and_one_that_sent_none_gets_nothing() {
    on_runtime(async {
        let (mut socket, address, _) = bound(LIMITS);
        // More than is read ahead, and less than the kernel takes.
        let requests = raw::frame(&[7; 200], false).repeat(100);
        let mut other = dealer_of(&mut socket, address, b"other").await;
        other.write_all(&requests).unwrap();
        hold(&mut socket, &mut Vec::new(), LIMITS.in_flight_per_peer).await;
        let mut client = dealer_of(&mut socket, address, b"client").await;
        client.write_all(&requests).unwrap();
        client.write_all(&raw::command(b"\x04PING\0\0")).unwrap();
        hold(&mut socket, &mut Vec::new(), LIMITS.in_flight - LIMITS.in_flight_per_peer).await;
        // Each is more than the one PING asks for.
        read_pongs(&mut socket, &client, 3).await;
        other.set_nonblocking(true).unwrap();
        let read = other.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::WouldBlock), "a peer that sent no PING got something");
    });
}

#[test]
fn a_ping_behind_many_requests_is_answered_once_some_of_them_are() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut client = dealer_of(&mut socket, address, b"client").await;
        let request = raw::frame(&[7; 1 << 10], false);
        client.write_all(&request.repeat(LIMITS.in_flight_per_peer)).unwrap();
        let mut requests = Vec::new();
        hold(&mut socket, &mut requests, LIMITS.in_flight_per_peer).await;
        // So many that the PING is not among what is read ahead.
        let held = counts.get().buffered_bytes + ALLOWANCE;
        client.write_all(&request.repeat(10)).unwrap();
        client.write_all(&raw::command(b"\x04PING\0\0")).unwrap();
        while counts.get().buffered_bytes < held {
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
        }
        for _ in 0..4 {
            answer(&mut socket, &mut requests);
            hold(&mut socket, &mut requests, LIMITS.in_flight_per_peer).await;
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
        }
        read_pongs(&mut socket, &client, 1).await;
    });
}

/// Connects clients that send requests of `size` bytes without end and read every reply.
async fn flood(socket: &mut Router<Counts>, address: SocketAddr, count: usize, size: usize) {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(dealer_of(socket, address, b"").await);
    }
    let requests = raw::frame(&vec![7; size], false).repeat((64 << 10) / size + 1);
    for mut client in clients {
        raw::flood(&client, requests.clone());
        thread::spawn(move || raw::read_until_closed(&mut client));
    }
}

/// Connects a client that sends the first `size` bytes of a message that is one byte longer, and
/// returns it once they are read.
async fn holder(
    socket: &mut Router<Counts>,
    address: SocketAddr,
    counts: &Counts,
    size: usize,
) -> TcpStream {
    let holder = dealer_of(socket, address, b"").await;
    let held = counts.get().buffered_bytes + size;
    let (mut writer, bytes) = (holder.try_clone().unwrap(), raw::frame(&vec![1; size], false));
    thread::spawn(move || writer.write_all(&bytes[..size]));
    while counts.get().buffered_bytes < held {
        assert!(poll(socket).await.is_none(), "an incomplete message was received");
    }
    holder
}

/// Lets the socket work for a moment, or until it has a request.
async fn poll(socket: &mut Router<Counts>) -> Option<(Origin, Message)> {
    let mut message = Message::default();
    let received = socket.recv_from(&mut message);
    let origin = tokio::time::timeout(Duration::from_millis(1), received).await.ok()?;
    Some((origin, message))
}

/// Holds requests until there are `count`.
async fn hold(socket: &mut Router<Counts>, requests: &mut Vec<(Origin, Message)>, count: usize) {
    while requests.len() < count {
        if let Some((origin, message)) = poll(socket).await {
            socket.hold(&origin, message.bytes());
            requests.push((origin, message));
        }
    }
}

#[test]
fn small_requests_that_cannot_be_in_flight_wait_in_the_kernel() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        flood(&mut socket, address, 20, 1 << 10).await;
        let mut requests = Vec::new();
        // Each client has its turn 25 times, and each turn has room for one request.
        for _ in 0..500 {
            hold(&mut socket, &mut requests, LIMITS.in_flight).await;
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
            answer(&mut socket, &mut requests);
        }
        // A small read of each client, what is read ahead to find PINGs, and one large read before
        // the first request was in flight.
        let most = 20 * ((8 << 10) + ALLOWANCE) + LIMITS.in_flight * (2 << 10) + (256 << 10);
        let held = counts.get().buffered_bytes;
        assert!(held < most, "{held} bytes wait in memory, more than {most}");
    });
}

#[test]
fn large_requests_that_cannot_be_in_flight_close_no_client_for_a_full_pool() {
    let limits = Limits { buffer_bytes: 4 << 20, in_flight: 1000, ..LIMITS };
    on_runtime(async {
        let (mut socket, address, counts) = bound(limits);
        // One unfinished request of each is half the pool, and four of each are twice the pool.
        flood(&mut socket, address, 32, 64 << 10).await;
        let (mut requests, mut answered) = (Vec::new(), 0);
        while answered < 500 {
            if let Some((origin, message)) = poll(&mut socket).await {
                socket.hold(&origin, message.bytes());
                requests.push((origin, message));
            } else if !requests.is_empty() {
                answer(&mut socket, &mut requests);
                answered += 1;
            }
            assert_eq!(counts.get().disconnections("pool_full"), 0, "after {answered} answers");
        }
    });
}

#[test]
fn requests_in_flight_hold_half_of_what_unfinished_messages_leave_of_the_pool() {
    let limits = Limits { in_flight: 1000, in_flight_per_peer: 1000, ..LIMITS };
    on_runtime(async {
        let (mut socket, address, counts) = bound(limits);
        let most = limits.buffer_bytes / 4;
        let holder = holder(&mut socket, address, &counts, limits.buffer_bytes / 2).await;
        flood(&mut socket, address, 1, 64 << 10).await;
        let mut requests = Vec::new();
        hold(&mut socket, &mut requests, most / (68 << 10)).await;
        hold_all(&mut socket, &mut requests).await;
        assert!(requests.len() <= most / (64 << 10), "{} requests in flight", requests.len());
        // When the message is gone, there is room for more, although none has been answered.
        drop(holder);
        hold(&mut socket, &mut requests, 2 * most / (68 << 10)).await;
    });
}

#[test]
fn peers_that_hold_most_of_the_pool_leave_room_for_requests_in_flight() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        // All but 600 KiB of the pool, of which four requests of 100 KiB take more than half.
        let size = LIMITS.buffer_bytes / 2 - (300 << 10);
        let _one = holder(&mut socket, address, &counts, size).await;
        let _other = holder(&mut socket, address, &counts, size).await;
        flood(&mut socket, address, 1, 100 << 10).await;
        hold(&mut socket, &mut Vec::new(), LIMITS.in_flight_per_peer).await;
        assert_eq!(counts.get().disconnections("pool_full"), 0, "peers closed for a full pool");
    });
}

#[test]
fn what_is_read_ahead_costs_no_more_memory_than_its_bytes() {
    on_runtime(async {
        let (mut socket, address, counts) = bound(LIMITS);
        let mut holder = holder(&mut socket, address, &counts, 60 << 10).await;
        let mut clients = Vec::new();
        for identity in [b"a", b"b"] {
            clients.push(dealer_of(&mut socket, address, identity).await);
        }
        clients.iter_mut().zip('a'..).for_each(|(client, letter)| pipeline(client, letter, 3));
        hold(&mut socket, &mut Vec::new(), LIMITS.in_flight).await;
        let before = counts.get().buffered_bytes;
        holder.write_all(&[1; 16 << 10]).unwrap();
        while counts.get().buffered_bytes < before + ALLOWANCE {
            assert!(poll(&mut socket).await.is_none(), "a request over the limit was taken");
        }
        let held = counts.get().buffered_bytes - before;
        assert!(held < ALLOWANCE + (2 << 10), "{held} bytes for {ALLOWANCE}");
    });
}
