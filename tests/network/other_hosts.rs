//! Peers on other hosts: what they are not trusted with, and what they cannot exhaust.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::namespace::{CABLE, Namespace, Network, PEER, SERVER};
use crate::support::{self, DEADLINE, Server, command, raw};

/// The second address of the peer's host.
const OTHER: &str = "10.11.0.3";

fn requests(server: &Server, source: &str) -> f64 {
    server.metric(&format!("zmq_echo_requests_total{{source=\"{source}\"}}"))
}

fn connect_from(host: &Namespace, address: &str, server: SocketAddr) -> TcpStream {
    host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address: IpAddr = address.parse().unwrap();
        socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
        socket.connect(&server.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    })
}

#[test]
fn a_peer_from_another_host_never_counts_as_a_probe() {
    let network = Network::new();
    network.server.run(|| {
        let server = Server::start_on("tcp://*:0", &[]);
        let port = server.address().port();
        let address = SocketAddr::new(SERVER.parse().unwrap(), port);
        let identity = b"zmq-echo-probe/x";
        let mut elsewhere = network.peer.run(|| raw::dealer(address, 0, identity));
        raw::echoes(&mut elsewhere, &raw::frame(b"load", false));
        server.wait_for_metric("zmq_echo_request_duration_seconds", |count| count == 1.0);
        assert_eq!((requests(&server, "client"), requests(&server, "probe")), (1.0, 0.0));
        // From the server's own host, by its address and by loopback.
        for ip in [SERVER, "127.0.0.1"] {
            // An identity of its own, because the server may not have noticed yet that the peer
            // before it has left.
            let identity = format!("zmq-echo-probe/{ip}");
            let address = SocketAddr::new(ip.parse().unwrap(), port);
            let mut here = raw::dealer(address, 0, identity.as_bytes());
            raw::echoes(&mut here, &raw::frame(b"check", false));
        }
        let probes = "zmq_echo_requests_total{source=\"probe\"}";
        server.wait_for_metric(probes, |count| count == 2.0);
        assert_eq!(requests(&server, "client"), 1.0);
    });
}

#[test]
fn another_host_cannot_switch_faults() {
    let network = Network::new();
    network.server.run(|| {
        let mut server = command(&support::TEST_SERVER);
        server.args(["--bind", "tcp://127.0.0.1:0", "--http", "*:0", "--faults"]);
        let server = Server::spawn(server);
        let port = server.http.port();
        let status = |ip: &str| {
            let mut stream = TcpStream::connect((ip, port)).unwrap();
            let head = "POST /faults HTTP/1.1\r\nHost: localhost\r\nX-Faults: 1";
            write!(stream, "{head}\r\nContent-Length: 0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.split(' ').nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!(network.peer.run(|| status(SERVER)), "403");
        // Not even from this host, if the request uses the address that other hosts use.
        assert_eq!(status(SERVER), "403");
        assert_eq!(status("127.0.0.1"), "200");
    });
}

#[test]
fn silent_connections_from_one_host_lock_out_neither_other_hosts_nor_the_probe() {
    let network = Network::new();
    network.peer.ip(&format!("address add {OTHER}/24 dev {CABLE}"));
    network.server.run(|| {
        let args = ["--peer-limit", "40", "--handshake-timeout", "1h"];
        let server = Server::start_on(&format!("tcp://{SERVER}:0"), &args);
        let silent = || connect_from(&network.peer, PEER, server.address());
        let _silent: Vec<TcpStream> = (0..100).map(|_| silent()).collect();
        // Eight places are reserved for the server's own host.
        let failures = "zmq_echo_handshake_failures_total{reason=\"peer_limit\"}";
        server.wait_for_metric(failures, |count| count == 100.0 - 32.0);
        let mut peers = Vec::new();
        for _ in 0..20 {
            let mut peer = connect_from(&network.peer, OTHER, server.address());
            raw::shake_hands(&mut peer, &raw::hello(0, "DEALER", b""));
            raw::echoes(&mut peer, &raw::frame(b"in", false));
            peers.push(peer);
        }
        server.wait_until_alive();
        server.wait_for_metric(failures, |count| count == 120.0 - 32.0);
    });
}

#[test]
fn the_address_limit_applies_to_other_hosts_only() {
    let network = Network::new();
    network.peer.ip(&format!("address add {OTHER}/24 dev {CABLE}"));
    network.server.run(|| {
        let server = Server::start_on(&format!("tcp://{SERVER}:0"), &["--address-limit", "2"]);
        let greeted = |stream: &mut TcpStream| stream.read_exact(&mut [0]).is_ok();
        let connect = |from: &str| connect_from(&network.peer, from, server.address());
        let mut streams = [PEER, PEER, OTHER, OTHER].map(connect);
        assert!(streams.iter_mut().all(greeted));
        assert!([PEER, OTHER].iter().all(|from| !greeted(&mut connect(from))));
        let failures = "zmq_echo_handshake_failures_total{reason=\"address_limit\"}";
        server.wait_for_metric(failures, |count| count == 2.0);
        let mut here: Vec<TcpStream> = (0..5).map(|_| raw::stream(server.address())).collect();
        assert!(here.iter_mut().all(greeted));
    });
}
