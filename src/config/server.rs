//! The server's flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use zmtp::endpoint::BindEndpoint;
use zmtp::router::{Limits, RESERVED_PEERS};

use super::latency_buckets::LatencyBuckets;
use super::log_filter::LogFilter;
use super::parsing::parse;
use crate::exit;
use crate::log::LogFormat;
use crate::service::drain::DrainPolicy;
use crate::service::poll_loop::Settings;
use crate::side_port::address::HttpAddress;
use crate::units::{ByteSize, parse_duration, parse_limit};

/// The longest wait awake. Beyond that it is a burnt CPU and no faster.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(1);

/// Echoes what ZeroMQ clients send to its ROUTER socket, until SIGTERM or SIGINT
#[derive(Debug, Clone, Parser)]
#[command(name = "zmq-echo-server", version, after_help = exit::help(&exit::SERVER))]
pub struct ServerConfig {
    /// Where to listen for clients, tcp://HOST:PORT
    ///
    /// tcp://*:5555 means all interfaces, IPv6 and IPv4, or IPv4 alone if the
    /// host has no IPv6. A name means each of its addresses that this host has.
    /// Port 0 lets the kernel choose; the log says what it chose. The default serves this machine alone: to open the service to a
    /// network is a decision.
    #[arg(
        long,
        env = "ZMQ_ECHO_BIND",
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:5555"
    )]
    pub bind: BindEndpoint,

    /// Where to serve metrics and health over HTTP, IP:PORT
    ///
    /// *:8080 means all interfaces, as for --bind. The side port shows what the
    /// service does, never what it carries. It has no authentication. The default
    /// serves this machine alone.
    #[arg(long, env = "ZMQ_ECHO_HTTP", value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    pub http: HttpAddress,

    /// What to log: off, error, warn, info, debug, trace, or a tracing filter
    ///
    /// A filter is a list such as info,zmtp=debug. The default, info, shows
    /// the service's life; debug adds each peer's faults, trace each request.
    #[arg(long, env = "ZMQ_ECHO_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: LogFilter,

    /// How to write a record
    ///
    /// The default, auto, is text on a terminal and JSON elsewhere: a person
    /// reads the one, an aggregator the other.
    #[arg(long, env = "ZMQ_ECHO_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,

    /// How long to go on accepting clients after the signal, such as 5s
    ///
    /// For networks that still route new clients here after the signal. The
    /// default, 0s, is right where a preStop hook has waited already.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub drain_delay: Duration,

    /// The drain ends after this long without a byte of a request or reply, such as 1s
    ///
    /// The server waits for a client with a partial message or an unread reply. Requests may
    /// still be on the wire when the listener has closed. The default, 1s, is several times the
    /// slowest round trip between two zones.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_QUIET", value_name = "DURATION", default_value = "1s",
        value_parser = parse_duration
    )]
    pub drain_quiet: Duration,

    /// How long the drain may take, from the signal to the exit, such as 20s
    ///
    /// Delay, flush and close included. The default, 20s, leaves a third of
    /// Kubernetes' grace period of 30 s to a preStop hook.
    #[arg(
        long, env = "ZMQ_ECHO_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s",
        value_parser = parse_duration
    )]
    pub drain_timeout: Duration,

    /// Upper bounds of the latency histogram's buckets, in seconds, rising
    ///
    /// Comma-separated. The default spans an echo on loopback to a stall that a
    /// client has given up on.
    #[arg(
        long, env = "ZMQ_ECHO_LATENCY_BUCKETS", value_name = "SECONDS,…",
        default_value_t = LatencyBuckets::default()
    )]
    pub latency_buckets: LatencyBuckets,

    /// The largest message, all frames together, such as 8MiB
    ///
    /// A client that announces more is disconnected at once. The default, 8MiB,
    /// lets eight of the largest be under way at the default of --buffer-limit.
    #[arg(long, env = "ZMQ_ECHO_MESSAGE_LIMIT", value_name = "BYTES", default_value = "8MiB")]
    pub message_limit: ByteSize,

    /// The most frames of a message
    ///
    /// Each costs work and memory beside its bytes. The default, 1024, is far more
    /// than any envelope takes.
    #[arg(
        long, env = "ZMQ_ECHO_FRAME_LIMIT", value_name = "FRAMES", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(2..=1 << 20)
    )]
    pub frame_limit: u32,

    /// The most metadata that a client may announce in its handshake
    ///
    /// The default, 4KiB, is sixteen times what ZeroMQ libraries send with the
    /// longest identity.
    #[arg(long, env = "ZMQ_ECHO_METADATA_LIMIT", value_name = "BYTES", default_value = "4KiB")]
    pub metadata_limit: ByteSize,

    /// The most connections at a time
    ///
    /// Eight of them are reserved for clients on this host, such as the probe. When
    /// the others are taken, an unfinished handshake makes room for the next one.
    /// Lowered at the start if the process may not open that many files. The
    /// default, 6000, keeps the memory for their allowances under 70 MiB.
    #[arg(
        long, env = "ZMQ_ECHO_PEER_LIMIT", value_name = "PEERS", default_value_t = 6000,
        value_parser = clap::value_parser!(u32).range(RESERVED_PEERS as i64 + 1..=1 << 20)
    )]
    pub peer_limit: u32,

    /// Maximum connections from one address of another host; 0 for no limit
    ///
    /// IPv6 addresses count by their /64, which is usually one host, but often a whole
    /// Kubernetes node. The default, 0, is right behind NAT, a proxy or a Service with
    /// SNAT, where all clients share a few addresses.
    #[arg(
        long, env = "ZMQ_ECHO_ADDRESS_LIMIT", value_name = "PEERS", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=1 << 20)
    )]
    pub address_limit: u32,

    /// How long a client's handshake may take, such as 5s
    ///
    /// The default, 5s, is several round trips with lost packets among them.
    #[arg(
        long, env = "ZMQ_ECHO_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "5s",
        value_parser = parse_limit
    )]
    pub handshake_timeout: Duration,

    /// How long a partial message may take to bring --stall-bytes, such as 30s
    ///
    /// The client is disconnected otherwise. A message that is complete within its first
    /// window may be as small and slow as it likes. The default, 30s, outlasts a client's
    /// pause for garbage collection and a network's hiccup.
    #[arg(
        long, env = "ZMQ_ECHO_STALL_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = parse_limit
    )]
    pub stall_timeout: Duration,

    /// The least that a partial message has to bring in each --stall-timeout
    ///
    /// A byte now and then is no progress, but memory that is held for nothing. The default,
    /// 32KiB, is 1 KiB/s with the default of --stall-timeout: less than the slowest mobile
    /// network carries.
    #[arg(long, env = "ZMQ_ECHO_STALL_BYTES", value_name = "BYTES", default_value = "32KiB")]
    pub stall_bytes: ByteSize,

    /// What all clients together may make the server hold, such as 64MiB
    ///
    /// Beyond 8 KiB each, which they may always have. When it is full, the client whose bytes
    /// would take longest to clear at its rate of the last minute is disconnected; what began
    /// less than a second ago is spared if possible. The default, 64MiB,
    /// takes 256 clients that do not read, and keeps the process under 160 MiB.
    #[arg(long, env = "ZMQ_ECHO_BUFFER_LIMIT", value_name = "BYTES", default_value = "64MiB")]
    pub buffer_limit: ByteSize,

    /// Maximum requests in flight, of all clients together
    ///
    /// It counts for services that answer later; an echo has none in flight. At the limit no
    /// client is read from, so further requests wait in the kernel and at the clients. The
    /// default, 4096, keeps a hundred slow calls for each of forty clients going.
    #[arg(
        long, env = "ZMQ_ECHO_IN_FLIGHT_LIMIT", value_name = "REQUESTS", default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20)
    )]
    pub in_flight_limit: u32,

    /// Maximum requests in flight, of one client
    ///
    /// At the limit that client is not read from. The default, 128, lets no client take more
    /// than a small part of --in-flight-limit.
    #[arg(
        long, env = "ZMQ_ECHO_PEER_IN_FLIGHT_LIMIT", value_name = "REQUESTS",
        default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20)
    )]
    pub peer_in_flight_limit: u32,

    /// A request that has waited this long is answered with an error, such as 2s
    ///
    /// Its client has probably given up, so the work would be wasted. It counts for services
    /// that answer later. The default, 0s, is no limit.
    #[arg(
        long, env = "ZMQ_ECHO_REQUEST_DEADLINE", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub request_deadline: Duration,

    /// Let a client say how long a request is worth working on
    ///
    /// It sends two frames before the payload (docs/services.md), and a request that has waited
    /// longer is answered with an error. The default, false, rejects requests with these frames.
    #[arg(
        long, env = "ZMQ_ECHO_CLIENT_DEADLINES", value_name = "BOOL", default_value_t = false,
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    pub client_deadlines: bool,

    /// What to do if the service panics
    ///
    /// The default, reply, keeps one bad request from taking down one replica after the other as
    /// its client retries. More than ten panics within a minute end the process in any case.
    #[arg(long, env = "ZMQ_ECHO_ON_PANIC", value_name = "ACTION", default_value = "reply")]
    pub on_panic: OnPanic,

    /// The kernel's buffer for each connection's requests, such as 512KiB
    ///
    /// Its replies have a quarter of that. Linux takes twice as much, and no more than
    /// net.core.rmem_max and wmem_max allow. The default, 512KiB, keeps several
    /// messages of 64 KiB coming, which take half as long again with 256KiB.
    #[arg(long, env = "ZMQ_ECHO_SOCKET_BUFFER", value_name = "BYTES", default_value = "512KiB")]
    pub socket_buffer: ByteSize,

    /// A heartbeat is sent to a client after this much silence, such as 15s
    ///
    /// It is TCP keepalive, and a ZMTP PING as well if the client has shown that it knows
    /// PING. A client whose host does not answer keepalive is disconnected after three times
    /// this long, one that does not answer PING after twice. A client that still has replies
    /// to work on need not answer PING. 0s turns it off. The default, 15s, finds a lost node
    /// before most clients' timeouts.
    #[arg(
        long, env = "ZMQ_ECHO_HEARTBEAT_INTERVAL", value_name = "DURATION", default_value = "15s",
        value_parser = parse_duration
    )]
    pub heartbeat_interval: Duration,

    /// How long the next request may be waited for awake, such as 10us
    ///
    /// To sleep and be woken takes longer than an echo. A client that asks again at
    /// once is answered in half the time and with half the CPU; where nobody does, the
    /// server sleeps. 0s has it always sleep. The default, 10us, takes no more CPU than
    /// being woken does.
    #[arg(
        long, env = "ZMQ_ECHO_BUSY_POLL", value_name = "DURATION", default_value = "10us",
        value_parser = parse_busy_poll
    )]
    pub busy_poll: Duration,
}

