//! The server's flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use zmtp::endpoint::BindEndpoint;
use zmtp::router::{Limits, RESERVED_PEERS};

use super::latency_buckets::LatencyBuckets;
use super::log_filter::LogFilter;
use super::parsing::{conflict, parse};
use crate::exit;
use crate::log::LogFormat;
use crate::service::drain::DrainPolicy;
use crate::service::poll_loop::Settings;
use crate::side_port::address::HttpAddress;
use crate::units::{ByteSize, count, parse_duration, parse_limit};
use crate::version::WITH_REVISION;

/// The longest spin. A longer one burns CPU time and makes nothing faster.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(1);

/// Echoes what ZeroMQ clients send to its ROUTER socket, until SIGTERM or SIGINT
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-server", version = WITH_REVISION, after_help = exit::help(&exit::SERVER))]
pub struct ServerConfig {
    /// Where to listen for clients, tcp://HOST:PORT
    ///
    /// tcp://*:5555 is all interfaces, IPv6 and IPv4, or IPv4 alone if the host has no IPv6. A host
    /// name means each of its addresses that this host has. With port 0 the kernel chooses a port,
    /// and the log says which. The default accepts connections from this machine only: open the
    /// service to a network on purpose, not by accident.
    #[arg(
        long,
        env = "ZMQ_ECHO_BIND",
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub bind: BindEndpoint,

    /// Where to serve metrics and health over HTTP, HOST:PORT
    ///
    /// The host is as for --bind; *:8080 is all interfaces. The side port shows what the service
    /// does, but never the contents of messages. It has no authentication. The default accepts
    /// connections from this machine only.
    #[arg(long, env = "ZMQ_ECHO_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub http: HttpAddress,

    /// What to log: off, error, warn, info, debug, trace, or a tracing filter
    ///
    /// A filter is a list such as info,zmtp=debug. The default, info, logs starting, draining and
    /// stopping. debug adds each client's connections and errors; trace adds each request.
    #[arg(long, env = "ZMQ_ECHO_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: LogFilter,

    /// The format of log records
    ///
    /// The default, auto, is text on a terminal, for people, and JSON elsewhere, for log
    /// collectors.
    #[arg(long, env = "ZMQ_ECHO_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,

    /// How long to keep accepting clients after the signal, such as 5s
    ///
    /// Set it if the network still routes new clients here after the signal. The default, 0s, is
    /// right if a preStop hook has already waited.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub drain_delay: Duration,

