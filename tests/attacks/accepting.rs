//! Accepting survives: the peer limit, the end of the descriptors, churn.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Attacked, MEMORY};
use crate::support::{DEADLINE, SERVER, Server, command, wait_until, zmtp};

/// The descriptors of a server that may open few, and the peers that it fits to
/// them, eight of which are for its own host.
const FEW: usize = 64;
const PEERS: usize = 16;
const STRANGERS: usize = PEERS - 8;

/// A connection from another address of this host than the server's, which is as
/// strange to it as one from another host.
fn stranger(server: SocketAddr) -> TcpStream {
    let missing = "missing: an address of this host beside loopback, to come from as a stranger";
    // This sends nothing; it finds the address that a route would start from.
    let route = UdpSocket::bind("0.0.0.0:0").unwrap();
    route.connect("198.51.100.1:9").expect(missing);
    let own = route.local_addr().expect(missing).ip();
    assert!(!own.is_loopback(), "{missing}");
    connect_from(own, server)
}

fn connect_from(own: IpAddr, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket.connect(&server.into()).expect("the kernel accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Whether the server lets it in, which it shows by the start of its greeting.
fn is_greeted(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0; zmtp::GREETING_START]).is_ok()
}

/// A server that may open [`FEW`] files.
fn start_with_few_descriptors() -> Attacked {
    let mut server = command("sh");
    server.args(["-c", &format!("ulimit -n {FEW} && exec \"$0\" \"$@\""), SERVER]);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    // The silent stay however long the test takes.
    server.args(["--handshake-timeout", "1h"]);
    let attacked = Attacked::new(Server::spawn(server));
    assert_eq!(attacked.metric("zmq_echo_limit_peers"), PEERS as f64);
    attacked
}

#[test]
fn a_server_full_of_strangers_answers_its_own_probe_and_a_scrape() {
    let mut attacked = start_with_few_descriptors();
    // The neighbour, of this host, has one of the places that are for all.
    let mut inside: Vec<TcpStream> = (1..STRANGERS).map(|_| stranger(attacked.address())).collect();
    assert!(inside.iter_mut().all(is_greeted));
    for number in 1..=100 {
        let mut outside = stranger(attacked.address());
        assert!(!is_greeted(&mut outside), "stranger {number} is over the limit");
    }
    attacked.wait_for_failures("peer_limit", 100);
    attacked.passes_its_probe();
    attacked.serves_its_neighbour();
    attacked.rests();
    drop(inside);
    wait_until("there is room again", || is_greeted(&mut stranger(attacked.address())));
    attacked.is_unharmed();
}

#[test]
fn over_the_peer_limit_is_closed_at_once_and_counted_and_there_is_room_again() {
    let mut attacked = Attacked::start(&["--peer-limit", "30"]);
    let mut inside = zmtp::crowd(attacked.address(), 29);
    for number in 1..=100 {
        let mut outside = zmtp::stream(attacked.address());
        assert_eq!(zmtp::read_until_closed(&mut outside), 0);
        attacked.wait_for_failures("peer_limit", number);
    }
    attacked.serves_its_neighbour();
    attacked.rests();
    for peer in &mut inside {
        zmtp::echoes(peer, &zmtp::frame(b"still served", false));
    }
    inside.clear();
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
    let mut late = zmtp::crowd(attacked.address(), 28);
    late.iter_mut().for_each(|peer| zmtp::echoes(peer, &zmtp::frame(b"in", false)));
    attacked.is_unharmed();
}

#[test]
fn without_descriptors_it_rests_serves_those_inside_and_goes_on_when_there_are_some() {
    // The silent stay however long the test takes.
    let mut attacked = Attacked::start(&["--handshake-timeout", "1h"]);
    let pid = Pid::from_raw(attacked.pid as i32).unwrap();
    // The numbers of descriptors are taken from below.
    let few = attacked.descriptors() as u64 + 10;
    let limit = getrlimit(Resource::Nofile);
    let set = |current| {
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, ..limit }).expect("it is our child");
    };
    set(Some(few));
    let mut waiting: Vec<TcpStream> = (0..40).map(|_| zmtp::stream(attacked.address())).collect();
    wait_until("there are no descriptors", || attacked.descriptors() as u64 >= few);
    attacked.serves_its_neighbour();
    attacked.rests();
    attacked.serves_its_neighbour();
    set(limit.maximum);
    for peer in &mut waiting {
        zmtp::shake_hands(peer, &zmtp::hello(0, "DEALER", b""));
        zmtp::echoes(peer, &zmtp::frame(b"in at last", false));
    }
    attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 41.0);
    attacked.is_unharmed();
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let mut attacked = Attacked::start(&[]);
    let request = zmtp::frame(&[7; 1000], false);
    let churn = |from: usize, to: usize| {
        for number in from..to {
            let mut peer = TcpStream::connect(attacked.address()).unwrap();
            // No port of ours waits for two minutes after it.
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            let hello = zmtp::hello(number as u8 % 2, "DEALER", number.to_string().as_bytes());
            let bytes = [&hello, &request[..]].concat();
            // Whole, within its reply, within the handshake, and without a byte.
            let written = [bytes.len(), bytes.len(), hello.len() - 3, 0][number % 4];
            std::io::Write::write_all(&mut peer, &bytes[..written]).unwrap();
            if number % 4 == 0 {
                zmtp::read(&mut peer, zmtp::SERVER_HELLO + request.len());
            }
        }
        attacked.wait_for_metric("zmq_echo_peers", |peers| peers == 1.0);
        attacked.wait_for_metric("zmq_echo_buffered_bytes", |held| held == 0.0);
        wait_until("all are closed", || attacked.descriptors() < 25);
        attacked.memory("VmRSS")
    };
    let before = churn(0, 1000);
    let after = churn(1000, 11_000);
    eprintln!("resident: {} KiB after 1,000, {} KiB after 11,000", before >> 10, after >> 10);
    assert!(after < before + (2 << 20), "{before} bytes were resident, {after} now");
    assert!(after < MEMORY);
    attacked.is_unharmed();
}
