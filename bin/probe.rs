//! `zmq-echo-probe`: see [`zmq_echo::probe`].

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use zmq_echo::config::{ProbeConfig, unread};
use zmq_echo::exit::Exit;
use zmq_echo::log;
use zmq_echo::probe;
use zmq_echo::simulation::EchoConfig;
use zmq_echo::units::milliseconds;

fn main() -> ExitCode {
    let config = ProbeConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    // Warn only people. An orchestrator's probe often shares the environment of its server, and its
    // output becomes an event.
    if config.verbose || io::stderr().is_terminal() {
        let environment = std::env::vars_os();
        for unread in unread(&ProbeConfig::command(), &EchoConfig::command(), environment) {
            let _ = writeln!(io::stderr(), "{unread}");
        }
    }
    // The exit code is the result, so it does not matter whether the line can be written.
    match probe::run(&config.endpoint, config.timeout) {
        Ok(round_trip) => {
            if config.verbose {
                let round_trip = milliseconds(round_trip);
                let _ = writeln!(io::stdout(), "{}: echoed in {round_trip}", config.endpoint);
            }
            Exit::Success.into()
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", log::chain(&error));
            Exit::Failed.into()
        }
    }
}