impl ServerConfig {
    /// Parses a command line, program name first, and what the environment adds.
    ///
    /// # Errors
    ///
    /// A message for the user: what is wrong, where, and what would be right.
    pub fn parse_args<T: Into<OsString>>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let config: Self = parse(args)?;
        config.check()?;
        Ok(config)
    }

    /// Holds the flags against each other, for a command line that has more than these.
    ///
    /// # Errors
    ///
    /// As [`ServerConfig::parse_args`].
    pub fn check(&self) -> Result<(), clap::Error> {
        let drain = self.drain();
        if drain.delay >= drain.timeout - drain.reserve() {
            let message = format!(
                "--drain-delay {} leaves nothing of --drain-timeout {}, which includes it and a \
                 tenth for the end; expected a shorter delay or a longer timeout\n",
                humantime::format_duration(self.drain_delay),
                humantime::format_duration(self.drain_timeout),
            );
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        if self.message_limit > self.buffer_limit {
            let message = format!(
                "--message-limit {} is more than --buffer-limit {}, which every message has to \
                 fit; expected a lower message limit or a higher buffer limit\n",
                self.message_limit, self.buffer_limit,
            );
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(())
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
    /// Answer that request with an error and go on with a new service
    Reply,
    /// End the process with 101
    Exit,
}

fn parse_busy_poll(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration > LONGEST_BUSY_POLL {
        return Err("expected 1ms at most, such as 10us, or 0s for never".to_owned());
    }
    Ok(duration)
}
