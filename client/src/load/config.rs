//! The load generator's flags, each also an environment variable, validated once.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{CommandFactory, Parser, ValueEnum};

use super::payload::{self, Expect, PayloadFile, PayloadSize, Template};
use crate::discovery::Source;
use zmq_echo::config::{LogFilter, conflict, parse};
use zmq_echo::exit;
use zmq_echo::units::{ByteSize, count, parse_limit};
use zmq_echo::version::WITH_REVISION;
use zmtp::endpoint::ConnectEndpoint;

/// Maximum number of requests in flight, all clients together. Each costs a worker and its
/// request's memory.
const MOST_IN_FLIGHT: u32 = 1 << 18;

/// Maximum bytes of payload in flight: a machine that measures another must not swap.
const MOST_BYTES: u64 = 1 << 30;

/// The highest rate. It is many times what one thread can make, so a higher one is a mistake.
const HIGHEST_RATE: u32 = 10_000_000;

/// Puts a ZeroMQ echo service under load and measures its latency and failures
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-load", version = WITH_REVISION, after_help = exit::help(&exit::LOAD))]
pub struct LoadConfig {
    /// The endpoints to put under load, tcp://HOST:PORT
    ///
    /// In the environment they are comma-separated. The default is the server's default endpoint.
    #[arg(
        env = "ZMQ_ECHO_LOAD_ENDPOINTS",
        value_name = "ENDPOINT",
        value_delimiter = ',',
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub endpoints: Vec<ConnectEndpoint>,

    /// Discover the endpoints instead, and follow them as they come and go
    ///
    /// dns://HOST:PORT looks up the name's addresses repeatedly. dns://_SERVICE._PROTO.NAME looks
    /// up its SRV records, which include the port. k8s://NAMESPACE/SERVICE:PORT watches the
    /// Service's EndpointSlices; PORT is the Service's name for the port, or the port number on
    /// which the pods listen, and can be left out if there is only one.
    #[arg(long, env = "ZMQ_ECHO_LOAD_DISCOVER", value_name = "URL", conflicts_with = "endpoints")]
    pub discover: Option<Source>,

    /// Requests per second, or max for as many as possible
    ///
    /// With a number, requests are sent on a fixed schedule, even if earlier replies are late, and
    /// latency is measured from the scheduled time (an open loop). With max, each reply triggers the
    /// next request (a closed loop). The default, 5000, is a load that every machine can handle.
    #[arg(long, env = "ZMQ_ECHO_LOAD_RATE", value_name = "RATE", default_value = "5000")]
    pub rate: Rate,

