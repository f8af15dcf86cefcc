//! Drains with slow peers, and the report about requests that were not answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value as Json;
use socket2::SockRef;

use crate::support::{Server, raw, wait_until};

/// The quiet period of these tests. It does not limit the peers: however slow they are, they must
/// be served.
const QUIET: &str = "1s";

/// A deadline that is long enough for any machine.
const TIMEOUT: &str = "60s";

const ANSWERED: &str = "zmq_echo_requests_total{source=\"client\"}";

fn server() -> Server {
    Server::start(&["--drain-quiet", QUIET, "--drain-timeout", TIMEOUT])
}

/// Reads this many bytes, in pieces, at `rate` bytes/s.
fn read_slowly(stream: &mut TcpStream, count: usize, rate: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let started = Instant::now();
    let mut at = 0;
    while at < count {
        let end = count.min(at + 4096);
        let more = stream.read(&mut bytes[at..end]).expect("more bytes arrive in time");
        assert!(more > 0, "the server closed after {at} of {count} bytes");
        at += more;
        wait_for(started + Duration::from_secs_f64(at as f64 / rate as f64));
    }
    bytes
}

fn wait_for(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// Checks that the drain ended, that no reply was owed, and that no request was discarded or lost.
#[track_caller]
fn assert_all_answered(server: &mut Server) -> Json {
    let code = server.wait();
    let drained = server.wait_for_record("drained");
    let none = ["owed", "owed_bytes", "discarded", "discarded_bytes", "lost"];
    for field in none {
        assert_eq!(drained[field], 0, "{field}: {drained}");
    }
    assert_eq!(code, 0, "{drained}");
    assert_ne!(drained["reason"], "deadline", "{drained}");
    assert!(
        drained.get("undelivered").is_none(),
        "the record reports undelivered requests: {drained}"
    );
    drained
}

/// Pipelines this many requests of 48 KiB on a connection with small kernel buffers, which hold few
/// of them. Returns once the server replies.
fn pipeline(server: &Server, count: usize) -> (TcpStream, Vec<u8>) {
    let peer = raw::dealer(server.address(), 0, b"pipeline");
    let request = raw::frame(&[6; 48 << 10], false);
    let (mut writer, requests) = (peer.try_clone().unwrap(), request.clone());
    thread::spawn(move || (0..count).try_for_each(|_| writer.write_all(&requests)));
    server.wait_for_metric(ANSWERED, |answered| answered > 0.0);
    (peer, request)
}

/// Sends SIGTERM, and lets nothing move for more than twice the quiet period. These tests are about
/// time.
fn drain_while_nothing_moves(server: &Server) {
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    thread::sleep(Duration::from_millis(2600));
}

#[test]
fn a_client_that_reads_slowly_gets_all_replies_to_what_it_pipelined() {
    const REQUESTS: usize = 117;
    let mut server = server();
    let (mut peer, request) = pipeline(&server, REQUESTS);
    server.signal(Signal::TERM);
    for number in 0..REQUESTS {
        let reply = read_slowly(&mut peer, request.len(), 270 << 10);
        assert!(reply == request, "reply {number} differs from its request");
    }
    assert_eq!(raw::read_until_closed(&mut peer), 0);
    drop(peer);
    let drained = assert_all_answered(&mut server);
    // The first requests were answered before the signal.
    assert!(
        drained["answered"].as_u64().unwrap() > REQUESTS as u64 / 2,
        "too few requests were answered during the drain: {drained}"
    );
}

#[test]
fn a_client_that_pauses_longer_than_the_quiet_period_and_then_reads_gets_all_replies() {
    const REQUESTS: usize = 140;
    let mut server = server();
    let (mut peer, request) = pipeline(&server, REQUESTS);
    drain_while_nothing_moves(&server);
    for number in 0..REQUESTS {
        assert!(
            raw::read(&mut peer, request.len()) == request,
            "reply {number} differs from its request"
        );
    }
    assert_eq!(raw::read_until_closed(&mut peer), 0);
    drop(peer);
    assert_all_answered(&mut server);
}

#[test]
fn a_message_that_is_still_arriving_is_awaited_and_answered() {
    let mut server = server();
    let mut peer = raw::connect(server.address(), b"upload");
    let message = raw::frame(&[8; 3 << 19], false);
    let started = Instant::now();
    for (number, piece) in message.chunks(4096).enumerate() {
        peer.write_all(piece).expect("the draining server still reads the message");
        if number == 1 {
            server.wait_for_metric("zmq_echo_buffered_bytes", |held| held > 0.0);
            server.signal(Signal::TERM);
        }
        wait_for(started + Duration::from_secs_f64((number * 4096) as f64 / 400_000.0));
    }
    assert!(raw::read(&mut peer, message.len()) == message);
    assert_eq!(raw::read_until_closed(&mut peer), 0);
    drop(peer);
    let drained = assert_all_answered(&mut server);
    assert_eq!(drained["answered"], 1, "{drained}");
}

#[test]
fn a_message_that_pauses_halfway_for_longer_than_the_quiet_period_is_awaited() {
    let mut server = server();
    let mut peer = raw::connect(server.address(), b"");
    let message = raw::frame(&[8; 1000], false);
    peer.write_all(&message[..500]).unwrap();
    server.wait_for_metric("zmq_echo_buffered_bytes", |held| held > 0.0);
    drain_while_nothing_moves(&server);
    peer.write_all(&message[500..]).unwrap();
    assert!(raw::read(&mut peer, message.len()) == message);
    drop(peer);
    assert_all_answered(&mut server);
}

#[test]
fn requests_that_come_after_the_half_close_are_counted_as_discarded_and_exit_4() {
    let mut server = server();
    let mut peer = raw::connect(server.address(), b"late");
    let mut other = raw::connect(server.address(), b"also late");
    raw::echoes(&mut peer, &raw::frame(b"in time", false));
    server.signal(Signal::TERM);
    assert_eq!(raw::read_until_closed(&mut peer), 0, "bytes came before the server's FIN");
    // Longer than any pause: the peer reads until the server closes.
    for number in 1..=3 {
        thread::sleep(Duration::from_millis(400));
        peer.write_all(&raw::frame(b"too late", false)).expect("the server still reads");
        server.wait_for_metric("zmq_echo_discarded_requests_total", |n| n == f64::from(number));
    }
    assert_eq!(raw::read_until_closed(&mut other), 0, "bytes came before the server's FIN");
    other.write_all(&raw::message(&[b"one", b"and another", b"frame"])).unwrap();
    other.write_all(&raw::command(b"\x04PING\0\0")).unwrap();
    server.wait_for_metric("zmq_echo_discarded_requests_total", |n| n == 4.0);
    assert_eq!(server.metric("zmq_echo_discarded_bytes_total"), 0.0);
    assert!(server.is_running());
    drop((peer, other));
    assert_eq!(server.wait(), 4);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "quiet", "{drained}");
    assert_eq!(drained["discarded"], 4, "{drained}");
    for field in ["answered", "owed", "owed_bytes", "discarded_bytes", "lost"] {
        assert_eq!(drained[field], 0, "{field}: {drained}");
    }
}

