//! Requests that were never written are reported as unsent and use up no attempt.

use std::io::Read;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use zmq_echo_client::discovery::EndpointState::{Draining, Ready};
use zmq_echo_client::{ClientConfig, Reply, RequestError, State};

use super::peers::{Action, Stuck, scripted};
use super::{Counted, Publisher, fixed, patient, until};
use crate::support::{DEADLINE, Server};

const LARGE: usize = 64;

/// Asks for one small request, which the server reads, and enough large ones to fill every kernel
/// buffer.
async fn asked(client: &Counted, stuck: &Stuck) -> Vec<JoinHandle<Result<Reply, RequestError>>> {
    client.wait_for_state(&stuck.endpoint, Some(State::Ready)).await;
    let mut asked = vec![client.spawn("first")];
    stuck.wait_until_read().await;
    for number in 0..LARGE {
        let client = client.client.clone();
        let payload = vec![number as u8; 512 << 10];
        asked.push(tokio::spawn(async move { client.request(payload.into()).await }));
    }
    until("all requests are open at the endpoint", || {
        client.outstanding(&stuck.endpoint) == 1 + LARGE
    })
    .await;
    asked
}

#[tokio::test]
async fn without_retries_errors_tell_unsent_requests_from_unanswered_ones() {
    let stuck = Stuck::start();
    let config =
        ClientConfig { timeout: Duration::from_secs(5), retries: 0, deadline: None, ..patient() };
    let client = Counted::new(config, fixed(&[&stuck.endpoint]));
    let mut asked = asked(&client, &stuck).await.into_iter();
    drop(stuck.stop());
    let first = asked.next().unwrap().await.unwrap().unwrap_err();
    assert!(matches!(first, RequestError::Disconnected { attempts: 1, .. }), "{first}");
    let (mut sent, mut not_sent) = (1, 0);
    for asked in asked {
        let error = asked.await.unwrap().unwrap_err();
        match error {
            RequestError::Disconnected { .. } => sent += 1,
            RequestError::NotSent { .. } => not_sent += 1,
            _ => panic!("{error}"),
        }
        assert_eq!(error.may_have_been_seen(), matches!(error, RequestError::Disconnected { .. }));
    }
    assert!(not_sent > 0, "every request was sent ({sent}), so the buffers were not full");
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), f64::from(sent));
    assert_eq!(client.metric("zmq_echo_client_not_sent_total"), f64::from(not_sent));
}

#[tokio::test]
async fn a_partly_written_request_counts_as_not_sent() {
    let stuck = Stuck::start();
    let config = ClientConfig {
        timeout: Duration::from_secs(5),
        retries: 0,
        deadline: None,
        max_payload: 64 << 20,
        ..patient()
    };
    let client = Counted::new(config, fixed(&[&stuck.endpoint]));
    client.wait_for_state(&stuck.endpoint, Some(State::Ready)).await;
    let first = client.spawn("first");
    stuck.wait_until_read().await;
    // More than the kernels of both sides can hold.
    let large = {
        let client = client.client.clone();
        tokio::spawn(async move { client.request(vec![0; 64 << 20].into()).await })
    };
    let stream = stuck.stop();
    tokio::task::spawn_blocking(move || stream.peek(&mut [0])).await.unwrap().unwrap();
    let first = first.await.unwrap().unwrap_err();
    assert!(matches!(first, RequestError::Disconnected { .. }), "{first}");
    let large = large.await.unwrap().unwrap_err();
    assert!(
        matches!(large, RequestError::NotSent { .. }),
        "a partly written request does not count as unsent: {large}"
    );
}

