//! The load generator's flags, each also an environment variable, validated once.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

use super::payload::{self, Expect, PayloadFile, PayloadSize, Template};
use crate::discovery::Source;
use zmq_echo::config::{LogFilter, parse};
use zmq_echo::exit;
use zmq_echo::units::ByteSize;
use zmq_echo::units::parse_limit;
use zmtp::endpoint::ConnectEndpoint;

/// The most requests outstanding at a time, all connections together: each costs a
/// worker and its request's memory.
const MOST_OUTSTANDING: u32 = 1 << 18;

/// The most bytes of payload outstanding at a time: a machine that measures another
/// should not swap.
const MOST_BYTES: u64 = 1 << 30;

/// The highest rate: many times what one thread can make, so that a larger one is a
/// mistake.
const HIGHEST_RATE: u32 = 10_000_000;

/// Puts a ZeroMQ echo service under load and measures how it answers
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-load", version, after_help = exit::help(&exit::LOAD))]
pub struct LoadConfig {
    /// The endpoints that take the load, tcp://HOST:PORT
    ///
    /// Comma-separated in the environment. The default is the server's own.
    #[arg(
        env = "ZMQ_ECHO_LOAD_ENDPOINTS",
        value_name = "ENDPOINT",
        value_delimiter = ',',
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub endpoints: Vec<ConnectEndpoint>,

    /// Where to find the endpoints instead, and to follow them as they come and go
    ///
    /// dns://HOST:PORT asks the name's addresses, again and again;
    /// dns://_SERVICE._PROTO.NAME asks its SRV records, which say the port as well;
    /// k8s://NAMESPACE/SERVICE:PORT watches the Service's EndpointSlices. PORT is a name
    /// of the Service's or a number of the pods'. Leave out :PORT if there is only one.
    #[arg(long, env = "ZMQ_ECHO_LOAD_DISCOVER", value_name = "URL", conflicts_with = "endpoints")]
    pub discover: Option<Source>,

    /// How many requests a second, or max for as many as it can
    ///
    /// A number is an open loop: requests are due at their times, whatever became
    /// of those before, and latency counts from there. max is a closed loop: each
    /// reply makes the next request. The default, 5000, is a load that every
    /// machine takes.
    #[arg(long, env = "ZMQ_ECHO_LOAD_RATE", value_name = "RATE", default_value = "5000")]
    pub rate: Rate,

    /// How many clients, each with a connection of its own to every endpoint
    ///
    /// The default, 4, lets the server read from one while another's requests are
    /// on their way.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_CONNECTIONS", value_name = "CLIENTS", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub connections: u32,

