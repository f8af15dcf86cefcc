//! `zmq-echo-server`: see [`zmq_echo::server`].

use std::process::ExitCode;

use tracing::error;
use zmq_echo::config::ServerConfig;
use zmq_echo::exit::Exit;
use zmq_echo::log::{self, FLUSH_LIMIT};
use zmq_echo::server;
use zmq_echo::termination::Termination;

fn main() -> ExitCode {
    let config = ServerConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let started = Termination::register().and_then(|signals| {
        Ok((signals, log::init(config.log_level.filter(), config.log_format)?))
    });
    let (termination, logs) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("cannot register signals and start the log: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = server::run(&config, termination, &logs).unwrap_or_else(|error| {
        error!(error = log::chain(&error), "the service ends");
        Exit::Failed
    });
    logs.flush(FLUSH_LIMIT);
    exit.into()
}
