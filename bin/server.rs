//! `zmq-echo-server`: see [`zmq_echo::server`].

use std::process::ExitCode;

use zmq_echo::service::Echo;
use zmq_echo::simulation;

/// The echo, with the flags that simulate work and faults. For a service of your own, call
/// `zmq_echo::server::main` instead, which has only the flags of every server.
fn main() -> ExitCode {
    simulation::main(|| Ok(Echo))
}
