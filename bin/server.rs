//! `zmq-echo-server`: see [`zmq_echo::server`].

use std::process::ExitCode;

use zmq_echo::server;
use zmq_echo::service::Echo;
use zmq_echo::simulation::{EchoConfig, SimulatedEcho};

fn main() -> ExitCode {
    let config = EchoConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let EchoConfig { server, simulation } = config;
    if !simulation.is_on() {
        return server::main_with(&server, None, || Ok(Echo));
    }
    let switches = simulation.switches();
    let (work, threads) = (simulation.work(), simulation.work_threads.get() as usize);
    server::main_with(&server, switches.clone(), || {
        Ok(SimulatedEcho::new(work, threads, switches.clone().unwrap_or_default())?)
    })
}
