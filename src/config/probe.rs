//! The probe's flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use zmtp::endpoint::ConnectEndpoint;

use super::parsing::parse;
use crate::exit;
use crate::units::parse_limit;

/// Sends one message to a ZeroMQ echo service and requires it back in time
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-probe", version, after_help = exit::help(&exit::PROBE))]
pub struct ProbeConfig {
    /// The service's public endpoint, tcp://HOST:PORT
    ///
    /// The public one, because a check that takes another way than the clients
    /// proves nothing about theirs. The default is the server's own.
    #[arg(
        long,
        env = "ZMQ_ECHO_PROBE_ENDPOINT",
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub endpoint: ConnectEndpoint,

    /// How long it may take in all, connecting included, such as 500ms
    ///
    /// The default, 500ms, is thousands of times what an echo takes, and well
    /// below the period of any orchestrator's checks.
    #[arg(
        long, env = "ZMQ_ECHO_PROBE_TIMEOUT", value_name = "DURATION", default_value = "500ms",
        value_parser = parse_limit
    )]
    pub timeout: Duration,

    /// Print the round trip
    #[arg(short, long)]
    pub verbose: bool,
}

impl ProbeConfig {
    /// Parses a command line, program name first, and what the environment adds.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and what would be right.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        parse(args)
    }
}
