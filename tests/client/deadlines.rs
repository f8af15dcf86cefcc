//! The client tells the server how long a request is worth working on.

use std::time::Instant;

use super::*;
use crate::support::{raw, wait_until};

/// A server with one thread that takes half a second for each request.
fn slow_server() -> Server {
    Server::start(&["--work", "500ms", "--work-threads", "1", "--client-deadlines"])
}

fn replies(server: &Server, outcome: &str) -> f64 {
    server.metric(&format!("zmq_echo_replies_total{{method=\"echo\",outcome=\"{outcome}\"}}"))
}

#[tokio::test]
async fn a_server_skips_requests_that_the_client_has_given_up() {
    for (send_deadlines, worked_on) in [(true, 1.0), (false, 2.0)] {
        let server = slow_server();
        let timeout = Duration::from_millis(200);
        let config = ClientConfig { timeout, retries: 0, send_deadlines, ..hasty() };
        let client = Counted::new(config, fixed(&[&server.endpoint]));
        until("the client is connected", || {
            client.metric("zmq_echo_client_endpoints_usable") == 1.0
        })
        .await;
        // This request keeps the thread busy.
        let mut other = raw::connect(server.address(), b"");
        std::io::Write::write_all(&mut other, &raw::message(&[b"id", b"", b"slow"])).unwrap();
        server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests == 1.0);
        let asked_at = Instant::now();
        match client.request("hello").await {
            Err(RequestError::TimedOut { .. }) => {}
            // Allows for delays on a busy machine.
            Err(RequestError::Rejected { rejection, .. }) => assert_eq!(rejection.code, "deadline"),
            other => panic!("{other:?} after {:?}", asked_at.elapsed()),
        }
        wait_until("the server is done with both requests", || {
            replies(&server, "ok") + replies(&server, "error") == 2.0
        });
        assert_eq!(replies(&server, "ok"), worked_on, "send_deadlines: {send_deadlines}");
    }
}

#[tokio::test]
async fn a_request_with_enough_time_gets_a_reply_of_only_the_payload() {
    let server = slow_server();
    let config = ClientConfig { send_deadlines: true, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    let large: &'static str = Box::leak("large".repeat(20_000).into_boxed_str());
    for payload in ["", "hello", large] {
        assert_eq!(client.request(payload).await.unwrap().payload, payload);
    }
}

#[tokio::test]
async fn a_server_that_does_not_accept_deadlines_rejects_them_at_once() {
    let server = Server::start(&[]);
    let config = ClientConfig { send_deadlines: true, ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint]));
    match client.request("hello").await {
        Err(RequestError::Rejected { rejection, attempts: 1, .. }) => {
            assert_eq!(rejection.code, "reserved");
        }
        other => panic!("{other:?}"),
    }
}
