//! The library's own client works with the ROUTERs of other servers.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use zmq_echo_client::discovery::Fixed;
use zmq_echo_client::{Client, ClientConfig, ClientMetrics, State};
use zmq_echo_compare::process::Server;

use crate::support::{PATIENCE, compared, server};

const CALLERS: usize = 50;
const REQUESTS_EACH: usize = 500;

fn client(servers: &[Server]) -> Client {
    let endpoints = servers
        .iter()
        .map(|server| server.endpoint().parse().expect("the server prints a valid endpoint"));
    let config =
        ClientConfig { timeout: PATIENCE, deadline: Some(PATIENCE), ..ClientConfig::default() };
    let metrics = ClientMetrics::new(&prometheus::Registry::new()).expect("the registry is new");
    Client::new(config, Box::new(Fixed::new(endpoints)), metrics)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not true within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

fn ready(client: &Client) -> usize {
    client.endpoints().iter().filter(|at| at.state == State::Ready).count()
}

fn answered(client: &Client) -> u64 {
    client.endpoints().iter().map(|at| at.answered).sum()
}

/// Checks payloads of many sizes, and many concurrent requests while one of the servers is killed.
/// Every request must get its own reply.
async fn assert_served_by(mut servers: Vec<Server>) {
    let client = client(&servers);
    until("all servers are ready", || ready(&client) == servers.len()).await;
    for size in [0, 1, 255, 256, 65_535, 1 << 20] {
        let payload = vec![7; size];
        let reply = client.request(payload.clone().into()).await.expect("the request is answered");
        assert!(reply.payload == payload, "{size} bytes came back changed");
    }
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| tokio::spawn(ask(client.clone(), caller))).collect();
    until("the concurrent requests are in progress", || answered(&client) > REQUESTS_EACH as u64)
        .await;
    drop(servers.pop());
    for caller in callers {
        caller.await.expect("each request gets its own reply");
    }
    until("the killed server is no longer used", || ready(&client) == servers.len()).await;
    client.close().await;
}

async fn ask(client: Client, caller: usize) {
    for number in 0..REQUESTS_EACH {
        let payload = format!("{caller} {number}");
        let reply = client.request(payload.clone().into()).await.expect("the request is answered");
        assert_eq!(reply.payload, payload);
        assert!(
            reply.attempts <= 2,
            "the killed server cost a request {} attempts",
            reply.attempts
        );
    }
}

fn run(start: impl Fn() -> Server) {
    let servers = (0..3).map(|_| start()).collect();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(assert_served_by(servers));
}

#[test]
fn the_client_is_served_by_the_server() {
    run(|| server(&[]));
}

#[test]
fn the_client_is_served_by_libzmq() {
    run(|| compared("libzmq"));
}

#[test]
fn the_client_is_served_by_the_crate() {
    run(|| compared("crate"));
}