    /// Number of clients; each has its own connection to every endpoint
    ///
    /// The default, 4, lets the server read from one client while another's requests are on their
    /// way.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_CONNECTIONS", value_name = "CLIENTS", default_value_t = 4,
        value_parser = count(1..=4096)
    )]
    pub connections: u32,

    /// Maximum number of requests in flight, of each client
    ///
    /// Further requests queue, and that wait counts as latency. The default, 64, sustains 20,000
    /// requests/s if a reply takes 12 ms.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_IN_FLIGHT", value_name = "REQUESTS", default_value_t = 64,
        value_parser = count(1..=1 << 16)
    )]
    pub in_flight: u32,

    /// Size of each payload, such as 64, or a range to draw from, such as 64-4KiB
    ///
    /// The default, 64, measures the service rather than the network.
    #[arg(long, env = "ZMQ_ECHO_LOAD_SIZE", value_name = "BYTES", default_value = "64")]
    pub size: PayloadSize,

    /// Send the contents of this file as every request's payload, instead of random bytes
    ///
    /// It is read once, at the start, and may be 16MiB at most.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_PAYLOAD", value_name = "FILE",
        conflicts_with_all = ["size", "payload_template"]
    )]
    pub payload: Option<PayloadFile>,

    /// Send this text as every request's payload, such as 'order {number}'
    ///
    /// Each {number} is replaced with the request's number, which starts at 0.
    #[arg(
        long,
        env = "ZMQ_ECHO_LOAD_PAYLOAD_TEMPLATE",
        value_name = "TEXT",
        conflicts_with = "size"
    )]
    pub payload_template: Option<Template>,

    /// Which replies are correct: echo, any, or contains:TEXT
    ///
    /// The server's error replies are never correct. The default, echo, accepts only the request's
    /// own payload, byte for byte.
    #[arg(long, env = "ZMQ_ECHO_LOAD_EXPECT", value_name = "REPLY", default_value = "echo")]
    pub expect: Expect,

    /// How long to wait at the start until an endpoint answers, such as 5m
    ///
    /// It waits only for what may still appear: a server, a name in DNS, permissions. A wrong flag
    /// or a missing kubeconfig ends the run at once. The default, 5s, is several times the pause
    /// before a refused connection is tried again.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_WAIT", value_name = "DURATION", default_value = "5s",
        value_parser = parse_limit
    )]
    pub wait: Duration,

    /// How long to send requests, such as 30s
    ///
    /// The last replies may arrive later. The default, 30s, is long enough for 15 samples beyond
    /// p99.99 at the default rate.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_DURATION", value_name = "DURATION", default_value = "30s",
        value_parser = parse_limit
    )]
    pub duration: Duration,

    /// Time limit for each attempt at a request, such as 1s
    ///
    /// The default, 1s, is thousands of times longer than an echo takes.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_TIMEOUT", value_name = "DURATION", default_value = "1s",
        value_parser = parse_limit
    )]
    pub timeout: Duration,

    /// How often a failed request is sent again, to another endpoint if possible
    ///
    /// The default, 2, lets a request survive both an endpoint that stops and one that has only just
    /// started.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_RETRIES", value_name = "RETRIES", default_value_t = 2,
        value_parser = count(0..=100)
    )]
    pub retries: u32,

    /// How many requests may fail before the run counts as failed
    ///
    /// The default, 0, is realistic even during a rollout, because the server drains and the client
    /// retries.
    #[arg(
        long, env = "ZMQ_ECHO_LOAD_MAX_FAILURES", value_name = "REQUESTS", default_value_t = 0,
        value_parser = count(0..=u32::MAX)
    )]
    pub max_failures: u32,

    /// Maximum size of a reply, such as 16MiB
    ///
    /// A larger reply closes its connection as soon as its size is announced. The default, 16MiB, is
    /// the largest --size.
    #[arg(long, env = "ZMQ_ECHO_LOAD_MAX_REPLY", value_name = "BYTES", default_value = "16MiB")]
    pub max_reply: ByteSize,

    /// Memory for one connection's replies until they are checked
    ///
    /// Replies of up to 4KiB do not count. The default, 64MiB, is enough for four replies of the
    /// largest size.
    #[arg(
        long,
        env = "ZMQ_ECHO_LOAD_MAX_CONNECTION_REPLIES",
        value_name = "BYTES",
        default_value = "64MiB"
    )]
    pub max_connection_replies: ByteSize,

    /// Memory for one client's replies, on all its connections, until they are checked
    ///
    /// The default, 256MiB, is a quarter of the limit for payloads in flight.
    #[arg(long, env = "ZMQ_ECHO_LOAD_MAX_REPLIES", value_name = "BYTES", default_value = "256MiB")]
    pub max_replies: ByteSize,

    /// Format of the result
    ///
    /// The default, table, is for people; json is one object, for programs.
    #[arg(long, env = "ZMQ_ECHO_LOAD_OUTPUT", value_name = "FORMAT", default_value = "table")]
    pub output: Output,

    /// Also write the result to this file, as an HTML page that needs no network
    #[arg(long, env = "ZMQ_ECHO_LOAD_REPORT", value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// What to log on stderr: off, error, warn, info, debug, trace, or a tracing filter
    ///
    /// The default, warn, leaves the terminal to the progress bar.
    #[arg(long, env = "ZMQ_ECHO_LOAD_LOG_LEVEL", value_name = "FILTER", default_value = "warn")]
    pub log_level: LogFilter,
}

impl LoadConfig {
    /// Parses a command line, which begins with the program's name, and the environment.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and an example of a correct value.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let config: Self = parse(args)?;
        let in_flight = config.connections * config.in_flight;
        let bytes = u64::from(in_flight) * config.payloads().most() as u64;
        let message = if in_flight > MOST_IN_FLIGHT {
            format!(
                "--connections {} with --in-flight {} is {in_flight} requests in flight; the limit \
                 is {MOST_IN_FLIGHT}: lower --in-flight or --connections",
                config.connections, config.in_flight,
            )
        } else if bytes > MOST_BYTES {
            let payload = config.shown_payload();
            let size = if payload.starts_with("--size") { "--size, " } else { "" };
            format!(
                "{in_flight} requests in flight with {payload} are {:.1} GiB of payload; the limit \
                 is 1 GiB: lower {size}--in-flight or --connections",
                bytes as f64 / (1_u64 << 30) as f64,
            )
        } else {
            return Ok(config);
        };
        Err(conflict(&mut Self::command(), &message))
    }

    /// The most requests in flight, all clients together.
    pub fn outstanding(&self) -> usize {
        self.connections as usize * self.in_flight as usize
    }

    /// The payloads to send.
    pub fn payloads(&self) -> payload::Source {
        let file = self.payload.clone().map(payload::Source::File);
        let template = || self.payload_template.clone().map(payload::Source::Template);
        file.or_else(template).unwrap_or(payload::Source::Random(self.size))
    }

    /// The flag that sets the size of a payload, with its value.
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

/// How fast requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Open loop: this many per second.
    PerSecond(NonZeroU32),
    /// Closed loop: each reply triggers the next request.
    Max,
}

impl Rate {
    /// Requests per second, if there is a number.
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
            format!("expected 1 to {HIGHEST_RATE} requests per second, such as 5000, or max")
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
    /// For people
    Table,
    /// One JSON object
    Json,
}
