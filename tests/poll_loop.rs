//! The poll loop inside a process of its own making: with another handler, on
//! the real socket.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zeromq::{SocketSend, ZmqMessage};
use zmq_echo::config::ServerConfig;
use zmq_echo::drain::{DrainPolicy, Ending};
use zmq_echo::handler::Rejected;
use zmq_echo::health::{Health, Phase};
use zmq_echo::metrics::{self, Metrics};
use zmq_echo::poll_loop::{self, Report};
use zmq_echo::router::BoundedRouter;
use zmq_echo::termination::TerminationSocket;

use crate::support::{DEADLINE, dealer, message, receive, runtime, wait_until, zmtp};

struct Loop {
    address: SocketAddr,
    metrics: Metrics,
    health: Arc<Health>,
    termination: UnixStream,
    thread: JoinHandle<Report>,
}

fn start(handle: fn(ZmqMessage) -> Result<ZmqMessage, Rejected>) -> Loop {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new(&[1.0], metrics::log_records_dropped());
    let health = Arc::new(Health::new(Instant::now()));
    let (termination, socket) = UnixStream::pair().unwrap();
    let drain =
        DrainPolicy { delay: Duration::ZERO, quiet: Duration::from_millis(200), timeout: DEADLINE };
    let limits = ServerConfig::parse_args(["zmq-echo-server"]).unwrap().limits();
    let (own_metrics, own_health) = (metrics.clone(), Arc::clone(&health));
    let thread = thread::spawn(move || {
        runtime().block_on(async {
            let router = BoundedRouter::bind(listener, limits, own_metrics.socket.clone()).unwrap();
            let termination = TerminationSocket::new(socket);
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
    let report = running.thread.join().unwrap();
    assert_eq!((report.ending, report.owed), (Ending::Quiet, 0));
}

#[test]
fn a_handler_that_answers_with_nothing_is_counted_and_blames_no_peer() {
    let mut running = start(|mut request| {
        request.split_off(1);
        Ok(request)
    });
    let mut client = zmtp::connect(running.address, b"");
    client.write_all(&zmtp::frame(b"swallowed", false)).unwrap();
    let metrics = running.metrics.clone();
    wait_until("the reply is refused", || metrics.rejected.get() == 1);
    assert_eq!(metrics.socket.undeliverable_peer_gone.get(), 0);
    running.termination.write_all(b"x").unwrap();
    assert_eq!(running.thread.join().unwrap().peer_gone, 0);
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
