//! Puts the parts together: binds, starts the threads, runs the loop.
//!
//! Four threads: the poll loop on the one that calls [`run`], the side port, the
//! log's writer and the watchdog. Only the first does the service's work.

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;
use tracing::{info, warn};
use zmtp::Router;
use zmtp::endpoint::{BindEndpoint, ConnectEndpoint};
use zmtp::router::{Limits, RESERVED_PEERS};

use crate::config::ServerConfig;
use crate::exit::Exit;
use crate::log::{self, FLUSH_LIMIT, Logs};
use crate::metrics::{Metrics, PROBE_IDENTITY, REVISION, SocketObserver, VERSION};
use crate::service::Service;
use crate::service::health::Health;
use crate::service::poll_loop::{self, LoopError, Report, ServiceError};
use crate::service::termination::Termination;
use crate::side_port::address::HttpAddress;
use crate::side_port::own_addresses::OwnAddresses;
use crate::side_port::{self, SidePort};
use crate::simulation::Switches;

/// The descriptors that are neither a client's nor the side port's: listeners,
/// signals, runtimes, standard streams, a probe of our own and a few to spare.
const OWN_DESCRIPTORS: usize = 32;

/// Why the service could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The ROUTER's endpoint cannot be had.
    #[error("cannot listen on {endpoint}")]
    Bind {
        /// As it was configured.
        endpoint: BindEndpoint,
        /// What the resolver or the kernel says.
        source: io::Error,
    },
    /// The side port's address cannot be had.
    #[error("cannot serve HTTP on {address}")]
    Http {
        /// As it was configured.
        address: HttpAddress,
        /// What the kernel says.
        source: io::Error,
    },
    /// No thread, no runtime, no descriptors.
    #[error("cannot start")]
    Start(#[from] io::Error),
    /// The loop ended for want of a socket.
    #[error("cannot go on")]
    Loop(#[from] LoopError),
}

/// The whole of a server's `main`: parses the command line, registers the signals, starts the
/// log and [`run`]s.
pub fn main<S: Service>(make: impl FnMut() -> Result<S, ServiceError>) -> ExitCode {
    let config = ServerConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    main_with(&config, None, make)
}

/// The rest of [`main`], for a command line that has more flags than these. If there are
/// `switches`, the side port lets this host set them.
pub fn main_with<S: Service>(
    config: &ServerConfig,
    switches: Option<Switches>,
    make: impl FnMut() -> Result<S, ServiceError>,
) -> ExitCode {
    let termination = match Termination::register() {
        Ok(termination) => termination,
        Err(error) => return cannot_start("register signals", &error),
    };
    let logs = match log::init(config.log_level.filter(), config.log_format) {
        Ok(logs) => logs,
        Err(error) => return cannot_start("start the log", &error),
    };
    let exit = run(config, switches, termination, &logs, make).unwrap_or_else(|error| {
        log::fatal(&error);
        Exit::Failed
    });
    logs.flush(FLUSH_LIMIT);
    exit.into()
}

fn cannot_start(what: &str, error: &io::Error) -> ExitCode {
    eprintln!("cannot {what}: {error}");
    Exit::Failed.into()
}

/// Serves with a service that `make` makes, until a signal and through the drain that it starts.
/// Another one is made if it has panicked.
///
/// # Errors
///
/// [`ServerError`] where the service could not start or go on.
pub fn run<S: Service>(
    config: &ServerConfig,
    switches: Option<Switches>,
    termination: Termination,
    logs: &Logs,
    mut make: impl FnMut() -> Result<S, ServiceError>,
) -> Result<Exit, ServerError> {
    let watchdog_exit = termination.watchdog.spawn(config.drain(), logs.clone())?;
    let listeners = config
        .bind
        .listen()
        .map_err(|source| ServerError::Bind { endpoint: config.bind.clone(), source })?;
    let http = config
        .http
        .listen()
        .map_err(|source| ServerError::Http { address: config.http, source })?;
    let (endpoint, http_address) = (endpoint_of(&listeners)?, http.local_addr()?);

    // The metrics have its methods' names, so it comes first.
    let first = make().map_err(LoopError::Service)?;
    let methods = first.methods();
    let mut first = Some(first);
    let make = || first.take().map_or_else(&mut make, Ok);
    let metrics = Metrics::new(config.latency_buckets.bounds(), methods, logs.dropped());
    let health = Arc::new(Health::new(Instant::now()));
    let (limits, side_connections) = fit_to_descriptors(config.limits());
    metrics.socket.show_limits(&limits);
    let side_port = SidePort::new(
        metrics.clone(),
        Arc::clone(&health),
        OwnAddresses::of(&listeners)?,
        // In a pod, the pod's name.
        &uname().nodename().to_string_lossy(),
    )
    .with_switches(switches);
    side_port::spawn(http, side_port, side_connections)?;

    // Nothing but the loop shares this runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let observer = SocketObserver::new(metrics.socket.clone());
    let socket = runtime.block_on(async { Router::bind(listeners, limits, observer) })?;
    let socket = socket.with_monitors(PROBE_IDENTITY.as_bytes());
    info!(
        %endpoint,
        http = %http_address,
        version = VERSION,
        revision = REVISION,
        pid = std::process::id(),
        "listening"
    );
    let settings = config.settings();
    let turns = poll_loop::run(socket, termination.socket, settings, make, &metrics, &health);
    let exit = exit_of(&runtime.block_on(turns)?);
    watchdog_exit.set(exit);
    Ok(exit)
}

/// Where clients connect, for the log: each address as an endpoint, comma-separated.
fn endpoint_of(listeners: &[TcpListener]) -> io::Result<String> {
    let endpoints: io::Result<Vec<String>> = listeners
        .iter()
        .map(|listener| Ok(ConnectEndpoint::from(listener.local_addr()?).to_string()))
        .collect();
    Ok(endpoints?.join(","))
}

/// Raises the soft limit of open files to the hard one, and lowers the peer limit and
/// the side port's connections, which is the second, to what that allows: a scrape
/// must get its descriptors however many clients there are, and clients theirs.
fn fit_to_descriptors(mut limits: Limits) -> (Limits, usize) {
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: allowed.maximum, ..allowed };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => allowed.maximum,
        Err(_) => allowed.current,
    };
    // No limit is more than there are numbers for descriptors.
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let side_connections = side_port::CONNECTIONS.min(files / 4).max(1);
    let kept = OWN_DESCRIPTORS + side_connections;
    let peers = files.saturating_sub(kept).max(RESERVED_PEERS + 1);
    if peers < limits.peers {
        warn!(peers, wanted = limits.peers, files, "fewer peers: the open files are limited");
        limits.peers = peers;
    }
    (limits, side_connections)
}

/// What peers lost by their own doing does not count: nobody waits for it.
fn exit_of(report: &Report) -> Exit {
    let is_clean = report.closed.is_clean() && report.unfinished == 0;
    if is_clean { Exit::Answered } else { Exit::Deadline }
}
