//! Endpoints that fail: what each failure costs, and that it makes no request fail.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use rustix::process::Signal;
use zmq_echo_client::discovery::EndpointState::{Draining, Ready};
use zmq_echo_client::{Backoff, ClientConfig, RequestError, State, Trouble, Unusable};
use zmtp::dealer::ConnectError;

use super::peers::{Peer, by_hand, deaf, is_check, payload};
use super::{Counted, Got, Publisher, fixed, hasty, patient, until};
use crate::log_schema::captured::Log;
use crate::support::{Server, raw};

fn assert_all_answered(got: &[Got]) {
    for got in got {
        assert!(got.reply.is_ok(), "a request failed: {:?}", got.reply);
    }
}

#[tokio::test]
async fn a_killed_endpoint_costs_each_of_its_requests_at_most_one_more_attempt() {
    const CALLERS: usize = 40;
    let servers: Vec<Server> = (0..3).map(|_| Server::start(&[])).collect();
    let endpoints: Vec<_> = servers.iter().map(|server| server.endpoint.clone()).collect();
    let client =
        Counted::new(patient(), fixed(&endpoints.iter().map(String::as_str).collect::<Vec<_>>()));
    for endpoint in &endpoints {
        client.wait_for_state(endpoint, Some(State::Ready)).await;
    }
    let killed = async {
        // Stop it first, so that requests are certainly in flight there.
        servers[1].stop();
        until("requests are open at the stopped endpoint", || {
            client.outstanding(&endpoints[1]) >= 5
        })
        .await;
        servers[1].signal(Signal::KILL);
        client.wait_for_state(&endpoints[1], Some(State::Connecting)).await;
        let before = client.metric("zmq_echo_client_attempts_total");
        let more = || client.metric("zmq_echo_client_attempts_total") > before + 1000.0;
        until("the other endpoints continue to answer", more).await;
    };
    // Without a pause: with all endpoints idle, the stopped one gets one request and no more.
    let got = client.load_with_pauses(Duration::ZERO, CALLERS, killed).await;
    assert_all_answered(&got);
    let retried = got.iter().filter(|got| got.reply.as_ref().unwrap().attempts > 1).count();
    assert!(
        (5..=CALLERS).contains(&retried),
        "{retried} requests were retried, with at most {CALLERS} in flight"
    );
    assert!(got.iter().all(|got| got.reply.as_ref().unwrap().attempts <= 2));
    assert_eq!(client.metric("zmq_echo_client_retries_total"), retried as f64);
    let lost = client.metric("zmq_echo_client_attempt_failures_total{reason=\"disconnected\"}");
    assert_eq!(lost, retried as f64);
}

