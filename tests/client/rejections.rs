//! Error replies: a typed error if a retry makes no sense, another server if it does.

use zmq_echo::service::{Answer, Rejection, Request};

use super::*;
use crate::poll_loop::{Loop, start};

/// A service that counts its requests instead of echoing them, and rejects some.
fn counting(name: &'static str) -> Loop {
    start(move || {
        let mut count = 0;
        move |request: Request<'_>| -> Answer {
            count += 1;
            match request.frame(0) {
                Some(b"wrong") => request.reject(Rejection::new("wrong", "unknown request")),
                Some(b"busy at one") if name == "one" => {
                    request.reject(Rejection::new("overloaded", "try again later").retryable())
                }
                Some(b"busy everywhere") => {
                    request.reject(Rejection::new("overloaded", "try again later").retryable())
                }
                Some(b"slow") => {
                    std::thread::sleep(Duration::from_millis(300));
                    request.reply([format!("{name} {count}").into()])
                }
                _ => request.reply([format!("{name} {count}").into()]),
            }
        }
    })
}

fn endpoint(of: &Loop) -> String {
    format!("tcp://{}", of.address)
}

#[tokio::test]
async fn a_permanent_error_is_returned_at_once_and_a_temporary_one_is_retried_elsewhere() {
    let (one, other) = (counting("one"), counting("other"));
    let config = ClientConfig { retries: 2, ..ClientConfig::default() };
    let client = Counted::new(config, fixed(&[&endpoint(&one), &endpoint(&other)]));
    until("both servers are connected", || {
        client.metric("zmq_echo_client_endpoints_usable") == 2.0
    })
    .await;
    match client.request("wrong").await {
        Err(RequestError::Rejected { rejection, attempts, .. }) => {
            assert_eq!(*rejection, Rejection::new("wrong", "unknown request"));
            assert_eq!(attempts, 1, "a permanent error must not be retried");
        }
        other => panic!("{other:?}"),
    }
    for _ in 0..20 {
        let reply = client.request("busy at one").await.unwrap();
        assert!(
            reply.payload.starts_with(b"other"),
            "the request was not retried at the other server: {reply:?}"
        );
    }
    match client.request("busy everywhere").await {
        Err(RequestError::Rejected { rejection, attempts, .. }) => {
            assert_eq!((&*rejection.code, attempts), ("overloaded", 3));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"rejected\"}"), 2.0);
    let failures = "zmq_echo_client_attempt_failures_total{reason=\"rejected\"}";
    assert!(client.metric(failures) >= 4.0);
}

#[tokio::test]
async fn a_server_without_an_echo_passes_the_check_after_a_request_that_timed_out() {
    let server = counting("one");
    let config =
        ClientConfig { timeout: Duration::from_millis(100), retries: 0, ..ClientConfig::default() };
    let client = Counted::new(config, fixed(&[&endpoint(&server)]));
    client.client.ready().await;
    assert!(matches!(client.request("slow").await, Err(RequestError::TimedOut { .. })));
    client.wait_for_state(&endpoint(&server), Some(State::Ready)).await;
    assert_eq!(client.metric("zmq_echo_client_checks_total{outcome=\"answered\"}"), 1.0);
    assert!(client.request("count").await.unwrap().payload.starts_with(b"one"));
}