    /// The most requests outstanding at a time, of each client
    ///
    /// What is due beyond that waits, and its latency counts. The default, 64, holds
    /// 20,000 requests a second where a reply takes 12 ms.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_IN_FLIGHT", value_name = "REQUESTS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=1 << 16)
    )]
    pub in_flight: u32,

    /// How large a payload is: 64, or drawn from a range such as 64-4KiB
    ///
    /// The default, 64, measures the service and not the network.
    #[arg(long, env = "ZMQ_ECHO_LOAD_SIZE", value_name = "BYTES", default_value = "64")]
    pub size: PayloadSize,

    /// A file that is every request's payload, instead of random bytes
    ///
    /// It is read once, at the start, and is 16MiB at most.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_PAYLOAD", value_name = "FILE",
        conflicts_with_all = ["size", "payload_template"]
    )]
    pub payload: Option<PayloadFile>,

    /// A text that is every request's payload, such as 'order {n}'
    ///
    /// Each {n} is replaced with the request's number, counted from 0.
    #[arg(
        long,
        env = "ZMQ_ECHO_LOAD_PAYLOAD_TEMPLATE",
        value_name = "TEXT",
        conflicts_with = "size"
    )]
    pub payload_template: Option<Template>,

    /// Which replies are right: echo, any, or contains:TEXT
    ///
    /// The server's error replies never are. The default, echo, is the request's own payload, byte
    /// by byte.
    #[arg(long, env = "ZMQ_ECHO_LOAD_EXPECT", value_name = "REPLY", default_value = "echo")]
    pub expect: Expect,

    /// How long to wait for the first endpoint that answers, such as 5m
    ///
    /// Only what may still come is waited for: a server, a name, rights. A wrong flag or a
    /// missing kubeconfig ends the run at once. The default, 5s, is several times the pauses
    /// after which a refused connection is tried again.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_WAIT", value_name = "DURATION", default_value = "5s",
        value_parser = parse_limit
    )]
    pub wait: Duration,

    /// How long requests are made, such as 30s
    ///
    /// The replies of the last ones may come after. The default, 30s, is long
    /// enough for 15 samples beyond p99.99 at the default rate.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_DURATION", value_name = "DURATION", default_value = "30s",
        value_parser = parse_limit
    )]
    pub duration: Duration,

    /// How long one attempt may take, such as 1s
    ///
    /// The default, 1s, is thousands of times what an echo takes.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_TIMEOUT", value_name = "DURATION", default_value = "1s",
        value_parser = parse_limit
    )]
    pub timeout: Duration,

    /// How often a request is sent again, to another endpoint where there is one
    ///
    /// The default, 2, outlives one endpoint's end and one that had just started.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_RETRIES", value_name = "RETRIES", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(0..=100)
    )]
    pub retries: u32,

    /// How many requests may fail before the run counts as failed
    ///
    /// The default, 0, is what a service that drains and a client that retries
    /// promise.
    #[arg(long, env = "ZMQ_ECHO_LOAD_MAX_FAILURES", value_name = "REQUESTS", default_value_t = 0)]
    pub max_failures: u64,

    /// The largest reply that is read, such as 16MiB
    ///
    /// A larger one ends its connection as soon as its size is announced. The default, 16MiB,
    /// is the largest --size.
    #[arg(long, env = "ZMQ_ECHO_LOAD_MAX_REPLY", value_name = "BYTES", default_value = "16MiB")]
    pub max_reply: ByteSize,

    /// Memory for one connection's replies until they are checked
    ///
    /// Replies of up to 4KiB do not count. The default, 64MiB, holds four of the largest.
    #[arg(
        long,
        env = "ZMQ_ECHO_LOAD_MAX_CONNECTION_REPLIES",
        value_name = "BYTES",
        default_value = "64MiB"
    )]
    pub max_connection_replies: ByteSize,

    /// Memory for one client's replies, on all its connections and until they are checked
    ///
    /// The default, 256MiB, is a quarter of what may be in flight.
    #[arg(long, env = "ZMQ_ECHO_LOAD_MAX_REPLIES", value_name = "BYTES", default_value = "256MiB")]
    pub max_replies: ByteSize,

    /// How to print the result
    ///
    /// The default, table, is for people; json is one object, for machines.
    #[arg(long, env = "ZMQ_ECHO_LOAD_OUTPUT", value_name = "FORMAT", default_value = "table")]
    pub output: Output,

    /// Where to write the result as a page besides: one HTML file that needs no
    /// network
    #[arg(long, env = "ZMQ_ECHO_LOAD_REPORT", value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// What to log on stderr: off, error, warn, info, debug, trace, or a tracing filter
    ///
    /// The default, warn, leaves the terminal to the progress.
    #[arg(long, env = "ZMQ_ECHO_LOAD_LOG_LEVEL", value_name = "FILTER", default_value = "warn")]
    pub log_level: LogFilter,
}

impl LoadConfig {
    /// Parses a command line, program name first, and what the environment adds.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and what would be right.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let config: Self = parse(args)?;
        let outstanding = config.connections * config.in_flight;
        let bytes = u64::from(outstanding) * config.payloads().most() as u64;
        if outstanding > MOST_OUTSTANDING || bytes > MOST_BYTES {
            let message = format!(
                "--connections {} times --in-flight {} is {outstanding} requests outstanding of \
                 {}; expected {MOST_OUTSTANDING} requests and 1GiB of payload at most\n",
                config.connections,
                config.in_flight,
                config.shown_payload(),
            );
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(config)
    }

    /// The most requests outstanding at a time, all clients together.
    pub fn outstanding(&self) -> usize {
        self.connections as usize * self.in_flight as usize
    }

    /// What is sent.
    pub fn payloads(&self) -> payload::Source {
        let file = self.payload.clone().map(payload::Source::File);
        let template = || self.payload_template.clone().map(payload::Source::Template);
        file.or_else(template).unwrap_or(payload::Source::Random(self.size))
    }

    /// The flag that says how large a payload is.
    fn shown_payload(&self) -> String {
        match self.payloads() {
            payload::Source::Random(size) => format!("--size {size}"),
            source @ payload::Source::File(_) => format!("--payload of {} bytes", source.most()),
            source @ payload::Source::Template(_) => {
                format!("--payload-template of up to {} bytes", source.most())
            }
        }
    }

    /// Where the endpoints come from.
    pub fn source(&self) -> Source {
        self.discover
            .clone()
            .unwrap_or_else(|| Source::Fixed(self.endpoints.iter().cloned().collect()))
    }
}

/// How fast requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Open loop: so many a second.
    PerSecond(NonZeroU32),
    /// Closed loop: each reply makes the next request.
    Max,
}

impl Rate {
    /// The number, where there is one.
    pub fn per_second(self) -> Option<u32> {
        match self {
            Self::PerSecond(rate) => Some(rate.get()),
            Self::Max => None,
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let rate = text.parse().ok().and_then(NonZeroU32::new);
        rate.filter(|rate| rate.get() <= HIGHEST_RATE).map(Self::PerSecond).ok_or_else(|| {
            format!("expected 1 to {HIGHEST_RATE} requests a second, such as 5000, or max")
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate}"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}