/// A peer that answers no caller, and answers checks only if told to. Also returns every caller's
/// payload that arrived there.
async fn never_answering(answers_checks: bool) -> (Peer, Arc<Mutex<Vec<Vec<u8>>>>) {
    let requests = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let seen = Arc::clone(&requests);
    let peer = Peer::start(move |request| {
        if is_check(&request) {
            return if answers_checks { vec![request] } else { Vec::new() };
        }
        seen.lock().unwrap().push(payload(&request).to_vec());
        Vec::new()
    })
    .await;
    (peer, requests)
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_a_request_one_attempt_and_is_then_avoided() {
    let servers = [Server::start(&[]), Server::start(&[])];
    let (silent, requests) = never_answering(false).await;
    let endpoints = [&*servers[0].endpoint, &servers[1].endpoint, &silent.endpoint];
    let client = Counted::new(ClientConfig { retries: 100, ..hasty() }, fixed(&endpoints));
    for endpoint in endpoints {
        client.wait_for_state(endpoint, Some(State::Ready)).await;
    }
    let suspect = client.wait_for_state(&silent.endpoint, Some(State::Suspect));
    assert_all_answered(&client.load(20, suspect).await);
    until("no request is open at the silent endpoint", || {
        client.outstanding(&silent.endpoint) == 0
    })
    .await;
    let mut first = requests.lock().unwrap().clone();
    let count = first.len();
    first.sort();
    first.dedup();
    assert!(
        count > 0 && first.len() == count,
        "a request was sent to the silent endpoint twice: {} of {count} requests differ",
        first.len()
    );

    // From then on it gets no requests, however often it is checked.
    let failed = || client.metric("zmq_echo_client_checks_total{outcome=\"failed\"}") >= 2.0;
    let meanwhile = async {
        client.wait_for_answers(1000.0).await;
        until("the silent endpoint is checked again", failed).await;
    };
    assert_all_answered(&client.load(10, meanwhile).await);
    assert_eq!(requests.lock().unwrap().len(), count, "a suspect endpoint got a request");
}

#[tokio::test]
async fn an_endpoint_that_accepts_without_greeting_is_never_used() {
    let server = Server::start(&[]);
    let (_listener, deaf) = deaf();
    let config = ClientConfig { connect_timeout: Duration::from_millis(500), ..patient() };
    let client = Counted::new(config, fixed(&[&server.endpoint, &deaf]));
    let failed = || client.metric("zmq_echo_client_connections_total{outcome=\"failed\"}") >= 2.0;
    let got = client.load(5, until("connecting failed, and again", failed)).await;
    assert_all_answered(&got);
    assert_eq!(client.metric("zmq_echo_client_retries_total"), 0.0);
    assert_eq!(client.state(&deaf), Some(State::Connecting));
}

#[tokio::test]
async fn a_suspect_endpoint_is_used_again_once_it_has_answered_a_check() {
    let server = Server::start(&[]);
    let client = Counted::new(ClientConfig { retries: 100, ..hasty() }, fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    // Its first attempt makes the endpoint suspect, and the next attempt is held back.
    let asked = client.spawn("held back");
    let failed = || client.metric("zmq_echo_client_checks_total{outcome=\"failed\"}") >= 2.0;
    until("the suspect endpoint is checked twice", failed).await;
    assert_eq!(
        client.metric("zmq_echo_client_attempts_total"),
        1.0,
        "a suspect endpoint got another attempt"
    );
    server.signal(Signal::CONT);
    assert_eq!(asked.await.unwrap().unwrap().payload, "held back");
}

#[tokio::test]
async fn replies_that_arrived_while_this_process_was_stopped_do_not_time_out() {
    // Many clients, because it is chance which of two ready events is handled first.
    const CLIENTS: usize = 10;
    let go = Arc::new(Barrier::new(CLIENTS + 1));
    let (got, events) = mpsc::channel();
    let answer = Arc::clone(&go);
    let endpoint = by_hand(move |mut stream| {
        let (got, go) = (got.clone(), Arc::clone(&answer));
        std::thread::spawn(move || {
            raw::welcome(&mut stream).ok()?;
            let request = raw::read_message(&mut stream);
            got.send("request").ok()?;
            go.wait();
            stream.write_all(&raw::echo(&request)).ok()?;
            got.send("answered").ok()?;
            // Stays open until the client closes.
            stream.read_exact(&mut [0]).ok()
        });
    });
    // Long enough for the threads of both sides to send and answer everything.
    let timeout = Duration::from_secs(5);
    let config = ClientConfig { timeout, retries: 0, ..patient() };
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| Counted::new(config.clone(), fixed(&[&endpoint]))).collect();
    for client in &clients {
        client.client.ready().await;
    }
    let requests: Vec<_> = clients.iter().map(|client| client.spawn("standing still")).collect();
    let mut arrived = 0;
    until("every request is sent", || {
        arrived += events.try_iter().count();
        arrived == CLIENTS
    })
    .await;
    go.wait();
    assert_eq!(events.iter().take(CLIENTS).collect::<Vec<_>>(), ["answered"; CLIENTS]);
    // The thread that the clients run on.
    std::thread::sleep(timeout);
    for request in requests {
        request.await.unwrap().expect("the reply arrived while the process was stopped");
    }
}

#[tokio::test]
async fn an_endpoint_that_answers_only_checks_fails_no_request() {
    let (checked, requests) = never_answering(true).await;
    let server = Server::start(&[]);
    let config = ClientConfig { retries: 100, ..hasty() };
    let client = Counted::new(config, fixed(&[&server.endpoint, &checked.endpoint]));
    let checks = || client.metric("zmq_echo_client_checks_total{outcome=\"answered\"}");
    let got =
        client.load(10, until("the endpoint is checked four times", || checks() >= 4.0)).await;
    assert_all_answered(&got);
    // A successful check admits as many requests as ten callers can have open, and a connection
    // that has shown no life is not kept.
    let lost = requests.lock().unwrap().len() as f64;
    assert!(
        lost <= 10.0 * (checks() + 1.0),
        "{lost} requests were lost, too many for {} checks",
        checks()
    );
    let made = client.metric("zmq_echo_client_connections_total{outcome=\"established\"}");
    assert!(made >= 4.0, "only {made} connections were made");
}

#[tokio::test]
async fn an_endpoint_without_a_server_is_connected_to_once_one_starts() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("tcp://{nobody}");
    let client = Counted::new(patient(), fixed(&[&endpoint]));
    let failed = || client.metric("zmq_echo_client_connections_total{outcome=\"failed\"}") >= 3.0;
    until("the client has often tried to connect", failed).await;
    let _server = Server::start_on(&endpoint, &[]);
    assert_eq!(client.request("at last").await.unwrap().payload, "at last");
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_reconnected() {
    let mut server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint]));
    assert!(client.request("before").await.is_ok());
    let endpoint = server.endpoint.clone();
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    client.wait_for_state(&endpoint, Some(State::Connecting)).await;
    let _server = Server::start_on(&endpoint, &[]);
    assert_eq!(client.request("after").await.unwrap().payload, "after");
    assert_eq!(client.metric("zmq_echo_client_requests_total{outcome=\"answered\"}"), 2.0);
}

