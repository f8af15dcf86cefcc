//! `zmq-echo-probe`: see [`zmq_echo::probe`].

use std::process::ExitCode;

use zmq_echo::config::ProbeConfig;
use zmq_echo::exit::Exit;
use zmq_echo::log;
use zmq_echo::probe;

fn main() -> ExitCode {
    let config = ProbeConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match probe::run(&config.endpoint, config.timeout) {
        Ok(round_trip) => {
            if config.verbose {
                println!("{}: echoed in {}", config.endpoint, probe::milliseconds(round_trip));
            }
            Exit::Answered.into()
        }
        Err(error) => {
            eprintln!("{}", log::chain(&error));
            Exit::Failed.into()
        }
    }
}
