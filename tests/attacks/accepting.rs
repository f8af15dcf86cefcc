//! The server continues to accept at the peer limit, without free descriptors, and under churn.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use socket2::{Domain, SockRef, Socket, Type};
use zmtp::newcomers::PATIENCE;

use super::{Attacked, MEMORY};
use crate::support::{DEADLINE, Server, TEST_SERVER, command, raw, wait_until};

/// The descriptor limit of a server with few files, and the peer limit that results from it. Eight
/// of those peers are reserved for the server's own host.
const FEW: usize = 64;
const PEERS: usize = 16;
const OPEN_PLACES: usize = PEERS - 8;

/// A connection from an address of this host that is not loopback. The server treats it as a peer
/// on another host.
pub fn connect_from_outside(server: SocketAddr) -> TcpStream {
    let missing =
        "this test needs an address of this host besides loopback, to connect as an untrusted peer";
    // This sends nothing; it finds out the source address that a route would use.
    let route = UdpSocket::bind("0.0.0.0:0").unwrap();
    route.connect("198.51.100.1:9").expect(missing);
    let own = route.local_addr().expect(missing).ip();
    assert!(!own.is_loopback(), "{missing}");
    connect_from(own, server)
}

fn connect_from(own: IpAddr, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket.connect(&server.into()).expect("the kernel accepts the connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Whether the server keeps the connection, which it shows by sending the start of its greeting.
fn is_greeted(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0; raw::GREETING_START]).is_ok()
}

/// Finishes the handshake of a peer that was greeted, and checks that it is served.
#[track_caller]
fn assert_served(stream: &mut TcpStream) {
    stream.write_all(&raw::hello(0, "DEALER", b"")).unwrap();
    raw::read(stream, raw::SERVER_HELLO - raw::GREETING_START);
    raw::echoes(stream, &raw::frame(b"in", false));
}

/// A server that may open only [`FEW`] files.
fn start_with_few_descriptors() -> Attacked {
    let mut server = command("sh");
    server.args(["-c", &format!("ulimit -n {FEW} && exec \"$0\" \"$@\""), &TEST_SERVER]);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    // The silent connections stay open however long the test takes.
    server.args(["--handshake-timeout", "1h"]);
    let attacked = Attacked::new(Server::spawn(server));
    assert_eq!(attacked.metric("zmq_echo_limit_peers"), PEERS as f64);
    attacked
}

#[test]
fn a_server_full_of_untrusted_peers_still_answers_its_own_probe_and_a_scrape() {
    let mut attacked = start_with_few_descriptors();
    // The well-behaved peer is on this host and uses one of the places that are open to all.
    let inside = established_from_outside(&attacked, OPEN_PLACES - 1);
    for number in 1..=100 {
        let mut outside = connect_from_outside(attacked.address());
        assert!(
            !is_greeted(&mut outside),
            "the server accepted untrusted peer {number}, which is over the limit"
        );
    }
    attacked.wait_for_failures("peer_limit", 100);
    attacked.assert_probe_succeeds();
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    drop(inside);
    wait_until("untrusted peers are accepted again once there is room", || {
        is_greeted(&mut connect_from_outside(attacked.address()))
    });
    attacked.assert_unharmed();
}

fn established_from_outside(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut outside: Vec<_> = (0..count).map(|_| connect_from_outside(server.address())).collect();
    let hello = raw::hello(0, "DEALER", b"");
    outside.iter_mut().for_each(|peer| raw::shake_hands(peer, &hello));
    outside
}

#[test]
fn silent_connections_do_not_lock_out_other_peers() {
    let mut attacked = Attacked::start(&["--peer-limit", "40", "--handshake-timeout", "1h"]);
    let _silent: Vec<TcpStream> = (0..200).map(|_| raw::stream(attacked.address())).collect();
    let mut served = raw::crowd(attacked.address(), 30);
    served.iter_mut().for_each(|peer| raw::echoes(peer, &raw::frame(b"in", false)));
    // For each connection beyond the forty, one handshake was closed, and no other handshake.
    attacked.wait_for_failures("peer_limit", 1 + 200 + 30 - 40);
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    attacked.assert_unharmed();
}

#[test]
fn silent_connections_from_one_address_do_not_use_up_the_places_of_another() {
    let attacked = Attacked::start(&["--peer-limit", "40", "--handshake-timeout", "1h"]);
    let (one, other) = ([127, 0, 0, 2].into(), [127, 0, 0, 3].into());
    let mut slow = connect_from(other, attacked.address());
    assert!(is_greeted(&mut slow));
    let silent = |count: usize| -> Vec<TcpStream> {
        (0..count).map(|_| connect_from(one, attacked.address())).collect()
    };
    let mut full = silent(40 - 2);
    assert!(full.iter_mut().all(is_greeted));
    // None of these is spared because it is new.
    thread::sleep(PATIENCE);
    let _more = silent(30);
    attacked.wait_for_failures("peer_limit", 30);
    // The oldest of all is still connected.
    assert_served(&mut slow);
}

