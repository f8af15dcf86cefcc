//! Every reply reaches its own request and no other.

use futures_util::future::join_all;
use zeromq::ZmqMessage;
use zmq_echo_client::{ClientConfig, RequestError};

use super::peers::{Peer, is_check, payload};
use super::{Counted, fixed, hasty, patient};

/// The same request with another id.
fn with_id(request: &ZmqMessage, id: &[u8]) -> ZmqMessage {
    let mut frames: Vec<_> = request.iter().cloned().collect();
    frames[1] = id.to_vec().into();
    frames.try_into().unwrap()
}

#[tokio::test]
async fn replies_out_of_order_reach_their_own_requests() {
    let mut held = Vec::new();
    let reversed = Peer::start(move |request| {
        held.push(request);
        if held.len() == 50 { held.drain(..).rev().collect() } else { Vec::new() }
    })
    .await;
    let client = Counted::new(patient(), fixed(&[&reversed.endpoint]));
    let requests = (0..50).map(|number: u32| {
        let client = client.client.clone();
        async move {
            let payload = number.to_string();
            assert_eq!(client.request(payload.clone().into()).await.unwrap().payload, payload);
        }
    });
    join_all(requests).await;
}

#[tokio::test]
async fn a_late_reply_is_counted_and_never_delivered() {
    let (mut held, mut checks) = (Vec::new(), 0);
    let late = Peer::start(move |request| {
        if is_check(&request) {
            checks += 1;
            // The peer answers the first check with the late reply, and then with the check's own.
            return if checks == 1 { std::mem::take(&mut held) } else { vec![request] };
        }
        if payload(&request) == b"first" {
            held.push(request);
            return Vec::new();
        }
        vec![request]
    })
    .await;
    let client = Counted::new(ClientConfig { retries: 0, ..hasty() }, fixed(&[&late.endpoint]));
    let first = client.request("first").await;
    assert!(matches!(first, Err(RequestError::TimedOut { attempts: 1, .. })), "{first:?}");
    assert_eq!(client.request("second").await.unwrap().payload, "second");
    assert_eq!(client.metric("zmq_echo_client_stray_replies_total{kind=\"late\"}"), 1.0);
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"answered\"}"), 1.0);
    // The peer had replied by then, so the connection is still the same.
    assert_eq!(client.metric("zmq_echo_client_connections_total{outcome=\"established\"}"), 1.0);
}

#[tokio::test]
async fn unexpected_replies_are_counted_and_never_delivered() {
    let confused = Peer::start(|request| {
        let short = request.clone().into_vec()[..2].to_vec().try_into().unwrap();
        vec![
            with_id(&request, &u64::MAX.to_be_bytes()),
            with_id(&request, b"short"),
            short,
            request.clone(),
            // The reply again: the first was delivered, and this one is late.
            request,
        ]
    })
    .await;
    let client = Counted::new(patient(), fixed(&[&confused.endpoint]));
    assert_eq!(client.request("once").await.unwrap().payload, "once");
    assert_eq!(client.request("twice").await.unwrap().payload, "twice");
    let strays =
        |kind| client.metric(&format!("zmq_echo_client_stray_replies_total{{kind=\"{kind}\"}}"));
    super::until("all unexpected replies are counted", || {
        strays("unknown") == 6.0 && strays("late") == 2.0
    })
    .await;
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"answered\"}"), 2.0);
}

#[tokio::test]
async fn a_reply_of_several_frames_or_none_is_a_final_error_and_its_endpoint_stays_in_use() {
    let peer = Peer::start(|request| {
        let mut frames = request.clone().into_vec();
        match payload(&request) {
            b"none" => _ = frames.pop(),
            b"three" => frames.extend(["two".into(), vec![3; 64 << 10].into()]),
            _ => {}
        }
        vec![frames.try_into().unwrap()]
    })
    .await;
    let client = Counted::new(patient(), fixed(&[&peer.endpoint]));
    for (request, expected) in [("none", 0), ("three", 3)] {
        let error = client.request(request).await.unwrap_err();
        let RequestError::NotOneFrame { frames, attempts: 1, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(frames, expected);
        assert!(error.may_have_been_seen());
    }
    assert_eq!(client.request("one").await.unwrap().payload, "one");
    for (series, count) in [
        ("requests_total{outcome=\"not_one_frame\"}", 2.0),
        ("attempt_failures_total{reason=\"not_one_frame\"}", 2.0),
        ("attempts_total", 3.0),
        ("stray_replies_total{kind=\"unknown\"}", 0.0),
        ("checks_total{outcome=\"answered\"}", 0.0),
    ] {
        assert_eq!(client.metric(&format!("zmq_echo_client_{series}")), count, "{series}");
    }
}

#[tokio::test]
async fn an_error_names_the_endpoint_the_attempts_and_the_time() {
    let silent = Peer::silent().await;
    let config = ClientConfig { retries: 0, ..hasty() };
    let client = Counted::new(config, fixed(&[&silent.endpoint]));
    let error = client.request("anybody?").await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: no reply after ", silent.endpoint)), "{text}");
    assert!(text.ends_with(" ms (attempts: 1)"), "{text}");
    assert_eq!(error.kind(), "timed_out");
    let RequestError::TimedOut { elapsed, .. } = error else { panic!("{error}") };
    assert!(
        elapsed >= hasty().timeout,
        "the error reports less time than the timeout: {elapsed:?}"
    );
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"timed_out\"}"), 1.0);
}
