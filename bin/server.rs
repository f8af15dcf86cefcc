//! `zmq-echo-server`: see [`zmq_echo::server`].

use std::process::ExitCode;

use zmq_echo::config::ServerConfig;
use zmq_echo::exit::Exit;
use zmq_echo::log::{self, FLUSH_LIMIT};
use zmq_echo::server;
use zmq_echo::service::termination::Termination;

fn main() -> ExitCode {
    let config = ServerConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let termination = match Termination::register() {
        Ok(termination) => termination,
        Err(error) => return cannot_start("register signals", &error),
    };
    let logs = match log::init(config.log_level.filter(), config.log_format) {
        Ok(logs) => logs,
        Err(error) => return cannot_start("start the log", &error),
    };
    let exit = server::run(&config, termination, &logs).unwrap_or_else(|error| {
        log::fatal(&error);
        Exit::Failed
    });
    logs.flush(FLUSH_LIMIT);
    exit.into()
}

fn cannot_start(what: &str, error: &std::io::Error) -> ExitCode {
    eprintln!("cannot {what}: {error}");
    Exit::Failed.into()
}
