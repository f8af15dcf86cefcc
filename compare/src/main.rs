//! `zmq-echo-compare`: see [`zmq_echo_compare::run`].

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use zmq_echo_compare::awake;
use zmq_echo_compare::dealer::DealerArgs;
use zmq_echo_compare::run::{self, RunArgs};
use zmq_echo_compare::serve::Server;

/// Measures zmq-echo-server beside libzmq, the zeromq crate, rzmq and raw TCP
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the comparison; the default
    Run(RunArgs),
    /// Run one of the servers in the comparison
    #[command(subcommand)]
    Serve(Server),
    /// Measure one of the clients in the comparison
    Dealer(DealerArgs),
    /// Keep a CPU awake until stdin ends
    #[command(hide = true)]
    Spin,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let success = match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run::run(&args)?,
        Command::Serve(server) => {
            server.run()?;
            true
        }
        Command::Dealer(args) => {
            args.run()?;
            true
        }
        Command::Spin => awake::spin(),
    };
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
