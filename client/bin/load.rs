//! `zmq-echo-load`: see [`zmq_echo_client::load`].

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::CommandFactory;
use zmq_echo::config::unread;
use zmq_echo::exit::Exit;
use zmq_echo::log::{self, FLUSH_LIMIT, LogFormat};
use zmq_echo::service::termination::Termination;
use zmq_echo::simulation::EchoConfig;
use zmq_echo_client::load::config::LoadConfig;
use zmq_echo_client::load::progress::Progress;
use zmq_echo_client::load::report::Destination;
use zmq_echo_client::load::{self, LoadError};

fn main() -> ExitCode {
    let config = LoadConfig::parse_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let environment = std::env::vars_os();
    for unread in unread(&LoadConfig::command(), &EchoConfig::command(), environment) {
        eprintln!("{unread}");
    }
    let progress = Progress::new(config.duration);
    let terminal = io::stderr().is_terminal();
    let filter = config.log_level.filter();
    let logs = log::init_to(progress.clone(), terminal, filter, LogFormat::Text);
    let exit = logs.map_err(LoadError::Start).and_then(|logs| {
        let exit = run(&config, &progress);
        logs.flush(FLUSH_LIMIT);
        exit
    });
    exit.unwrap_or_else(|error| {
        eprintln!("{}", log::chain(&error));
        error.exit()
    })
    .into()
}

fn run(config: &LoadConfig, progress: &Progress) -> Result<Exit, LoadError> {
    let signals = Termination::register()?;
    let report = Destination::open(config.report.as_deref())?;
    let command = load::command_line(std::env::args_os());
    let result = load::run(config, command, signals.socket, progress)?;
    load::publish(&result, config.output, report, io::stdout())?;
    Ok(result.exit())
}
