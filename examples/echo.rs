//! The smallest service: a closure that answers at once.
//!
//!     cargo run --example echo
//!     python3 examples/client.py tcp://127.0.0.1:5555 hello

use std::process::ExitCode;

use zmq_echo::server;
use zmq_echo::service::Request;

fn main() -> ExitCode {
    server::main(|| Ok(|request: Request<'_>| request.echo()))
}
