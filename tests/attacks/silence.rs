//! Silence and slowness end, and hold nothing until then.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::Attacked;
use crate::support::{DEADLINE, wait_until, zmtp};

#[test]
fn five_hundred_silent_connections_end_at_the_handshake_timeout() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "2s"]);
    let before = attacked.memory("VmRSS");
    let mut silent: Vec<TcpStream> = (0..500).map(|_| zmtp::stream(attacked.address())).collect();
    attacked.serves_its_neighbour();
    for peer in &mut silent {
        // The start of our greeting, and no more.
        assert_eq!(zmtp::read_until_closed(peer), zmtp::GREETING_START as u64);
    }
    let grown = attacked.memory("VmHWM").saturating_sub(before);
    assert!(grown < 500 * (8 << 10), "{grown} bytes for 500 silent connections");
    attacked.wait_for_failures("handshake_timeout", 500);
    attacked.rests();
    attacked.is_unharmed();
}

#[test]
fn a_trickled_handshake_ends_in_time_wherever_it_is() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "1s"]);
    let hello = zmtp::hello(1, "DEALER", &[b'i'; 255]);
    // Some trickle their greeting, some their READY.
    let mut peers: Vec<(TcpStream, usize)> = (0..50)
        .map(|number| {
            let mut peer = zmtp::stream(attacked.address());
            let at = if number % 2 == 0 { 0 } else { 64 };
            peer.write_all(&hello[..at]).unwrap();
            (peer, at)
        })
        .collect();
    let started = Instant::now();
    while attacked.failures("handshake_timeout") < 50.0 {
        assert!(started.elapsed() < DEADLINE);
        for (peer, at) in &mut peers {
            // A byte a round, and none that would make it whole.
            if *at + 1 < hello.len() && peer.write_all(&hello[*at..*at + 1]).is_ok() {
                *at += 1;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    for (mut peer, _) in peers {
        zmtp::read_until_closed(&mut peer);
    }
    attacked.is_unharmed();
}

#[test]
fn a_huge_ready_is_refused_at_its_header_and_not_waited_for() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "1h"]);
    for (number, size) in [4097, 1 << 20, 1 << 31].into_iter().enumerate() {
        let mut peer = zmtp::stream(attacked.address());
        peer.write_all(&[zmtp::greeting(0), zmtp::announced(4, size)].concat()).unwrap();
        zmtp::read_until_closed(&mut peer);
        attacked.wait_for_failures("metadata", number + 1);
    }
    // Up to the limit it is held, and no longer than the handshake lasts.
    let mut whole = zmtp::stream(attacked.address());
    let mut body = zmtp::ready_body("DEALER", b"");
    let filler = 4096 - body.len() - 2 - 4;
    body.extend([&[1, b'X'][..], &(filler as u32).to_be_bytes(), &vec![0; filler]].concat());
    whole.write_all(&zmtp::greeting(0)).unwrap();
    whole.write_all(&[zmtp::announced(4, 4096), body].concat()).unwrap();
    zmtp::read(&mut whole, zmtp::SERVER_HELLO);
    zmtp::echoes(&mut whole, &zmtp::frame(b"in", false));
    attacked.is_unharmed();
}

#[test]
fn who_does_not_read_is_closed_at_the_stall_timeout_and_counted() {
    let mut attacked = Attacked::start(&["--stall-timeout", "1s"]);
    let mut peers = zmtp::crowd(attacked.address(), 4);
    for (peer, size) in peers.iter_mut().zip([1 << 20, 64 << 10, 1000, 4]) {
        let request = zmtp::frame(&vec![1; size], false);
        write_until_closed(peer, &request.repeat((1usize << 20).div_ceil(request.len())));
    }
    attacked.wait_for_disconnections("stalled", 4);
    assert_eq!(attacked.metric("zmq_echo_buffered_bytes"), 0.0);
    attacked.is_unharmed();
}

#[test]
fn pings_without_end_from_one_who_does_not_read_the_pongs_are_bounded_and_end() {
    let mut attacked = Attacked::start(&["--stall-timeout", "1s"]);
    let mut peer = zmtp::dealer(attacked.address(), 1, b"");
    let pings = zmtp::command(b"\x04PING\0\0sixteen bytes xx").repeat(1000);
    let written = write_until_closed(&mut peer, &pings);
    assert!(written < 16 << 20, "{written}");
    attacked.wait_for_disconnections("stalled", 1);
    attacked.is_unharmed();
}

#[test]
fn a_ping_gets_its_context_back_and_its_ttl_is_kept() {
    let mut attacked = Attacked::start(&[]);
    let mut peer = zmtp::dealer(attacked.address(), 1, b"");
    for context in [b"".as_slice(), b"c", b"sixteen bytes xx"] {
        peer.write_all(&zmtp::command(&[b"\x04PING\0\0", context].concat())).unwrap();
        let pong = zmtp::command(&[b"\x04PONG", context].concat());
        assert_eq!(zmtp::read(&mut peer, pong.len()), pong);
    }
    // Three tenths of a second.
    let asked = Instant::now();
    peer.write_all(&zmtp::command(b"\x04PING\0\x03")).unwrap();
    zmtp::read_until_closed(&mut peer);
    assert!(asked.elapsed() >= Duration::from_millis(300));
    attacked.wait_for_disconnections("vanished", 1);
    attacked.is_unharmed();
}

#[test]
fn quiet_peers_that_know_ping_are_asked_and_closed_when_they_have_vanished() {
    let mut attacked = Attacked::start(&["--heartbeat-interval", "300ms"]);
    let mut old = zmtp::dealer(attacked.address(), 0, b"");
    let mut vanished = zmtp::dealer(attacked.address(), 1, b"");
    let mut quiet = zmtp::dealer(attacked.address(), 1, b"");
    let ping = zmtp::command(b"\x04PING\0\0");
    let mut pinged = 0;
    while attacked.disconnections("vanished") == 0.0 || pinged < 3 {
        assert_eq!(zmtp::read(&mut quiet, ping.len()), ping);
        quiet.write_all(&zmtp::command(b"\x04PONG")).unwrap();
        pinged += 1;
    }
    assert_eq!(zmtp::read_until_closed(&mut vanished), ping.len() as u64);
    // 3.0 knows no PING: the first byte that comes is the reply's.
    zmtp::echoes(&mut old, &zmtp::frame(b"still here", false));
    drop(quiet);
    wait_until("it has left", || attacked.metric("zmq_echo_peers") == 2.0);
    attacked.is_unharmed();
}

/// Writes without end and reads nothing, until the other side closes; how much it
/// took.
fn write_until_closed(peer: &mut TcpStream, bytes: &[u8]) -> usize {
    let started = Instant::now();
    let mut written = 0;
    while let Ok(count) = peer.write(&bytes[written % bytes.len()..]) {
        written += count;
        assert!(started.elapsed() < DEADLINE, "it is read from without end");
    }
    assert!(started.elapsed() < DEADLINE, "it is not closed");
    written
}