#[tokio::test]
async fn reconnects_to_an_endpoint_that_keeps_hanging_up_are_delayed() {
    // Greets, so that this is not a failed handshake, and hangs up.
    let endpoint = by_hand(|mut stream| drop(raw::welcome(&mut stream)));
    let server = Server::start(&[]);
    // Longer than any test runs, and drawn from the whole range.
    let hours = Duration::from_secs(10_000 * 3600);
    let reconnect_backoff = Backoff::new(hours, hours);
    let client = Counted::new(
        ClientConfig { reconnect_backoff, ..patient() },
        fixed(&[&server.endpoint, &endpoint]),
    );
    let made = || client.metric("zmq_echo_client_connections_total{outcome=\"established\"}");
    until("both endpoints were connected", || made() == 2.0).await;
    client.wait_for_state(&endpoint, Some(State::Connecting)).await;
    for _ in 0..200 {
        assert_eq!(client.request("next").await.unwrap().endpoint.to_string(), server.endpoint);
    }
    assert_eq!(made(), 2.0);
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint_if_there_is_one() {
    let endpoint = by_hand(|mut stream| {
        // Hangs up on the first frame of a request.
        if raw::welcome(&mut stream).is_ok() {
            let _ = stream.read_exact(&mut [0; 10]);
        }
    });
    let server = Server::start(&[]);
    // It is reconnected long before the next attempt.
    let config = ClientConfig {
        retries: 1,
        retry_backoff: Backoff::new(Duration::from_millis(100), Duration::from_millis(100)),
        reconnect_backoff: Backoff::new(Duration::ZERO, Duration::ZERO),
        ..patient()
    };
    let client = Counted::new(config, fixed(&[&server.endpoint, &endpoint]));
    let retried = || client.metric("zmq_echo_client_retries_total") >= 20.0;
    let got = client.load(3, until("the client has often retried", retried)).await;
    assert_all_answered(&got);
}

#[tokio::test]
async fn an_endpoint_that_sends_no_zmtp_loses_its_connection_and_fails_no_request() {
    let endpoint = by_hand(|mut stream| {
        if raw::welcome(&mut stream).is_ok() {
            // A truncated command that ZMTP does not know.
            let _ = stream.write_all(&raw::command(b"\x03WHAT"));
        }
    });
    let server = Server::start(&[]);
    let client = Counted::new(patient(), fixed(&[&server.endpoint, &endpoint]));
    let made = || client.metric("zmq_echo_client_connections_total{outcome=\"established\"}");
    let got =
        client.load(10, until("the endpoint was connected to four times", || made() >= 4.0)).await;
    assert_all_answered(&got);
}

#[tokio::test]
async fn attempts_stop_when_the_retries_are_used_up() {
    let silent = [Peer::silent().await, Peer::silent().await, Peer::silent().await];
    let endpoints = [0, 1, 2].map(|at| silent[at].endpoint.as_str());
    let client = Counted::new(ClientConfig { retries: 1, ..hasty() }, fixed(&endpoints));
    for endpoint in endpoints {
        client.wait_for_state(endpoint, Some(State::Ready)).await;
    }
    let error = client.request("anybody?").await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut { attempts: 2, .. }), "{error}");
    assert_eq!(client.metric("zmq_echo_client_attempts_total"), 2.0);
    assert_eq!(client.metric("zmq_echo_client_retries_total"), 1.0);
    let suspects = endpoints.iter().filter(|at| client.state(at) == Some(State::Suspect)).count();
    assert_eq!(suspects, 2, "the retry went to the same endpoint");
}

#[tokio::test]
async fn attempts_stop_at_the_deadline() {
    let silent = Peer::silent().await;
    let deadline = Duration::from_millis(100);
    let config = ClientConfig { deadline: Some(deadline), ..patient() };
    let client = Counted::new(config, fixed(&[&silent.endpoint]));
    client.client.ready().await;
    let error = client.request("anybody?").await.unwrap_err();
    assert!(
        matches!(error, RequestError::TimedOut { attempts: 1, elapsed, .. } if elapsed >= deadline)
    );
}

