//! The `main` of a server that can simulate work and faults.

use std::process::ExitCode;

use clap::CommandFactory;

use super::config::EchoConfig;
use super::echo::SimulatedEcho;
use crate::server;
use crate::service::Service;
use crate::service::poll_loop::ServiceError;

/// Like [`server::main`], with the flags of the simulation. If none of them is set, it serves what
/// `make` creates. Otherwise it serves a [`SimulatedEcho`].
pub fn main<S: Service>(make: impl FnMut() -> Result<S, ServiceError>) -> ExitCode {
    let config = EchoConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let EchoConfig { server, simulation } = config;
    let command = EchoConfig::command();
    if !simulation.is_on() {
        return server::main_with(&server, &command, None, make);
    }
    let switches = simulation.switches();
    let (work, threads) = (simulation.work(), simulation.work_threads.get() as usize);
    server::main_with(&server, &command, switches.clone(), || {
        Ok(SimulatedEcho::new(work, threads, switches.clone().unwrap_or_default())?)
    })
}
