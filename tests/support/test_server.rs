//! The server that the tests start: the real one's flags and `main`, with an echo of the tests' own.
//!
//! Most tests are about the socket, the loop, the drain, the side port or the client, and need a
//! service that echoes. If they started `zmq-echo-server`, they would all fail as soon as somebody
//! replaced the service in it.

use std::process::ExitCode;

use zmq_echo::simulation;

#[path = "test_echo.rs"]
mod test_echo;

fn main() -> ExitCode {
    simulation::main(|| Ok(test_echo::TestEcho))
}