#[test]
fn an_incomplete_message_after_the_half_close_is_reported_in_bytes() {
    let mut server = server();
    let mut peer = raw::connect(server.address(), b"");
    server.signal(Signal::TERM);
    assert_eq!(raw::read_until_closed(&mut peer), 0, "bytes came before the server's FIN");
    let begun = &raw::frame(&[1; 100_000], false)[..60_000];
    peer.write_all(&[&raw::frame(b"whole", false), begun].concat()).unwrap();
    server.wait_for_metric("zmq_echo_discarded_requests_total", |n| n == 1.0);
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.wait(), 4);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["discarded"], 1, "{drained}");
    assert_eq!(drained["discarded_bytes"], begun.len(), "{drained}");
    assert_eq!(drained["owed"], 0, "{drained}");
}

#[test]
fn pings_and_silence_after_the_half_close_discard_nothing() {
    let mut server = Server::start(&["--drain-quiet", QUIET, "--drain-timeout", "5s"]);
    let mut pings = raw::dealer(server.address(), 1, b"pings");
    let mut stays = raw::dealer(server.address(), 1, b"stays open");
    server.signal(Signal::TERM);
    assert_eq!(raw::read_until_closed(&mut stays), 0, "bytes came before the server's FIN");
    assert_eq!(raw::read_until_closed(&mut pings), 0, "bytes came before the server's FIN");
    // The last message is incomplete.
    let ping = raw::command(b"\x04PING\0\0");
    pings.write_all(&[ping.repeat(10), ping[..3].to_vec()].concat()).unwrap();
    drop(pings);
    // The other peer never closes, so its time runs out, but it has lost nothing.
    assert_eq!(server.wait(), 0);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "quiet", "{drained}");
    for field in ["owed", "owed_bytes", "discarded", "discarded_bytes", "lost"] {
        assert_eq!(drained[field], 0, "{field}: {drained}");
    }
}

