//! The server's poll loop with an echo behind each of its adapters, to measure what they cost.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use zmq_echo::config::ServerConfig;
use zmq_echo::metrics::{LATENCY_BUCKETS, Metrics, SocketObserver, log_records_dropped};
use zmq_echo::service::health::Health;
use zmq_echo::service::poll_loop::{self, ServiceError};
use zmq_echo::service::termination::TerminationSocket;
use zmq_echo::service::{Blocking, Call, Concurrent, Rejection, Replies, Service, handler_fn};
use zmtp::Router;

use super::{ANY_PORT, announce};

/// Enough for every request that the generator has in flight.
const LIMIT: usize = 4096;

/// An echo as futures that are ready at once.
pub fn concurrent() -> Result<()> {
    serve(|| {
        let echo = async |call: Call| Ok::<_, Rejection>(Replies::One(call.payload));
        Ok(Concurrent::new(LIMIT, move || handler_fn(echo))?)
    })
}

/// An echo on one thread, because the generator expects replies in the order of its requests.
pub fn blocking() -> Result<()> {
    serve(|| Ok(Blocking::new(1, || Ok(()), |(), call: &Call| Ok(call.payload.clone()))?))
}

fn serve<S: Service>(make: impl FnMut() -> Result<S, ServiceError>) -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    let address = listener.local_addr()?;
    // A closed socket would count as a signal, so the other end stays open.
    let (termination, _open) = UnixStream::pair()?;
    let termination = TerminationSocket::new(termination);
    let config = ServerConfig::parse_args(["serve"])?;
    let metrics = Metrics::new(&LATENCY_BUCKETS, &["any"], log_records_dropped());
    let health = Health::new(Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let observer = SocketObserver::new(metrics.socket.clone());
        let socket = Router::bind([listener], config.limits(), observer)?;
        announce(address);
        let settings = config.settings();
        poll_loop::run(socket, termination, settings, make, &metrics, &health).await?;
        // This server never drains; it is killed.
        std::thread::sleep(Duration::MAX);
        Ok(())
    })
}
