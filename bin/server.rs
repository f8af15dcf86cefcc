//! `zmq-echo-server`: see [`zmq_echo::server`].

use std::process::ExitCode;

use zmq_echo::server;
use zmq_echo::service::Echo;

fn main() -> ExitCode {
    server::main(|| Ok(Echo))
}