#[test]
fn other_hosts_cannot_displace_a_handshake_from_this_host() {
    let attacked = start_with_few_descriptors();
    let _inside = established_from_outside(&attacked, OPEN_PLACES - 1);
    let mut probe = raw::stream(attacked.address());
    assert!(is_greeted(&mut probe));
    for number in 1..=20 {
        let mut outside = connect_from_outside(attacked.address());
        assert!(
            !is_greeted(&mut outside),
            "the server accepted untrusted peer {number}, which is over the limit"
        );
    }
    attacked.wait_for_failures("peer_limit", 20);
    assert_served(&mut probe);
}

#[test]
fn the_address_limit_applies_to_other_addresses_but_not_to_this_host() {
    let mut attacked = Attacked::start(&["--address-limit", "3"]);
    assert_eq!(attacked.metric("zmq_echo_limit_peers_per_address"), 3.0);
    let mut inside = established_from_outside(&attacked, 3);
    for number in 1..=10 {
        let mut outside = connect_from_outside(attacked.address());
        assert!(
            !is_greeted(&mut outside),
            "the server accepted connection {number}, which is over the address limit"
        );
        attacked.wait_for_failures("address_limit", number);
    }
    let mut here = raw::crowd(attacked.address(), 10);
    here.iter_mut().for_each(|peer| raw::echoes(peer, &raw::frame(b"in", false)));
    inside.pop();
    wait_until("the address is accepted again once there is room", || {
        is_greeted(&mut connect_from_outside(attacked.address()))
    });
    assert_eq!(attacked.failures("peer_limit"), 0.0);
    attacked.assert_unharmed();
}

#[test]
fn connections_over_the_peer_limit_are_closed_at_once_and_counted_until_there_is_room_again() {
    let mut attacked = Attacked::start(&["--peer-limit", "30"]);
    let mut inside = raw::crowd(attacked.address(), 29);
    for number in 1..=100 {
        let mut outside = raw::stream(attacked.address());
        assert_eq!(raw::read_until_closed(&mut outside), 0);
        attacked.wait_for_failures("peer_limit", number);
    }
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    for peer in &mut inside {
        raw::echoes(peer, &raw::frame(b"still served", false));
    }
    inside.clear();
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
    let mut late = raw::crowd(attacked.address(), 28);
    late.iter_mut().for_each(|peer| raw::echoes(peer, &raw::frame(b"in", false)));
    attacked.assert_unharmed();
}

#[test]
fn without_free_descriptors_it_idles_serves_connected_peers_and_accepts_again_later() {
    // The silent connections stay open however long the test takes.
    let mut attacked = Attacked::start(&["--handshake-timeout", "1h"]);
    let pid = Pid::from_raw(attacked.pid as i32).unwrap();
    // The kernel hands out the lowest free descriptor numbers first.
    let few = attacked.descriptors() as u64 + 10;
    let limit = getrlimit(Resource::Nofile);
    let set = |current| {
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, ..limit })
            .expect("the limits of a child process can be changed");
    };
    set(Some(few));
    let mut waiting: Vec<TcpStream> = (0..40).map(|_| raw::stream(attacked.address())).collect();
    wait_until("the server has used up its descriptors", || attacked.descriptors() as u64 >= few);
    attacked.assert_serves_others();
    attacked.wait_until_idle();
    attacked.assert_serves_others();
    set(limit.maximum);
    for peer in &mut waiting {
        raw::shake_hands(peer, &raw::hello(0, "DEALER", b""));
        raw::echoes(peer, &raw::frame(b"in at last", false));
    }
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 41.0);
    attacked.assert_unharmed();
}

#[test]
fn ten_thousand_connections_leak_nothing() {
    let mut attacked = Attacked::start(&[]);
    let request = raw::frame(&[7; 1000], false);
    let churn = |from: usize, to: usize| {
        for number in from..to {
            let mut peer = TcpStream::connect(attacked.address()).unwrap();
            // Avoid TIME_WAIT, which would block the local port for two minutes.
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            let hello = raw::hello(number as u8 % 2, "DEALER", number.to_string().as_bytes());
            let bytes = [&hello, &request[..]].concat();
            // Close after the whole exchange, during the reply, during the handshake, or without a
            // byte.
            let written = [bytes.len(), bytes.len(), hello.len() - 3, 0][number % 4];
            peer.write_all(&bytes[..written]).unwrap();
            if number % 4 == 0 {
                raw::read(&mut peer, raw::SERVER_HELLO + request.len());
            }
        }
        attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
        attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held == 0.0);
        wait_until("the server has closed all connections", || attacked.descriptors() < 25);
        attacked.memory("VmRSS")
    };
    let before = churn(0, 1000);
    let after = churn(1000, 11_000);
    eprintln!("resident: {} KiB after 1,000, {} KiB after 11,000", before >> 10, after >> 10);
    assert!(after < before + (2 << 20), "memory has grown from {before} to {after} bytes");
    assert!(after < MEMORY);
    attacked.assert_unharmed();
}
