//! Everything is bounded: open requests, waiting callers and unsent data.

use std::io::{Read, Write};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use zmq_echo_client::discovery::EndpointState::Ready;
use zmq_echo_client::{ClientConfig, Reply, RequestError, State, WhenFull};

use super::peers::{Peer, by_hand};
use super::{Counted, Publisher, fixed, hasty, patient, until};
use crate::support::{Server, raw};

type Asked = JoinHandle<Result<Reply, RequestError>>;

/// A client at a stopped server, with the maximum number of open requests.
async fn full(config: ClientConfig) -> (Server, Counted, Vec<Asked>) {
    let server = Server::start(&[]);
    let outstanding = config.max_outstanding;
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    let asked = (0..outstanding).map(|_| client.spawn("payload")).collect();
    until("all requests are open", || client.outstanding(&server.endpoint) == outstanding).await;
    (server, client, asked)
}

async fn all_answered(asked: Vec<Asked>) {
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().payload, "payload");
    }
}

#[tokio::test]
async fn with_all_slots_full_a_caller_can_choose_to_fail_at_once() {
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
async fn with_all_slots_full_a_caller_can_choose_to_wait_in_a_bounded_queue() {
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
    until("all five requests are open", || client.outstanding(&silent.endpoint) == 5).await;
    for asked in asked {
        asked.abort();
    }
    let left = || client.metric("zmq_echo_client_requests_total{outcome=\"abandoned\"}") == 5.0;
    until("the client has noticed that the callers have left", left).await;
    client
}

#[tokio::test]
async fn an_abandoned_request_keeps_its_slot_until_it_times_out() {
    let silent = Peer::silent().await;
    let client = abandoned(patient(), &silent).await;
    assert_eq!(client.metric("zmq_echo_client_outstanding"), 5.0);
    let refused = client.request("one too many").await;
    assert!(matches!(refused, Err(RequestError::Full { .. })), "{refused:?}");
    // Long enough that the callers leave before their requests time out.
    let config = ClientConfig { timeout: Duration::from_secs(5), ..hasty() };
    let client = abandoned(config, &silent).await;
    until("the abandoned requests have timed out", || {
        client.metric("zmq_echo_client_outstanding") == 0.0
    })
    .await;
    // The timeouts make the endpoint suspect nevertheless.
    assert_eq!(client.state(&silent.endpoint), Some(State::Suspect));
}

#[tokio::test]
async fn without_an_endpoint_a_request_waits_until_its_deadline() {
    let (publisher, source) = Publisher::new();
    let config = ClientConfig { deadline: Some(Duration::from_millis(50)), ..patient() };
    let client = Counted::new(config, fixed(&[]));
    let nobody = client.request("anybody?").await;
    assert!(matches!(nobody, Err(RequestError::NoEndpoint { .. })), "{nobody:?}");
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 0.0);

    let server = Server::start(&[]);
    let client = Counted::new(patient(), source);
    let asked = client.spawn("payload");
    until("the request waits for an endpoint", || {
        client.metric("zmq_echo_client_outstanding") == 1.0
    })
    .await;
    publisher.publish(&[(&server.endpoint, Ready)]);
    all_answered(vec![asked]).await;
}

#[tokio::test]
async fn an_oversized_payload_is_rejected_without_closing_a_connection() {
    let server = Server::start(&[]);
    let config = ClientConfig { max_payload: 100, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    assert!(client.client.request(vec![1; 100].into()).await.is_ok());
    let refused = client.client.request(vec![1; 101].into()).await;
    assert_eq!(refused.unwrap_err(), RequestError::TooLarge { size: 101, limit: 100 });
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 1.0);
}

const DISCONNECTED: &str = "zmq_echo_client_attempt_failures_total{reason=\"disconnected\"}";

