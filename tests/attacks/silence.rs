//! Silent and slow connections are closed in time and hold no memory until then.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::Attacked;
use crate::support::{DEADLINE, raw, wait_until};

#[test]
fn five_hundred_silent_connections_are_closed_at_the_handshake_timeout() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "2s"]);
    let before = attacked.memory("VmRSS");
    let mut silent: Vec<TcpStream> = (0..500).map(|_| raw::stream(attacked.address())).collect();
    attacked.assert_serves_others();
    for peer in &mut silent {
        // The server has sent the start of its greeting and nothing else.
        assert_eq!(raw::read_until_closed(peer), raw::GREETING_START as u64);
    }
    let grown = attacked.memory("VmHWM").saturating_sub(before);
    assert!(grown < 500 * (8 << 10), "500 silent connections cost {grown} bytes of memory");
    attacked.wait_for_failures("handshake_timeout", 500);
    attacked.wait_until_idle();
    attacked.assert_unharmed();
}

#[test]
fn a_trickled_handshake_is_closed_in_time_at_any_stage() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "1s"]);
    let hello = raw::hello(1, "DEALER", &[b'i'; 255]);
    // Some peers trickle their greeting, others their READY.
    let mut peers: Vec<(TcpStream, usize)> = (0..50)
        .map(|number| {
            let mut peer = raw::stream(attacked.address());
            let at = if number % 2 == 0 { 0 } else { 64 };
            peer.write_all(&hello[..at]).unwrap();
            (peer, at)
        })
        .collect();
    let started = Instant::now();
    while attacked.failures("handshake_timeout") < 50.0 {
        assert!(started.elapsed() < DEADLINE);
        for (peer, at) in &mut peers {
            // One byte per round, and never the byte that would complete it.
            if *at + 1 < hello.len() && peer.write_all(&hello[*at..*at + 1]).is_ok() {
                *at += 1;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    for (mut peer, _) in peers {
        raw::read_until_closed(&mut peer);
    }
    attacked.assert_unharmed();
}

#[test]
fn a_huge_ready_is_rejected_at_its_header() {
    let mut attacked = Attacked::start(&["--handshake-timeout", "1h"]);
    for (number, size) in [4097, 1 << 20, 1 << 31].into_iter().enumerate() {
        let mut peer = raw::stream(attacked.address());
        peer.write_all(&[raw::greeting(0), raw::announced(4, size)].concat()).unwrap();
        raw::read_until_closed(&mut peer);
        attacked.wait_for_failures("metadata", number + 1);
    }
    // A READY up to the limit is kept, but only until the handshake timeout.
    let mut whole = raw::stream(attacked.address());
    let mut body = raw::ready_body("DEALER", b"");
    let filler = 4096 - body.len() - 2 - 4;
    body.extend([&[1, b'X'][..], &(filler as u32).to_be_bytes(), &vec![0; filler]].concat());
    whole.write_all(&raw::greeting(0)).unwrap();
    whole.write_all(&[raw::announced(4, 4096), body].concat()).unwrap();
    raw::read(&mut whole, raw::SERVER_HELLO);
    raw::echoes(&mut whole, &raw::frame(b"in", false));
    attacked.assert_unharmed();
}

#[test]
fn unread_replies_stay_bounded_and_close_no_peer_whose_host_is_reachable() {
    let mut attacked = Attacked::start(&["--stall-timeout", "1s"]);
    let mut peers = raw::crowd(attacked.address(), 4);
    let requests = [1 << 20, 64 << 10, 1000, 4].map(|size| raw::frame(&vec![1; size], false));
    let taken: Vec<usize> = peers
        .iter_mut()
        .zip(&requests)
        .map(|(peer, request)| {
            let many = request.repeat((1usize << 20).div_ceil(request.len()));
            attacked.flood_until_full(peer, &many)
        })
        .collect();
    let mut pinging = raw::dealer(attacked.address(), 1, b"");
    let ping = raw::command(b"\x04PING\0\0sixteen bytes xx");
    let pings = attacked.flood_until_full(&mut pinging, &ping.repeat(1000));
    assert!(
        pings < 16 << 20,
        "the server read {pings} bytes of PINGs from a peer that reads no PONG"
    );
    // Wait for several windows to pass.
    for stalled in 1..=3 {
        let mut half = raw::dealer(attacked.address(), 0, b"");
        half.write_all(&raw::frame(b"half", false)[..3]).unwrap();
        raw::read_until_closed(&mut half);
        attacked.wait_for_disconnections("stalled", stalled);
    }
    attacked.wait_until_idle();
    assert_eq!(attacked.metric("zmq_echo_peers"), 6.0);
    for ((peer, request), taken) in peers.iter_mut().zip(requests).zip(taken) {
        let (mut writer, rest) =
            (peer.try_clone().unwrap(), request[taken % request.len()..].to_vec());
        let writing = thread::spawn(move || writer.write_all(&rest).unwrap());
        let replies = raw::read(peer, (taken / request.len() + 1) * request.len());
        assert!(replies.chunks(request.len()).all(|reply| reply == request));
        writing.join().unwrap();
    }
    let pong = raw::command(b"\x04PONGsixteen bytes xx");
    let (mut writer, rest) = (pinging.try_clone().unwrap(), ping[pings % ping.len()..].to_vec());
    let writing = thread::spawn(move || writer.write_all(&rest).unwrap());
    let pongs = raw::read(&mut pinging, pings / ping.len() * pong.len());
    assert!(pongs.chunks(pong.len()).all(|one| one == pong));
    writing.join().unwrap();
    attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held < 1000.0);
    assert_eq!(attacked.disconnections("stalled"), 3.0);
    attacked.assert_unharmed();
}

#[test]
fn a_ping_gets_its_context_back_and_silence_beyond_its_ttl_closes_the_peer() {
    let mut attacked = Attacked::start(&[]);
    let mut peer = raw::dealer(attacked.address(), 1, b"");
    for context in [b"".as_slice(), b"c", b"sixteen bytes xx"] {
        peer.write_all(&raw::command(&[b"\x04PING\0\0", context].concat())).unwrap();
        let pong = raw::command(&[b"\x04PONG", context].concat());
        assert_eq!(raw::read(&mut peer, pong.len()), pong);
    }
    // A TTL of three tenths of a second.
    let asked = Instant::now();
    peer.write_all(&raw::command(b"\x04PING\0\x03")).unwrap();
    raw::read_until_closed(&mut peer);
    assert!(asked.elapsed() >= Duration::from_millis(300));
    attacked.wait_for_disconnections("vanished", 1);
    attacked.assert_unharmed();
}

#[test]
fn idle_peers_that_know_ping_are_pinged_and_closed_once_they_have_vanished() {
    let mut attacked = Attacked::start(&["--heartbeat-interval", "1s"]);
    let ping = raw::command(b"\x04PING\0\0");
    let pong = raw::command(b"\x04PONG");
    let mut old = raw::dealer(attacked.address(), 0, b"");
    let mut unaware = raw::dealer(attacked.address(), 1, b"");
    let [mut vanished, mut quiet] = [(); 2].map(|()| {
        let mut peer = raw::dealer(attacked.address(), 1, b"");
        peer.write_all(&ping).unwrap();
        assert_eq!(raw::read(&mut peer, pong.len()), pong);
        peer
    });
    let mut pinged = 0;
    while attacked.disconnections("vanished") == 0.0 || pinged < 3 {
        assert_eq!(raw::read(&mut quiet, ping.len()), ping);
        quiet.write_all(&pong).unwrap();
        pinged += 1;
    }
    assert_eq!(raw::read_until_closed(&mut vanished), ping.len() as u64);
    // One peer does not know PING, and the other has not shown that it does, so nothing but the
    // reply came.
    raw::echoes(&mut old, &raw::frame(b"still here", false));
    raw::echoes(&mut unaware, &raw::frame(b"still here", false));
    drop(quiet);
    wait_until("the vanished peer is disconnected", || attacked.metric("zmq_echo_peers") == 3.0);
    attacked.assert_unharmed();
}
