//! The probe's flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use zmtp::endpoint::ConnectEndpoint;

use super::parsing::parse;
use crate::exit;
use crate::units::parse_limit;
use crate::version::WITH_REVISION;

/// Sends one message to a ZeroMQ echo service and checks that it comes back in time
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-probe", version = WITH_REVISION, after_help = exit::help(&exit::PROBE))]
pub struct ProbeConfig {
    /// The service's public endpoint, tcp://HOST:PORT
    ///
    /// Use the endpoint that clients use: a check over another path proves nothing about theirs.
    /// The default is the server's default endpoint.
    #[arg(
        long,
        env = "ZMQ_ECHO_PROBE_ENDPOINT",
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub endpoint: ConnectEndpoint,

    /// Time limit for the whole probe, connecting included, such as 500ms
    ///
    /// The default, 500ms, is thousands of times longer than an echo takes, and much shorter than
    /// the interval between an orchestrator's checks.
    #[arg(
        long, env = "ZMQ_ECHO_PROBE_TIMEOUT", value_name = "DURATION", default_value = "500ms",
        value_parser = parse_limit
    )]
    pub timeout: Duration,

    /// Print how long the echo took, and which environment variables are ignored
    #[arg(short, long)]
    pub verbose: bool,
}

impl ProbeConfig {
    /// Parses a command line, which begins with the program's name, and the environment.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and an example of a correct value.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        parse(args)
    }
}
