//! A peer whose host disappears without a FIN or a reset.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;
use tokio::time::timeout;
use zmtp::Reason;
use zmtp::dealer::{DealerConfig, connect_to};

use crate::namespace::{Namespace, Network, SERVER};
use crate::support::{DEADLINE, Server, raw, runtime, wait_until};

/// While replies are pending, a host that has disappeared is noticed within this time.
const NOTICED: Duration = Duration::from_secs(120);

/// Runs `test` on a server's host, with `each` peers of both kinds on another host: those that know
/// PING (ZMTP 3.1) and those that do not (3.0).
fn with_peers_elsewhere(
    args: &[&str],
    each: usize,
    test: impl FnOnce(&Network, &Server, &mut [TcpStream]) + Send,
) {
    let network = Network::new();
    network.server.run(|| {
        let server = Server::start_on(&format!("tcp://{SERVER}:0"), args);
        let minors = (0..2 * each).map(|number| (number % 2) as u8);
        let dealer = |minor| raw::dealer(server.address(), minor, b"");
        let mut peers: Vec<_> = network.peer.run(|| minors.map(dealer).collect());
        test(&network, &server, &mut peers);
    });
}

fn disconnections(server: &Server, reason: &str) -> f64 {
    server.metric(&format!("zmq_echo_disconnections_total{{reason=\"{reason}\"}}"))
}

#[track_caller]
fn assert_closed_as_vanished(server: &Server, count: usize, within: Duration) {
    let deadline = Instant::now() + within;
    while server.metric("zmq_echo_peers") > 0.0 {
        assert!(
            Instant::now() < deadline,
            "after {within:?}, {} of {count} vanished peers are still connected",
            server.metric("zmq_echo_peers")
        );
        thread::sleep(Duration::from_millis(100));
    }
    let reasons = ["vanished", "stalled", "error", "closed", "pool_full"];
    let counts = reasons.map(|reason| (reason, disconnections(server, reason)));
    assert_eq!(counts[0].1, count as f64, "not every peer is counted as vanished: {counts:?}");
    assert_eq!(server.metric("zmq_echo_pending_replies"), 0.0);
    assert_eq!(server.metric("zmq_echo_buffered_bytes"), 0.0);
}

#[test]
fn a_peer_that_does_not_read_is_closed_within_two_minutes_of_its_hosts_disappearing() {
    with_peers_elsewhere(&[], 1, |network, server, peers| {
        let taken = server.flood_until_stuck(peers, &raw::frame(&[3; 64 << 10], false));
        assert!(
            taken.iter().all(|taken| !taken.closed),
            "a peer was closed before its host vanished: {taken:?}"
        );
        network.cut();
        assert_closed_as_vanished(server, peers.len(), NOTICED);
    });
}

#[test]
fn a_peer_with_replies_in_flight_is_closed_within_two_minutes_of_its_hosts_disappearing() {
    with_peers_elsewhere(&["--socket-buffer", "64KiB"], 2, |network, server, peers| {
        // The requests are in the server's kernel when the cable is unplugged, and their replies
        // are sent afterwards. Some replies fit into the kernel's buffer and some do not.
        server.signal(Signal::STOP);
        let sizes = [64, 64, 48 << 10, 48 << 10];
        for (peer, size) in peers.iter_mut().zip(sizes) {
            peer.write_all(&raw::frame(&vec![5; size], false)).unwrap();
            wait_until_acknowledged(&network.peer, peer.local_addr().unwrap(), Side::Local);
        }
        network.cut();
        server.signal(Signal::CONT);
        server.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |count| count == 4.0);
        assert_closed_as_vanished(server, peers.len(), NOTICED);
    });
}

#[test]
fn an_idle_peer_is_closed_a_few_heartbeats_after_its_host_has_disappeared() {
    with_peers_elsewhere(&["--heartbeat-interval", "1s"], 1, |network, server, peers| {
        for peer in peers {
            raw::echoes(peer, &raw::frame(b"here", false));
            // An acknowledgement may be delayed, and a peer with unacknowledged data is not idle.
            wait_until_acknowledged(&network.server, peer.local_addr().unwrap(), Side::Remote);
        }
        network.cut();
        let started = Instant::now();
        server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
        // Three intervals by keepalive, two by PING; the rest is for a busy machine.
        let passed = started.elapsed();
        assert!(
            passed < Duration::from_secs(20),
            "the vanished peers were noticed only after {passed:?}"
        );
        assert!(
            disconnections(server, "vanished") >= 1.0,
            "the peer that knows PING is not counted as vanished"
        );
        assert_eq!(disconnections(server, "vanished") + disconnections(server, "error"), 2.0);
    });
}

#[test]
fn a_dealer_notices_within_seconds_that_its_server_has_disappeared_idle_or_not() {
    for outstanding in [false, true] {
        let network = Network::new();
        let server = network.server.run(|| Server::start_on(&format!("tcp://{SERVER}:0"), &[]));
        network.peer.run(|| {
            runtime().block_on(async {
                let config = DealerConfig { connect_timeout: DEADLINE, ..DealerConfig::default() };
                let mut dealer = connect_to(&[server.address()], &config).await.unwrap();
                dealer.send([Bytes::from_static(b"here")].into()).unwrap();
                dealer.recv().await.expect("the server replies");
                if outstanding {
                    // Its host acknowledges the request, but the stopped process does not answer.
                    server.stop();
                    dealer.send([Bytes::from_static(b"asked")].into()).unwrap();
                    assert!(timeout(Duration::from_millis(500), dealer.recv()).await.is_err());
                    assert_eq!(dealer.written(), 2);
                }
                network.cut_server();
                let started = Instant::now();
                let told = timeout(DEADLINE, dealer.recv())
                    .await
                    .expect("the client notices the stopped server");
                assert_eq!(told, Err(Reason::Vanished));
                // One interval and the timeout; the rest is for a busy machine.
                let passed = started.elapsed();
                assert!(
                    passed < Duration::from_secs(20),
                    "the stopped server was noticed only after {passed:?}"
                );
                eprintln!("noticed after {passed:?}, outstanding {outstanding}");
            });
        });
    }
}

/// Which end of a connection to look for by its address.
#[derive(Clone, Copy)]
enum Side {
    Local = 1,
    Remote = 2,
}

/// Waits until everything that `host` has sent on a connection is acknowledged.
fn wait_until_acknowledged(host: &Namespace, address: SocketAddr, side: Side) {
    let port = format!(":{:04X}", address.port());
    wait_until("everything that was sent is acknowledged", || {
        let table = host.run(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|fields| fields[side as usize].ends_with(&port));
        // The columns of the bytes that are not acknowledged and those that are not read.
        line.expect("the kernel lists the connection")[4].starts_with("00000000:")
    });
}
