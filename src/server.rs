//! Puts the parts together: binds, starts the threads, runs the loop.
//!
//! There are four threads: the poll loop, on the thread that calls [`run`], the side port, the log
//! writer and the watchdog. Only the poll loop calls the service, which may start its own threads.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Command, CommandFactory};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;
use tracing::{info, warn};
use zmtp::Router;
use zmtp::endpoint::{BindEndpoint, ConnectEndpoint};
use zmtp::router::{Limits, RESERVED_PEERS};

use crate::config::{Hint, ServerConfig, Unread, unread};
use crate::exit::Exit;
use crate::log::{self, FLUSH_LIMIT, Logs};
use crate::metrics::{Metrics, PROBE_IDENTITY, SocketObserver};
use crate::service::Service;
use crate::service::health::Health;
use crate::service::poll_loop::{self, LoopError, Report, ServiceError};
use crate::service::termination::Termination;
use crate::side_port::address::HttpAddress;
use crate::side_port::own_addresses::OwnAddresses;
use crate::side_port::{self, SidePort};
use crate::simulation::Switches;
use crate::version::{REVISION, VERSION};

/// File descriptors that are not used by connections: listeners, signals, runtimes, standard
/// streams, the probe of `/livez`, and a few to spare.
const OWN_DESCRIPTORS: usize = 32;

/// Why the service could not start or continue.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The ROUTER's endpoint is not available.
    #[error("cannot listen on {endpoint}: {source}; {}", advice(source, "--bind"))]
    Bind {
        /// The endpoint, as configured.
        endpoint: BindEndpoint,
        /// The resolver's or the kernel's error.
        source: io::Error,
    },
    /// The side port's address is not available.
    #[error("cannot serve HTTP on {address}: {source}; {}", advice(source, "--http"))]
    Http {
        /// The address, as configured.
        address: HttpAddress,
        /// The resolver's or the kernel's error.
        source: io::Error,
    },
    /// A thread, a runtime or a file descriptor could not be created.
    #[error("no thread or file descriptor is available")]
    Start(#[from] io::Error),
    /// The loop has ended, because it had no service or its termination socket failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// What you can do about an address that is not available: which flag to change, and how.
fn advice(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("choose another {flag}, or stop the process that listens there")
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a privilege: choose a higher port with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address: choose another {flag}, or * for all")
        }
        _ => format!("check {flag}"),
    }
}

/// All that a server's `main` needs to do: parses the command line, registers the signals, starts
/// the log and calls [`run`] with the service that `make` creates.
pub fn main<S: Service>(make: impl FnMut() -> Result<S, ServiceError>) -> ExitCode {
    let config = ServerConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    main_with(&config, &ServerConfig::command(), None, make)
}

/// Like [`main`], for a program that has parsed its command line itself because it has more flags,
/// which are those of `command`. If there are `switches`, the side port lets clients on this host
/// set them.
pub fn main_with<S: Service>(
    config: &ServerConfig,
    command: &Command,
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
    report_ignored_variables(command);
    let exit = run(config, switches, termination, &logs, make).unwrap_or_else(|error| {
        let (report, exit): (fn(&dyn Error), _) = match &error {
            ServerError::Loop(LoopError::Rebuild(_)) => (log::cannot_continue, Exit::Panicked),
            ServerError::Loop(LoopError::Termination(_)) => (log::cannot_continue, Exit::Failed),
            _ => (log::cannot_start, Exit::Failed),
        };
        report(&error);
        exit
    });
    logs.flush(FLUSH_LIMIT);
    exit.into()
}

/// Logs which environment variables look like settings of this server but are not read.
fn report_ignored_variables(command: &Command) {
    for Unread { variable, hint } in unread(command, command, std::env::vars_os()) {
        match hint {
            // This is normal if programs share an environment, such as a server and its probe.
            Hint::ReadBy(program) => info!(variable, read_by = program, "variable ignored"),
            Hint::Meant(meant) => warn!(variable, meant, "variable unknown"),
        }
    }
}

fn cannot_start(what: &str, error: &io::Error) -> ExitCode {
    eprintln!("cannot {what}: {error}");
    Exit::Failed.into()
}

/// Serves with the service that `make` creates, until a signal has come and the drain is over. If
/// the service panics, `make` creates a new one.
///
/// # Errors
///
/// [`ServerError`] if the service could not start or continue.
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
        .map_err(|source| ServerError::Http { address: config.http.clone(), source })?;
    let endpoint = shown(&listeners, |address| ConnectEndpoint::from(address).to_string())?;
    let http_address = shown(&http, |address| address.to_string())?;

    // The service is created before the metrics, because they need the names of its methods.
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
        &instance(),
    )
    .with_switches(switches);
    side_port::spawn(http, side_port, side_connections)?;

    // Only the loop runs on this runtime.
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

/// The name that the live page shows: the pod's, as in the log, or else the host's.
fn instance() -> String {
    match std::env::var_os(log::POD_NAME).filter(|name| !name.is_empty()) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => uname().nodename().to_string_lossy().into_owned(),
    }
}

/// The addresses of `listeners` for the log, separated by commas.
fn shown(listeners: &[TcpListener], show: impl Fn(SocketAddr) -> String) -> io::Result<String> {
    let addresses: io::Result<Vec<String>> =
        listeners.iter().map(|listener| listener.local_addr().map(&show)).collect();
    Ok(addresses?.join(","))
}

/// Raises the soft limit on open files to the hard limit, and lowers the peer limit if that is
/// still too low. Returns the limits, and how many connections the side port may have. Clients and
/// the side port have separate shares of the descriptors, so that neither can use up the other's.
fn fit_to_descriptors(mut limits: Limits) -> (Limits, usize) {
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: allowed.maximum, ..allowed };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => allowed.maximum,
        Err(_) => allowed.current,
    };
    // `None` means that open files are not limited.
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let side_connections = side_port::CONNECTIONS.min(files / 4).max(1);
    let kept = OWN_DESCRIPTORS + side_connections;
    let peers = files.saturating_sub(kept).max(RESERVED_PEERS + 1);
    if peers < limits.peers {
        warn!(
            peers,
            wanted = limits.peers,
            files,
            "peer limit lowered to fit the limit on open files"
        );
        limits.peers = peers;
    }
    (limits, side_connections)
}

/// Requests and replies of peers whose connection ended before they were done do not count, because
/// nobody is waiting for them.
fn exit_of(report: &Report) -> Exit {
    let is_clean = report.closed.is_clean() && report.unfinished == 0;
    if is_clean { Exit::Success } else { Exit::Deadline }
}
