//! `zmq-echo-probe`: see [`zmq_echo::probe`].

use std::io::{self, Write};
use std::process::ExitCode;

use zmq_echo::config::ProbeConfig;
use zmq_echo::exit::Exit;
use zmq_echo::log;
use zmq_echo::probe;
use zmq_echo::units::milliseconds;

fn main() -> ExitCode {
    let config = ProbeConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    // The verdict is the exit code, whether or not anybody takes the line.
    match probe::run(&config.endpoint, config.timeout) {
        Ok(round_trip) => {
            if config.verbose {
                let round_trip = milliseconds(round_trip);
                let _ = writeln!(io::stdout(), "{}: echoed in {round_trip}", config.endpoint);
            }
            Exit::Answered.into()
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", log::chain(&error));
            Exit::Failed.into()
        }
    }
}
