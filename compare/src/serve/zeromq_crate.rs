//! The server's own poll loop, handler and metrics over the zeromq crate's
//! ROUTER: what going back to the crate would cost.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use zmq_echo::metrics::{LATENCY_BUCKETS, Metrics, log_records_dropped};
use zmq_echo::service::drain::DrainPolicy;
use zmq_echo::service::health::Health;
use zmq_echo::service::termination::TerminationSocket;
use zmq_echo::service::{handler, poll_loop};

use super::{ANY_PORT, announce};
use crate::zeromq_router::ZeromqRouter;

/// Nobody asks this server to drain; it is killed.
const NO_DRAIN: DrainPolicy =
    DrainPolicy { delay: Duration::ZERO, quiet: Duration::ZERO, timeout: Duration::from_secs(1) };

pub fn run() -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    let address = listener.local_addr()?;
    // A closed socket would count as a signal, so the other end stays open.
    let (termination, _open) = UnixStream::pair()?;
    let termination = TerminationSocket::new(termination);
    let metrics = Metrics::new(&LATENCY_BUCKETS, log_records_dropped());
    let health = Health::new(Instant::now());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = ZeromqRouter::bind([listener], metrics.socket.clone()).await?;
        announce(address);
        poll_loop::run(socket, termination, NO_DRAIN, handler::handle, &metrics, &health).await?;
        Ok(())
    })
}
