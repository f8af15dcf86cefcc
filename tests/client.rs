//! The client: what it promises of spreading, draining, retries and bounds.

use prometheus::Registry;
use zmq_echo::client::discovery::Fixed;
use zmq_echo::client::{Client, ClientConfig, ClientMetrics};

use crate::support::Server;

#[tokio::test]
async fn a_request_is_answered_by_an_endpoint_that_is_named() {
    let server = Server::start(&[]);
    let discovery = Fixed::new([server.endpoint.parse().unwrap()]);
    let metrics = ClientMetrics::new(&Registry::new()).unwrap();
    let client = Client::new(ClientConfig::default(), Box::new(discovery), metrics);
    let reply = client.request("hello".into()).await.unwrap();
    assert_eq!(reply.payload, "hello");
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
    assert_eq!(reply.attempts, 1);
    client.close().await;
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}
