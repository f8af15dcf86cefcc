//! The flags of the echo server: those of every server, and those of the simulation.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::{ArgAction, Args, Parser};

use super::faults::Switches;
use super::share::Share;
use super::work::{Work, WorkMode};
use crate::config::{ServerConfig, parse};
use crate::exit;
use crate::units::parse_duration;
use crate::version::WITH_REVISION;

/// Echoes what ZeroMQ clients send to its ROUTER socket, until SIGTERM or SIGINT
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-server", version = WITH_REVISION, after_help = exit::help(&exit::SERVER))]
pub struct EchoConfig {
    /// The flags of every server.
    #[command(flatten)]
    pub server: ServerConfig,

    /// The flags of the simulation.
    #[command(flatten)]
    pub simulation: SimulationConfig,
}

/// The flags of the simulation. Their defaults turn it off.
#[derive(Debug, Clone, Args)]
pub struct SimulationConfig {
    /// Simulate work: how long each request takes, such as 5ms
    ///
    /// Use it to demonstrate and test autoscaling, back-pressure and drains. The default, 0s, is the
    /// plain echo.
    #[arg(
        long, env = "ZMQ_ECHO_WORK", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub work: Duration,

    /// Whether simulated work waits or takes CPU time
    ///
    /// The default, sleep, is like waiting for a database. burn uses CPU time, so it triggers an
    /// autoscaler that scales by CPU.
    #[arg(long, env = "ZMQ_ECHO_WORK_MODE", value_name = "MODE", default_value = "sleep")]
    pub work_mode: WorkMode,

    /// How much longer or shorter than --work a request may take, such as 20%
    ///
    /// The time is drawn uniformly: with 5ms and 20%, it is from 4 to 6 ms. The default, 0%, makes
    /// it always the same.
    #[arg(long, env = "ZMQ_ECHO_WORK_JITTER", value_name = "PERCENT", default_value = "0%")]
    pub work_jitter: Share,

    /// Number of threads for the simulated work; each works on one request at a time
    ///
    /// Together with --work it limits the rate: 4 threads at 5ms answer at most 800 requests/s. The
    /// default, 4, is enough to show that, and few enough for a small machine.
    #[arg(
        long, env = "ZMQ_ECHO_WORK_THREADS", value_name = "THREADS",
        default_value_t = NonZeroU32::new(4).expect("not zero"),
        value_parser = parse_threads
    )]
    pub work_threads: NonZeroU32,

    /// Let POST /faults on the side port, from this machine only, make requests slow or fail
    ///
    /// Use it to demonstrate and test retries, alerts and drains. The default, false, makes that
    /// path answer 404.
    #[arg(
        long, env = "ZMQ_ECHO_FAULTS", value_name = "BOOL", default_value_t = false,
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    pub faults: bool,
}

/// Maximum number of threads. A larger number is a mistake.
const MOST_THREADS: u32 = 1024;

fn parse_threads(text: &str) -> Result<NonZeroU32, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroU32| threads.get() <= MOST_THREADS);
    threads.ok_or_else(|| format!("expected 1 to {MOST_THREADS}, such as 4"))
}

impl EchoConfig {
    /// Parses a command line, which begins with the program's name, and the environment.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and an example of a correct value.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let config: Self = parse(args)?;
        config.server.check()?;
        Ok(config)
    }
}

impl SimulationConfig {
    /// Whether anything is simulated.
    pub fn is_on(&self) -> bool {
        self.faults || !self.work.is_zero()
    }

    /// The work of each request.
    pub fn work(&self) -> Work {
        Work { duration: self.work, jitter: self.work_jitter, mode: self.work_mode }
    }

    /// The faults that the side port may set, or `None` without `--faults`.
    pub fn switches(&self) -> Option<Switches> {
        self.faults.then(Switches::default)
    }
}
