//! Peers of many kinds connect at the same time, and each gets its own replies.

use zeromq::{ReqSocket, Socket, SocketSend};
use zmtp::Dealer;
use zmtp::dealer::DealerConfig;

use crate::support::{Server, echo, message, receive};

#[tokio::test]
async fn the_librarys_dealer_works_in_place_of_the_crates() {
    let server = Server::start(&[]);
    let endpoint = server.endpoint.parse().unwrap();
    let mut dealer = Dealer::connect(&endpoint, &DealerConfig::default()).await.unwrap();
    for frames in [&[b"one".as_slice()][..], &[b"", b"two", b"three"]] {
        assert_eq!(echo(&mut dealer, message(frames)).await, frames);
    }
}

#[tokio::test]
async fn each_of_many_clients_gets_its_own_replies_in_order() {
    const CLIENTS: usize = 100;
    const REQUESTS: usize = 50;
    let server = Server::start(&[]);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut dealer = server.dealer().await;
        clients.spawn(async move {
            for request in 0..REQUESTS {
                dealer.send(format!("{client}/{request}").into()).await.unwrap();
            }
            for request in 0..REQUESTS {
                assert_eq!(receive(&mut dealer).await, [format!("{client}/{request}").as_bytes()]);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(
        server.metric("zmq_echo_requests_total{source=\"client\"}"),
        (CLIENTS * REQUESTS) as f64
    );
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
    assert_eq!(
        server.metric("zmq_echo_connections_total{outcome=\"established\"}"),
        CLIENTS as f64
    );
    assert_eq!(server.metric("zmq_echo_disconnections_total{reason=\"closed\"}"), CLIENTS as f64);
}

#[tokio::test]
async fn garbage_from_one_peer_closes_only_its_own_connection() {
    use std::io::{Read, Write};
    let server = Server::start(&[]);
    let mut dealer = server.dealer().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n                                                     "
            [..],
        &[0x16; 100],
    ] {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.write_all(garbage).unwrap();
        // The server has closed the connection, so both directions end.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(echo(&mut dealer, "still here".into()).await, [b"still here"]);
    server
        .wait_for_metric("zmq_echo_connections_total{outcome=\"failed\"}", |failed| failed == 2.0);
}

#[tokio::test]
async fn a_tcp_probe_is_neither_counted_as_a_fault_nor_logged() {
    let server = Server::start(&["--log-level", "debug"]);
    for _ in 0..20 {
        drop(std::net::TcpStream::connect(server.address()).unwrap());
    }
    let mut dealer = server.dealer().await;
    assert_eq!(echo(&mut dealer, "after the probes".into()).await, [b"after the probes"]);
    assert_eq!(server.metric("zmq_echo_connections_total{outcome=\"failed\"}"), 0.0);
    assert!(
        !server.lines().iter().any(|line| line.contains("handshake failed")),
        "a TCP probe was logged: {:?}",
        server.lines()
    );
}

#[tokio::test]
async fn a_wildcard_endpoint_serves_on_every_loopback_address() {
    let server = Server::start_on("tcp://*:0", &[]);
    let address = server.address();
    let mut hosts = vec!["127.0.0.1"];
    if address.is_ipv6() {
        hosts.push("[::1]");
    }
    for host in hosts {
        let mut req = ReqSocket::new();
        req.connect(&format!("tcp://{host}:{}", address.port())).await.unwrap();
        assert_eq!(echo(&mut req, "hello".into()).await, [b"hello"]);
    }
    server.wait_until_alive();
}