#[test]
fn replies_abandoned_by_a_peer_that_left_do_not_prevent_exit_0() {
    let mut server = Server::start(&["--drain-quiet", "5s", "--drain-timeout", TIMEOUT]);
    let mut stays = raw::connect(server.address(), b"stays");
    let mut leaves = [raw::dealer(server.address(), 0, b"leaves")];
    server.flood_until_stuck(&mut leaves, &raw::frame(&[4; 64 << 10], false));
    let pending = server.metric("zmq_echo_pending_replies") as u64;
    assert!(pending > 0);
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    for peer in leaves {
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_until("the peer is disconnected", || server.metric("zmq_echo_peers") == 1.0);
    let gone = server.metric("zmq_echo_undeliverable_total{reason=\"peer_gone\"}");
    assert!(
        gone >= pending as f64,
        "{pending} replies were pending, but only {gone} are counted as lost"
    );
    raw::echoes(&mut stays, &raw::frame(b"still served", false));
    drop(stays);
    assert_eq!(server.wait(), 0);
    let drained = server.wait_for_record("drained");
    assert!(
        drained["lost"].as_u64().unwrap() >= pending,
        "the record reports fewer than the {pending} lost replies: {drained}"
    );
    for field in ["owed", "owed_bytes", "discarded", "discarded_bytes"] {
        assert_eq!(drained[field], 0, "{field}: {drained}");
    }
}

#[test]
fn replies_that_a_connected_peer_does_not_read_are_owed_and_make_it_exit_4() {
    let mut server = Server::start(&["--drain-quiet", "200ms", "--drain-timeout", "3s"]);
    let mut stuck = [raw::dealer(server.address(), 0, b"stuck")];
    server.flood_until_stuck(&mut stuck, &raw::frame(&[4; 64 << 10], false));
    let pending = server.metric("zmq_echo_pending_replies") as u64;
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 4);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "deadline", "{drained}");
    assert!(
        drained["owed"].as_u64().unwrap() >= pending,
        "the record reports fewer than the {pending} owed replies: {drained}"
    );
    assert!(
        drained["owed_bytes"].as_u64().unwrap() >= pending * (64 << 10),
        "the record reports fewer bytes than are owed: {drained}"
    );
    // Its next requests are in the server's kernel, because the server stopped reading from it.
    assert!(
        drained["discarded_bytes"].as_u64().unwrap() > 0,
        "the record reports no discarded bytes: {drained}"
    );
    assert_eq!(drained["lost"], 0, "{drained}");
    drop(stuck);
}

/// Repeats an action during a drain, and checks that the drain ends as if the action did not
/// happen.
#[track_caller]
fn assert_not_prolonged_by(mut server: Server, mut again: impl FnMut()) {
    let mut quiet = raw::dealer(server.address(), 0, b"");
    quiet.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    server.signal(Signal::TERM);
    loop {
        again();
        match quiet.read(&mut [0]) {
            Ok(0) => break,
            Ok(_) => panic!("the quiet peer received something"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    // Every peer has read the server's FIN, or will read it, and now disconnects.
    drop((again, quiet));
    server.wait();
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "quiet", "{drained}");
}

fn start_with_short_deadline() -> Server {
    Server::start(&["--drain-quiet", QUIET, "--drain-timeout", "30s", "--handshake-timeout", "1h"])
}

#[test]
fn pings_do_not_prolong_the_drain() {
    let server = start_with_short_deadline();
    let mut peers = [0, 1].map(|_| raw::dealer(server.address(), 1, b""));
    assert_not_prolonged_by(server, move || {
        for peer in &mut peers {
            let _ = peer.write_all(&raw::command(b"\x04PING\0\0"));
        }
    });
}

#[test]
fn pings_that_arrive_in_pieces_do_not_prolong_the_drain() {
    let server = start_with_short_deadline();
    let mut peers = [0, 1].map(|_| raw::dealer(server.address(), 1, b""));
    let ping = raw::command(b"\x04PING\0\0");
    // At any moment, one of the two peers has sent part of a PING.
    let mut at = [0, ping.len() / 2];
    assert_not_prolonged_by(server, move || {
        for (peer, at) in peers.iter_mut().zip(&mut at) {
            let _ = peer.write_all(&ping[*at..*at + 1]);
            *at = (*at + 1) % ping.len();
        }
    });
}

#[test]
fn an_endless_handshake_does_not_prolong_the_drain() {
    let server = start_with_short_deadline();
    let mut peer = raw::stream(server.address());
    let hello = raw::hello(1, "DEALER", &[b'i'; 255]);
    let mut at = 0;
    assert_not_prolonged_by(server, move || {
        if at + 1 < hello.len() {
            let _ = peer.write_all(&hello[at..at + 1]);
            at += 1;
        }
    });
}

#[test]
fn a_probe_does_not_prolong_the_drain() {
    let server = start_with_short_deadline();
    let mut probe = raw::dealer(server.address(), 1, b"zmq-echo-probe/test");
    assert_not_prolonged_by(server, move || {
        let request = raw::frame(b"alive?", false);
        if probe.write_all(&request).is_ok() {
            let _ = probe.read_exact(&mut vec![0; request.len()]);
        }
    });
}