#[tokio::test]
async fn a_reply_above_the_limit_closes_only_its_own_connection() {
    let server = Server::start(&[]);
    let config = ClientConfig { max_reply: 1000, retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    let echo = |size: usize| client.client.request(vec![1; size].into());
    assert_eq!(echo(1000).await.unwrap().payload.len(), 1000);
    for lost in 1..=3 {
        let error = echo(1001).await.unwrap_err();
        assert!(matches!(error, RequestError::Disconnected { .. }), "{error}");
        assert_eq!(client.metric(DISCONNECTED), f64::from(lost));
        assert_eq!(echo(1000).await.unwrap().payload.len(), 1000);
    }
}

#[tokio::test]
async fn a_reply_that_announces_128_tib_closes_only_its_own_connection() {
    let endpoint = by_hand(|mut stream| {
        if raw::welcome(&mut stream).is_ok() {
            let [id, _] = [(); 2].map(|()| raw::read_frame(&mut stream).1);
            let reply = [raw::frame(&id, true), raw::announced(0, 1 << 47)].concat();
            let _ = stream.write_all(&reply);
            let _ = stream.read(&mut [0]);
        }
    });
    let client = Counted::new(ClientConfig { retries: 0, ..patient() }, fixed(&[&endpoint]));
    for _ in 0..3 {
        let error = client.request("small").await.unwrap_err();
        assert!(matches!(error, RequestError::Disconnected { .. }), "{error}");
    }
}

/// Sends ten requests whose replies arrive while nothing collects them. Returns the outcomes of
/// those that were sent; the others continue.
async fn collected_late(client: &Counted, size: usize) -> Vec<Result<Reply, RequestError>> {
    let totals = ["attempts", "not_sent"].map(|name| format!("zmq_echo_client_{name}_total"));
    let ended = || totals.iter().map(|total| client.metric(total)).sum::<f64>();
    let goal = ended() + 10.0;
    client.client.ready().await;
    let mut asked: Vec<_> =
        (0..10).map(|_| Box::pin(client.client.request(vec![1; size].into()))).collect();
    for request in &mut asked {
        assert!(futures_util::poll!(request).is_pending());
    }
    until("every attempt has ended", || ended() == goal).await;
    let (mut got, mut unsent) = (Vec::new(), Vec::new());
    for mut request in asked {
        match futures_util::poll!(&mut request) {
            Poll::Ready(ended) => got.push(ended),
            Poll::Pending => unsent.push(request),
        }
    }
    join_all(unsent).await;
    got
}

#[tokio::test]
async fn uncollected_replies_are_bounded_per_connection() {
    const SIZE: usize = 300 << 10;
    let server = Server::start(&[]);
    let config = ClientConfig { max_connection_replies: 3 * SIZE + 1, retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    // The memory is freed each time.
    for _ in 0..2 {
        let got = collected_late(&client, SIZE).await;
        assert_eq!(got.iter().filter(|got| got.is_ok()).count(), 3);
        for error in got.into_iter().filter_map(Result::err) {
            assert!(matches!(error, RequestError::ReplyMemory { attempts: 1, .. }), "{error}");
        }
    }
    // Small requests are limited by their number.
    assert!(collected_late(&client, 4 << 10).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn uncollected_replies_are_bounded_over_all_connections() {
    const SIZE: usize = 300 << 10;
    let servers = [Server::start(&[]), Server::start(&[])];
    let config = ClientConfig { max_replies: 3 * SIZE + 1, retries: 0, ..patient() };
    let endpoints = servers.each_ref().map(|server| server.endpoint.as_str());
    let client = Counted::new(config, fixed(&endpoints));
    for endpoint in endpoints {
        client.wait_for_state(endpoint, Some(State::Ready)).await;
    }
    let got = collected_late(&client, SIZE).await;
    let answered = got.iter().filter(|got| got.is_ok()).count();
    assert!((1..=3).contains(&answered), "{answered} of the uncollected replies were kept");
    for error in got.into_iter().filter_map(Result::err) {
        // Replies in progress count too: one that does not fit closes its connection.
        let expected =
            matches!(error, RequestError::ReplyMemory { .. } | RequestError::Disconnected { .. });
        assert!(expected, "unexpected error: {error}");
    }
    assert!(
        client.client.request(vec![1; SIZE].into()).await.is_ok(),
        "no memory is free for replies again"
    );
}

#[tokio::test]
async fn unsolicited_replies_hold_no_memory() {
    const STRAYS: usize = 64;
    let endpoint = by_hand(|mut stream| {
        thread::spawn(move || {
            raw::welcome(&mut stream).ok()?;
            let request = raw::read_message(&mut stream);
            let stray = raw::message(&[&u64::MAX.to_be_bytes(), b"", &vec![1; 1 << 20]]);
            for _ in 0..STRAYS {
                stream.write_all(&stray).ok()?;
            }
            stream.write_all(&raw::echo(&request)).ok()?;
            stream.read(&mut [0]).ok()
        });
    });
    // While one of these replies is being received, it takes half of this limit.
    let config = ClientConfig { max_replies: 4 << 20, retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&endpoint]));
    assert_eq!(client.request("asked for").await.unwrap().payload, "asked for");
    let strays = client.metric("zmq_echo_client_stray_replies_total{kind=\"unknown\"}");
    assert_eq!(strays, STRAYS as f64);
}
