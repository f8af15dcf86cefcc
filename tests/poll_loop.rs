//! The poll loop inside a process of its own making: with another handler, on
//! the real socket.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zeromq::{SocketRecv, SocketSend, ZmqMessage};
use zmq_echo::config::ServerConfig;
use zmq_echo::metrics::{self, Metrics, PROBE_IDENTITY, SocketMetrics, SocketObserver};
use zmq_echo::service::drain::{DrainPolicy, Ending};
use zmq_echo::service::handler::Rejected;
use zmq_echo::service::health::{Health, Phase};
use zmq_echo::service::poll_loop::{self, Report};
use zmq_echo::service::termination::TerminationSocket;
use zmtp::router::{Closed, Router};

use crate::support::{DEADLINE, dealer, message, raw, receive, runtime, wait_until};

struct Loop {
    address: SocketAddr,
    metrics: Metrics,
    health: Arc<Health>,
    termination: UnixStream,
    thread: JoinHandle<Report>,
}

type Handle = fn(ZmqMessage) -> Result<ZmqMessage, Rejected>;

fn start(handle: Handle) -> Loop {
    start_with_timeout(handle, DEADLINE)
}

fn socket(listener: TcpListener, metrics: SocketMetrics) -> Router<SocketObserver> {
    let limits = ServerConfig::parse_args(["zmq-echo-server"]).unwrap().limits();
    let socket = Router::bind([listener], limits, SocketObserver::new(metrics)).unwrap();
    socket.with_monitors(PROBE_IDENTITY.as_bytes())
}

/// A loop whose drain takes `timeout` at most.
fn start_with_timeout(handle: Handle, timeout: Duration) -> Loop {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new(&[1.0], metrics::log_records_dropped());
    let health = Arc::new(Health::new(Instant::now()));
    let (termination, other_end) = UnixStream::pair().unwrap();
    let drain = DrainPolicy { delay: Duration::ZERO, quiet: Duration::from_millis(200), timeout };
    let (own_metrics, own_health) = (metrics.clone(), Arc::clone(&health));
    let thread = thread::spawn(move || {
        runtime().block_on(async {
            let router = socket(listener, own_metrics.socket.clone());
            let termination = TerminationSocket::new(other_end);
            poll_loop::run(router, termination, drain, handle, &own_metrics, &own_health)
                .await
                .unwrap()
        })
    });
    Loop { address, metrics, health, termination, thread }
}

fn even_only(request: ZmqMessage) -> Result<ZmqMessage, Rejected> {
    match request.iter().last() {
        Some(frame) if frame.len() % 2 == 0 => Ok(request),
        _ => Err(Rejected("odd")),
    }
}

#[tokio::test]
async fn a_rejected_request_is_counted_and_the_loop_goes_on() {
    let mut running = start(even_only);
    let mut dealer = dealer(&format!("tcp://{}", running.address)).await;
    for frame in ["odd", "even", "again", "even again"] {
        dealer.send(message(&[frame.as_bytes()])).await.unwrap();
    }
    assert_eq!(receive(&mut dealer).await, [b"even"]);
    assert_eq!(receive(&mut dealer).await, [b"even again"]);
    assert_eq!(running.metrics.rejected.get(), 2);
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
fn a_handler_that_answers_with_nothing_is_counted_and_blames_no_peer() {
    let mut running = start(|mut request| {
        request.split_off(1);
        Ok(request)
    });
    let mut client = raw::connect(running.address, b"");
    client.write_all(&raw::frame(b"swallowed", false)).unwrap();
    let metrics = running.metrics.clone();
    wait_until("the reply is refused", || metrics.rejected.get() == 1);
    assert_eq!(metrics.socket.undeliverable_peer_gone.get(), 0);
    running.termination.write_all(b"x").unwrap();
    raw::leave_when_closed(client);
    assert_eq!(running.thread.join().unwrap().lost, 0);
}

#[tokio::test]
async fn the_other_end_of_the_termination_socket_closing_is_a_request_to_end() {
    let running = start(Ok);
    drop(running.termination);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(running.thread.join().unwrap()));
    assert_eq!(end.recv_timeout(DEADLINE).unwrap().ending, Ending::NoPeers);
    assert_eq!(running.metrics.draining.get(), 1);
}

#[test]
fn every_request_is_counted_with_its_bytes_whatever_its_drain_leaves_unanswered() {
    // However fast the machine: a second is not enough for what has come by then.
    let slowly = |request| {
        thread::sleep(Duration::from_micros(200));
        Ok(request)
    };
    let mut running = start_with_timeout(slowly, Duration::from_secs(1));
    let mut clients = [(); 2].map(|()| raw::connect(running.address, b""));
    for client in &mut clients {
        client.write_all(&raw::frame(b"flood", false).repeat(10_000)).unwrap();
    }
    running.termination.write_all(b"x").unwrap();
    let report = running.thread.join().unwrap();
    assert_eq!(report.ending, Ending::Deadline);
    assert!(!report.closed.is_clean(), "{report:?}");
    let requests = running.metrics.client_requests.get();
    assert_eq!(running.metrics.socket.received_bytes.get(), requests * 5);
}

/// Echoes, but for a request to get nothing, and one that is to go to nobody.
fn as_asked(mut request: ZmqMessage) -> Result<ZmqMessage, Rejected> {
    match request.get(1).map(|frame| &frame[..]) {
        Some(b"nothing") => drop(request.split_off(1)),
        Some(b"nobody") => request = message(&[b"nobody", b"lost"]),
        _ => {}
    }
    Ok(request)
}

#[test]
fn each_request_is_counted_once_whatever_becomes_of_it() {
    let mut running = start(as_asked);
    let mut client = raw::connect(running.address, b"client");
    let mut probe = raw::connect(running.address, b"zmq-echo-probe/1");
    for body in [b"nothing".as_slice(), b"nobody", b"hello"] {
        client.write_all(&raw::frame(body, false)).unwrap();
    }
    assert_eq!(raw::read_frame(&mut client).1, b"hello");
    probe.write_all(&raw::frame(b"probe", false)).unwrap();
    assert_eq!(raw::read_frame(&mut probe).1, b"probe");
    running.termination.write_all(b"x").unwrap();
    [client, probe].into_iter().for_each(raw::leave_when_closed);
    running.thread.join().unwrap();
    let (metrics, socket) = (&running.metrics, &running.metrics.socket);
    assert_eq!((metrics.client_requests.get(), metrics.probe_requests.get()), (3, 1));
    assert_eq!((metrics.rejected.get(), socket.undeliverable_peer_gone.get()), (1, 1));
    assert_eq!((socket.received_bytes.get(), socket.sent_bytes.get()), (7 + 6 + 5, 5));
    assert_eq!(socket.request_duration.get_sample_count(), 1);
}