    /// The drain ends after this long with no request or reply data in either direction, such as 1s
    ///
    /// Requests may still be on the wire when the listener has closed. A client with a partial
    /// message or an unread reply is waited for as well. The default, 1s, is several times the
    /// slowest round trip between two zones.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_QUIET", value_name = "DURATION", default_value = "1s",
        value_parser = parse_duration
    )]
    pub drain_quiet: Duration,

    /// Time limit for the whole drain, from the signal to the exit, such as 20s
    ///
    /// It includes --drain-delay, flushing and closing. The default, 20s, leaves a third of
    /// Kubernetes' grace period of 30 s to a preStop hook.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s",
        value_parser = parse_limit
    )]
    pub drain_timeout: Duration,

    /// Upper bounds of the latency histogram's buckets: seconds in rising order, comma-separated
    ///
    /// The default ranges from an echo on loopback to a stall so long that clients have given up.
    #[arg(
        long, env = "ZMQ_ECHO_LATENCY_BUCKETS", value_name = "SECONDS,…",
        default_value_t = LatencyBuckets::default()
    )]
    pub latency_buckets: LatencyBuckets,

    /// Maximum size of a message, all frames together, such as 8MiB
    ///
    /// A client that announces a larger one is disconnected at once. The default, 8MiB, allows eight
    /// messages of this size at the same time with the default of --buffer-limit.
    #[arg(long, env = "ZMQ_ECHO_MESSAGE_LIMIT", value_name = "BYTES", default_value = "8MiB")]
    pub message_limit: ByteSize,

    /// Maximum number of frames in a message
    ///
    /// Each frame costs work and memory in addition to its bytes. The default, 1024, is far more
    /// than any envelope needs.
    #[arg(
        long, env = "ZMQ_ECHO_FRAME_LIMIT", value_name = "FRAMES", default_value_t = 1024,
        value_parser = count(2..=1 << 20)
    )]
    pub frame_limit: u32,

    /// Maximum size of the metadata in a client's handshake
    ///
    /// The default, 4KiB, is more than ten times what ZeroMQ libraries send with the longest identity.
    #[arg(long, env = "ZMQ_ECHO_METADATA_LIMIT", value_name = "BYTES", default_value = "4KiB")]
    pub metadata_limit: ByteSize,

    /// Maximum number of connections
    ///
    /// Eight of them are reserved for clients on this machine, such as the probe. When the others
    /// are taken, the server drops an unfinished handshake to make room for the next connection.
    /// The limit is lowered at the start if `ulimit -n` is smaller. The default, 6000, keeps the
    /// memory that is reserved for clients under 70 MiB.
    #[arg(
        long, env = "ZMQ_ECHO_PEER_LIMIT", value_name = "PEERS", default_value_t = 6000,
        value_parser = count(RESERVED_PEERS as u32 + 1..=1 << 20)
    )]
    pub peer_limit: u32,

    /// Maximum number of connections from one address of another host; 0 for no limit
    ///
    /// IPv6 addresses are counted by their /64, which is usually one host, but often a whole
    /// Kubernetes node. The default, 0, is right behind NAT, a proxy or a Service with SNAT, where
    /// all clients share a few addresses.
    #[arg(
        long, env = "ZMQ_ECHO_ADDRESS_LIMIT", value_name = "PEERS", default_value_t = 0,
        value_parser = count(0..=1 << 20)
    )]
    pub address_limit: u32,

    /// Time limit for a client's handshake, such as 5s
    ///
    /// The default, 5s, allows for several round trips, even if some packets are lost.
    #[arg(
        long, env = "ZMQ_ECHO_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "5s",
        value_parser = parse_limit
    )]
    pub handshake_timeout: Duration,

    /// A partial message must grow by --stall-bytes within this time, such as 30s
    ///
    /// Otherwise its client is disconnected. A message that is completed within this time is never
    /// affected, however small it is. The default, 30s, is longer than a client's pause for garbage
    /// collection or a hiccup of the network.
    #[arg(
        long, env = "ZMQ_ECHO_STALL_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = parse_limit
    )]
    pub stall_timeout: Duration,

    /// How much a partial message must grow in each --stall-timeout
    ///
    /// Without a minimum, a client could hold memory forever by sending a byte from time to time.
    /// The default, 32KiB, is 1 KiB/s with the default of --stall-timeout, which is slower than the
    /// slowest mobile network.
    #[arg(long, env = "ZMQ_ECHO_STALL_BYTES", value_name = "BYTES", default_value = "32KiB")]
    pub stall_bytes: ByteSize,

    /// Memory for partial messages, unsent replies and requests in flight, such as 64MiB
    ///
    /// All clients share it, and each has 8 KiB on top. When it is full, the server disconnects the
    /// client whose bytes would take longest to clear at its rate of the last minute. Messages that
    /// began less than a second ago are spared if possible. The default, 64MiB, is enough for 256
    /// clients that do not read, and keeps the process under 160 MiB.
    #[arg(long, env = "ZMQ_ECHO_BUFFER_LIMIT", value_name = "BYTES", default_value = "64MiB")]
    pub buffer_limit: ByteSize,

    /// Maximum number of requests in flight, of all clients together
    ///
    /// It matters only for services that work outside the loop, such as on a pool of threads; an
    /// echo has no requests in flight. At the limit the server stops reading, so further requests
    /// wait in the kernel and at the clients. The default, 4096, is enough for forty clients with a
    /// hundred slow requests each.
    #[arg(
        long, env = "ZMQ_ECHO_IN_FLIGHT_LIMIT", value_name = "REQUESTS", default_value_t = 4096,
        value_parser = count(1..=1 << 20)
    )]
    pub in_flight_limit: u32,

    /// Maximum number of requests in flight, of one client
    ///
    /// At the limit the server stops reading from that client. The default, 128, keeps each client
    /// to a small part of --in-flight-limit.
    #[arg(
        long, env = "ZMQ_ECHO_PEER_IN_FLIGHT_LIMIT", value_name = "REQUESTS",
        default_value_t = 128, value_parser = count(1..=1 << 20)
    )]
    pub peer_in_flight_limit: u32,

    /// A request that has waited this long is answered with an error, such as 2s
    ///
    /// Its client has probably given up, so the work would be wasted. The default, 0s, is no limit.
    #[arg(
        long, env = "ZMQ_ECHO_REQUEST_DEADLINE", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub request_deadline: Duration,

    /// Let clients set a deadline for each request
    ///
    /// A client sends it in two frames before the payload (docs/services.md). A request that has
    /// waited longer is answered with an error. The default, false, rejects requests with these
    /// frames.
    #[arg(
        long, env = "ZMQ_ECHO_CLIENT_DEADLINES", value_name = "BOOL", default_value_t = false,
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    pub client_deadlines: bool,

    /// What to do if the service panics
    ///
    /// The default, reply, prevents one bad request from taking down one replica after another as
    /// its client retries. More than ten panics within a minute end the process in any case.
    #[arg(long, env = "ZMQ_ECHO_ON_PANIC", value_name = "ACTION", default_value = "reply")]
    pub on_panic: OnPanic,

    /// The kernel's buffer for each connection's requests, such as 512KiB
    ///
    /// The buffer for replies is a quarter of it. Linux doubles both, within net.core.rmem_max and
    /// wmem_max. The default, 512KiB, holds several messages of 64 KiB; with 256KiB they take 50%
    /// longer.
    #[arg(long, env = "ZMQ_ECHO_SOCKET_BUFFER", value_name = "BYTES", default_value = "512KiB")]
    pub socket_buffer: ByteSize,

    /// A heartbeat is sent to a client after this much silence, such as 15s
    ///
    /// It is TCP keepalive, and also a ZMTP PING if the client has shown that it knows PING. If the
    /// client's host does not answer keepalive, the client is disconnected after three times this
    /// long; if the client does not answer PING, after twice this long. A client that still has
    /// replies to work on need not answer PING. 0s turns heartbeats off. The default, 15s, detects
    /// a lost node before most clients' timeouts.
    #[arg(
        long, env = "ZMQ_ECHO_HEARTBEAT_INTERVAL", value_name = "DURATION", default_value = "15s",
        value_parser = parse_duration
    )]
    pub heartbeat_interval: Duration,

    /// How long to spin for the next request before sleeping, such as 10us
    ///
    /// Sleeping and being woken takes longer than an echo. If a client sends its next request
    /// immediately, spinning answers it in half the time with half the CPU. Otherwise the server
    /// does not spin. 0s makes it always sleep. The default, 10us, takes no more CPU time than a
    /// wake-up.
    #[arg(
        long, env = "ZMQ_ECHO_BUSY_POLL", value_name = "DURATION", default_value = "10us",
        value_parser = parse_busy_poll
    )]
    pub busy_poll: Duration,
}