#[tokio::test]
async fn unsent_requests_move_to_another_endpoint_without_using_a_retry() {
    let (stuck, server) = (Stuck::start(), Server::start(&[]));
    let (publisher, source) = Publisher::new();
    let client = Counted::new(ClientConfig { retries: 0, ..patient() }, source);
    publisher.publish(&[(&stuck.endpoint, Ready)]);
    let asked = asked(&client, &stuck).await;
    let endpoint = stuck.endpoint.clone();
    publisher.publish(&[(&endpoint, Ready), (&server.endpoint, Ready)]);
    client.wait_for_state(&server.endpoint, Some(State::Ready)).await;
    drop(stuck.stop());
    let (mut answered, mut lost) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            Ok(reply) => {
                assert_eq!(
                    (reply.attempts, reply.endpoint.to_string()),
                    (1, server.endpoint.clone())
                );
                answered += 1;
            }
            Err(RequestError::Disconnected { .. }) => lost += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        answered > 0 && lost > 0,
        "expected answered and lost requests, got {answered} and {lost}"
    );
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), f64::from(answered + lost));
    assert_eq!(client.metric("zmq_echo_client_retries_total"), 0.0);
    let seen = server.metric("zmq_echo_requests_total{source=\"client\"}");
    assert_eq!(seen, f64::from(answered));
}

#[tokio::test]
async fn queued_requests_are_sent_once_the_kernel_has_room_even_without_a_reply() {
    let stuck = Stuck::start();
    let config = ClientConfig { timeout: 10 * DEADLINE, deadline: None, ..patient() };
    let client = Counted::new(config, fixed(&[&stuck.endpoint]));
    let asked = asked(&client, &stuck).await;
    let mut stream = stuck.stop();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::io::Read::take(&mut stream, (LARGE * (512 << 10)) as u64).read_to_end(&mut bytes)
    });
    timeout(DEADLINE, reading).await.expect("the server receives every request").unwrap().unwrap();
    asked.into_iter().for_each(|asked| asked.abort());
}

#[tokio::test]
async fn a_request_whose_deadline_passes_in_the_queue_is_never_sent() {
    let stuck = Stuck::start();
    let config = ClientConfig { deadline: Some(Duration::from_secs(3)), retries: 0, ..patient() };
    let client = Counted::new(config, fixed(&[&stuck.endpoint]));
    let mut asked = asked(&client, &stuck).await.into_iter();
    let first = asked.next().unwrap().await.unwrap().unwrap_err();
    assert!(matches!(first, RequestError::TimedOut { attempts: 1, .. }), "{first}");
    let mut not_sent = Vec::new();
    for (number, asked) in asked.enumerate() {
        match asked.await.unwrap().unwrap_err() {
            RequestError::TimedOut { .. } => {}
            RequestError::NotSent { .. } => not_sent.push(number as u8),
            error => panic!("{error}"),
        }
    }
    assert!(!not_sent.is_empty());
    // Now it reads everything there is and finds none of them.
    let mut stream = stuck.stop();
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = [0usize; 256];
        let mut bytes = vec![0; 1 << 20];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            bytes[..count].iter().for_each(|byte| seen[usize::from(*byte)] += 1);
        }
        seen
    });
    let given_back = || client.metric("zmq_echo_client_not_sent_total") == not_sent.len() as f64;
    until("the connection has given back the expired requests", given_back).await;
    drop(client);
    let seen = reading.await.unwrap();
    for number in not_sent {
        // Ids and headers may contain a few such bytes.
        assert!(seen[usize::from(number)] < 10_000, "request {number} was sent after its deadline");
    }
}

#[tokio::test]
async fn requests_queued_for_an_endpoint_that_disappears_are_not_lost() {
    // On a runtime with several threads, where a request may be drawn at that very moment.
    let [one, other] = [(); 2].map(|()| scripted(|_| Action::Echo(Duration::ZERO)));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let changes = runtime.spawn(async move {
        let (publisher, source) = Publisher::new();
        let client = Counted::new(ClientConfig { retries: 0, ..patient() }, source);
        let changing = async {
            for round in 0..100 {
                let [here, there] = if round % 2 == 0 { [&one, &other] } else { [&other, &one] };
                publisher.publish(&[(here, Ready)]);
                client.wait_for_state(here, Some(State::Ready)).await;
                publisher.publish(&[(here, Draining), (there, Ready)]);
                client.wait_for_state(there, Some(State::Ready)).await;
            }
        };
        let got = client.load_with_pauses(Duration::ZERO, 8, changing).await;
        got.into_iter().filter_map(|got| got.reply.err()).collect::<Vec<_>>()
    });
    let errors = changes.await.unwrap();
    runtime.shutdown_background();
    assert!(
        errors.is_empty(),
        "{} requests were lost, the first with {:?}",
        errors.len(),
        errors.first()
    );
}
