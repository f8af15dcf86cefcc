//! Every endpoint gets its share, including one that has just appeared.

use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::{ClientConfig, State};

use super::peers::Peer;
use super::{Counted, Got, Publisher, fixed, patient, until};
use crate::support::Server;

/// The share of the replies that came from an endpoint.
fn share(got: &[Got], endpoint: &str) -> f64 {
    let replies = got.iter().map(|got| got.reply.as_ref().expect("every request is answered"));
    let from = replies.filter(|reply| reply.endpoint.to_string() == endpoint).count();
    from as f64 / got.len() as f64
}

#[tokio::test]
async fn after_scaling_from_one_server_to_three_each_gets_its_share() {
    // All servers are on this thread, so none is slower because of the machine.
    let peers = [
        Peer::start(|request| vec![request]).await,
        Peer::start(|request| vec![request]).await,
        Peer::start(|request| vec![request]).await,
    ];
    let [first, second, third] = [0, 1, 2].map(|at| peers[at].endpoint.as_str());
    let (publisher, source) = Publisher::new();
    publisher.publish(&[(first, Ready)]);
    let client = Counted::new(patient(), source);
    let alone = client.load(20, client.wait_for_answers(500.0)).await;
    assert_eq!(share(&alone, first), 1.0);
    publisher.publish(&[(first, Ready), (second, Ready), (third, Ready)]);
    let changes = client.client.changes();
    let usable = || changes.borrow().len() == 3;
    let meanwhile = client.load(20, until("all three endpoints are usable", usable)).await;
    assert!(meanwhile.iter().all(|got| got.reply.is_ok()));
    let together = client.load(20, client.wait_for_answers(2000.0)).await;
    let shares = [first, second, third].map(|endpoint| share(&together, endpoint));
    assert!(
        shares.iter().all(|share| (0.25..=0.42).contains(share)),
        "the endpoints do not get equal shares: {shares:?}"
    );
}

#[tokio::test]
async fn the_endpoint_with_fewer_open_requests_is_chosen() {
    // One peer never replies, so its requests stay open.
    let (silent, echo) = (Peer::silent().await, Peer::start(|request| vec![request]).await);
    let client = Counted::new(patient(), fixed(&[&silent.endpoint, &echo.endpoint]));
    client.wait_for_state(&silent.endpoint, Some(State::Ready)).await;
    client.wait_for_state(&echo.endpoint, Some(State::Ready)).await;
    let held = || client.outstanding(&silent.endpoint);
    // With only two endpoints, both are drawn. The silent one gets a request while the other has
    // none open, and no second one.
    let first = client.client.clone();
    let waiting = tokio::spawn(async move {
        loop {
            first.request("until one is held".into()).await.expect("the request does not time out");
        }
    });
    until("the silent peer holds one request", || held() == 1).await;
    for _ in 0..200 {
        assert_eq!(*client.request("next").await.unwrap().endpoint.to_string(), echo.endpoint);
    }
    assert_eq!(held(), 1);
    waiting.abort();
}

#[tokio::test]
async fn a_check_is_not_counted_as_load_by_the_server() {
    let server = Server::start(&[]);
    let config = ClientConfig { retries: 0, ..super::hasty() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    assert!(client.request("too early").await.is_err());
    assert_eq!(client.state(&server.endpoint), Some(State::Suspect));
    server.signal(rustix::process::Signal::CONT);
    client.wait_for_state(&server.endpoint, Some(State::Ready)).await;
    assert!(server.metric("zmq_echo_requests_total{source=\"probe\"}") >= 1.0);
    let requests = "zmq_echo_requests_total{source=\"client\"}";
    until("the client's own request is counted", || server.metric(requests) == 1.0).await;
    assert_eq!(client.metric("zmq_echo_client_checks_total{outcome=\"answered\"}"), 1.0);
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 1.0);
}

#[tokio::test]
async fn endpoints_beyond_the_limit_are_not_connected_to() {
    let peers = [
        Peer::start(|request| vec![request]).await,
        Peer::start(|request| vec![request]).await,
        Peer::start(|request| vec![request]).await,
    ];
    let endpoints = [0, 1, 2].map(|at| peers[at].endpoint.as_str());
    let config = ClientConfig { max_endpoints: 2, ..patient() };
    let client = Counted::new(config, fixed(&endpoints));
    until("two endpoints are usable", || client.metric("zmq_echo_client_endpoints_usable") == 2.0)
        .await;
    assert_eq!(client.metric("zmq_echo_client_endpoints_known"), 3.0);
    assert_eq!(client.client.endpoints().len(), 2);
}