impl ServerConfig {
    /// Parses a command line, which begins with the program's name, and the environment.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and an example of a correct value.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let config: Self = parse(args)?;
        config.check()?;
        Ok(config)
    }

    /// Checks that the flags do not contradict each other. [`ServerConfig::parse_args`] does this;
    /// call it yourself if these flags are only part of your command line.
    ///
    /// # Errors
    ///
    /// As for [`ServerConfig::parse_args`].
    pub fn check(&self) -> Result<(), clap::Error> {
        let drain = self.drain();
        let [delay, quiet, timeout] =
            [drain.delay, drain.quiet, drain.timeout].map(humantime::format_duration);
        let serving = drain.timeout - drain.reserve();
        let message = if drain.delay >= serving {
            format!(
                "--drain-delay {delay} leaves no time to drain within --drain-timeout {timeout}, \
                 because a tenth of the timeout, but at most 1s, is reserved for closing; set a \
                 shorter delay or a longer timeout"
            )
        } else if drain.quiet >= serving - drain.delay {
            let left = humantime::format_duration(serving - drain.delay);
            format!(
                "--drain-quiet {quiet} does not fit into --drain-timeout {timeout}: only {left} \
                 is left after --drain-delay {delay} and the time for closing; set a shorter \
                 quiet time or a longer timeout"
            )
        } else if self.message_limit > self.buffer_limit {
            format!(
                "--message-limit {} is more than --buffer-limit {}, which has to hold any \
                 message; set a lower message limit or a higher buffer limit",
                self.message_limit, self.buffer_limit,
            )
        } else {
            return Ok(());
        };
        Err(conflict(&mut Self::command(), &message))
    }

    /// The limits of the ROUTER socket.
    pub fn limits(&self) -> Limits {
        Limits {
            message_bytes: self.message_limit.bytes(),
            message_frames: self.frame_limit as usize,
            metadata_bytes: self.metadata_limit.bytes(),
            peers: self.peer_limit as usize,
            peers_per_address: self.address_limit as usize,
            handshake_timeout: self.handshake_timeout,
            stall_timeout: self.stall_timeout,
            stall_bytes: self.stall_bytes.bytes(),
            buffer_bytes: self.buffer_limit.bytes(),
            in_flight: self.in_flight_limit as usize,
            in_flight_per_peer: self.peer_in_flight_limit as usize,
            socket_buffer: self.socket_buffer.bytes(),
            heartbeat_interval: self.heartbeat_interval,
            busy_poll: self.busy_poll,
        }
    }

    /// The settings of the poll loop.
    pub fn settings(&self) -> Settings {
        Settings {
            drain: self.drain(),
            request_deadline: Some(self.request_deadline).filter(|deadline| !deadline.is_zero()),
            client_deadlines: self.client_deadlines,
            exit_on_panic: self.on_panic == OnPanic::Exit,
        }
    }

    /// The settings of the drain.
    pub fn drain(&self) -> DrainPolicy {
        DrainPolicy {
            delay: self.drain_delay,
            quiet: self.drain_quiet,
            timeout: self.drain_timeout,
        }
    }
}

/// What to do if the service panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnPanic {
    /// Answer that request with an error and continue with a new service
    Reply,
    /// End the process with exit code 101
    Exit,
}

fn parse_busy_poll(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).ok().filter(|duration| *duration <= LONGEST_BUSY_POLL);
    duration.ok_or_else(|| "expected 0s to 1ms with a unit, such as 10us".to_owned())
}
