//! Runs the poll loop in the test's own process, with other services, on the real socket.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zeromq::{SocketRecv, SocketSend};
use zmq_echo::config::ServerConfig;
use zmq_echo::metrics::{self, Metrics, PROBE_IDENTITY, SocketMetrics, SocketObserver};
use zmq_echo::service::drain::{DrainPolicy, Ending};
use zmq_echo::service::health::{Health, Phase};
use zmq_echo::service::poll_loop::{self, Report, Settings};
use zmq_echo::service::rejection::{CHECK, ERROR};
use zmq_echo::service::termination::TerminationSocket;
use zmq_echo::service::{Answer, Rejection, Request, Service};
use zmtp::Message;
use zmtp::router::{Closed, Router};

use crate::support::test_echo::TestEcho;
use crate::support::{DEADLINE, dealer, message, raw, receive, runtime};

pub struct Loop {
    pub address: SocketAddr,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    pub termination: UnixStream,
    pub thread: JoinHandle<Report>,
}

pub fn start<S: Service + 'static>(make: impl FnMut() -> S + Send + 'static) -> Loop {
    start_with_timeout(make, DEADLINE)
}

fn socket(listener: TcpListener, metrics: SocketMetrics) -> Router<SocketObserver> {
    let limits = ServerConfig::parse_args(["zmq-echo-server"]).unwrap().limits();
    let socket = Router::bind([listener], limits, SocketObserver::new(metrics)).unwrap();
    socket.with_monitors(PROBE_IDENTITY.as_bytes())
}

/// A loop with a drain timeout of `timeout`.
pub fn start_with_timeout<S: Service + 'static>(
    make: impl FnMut() -> S + Send + 'static,
    timeout: Duration,
) -> Loop {
    start_with(make, timeout, None)
}

/// A loop whose requests also have a deadline.
pub fn start_with<S: Service + 'static>(
    mut make: impl FnMut() -> S + Send + 'static,
    timeout: Duration,
    request_deadline: Option<Duration>,
) -> Loop {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new(&[1.0], &["any"], metrics::log_records_dropped());
    let health = Arc::new(Health::new(Instant::now()));
    let (termination, other_end) = UnixStream::pair().unwrap();
    let drain = DrainPolicy { delay: Duration::ZERO, quiet: Duration::from_millis(200), timeout };
    let settings =
        Settings { drain, request_deadline, client_deadlines: true, exit_on_panic: false };
    let (own_metrics, own_health) = (metrics.clone(), Arc::clone(&health));
    let thread = thread::spawn(move || {
        runtime().block_on(async {
            let router = socket(listener, own_metrics.socket.clone());
            let termination = TerminationSocket::new(other_end);
            let make = || Ok(make());
            poll_loop::run(router, termination, settings, make, &own_metrics, &own_health)
                .await
                .unwrap()
        })
    });
    Loop { address, metrics, health, termination, thread }
}

/// Echoes requests of even length and rejects the others.
fn even_only(request: Request<'_>) -> Answer {
    match request.frames().last() {
        Some(frame) if frame.len() % 2 == 0 => request.echo(),
        _ => request.reject(Rejection::new("odd", "expected an even length")),
    }
}

#[tokio::test]
async fn a_rejected_request_gets_an_error_reply_and_the_loop_goes_on() {
    let mut running = start(|| even_only);
    let mut dealer = dealer(&format!("tcp://{}", running.address)).await;
    for frame in ["odd", "even"] {
        dealer.send(message(&[b"id", b"", frame.as_bytes()])).await.unwrap();
    }
    let reply = receive(&mut dealer).await;
    // The envelope comes back, then the error.
    assert_eq!(reply[..2], [&b"id"[..], b""]);
    let rejection = Rejection::of_payload(reply[2..].iter().map(|frame| &frame[..]));
    assert_eq!(rejection, Some(Rejection::new("odd", "expected an even length")));
    assert_eq!(receive(&mut dealer).await, [&b"id"[..], b"", b"even"]);
    assert_eq!(running.metrics.rejected.get(), 1);
    assert_eq!(running.health.phase(), Phase::Serving);
    running.termination.write_all(b"x").unwrap();
    // The crate notices the end of its connection only while it receives.
    while !running.thread.is_finished() {
        let _ = tokio::time::timeout(Duration::from_millis(5), dealer.recv()).await;
    }
    let report = running.thread.join().unwrap();
    assert_eq!((report.ending, report.closed), (Ending::Quiet, Closed::default()));
}

