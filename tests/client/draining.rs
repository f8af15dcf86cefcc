//! Draining endpoints: they get no new requests, answer their open ones, and are then disconnected.

use tokio::sync::mpsc;
use zeromq::ZmqMessage;
use zmq_echo_client::discovery::EndpointState::{Draining, Ready};
use zmq_echo_client::{ClientConfig, State};

use super::peers::{Peer, payload};
use super::{Counted, Publisher, hasty, patient, started, until};
use crate::support::Server;

/// A peer that answers `held` only together with the next request of any client.
async fn holding() -> (Peer, mpsc::UnboundedReceiver<()>) {
    let (seen, held) = mpsc::unbounded_channel();
    let mut waiting: Vec<ZmqMessage> = Vec::new();
    let peer = Peer::start(move |request| {
        if payload(&request) == b"held" {
            waiting.push(request);
            let _ = seen.send(());
            return Vec::new();
        }
        waiting.drain(..).chain([request]).collect()
    })
    .await;
    (peer, held)
}

/// Reports with `gone` that a peer which holds one request is draining. The client must get that
/// reply, and send new requests to the other server.
async fn assert_finishes_its_requests(gone: impl Fn(&Publisher, &str, &str)) {
    let (peer, mut held) = holding().await;
    let server = Server::start(&[]);
    let (publisher, source) = Publisher::new();
    publisher.publish(&[(&peer.endpoint, Ready)]);
    let client = Counted::new(patient(), source);
    let asked = client.spawn("held");
    held.recv().await.expect("the peer has received the request");
    gone(&publisher, &peer.endpoint, &server.endpoint);
    client.wait_for_state(&peer.endpoint, Some(State::Draining)).await;
    for _ in 0..50 {
        let reply = client.request("new").await.unwrap();
        assert_eq!(
            reply.endpoint.to_string(),
            server.endpoint,
            "a draining endpoint got a new request"
        );
    }
    assert_eq!(client.outstanding(&peer.endpoint), 1);
    // A request by another client makes the peer reply.
    let another = Counted::new(patient(), super::fixed(&[&peer.endpoint]));
    another.request("go").await.unwrap();
    let reply = asked.await.unwrap().unwrap();
    assert_eq!((reply.endpoint.to_string(), reply.attempts), (peer.endpoint.clone(), 1));
    client.wait_for_state(&peer.endpoint, None).await;
    assert_eq!(client.metric("zmq_echo_client_retries_total"), 0.0);
}

#[tokio::test]
async fn a_terminating_endpoint_finishes_its_requests_and_gets_no_new_ones() {
    assert_finishes_its_requests(|publisher, peer, server| {
        publisher.publish(&[(peer, Draining), (server, Ready)]);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_removed_by_its_source_finishes_its_requests_and_gets_no_new_ones() {
    assert_finishes_its_requests(|publisher, _, server| publisher.publish(&[(server, Ready)]))
        .await;
}

#[tokio::test]
async fn a_draining_endpoint_that_never_answers_is_disconnected_after_the_timeout() {
    let silent = Peer::silent().await;
    let server = Server::start(&[]);
    let (publisher, source) = Publisher::new();
    publisher.publish(&[(&silent.endpoint, Ready)]);
    let client = Counted::new(ClientConfig { retries: 100, ..hasty() }, source);
    let asked = client.spawn("anybody?");
    until("the request is open at the silent endpoint", || {
        client.outstanding(&silent.endpoint) == 1
    })
    .await;
    publisher.publish(&[(&server.endpoint, Ready)]);
    client.wait_for_state(&silent.endpoint, None).await;
    let reply = asked.await.unwrap().unwrap();
    assert_eq!(reply.endpoint.to_string(), server.endpoint);
    assert!(
        reply.attempts >= 2,
        "the request was answered after {} attempts, so not sent again",
        reply.attempts
    );
}

#[tokio::test]
async fn an_endpoint_that_is_ready_again_after_draining_is_used_again() {
    let server = Server::start(&[]);
    let (publisher, source) = Publisher::new();
    let client = Counted::new(patient(), source);
    for _ in 0..3 {
        publisher.publish(&[(&server.endpoint, Ready)]);
        assert_eq!(client.request("back").await.unwrap().payload, "back");
        publisher.publish(&[(&server.endpoint, Draining)]);
        client.wait_for_state(&server.endpoint, None).await;
    }
}

#[tokio::test]
async fn endpoints_stay_in_use_after_their_source_ends() {
    let server = Server::start(&[]);
    let (publisher, source) = Publisher::new();
    publisher.publish(&[(&server.endpoint, Ready)]);
    let client = Counted::new(patient(), source);
    client.client.ready().await;
    drop(publisher);
    for _ in 0..10 {
        assert_eq!(client.request("still there").await.unwrap().payload, "still there");
    }
}

#[tokio::test]
async fn a_rollout_loses_no_request_of_the_client() {
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let publish = |publisher: &Publisher, servers: &[Server], gone: Option<usize>| {
        let states = servers.iter().enumerate().map(|(at, server)| {
            (server.endpoint.as_str(), if gone == Some(at) { Draining } else { Ready })
        });
        publisher.publish(&states.collect::<Vec<_>>());
    };
    let (publisher, source) = Publisher::new();
    publish(&publisher, &servers, None);
    let client = Counted::new(patient(), source);
    let rollout = async {
        client.client.ready().await;
        for at in 0..3 {
            client.wait_for_answers(200.0).await;
            publish(&publisher, &servers, Some(at));
            client.wait_for_state(&servers[at].endpoint, None).await;
            servers[at].signal(rustix::process::Signal::TERM);
            servers[at] = started().await;
            publish(&publisher, &servers, None);
            client.wait_for_state(&servers[at].endpoint, Some(State::Ready)).await;
        }
    };
    let got = client.load(20, rollout).await;
    for got in &got {
        assert_eq!(
            got.reply.as_ref().unwrap().attempts,
            1,
            "the rollout cost a request more than one attempt"
        );
    }
}
