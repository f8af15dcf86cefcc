//! Nothing grows: what is outstanding, what waits, what is sent.

use std::time::Duration;

use tokio::task::JoinHandle;
use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::{ClientConfig, Reply, RequestError, State, WhenFull};

use super::peers::Peer;
use super::{Counted, Teller, fixed, hasty, patient, until};
use crate::support::Server;

type Asked = JoinHandle<Result<Reply, RequestError>>;

/// A client with as many outstanding as may be, at a server that is stopped.
async fn full(config: ClientConfig) -> (Server, Counted, Vec<Asked>) {
    let server = Server::start(&[]);
    let outstanding = config.max_outstanding;
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    let asked = (0..outstanding).map(|_| client.spawn("payload")).collect();
    until("all are outstanding", || client.outstanding(&server.endpoint) == outstanding).await;
    (server, client, asked)
}

async fn all_answered(asked: Vec<Asked>) {
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().payload, "payload");
    }
}

#[tokio::test]
async fn when_all_is_full_a_caller_that_chose_so_is_refused_at_once() {
    let config = ClientConfig { max_outstanding: 5, when_full: WhenFull::Refuse, ..patient() };
    let (server, client, asked) = full(config).await;
    let refused = client.request("one too many").await;
    assert!(matches!(refused, Err(RequestError::Full { .. })), "{refused:?}");
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 5.0);
    server.signal(rustix::process::Signal::CONT);
    all_answered(asked).await;
    assert!(client.request("room again").await.is_ok());
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 0.0);
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"full\"}"), 1.0);
}

#[tokio::test]
async fn when_all_is_full_a_caller_that_chose_so_waits_and_not_too_many_do() {
    let config = ClientConfig { max_outstanding: 5, max_queued: 3, ..patient() };
    let (server, client, mut asked) = full(config).await;
    asked.extend((0..3).map(|_| client.spawn("payload")));
    until("three wait", || client.metric("zmq_echo_client_queued") == 3.0).await;
    let refused = client.request("one too many").await;
    assert!(matches!(refused, Err(RequestError::Full { .. })), "{refused:?}");
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 5.0);
    server.signal(rustix::process::Signal::CONT);
    all_answered(asked).await;
    assert_eq!(client.metric("zmq_echo_client_queued"), 0.0);
}

/// Five requests that are not answered, whose callers leave.
async fn abandoned(config: ClientConfig, silent: &Peer) -> Counted {
    let config = ClientConfig { max_outstanding: 5, when_full: WhenFull::Refuse, ..config };
    let client = Counted::new(config, fixed(&[&silent.endpoint]));
    client.client.ready().await;
    let asked: Vec<_> = (0..5).map(|_| client.spawn("payload")).collect();
    until("all are there", || client.outstanding(&silent.endpoint) == 5).await;
    for asked in asked {
        asked.abort();
    }
    let left = || client.metric("zmq_echo_client_requests_total{outcome=\"abandoned\"}") == 5.0;
    until("the callers have left", left).await;
    client
}

#[tokio::test]
async fn a_request_whose_caller_has_left_holds_its_room_until_it_times_out() {
    let silent = Peer::silent().await;
    let client = abandoned(patient(), &silent).await;
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 5.0);
    let refused = client.request("one too many").await;
    assert!(matches!(refused, Err(RequestError::Full { .. })), "{refused:?}");
    // Long enough for the callers to leave before.
    let config = ClientConfig { timeout: Duration::from_secs(5), ..hasty() };
    let client = abandoned(config, &silent).await;
    until("there is room", || client.metric("zmq_echo_client_outstanding") == 0.0).await;
    // It is known of the endpoint all the same.
    assert_eq!(client.state(&silent.endpoint), Some(State::Suspect));
}

#[tokio::test]
async fn without_an_endpoint_a_request_waits_until_its_deadline() {
    let (teller, told) = Teller::new();
    let config = ClientConfig { deadline: Some(Duration::from_millis(50)), ..patient() };
    let client = Counted::new(config, fixed(&[]));
    let nobody = client.request("anybody?").await;
    assert!(matches!(nobody, Err(RequestError::NoEndpoint { .. })), "{nobody:?}");
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 0.0);

    let server = Server::start(&[]);
    let client = Counted::new(patient(), told);
    let asked = client.spawn("payload");
    until("it waits", || client.metric("zmq_echo_client_outstanding") == 1.0).await;
    teller.say(&[(&server.endpoint, Ready)]);
    all_answered(vec![asked]).await;
}

#[tokio::test]
async fn a_payload_too_large_is_refused_and_costs_no_connection() {
    let server = Server::start(&[]);
    let config = ClientConfig { max_payload: 100, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    assert!(client.client.request(vec![1; 100].into()).await.is_ok());
    let refused = client.client.request(vec![1; 101].into()).await;
    assert_eq!(refused.unwrap_err(), RequestError::TooLarge { size: 101, limit: 100 });
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 1.0);
}
