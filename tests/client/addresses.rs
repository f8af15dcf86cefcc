//! Endpoints with several addresses, and changes to an endpoint.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use zmq_echo_client::discovery::Endpoint;
use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::{Backoff, ClientConfig, State};

use super::{Counted, Publisher, hasty, parse, patient, started, until};
use crate::support::Server;

const KEY: &str = "tcp://pod-1.invalid:5555";

impl Publisher {
    /// One endpoint with these addresses.
    fn publish_addresses(&self, addresses: &[SocketAddr]) {
        self.publish_endpoint(Endpoint::new(Ready, addresses.to_vec()));
    }

    fn publish_endpoint(&self, endpoint: Endpoint) {
        self.0.send_replace([(parse(KEY), endpoint)].into());
    }
}

/// An address with no listener.
fn refuses() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_endpoint_is_reached_through_any_of_its_addresses() {
    for bind in ["tcp://127.0.0.1:0", "tcp://[::1]:0"] {
        let server = Server::start_on(bind, &[]);
        let (publisher, source) = Publisher::new();
        publisher.publish_addresses(&[refuses(), server.address()]);
        let client = Counted::new(patient(), source);
        let reply = client.request("hello").await.unwrap();
        assert_eq!(reply.payload, "hello");
        assert_eq!(reply.endpoint.to_string(), KEY, "the endpoint is not named by its key");
        assert_eq!(client.metric("zmq_echo_client_endpoints_known"), 1.0);
        let changes = client.client.changes();
        assert_eq!(changes.borrow()[&parse(KEY)].addresses[1], server.address());
    }
}

#[tokio::test]
async fn a_new_connection_uses_the_newest_addresses() {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let (publisher, source) = Publisher::new();
    publisher.publish_addresses(&[old.address()]);
    let client = Counted::new(patient(), source);
    client.request("hello").await.unwrap();
    publisher.publish_addresses(&[new.address()]);
    client.request("the connection stays").await.unwrap();
    old.signal(rustix::process::Signal::KILL);
    client.wait_for_state(KEY, Some(State::Ready)).await;
    assert_eq!(client.request("hello again").await.unwrap().endpoint.to_string(), KEY);
    new.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |count| count >= 1.0);
}

#[tokio::test]
async fn a_suspect_endpoint_is_checked_at_its_addresses() {
    let server = started().await;
    let (publisher, source) = Publisher::new();
    publisher.publish_addresses(&[refuses(), server.address()]);
    let client = Counted::new(hasty(), source);
    client.client.ready().await;
    server.stop();
    let late = client.spawn("late");
    client.wait_for_state(KEY, Some(State::Suspect)).await;
    server.signal(rustix::process::Signal::CONT);
    client.wait_for_state(KEY, Some(State::Ready)).await;
    assert!(client.metric("zmq_echo_client_checks_total{outcome=\"answered\"}") >= 1.0);
    let _ = late.await.unwrap();
}

/// Connection attempts and checks happen only once per hour.
fn idle() -> ClientConfig {
    let hour = Duration::from_secs(3600);
    ClientConfig { reconnect_backoff: Backoff::new(hour, hour), ..hasty() }
}

fn doubtful(addresses: &[SocketAddr]) -> Endpoint {
    Endpoint { doubtful: true, ..Endpoint::new(Ready, addresses.to_vec()) }
}

#[tokio::test]
async fn an_endpoint_that_becomes_ready_is_connected_to_at_once() {
    let reserved = refuses();
    let (publisher, source) = Publisher::new();
    publisher.publish_endpoint(doubtful(&[reserved]));
    let client = Counted::new(idle(), source);
    let refused = "zmq_echo_client_connections_total{outcome=\"failed\"}";
    until("the first connection attempt was refused", || client.metric(refused) == 1.0).await;
    let server = Server::start_on(&format!("tcp://{reserved}"), &[]);
    publisher.publish_addresses(&[server.address()]);
    client.wait_for_state(KEY, Some(State::Ready)).await;
}

#[tokio::test]
async fn an_endpoint_with_new_addresses_is_connected_to_at_once() {
    let (publisher, source) = Publisher::new();
    publisher.publish_addresses(&[refuses()]);
    let client = Counted::new(idle(), source);
    let refused = "zmq_echo_client_connections_total{outcome=\"failed\"}";
    until("the first connection attempt was refused", || client.metric(refused) == 1.0).await;
    let server = Server::start(&[]);
    publisher.publish_addresses(&[server.address()]);
    client.wait_for_state(KEY, Some(State::Ready)).await;
}

#[tokio::test]
async fn a_suspect_endpoint_that_becomes_ready_is_checked_at_once() {
    let server = started().await;
    let (publisher, source) = Publisher::new();
    publisher.publish_endpoint(doubtful(&[server.address()]));
    let client = Counted::new(idle(), source);
    client.client.ready().await;
    server.stop();
    let late = client.spawn("late");
    client.wait_for_state(KEY, Some(State::Suspect)).await;
    server.signal(rustix::process::Signal::CONT);
    publisher.publish_addresses(&[server.address()]);
    client.wait_for_state(KEY, Some(State::Ready)).await;
    late.abort();
}