#[tokio::test]
async fn a_broken_connection_without_another_endpoint_is_reported_as_such() {
    let server = Server::start(&[]);
    let client = Counted::new(ClientConfig { retries: 0, ..patient() }, fixed(&[&server.endpoint]));
    client.client.ready().await;
    server.stop();
    let asked = client.spawn("unheard");
    until("the request is open at the endpoint", || client.outstanding(&server.endpoint) == 1)
        .await;
    server.signal(Signal::KILL);
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Disconnected { attempts: 1, .. }), "{error}");
}

#[tokio::test]
async fn each_trouble_of_an_endpoint_is_logged_as_documented() {
    const REFUSES: &str = "tcp://127.0.0.1:1";
    let log = Log::capture();
    let logged = |message: &'static str| until(message, || log.has(message));
    let peer = Peer::silent().await;
    let timeout = Duration::from_millis(50);
    let config = ClientConfig { max_endpoints: 2, timeout, retries: 0, ..hasty() };
    let (publisher, source) = Publisher::new();
    let client = Counted::new(config, source);
    publisher.publish(&[(REFUSES, Ready), (&peer.endpoint, Ready), ("tcp://127.0.0.2:1", Ready)]);
    logged("more endpoints than the limit").await;
    logged("endpoint added").await;
    logged("cannot connect").await;
    logged("connected").await;
    assert!(client.request("never answered").await.is_err());
    logged("endpoint is suspect").await;
    logged("endpoint is still suspect").await;
    drop(peer);
    logged("connection lost").await;
    publisher.publish(&[(REFUSES, Draining)]);
    logged("endpoint changed").await;
}

#[tokio::test]
async fn the_last_failure_of_an_endpoint_is_reported_until_it_recovers() {
    // It is bound but does not listen, so connections are refused.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let endpoint = format!("tcp://{address}");
    let config = ClientConfig { deadline: Some(Duration::from_millis(50)), ..patient() };
    let client = Counted::new(config, fixed(&[&endpoint]));
    let trouble = || client.client.endpoints().pop().and_then(|status| status.trouble);
    until("the endpoint has failed", || trouble().is_some()).await;
    let refused = |error: &ConnectError| matches!(error, ConnectError::Connect { .. });
    assert!(matches!(trouble(), Some(Trouble::Connect(error)) if refused(&error)));
    let error = client.request("anybody?").await.unwrap_err();
    let RequestError::NoEndpoint { reason: Some(reason), .. } = &error else { panic!("{error}") };
    assert!(matches!(**reason, Unusable::Endpoint { .. }), "{reason:?}");
    let text = format!(": {endpoint}: connection refused; is the server running?");
    assert!(error.to_string().ends_with(&text), "{error}");

    drop(socket);
    let server = Server::start_on(&endpoint, &[]);
    client.wait_for_state(&endpoint, Some(State::Ready)).await;
    assert!(trouble().is_none() && client.client.unusable().is_none());
    server.signal(Signal::KILL);
    until("the connection is lost", || trouble().is_some()).await;
    assert!(client.client.unusable().is_some());
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_reports_that_as_its_failure() {
    let (silent, _) = never_answering(false).await;
    let client = Counted::new(ClientConfig { retries: 0, ..hasty() }, fixed(&[&silent.endpoint]));
    client.wait_for_state(&silent.endpoint, Some(State::Ready)).await;
    assert!(matches!(client.request("a").await, Err(RequestError::TimedOut { .. })));
    let trouble = || client.client.endpoints().pop().and_then(|status| status.trouble);
    assert!(trouble().is_some());
    until("the endpoint's check has failed", || matches!(trouble(), Some(Trouble::Check(_)))).await;
    let unusable = client.client.unusable().expect("the endpoint is unusable");
    let text = format!("{}: no reply, and the check failed: no reply", silent.endpoint);
    assert_eq!(unusable.to_string(), text);
}

#[tokio::test]
async fn a_client_without_endpoints_knows_whether_its_source_has_named_none() {
    let client = Counted::new(hasty(), fixed(&[]));
    until("the client knows that its source names no endpoints", || {
        client.client.unusable() == Some(Unusable::NoneNamed)
    })
    .await;
    let (publisher, source) = Publisher::new();
    let client = Counted::new(hasty(), source);
    let server = Server::start(&[]);
    publisher.publish(&[(&server.endpoint, Draining)]);
    until("the only endpoint is draining", || client.client.unusable() == Some(Unusable::Draining))
        .await;
    publisher.publish(&[(&server.endpoint, Ready)]);
    until("the endpoint is usable", || client.client.unusable().is_none()).await;
}