#[test]
fn a_service_cannot_reply_with_nothing_or_with_a_lookalike_of_an_error() {
    let mut running = start(|| {
        |request: Request<'_>| match request.frame(0) {
            Some(b"nothing") => request.reply(Message::default()),
            _ => request.reply(Message::from(&Rejection::draining())),
        }
    });
    let mut client = raw::connect(running.address, b"");
    for body in [&b"nothing"[..], b"an error"] {
        client.write_all(&raw::frame(body, false)).unwrap();
        let reply = raw::read_message(&mut client);
        let rejection = Rejection::of_payload(reply.iter().map(|frame| &frame[..]));
        assert_eq!(rejection.unwrap().code, "failed");
    }
    assert_eq!(running.metrics.socket.undeliverable_peer_gone.get(), 0);
    running.termination.write_all(b"x").unwrap();
    raw::leave_when_closed(client);
    assert_eq!(running.thread.join().unwrap().lost, 0);
}

#[test]
fn checks_are_answered_without_the_service_and_other_reserved_payloads_are_rejected() {
    let mut running =
        start(|| |_: Request<'_>| -> Answer { panic!("a check reached the service") });
    let mut client = raw::connect(running.address, b"");
    client.write_all(&raw::frame(CHECK, false)).unwrap();
    assert_eq!(raw::read_message(&mut client), [CHECK.to_vec()]);
    client.write_all(&raw::frame(ERROR, false)).unwrap();
    let reply = raw::read_message(&mut client);
    let rejection = Rejection::of_payload(reply.iter().map(|frame| &frame[..]));
    assert_eq!(rejection.unwrap().code, "reserved");
    let mut probe = raw::connect(running.address, b"zmq-echo-probe/1");
    probe.write_all(&raw::frame(b"probe", false)).unwrap();
    assert_eq!(raw::read_frame(&mut probe).1, b"probe");
    running.termination.write_all(b"x").unwrap();
    [client, probe].into_iter().for_each(raw::leave_when_closed);
    running.thread.join().unwrap();
}

#[tokio::test]
async fn closing_the_other_end_of_the_termination_socket_ends_the_loop() {
    let running = start(|| TestEcho);
    drop(running.termination);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(running.thread.join().unwrap()));
    assert_eq!(end.recv_timeout(DEADLINE).unwrap().ending, Ending::NoPeers);
    assert_eq!(running.metrics.draining.get(), 1);
}

#[test]
fn every_request_is_counted_with_its_bytes_even_if_the_drain_leaves_it_unanswered() {
    // However fast the machine is, one second is not enough for the requests that have arrived by
    // then.
    let slowly = || {
        |request: Request<'_>| {
            thread::sleep(Duration::from_micros(200));
            request.echo()
        }
    };
    let mut running = start_with_timeout(slowly, Duration::from_secs(1));
    let mut clients = [(); 2].map(|()| raw::connect(running.address, b""));
    for client in &mut clients {
        client.write_all(&raw::frame(b"flood", false).repeat(10_000)).unwrap();
    }
    running.termination.write_all(b"x").unwrap();
    let report = running.thread.join().unwrap();
    assert_eq!(report.ending, Ending::Deadline);
    assert!(!report.closed.is_clean(), "the drain answered every request: {report:?}");
    let requests = running.metrics.client_requests.get();
    assert_eq!(running.metrics.socket.received_bytes.get(), requests * 5);
}

/// Echoes, except for requests that must be rejected.
fn as_asked(request: Request<'_>) -> Answer {
    match request.frame(0) {
        Some(b"reject") => request.reject(Rejection::new("asked", "")),
        _ => request.echo(),
    }
}

#[test]
fn each_request_is_counted_once_whatever_its_outcome() {
    let mut running = start(|| as_asked);
    let mut client = raw::connect(running.address, b"client");
    let mut probe = raw::connect(running.address, b"zmq-echo-probe/1");
    for body in [b"reject".as_slice(), b"hello"] {
        client.write_all(&raw::frame(body, false)).unwrap();
    }
    assert_eq!(raw::read_message(&mut client).len(), 4);
    assert_eq!(raw::read_frame(&mut client).1, b"hello");
    probe.write_all(&raw::frame(b"probe", false)).unwrap();
    assert_eq!(raw::read_frame(&mut probe).1, b"probe");
    running.termination.write_all(b"x").unwrap();
    [client, probe].into_iter().for_each(raw::leave_when_closed);
    running.thread.join().unwrap();
    let (metrics, socket) = (&running.metrics, &running.metrics.socket);
    assert_eq!((metrics.client_requests.get(), metrics.probe_requests.get()), (2, 1));
    assert_eq!((metrics.rejected.get(), socket.undeliverable_peer_gone.get()), (1, 0));
    let error: usize = Rejection::new("asked", "").frames().iter().map(|frame| frame.len()).sum();
    assert_eq!((socket.received_bytes.get(), socket.sent_bytes.get()), (6 + 5, error as u64 + 5));
    let any = socket.methods.get("any").unwrap();
    assert_eq!((any.ok.get(), any.error.get(), any.duration.count()), (1, 1, 2));
}
