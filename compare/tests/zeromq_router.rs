//! The zeromq crate's ROUTER behind the server's own poll loop.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zeromq::ZmqMessage;
use zmq_echo::metrics::{self, Metrics};
use zmq_echo::service::drain::DrainPolicy;
use zmq_echo::service::handler::Rejected;
use zmq_echo::service::health::Health;
use zmq_echo::service::poll_loop::{self, Report};
use zmq_echo::service::termination::TerminationSocket;
use zmq_echo_compare::zeromq_router::ZeromqRouter;

use crate::support::{PATIENCE, client};

const DRAIN: DrainPolicy =
    DrainPolicy { delay: Duration::ZERO, quiet: Duration::from_millis(200), timeout: PATIENCE };

struct Loop {
    address: SocketAddr,
    metrics: Metrics,
    termination: UnixStream,
    thread: JoinHandle<Report>,
}

/// The server's poll loop in a thread of its own.
fn start(handle: fn(ZmqMessage) -> Result<ZmqMessage, Rejected>) -> Loop {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::new(&[1.0], metrics::log_records_dropped());
    let (termination, other_end) = UnixStream::pair().unwrap();
    let own_metrics = metrics.clone();
    let thread = thread::spawn(move || {
        let health = Health::new(Instant::now());
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let router = ZeromqRouter::bind([listener], own_metrics.socket.clone()).await.unwrap();
            let termination = TerminationSocket::new(other_end);
            poll_loop::run(router, termination, DRAIN, handle, &own_metrics, &health).await.unwrap()
        })
    });
    Loop { address, metrics, termination, thread }
}

/// Echoes, except that the reply to "nothing" has no payload and the reply to "nobody" goes
/// to a peer that does not exist.
fn as_asked(mut request: ZmqMessage) -> Result<ZmqMessage, Rejected> {
    match request.get(1).map(|frame| &frame[..]) {
        Some(b"nothing") => drop(request.split_off(1)),
        Some(b"nobody") => {
            request = ZmqMessage::from("nobody");
            request.push_back("lost".into());
        }
        _ => {}
    }
    Ok(request)
}

#[test]
fn each_request_is_counted_once_on_the_crates_socket_too() {
    let mut running = start(as_asked);
    let context = zmq::Context::new();
    let dealer = |identity: &str| {
        client(&context, zmq::DEALER, &format!("tcp://{}", running.address), |dealer| {
            dealer.set_identity(identity.as_bytes())
        })
    };
    let client = dealer("client");
    for body in ["nothing", "nobody", "hello"] {
        client.send(body, 0).unwrap();
    }
    assert_eq!(client.recv_bytes(0).unwrap(), b"hello");
    let probe = dealer("zmq-echo-probe/1");
    probe.send("probe", 0).unwrap();
    assert_eq!(probe.recv_bytes(0).unwrap(), b"probe");
    drop((client, probe));
    running.termination.write_all(b"x").unwrap();
    running.thread.join().unwrap();
    let (metrics, socket) = (&running.metrics, &running.metrics.socket);
    assert_eq!((metrics.client_requests.get(), metrics.probe_requests.get()), (3, 1));
    assert_eq!((metrics.rejected.get(), socket.undeliverable_peer_gone.get()), (1, 1));
    assert_eq!((socket.received_bytes.get(), socket.sent_bytes.get()), (7 + 6 + 5, 5));
    assert_eq!(socket.request_duration.get_sample_count(), 1);
}
