//! What discovery names is an endpoint that a client can use: a real server answers there.

use prometheus::Registry;
use tokio::time::timeout;
use zmq_echo_client::{Client, ClientConfig, ClientMetrics};

use crate::support::api_server::{ApiServer, Condition};
use crate::support::{DEADLINE, Server};

#[tokio::test]
async fn an_ipv6_endpoint_of_an_endpoint_slice_answers() {
    let server = Server::start_on("tcp://[::1]:0", &[]);
    let api = ApiServer::start();
    api.say(server.address(), Condition::Ready);
    let source = ApiServer::source(&api.kubeconfig()).await;
    let metrics = ClientMetrics::new(&Registry::new()).unwrap();
    let client = Client::new(ClientConfig::default(), Box::new(source), metrics);
    timeout(DEADLINE, client.ready()).await.expect("the endpoint is usable");
    let reply = client.request("a".into()).await.unwrap();
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
}
