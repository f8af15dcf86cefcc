//! Every series of the service, in a registry that is owned and passed in.
//!
//! Names and labels are a contract with scrapers, dashboards and autoscalers. Each series exists
//! at zero from the first scrape, because autoscalers and alerts cannot work with a missing series.
//!
//! The modules, in reading order:
//!
//! 1. [`series`]: creates and registers a series at zero.
//! 2. [`latency`]: histograms that take many equal observations at once.
//! 3. [`methods`]: requests by method.
//! 4. `process`: CPU time, memory and file descriptors of the process.

pub mod latency;
pub mod methods;
mod process;
pub mod series;

use prometheus::{
    Encoder, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result, TextEncoder,
};

use self::methods::{Label, Methods};
use self::process::Process;
use self::series::{counter, counters, gauge, histogram, register, seconds};
use crate::version::{REVISION, VERSION};
use zmtp::Reason;
use zmtp::event::{Event, Observer, Totals};
use zmtp::router::Limits;

/// The prefix of the identity that a probe announces. It decides only how a request is counted.
/// The server trusts it only from its own host, and gives any other peer that claims it another
/// identity.
pub const PROBE_IDENTITY: &str = "zmq-echo-probe/";

/// The content type of [`Metrics::render`]: the text format, version 0.0.4
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The default upper bounds of the latency buckets, in seconds. An echo takes tens of
/// microseconds; a request that takes seconds is a stall worth seeing.
pub const LATENCY_BUCKETS: [f64; 18] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0,
];

/// A handle to each series. Cloning is cheap, and clones share the series.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Requests received, from clients.
    pub client_requests: IntCounter,
    /// Requests received, from probes.
    pub probe_requests: IntCounter,
    /// The series of the socket.
    pub socket: SocketMetrics,
    /// Requests that got an error reply.
    pub rejected: IntCounter,
    /// Panics of the service.
    pub panics: IntCounter,
    /// Turns of the loop that kept every client waiting for over 100 ms.
    pub slow_turns: IntCounter,
    /// Requests that are being worked on or wait for work to start.
    pub in_flight: IntGauge,
    /// Time from reading a request to the start of work on it, in seconds.
    pub queue_duration: Histogram,
    /// Time from the start of work on a request to its last reply, in seconds.
    pub work_duration: Histogram,
    /// Replies not yet sent to connected peers at the drain deadline.
    pub undeliverable_deadline: IntCounter,
    /// 1 once the shutdown signal has arrived, else 0.
    pub draining: IntGauge,
    /// The deadline of the drain, in seconds since the Unix epoch.
    pub drain_deadline: Gauge,
}

/// The series of a ROUTER socket and its connections.
#[derive(Debug, Clone)]
pub struct SocketMetrics {
    /// Messages from REQ peers that are not valid requests.
    pub malformed_requests: IntCounter,
    /// Bytes of the frames received from clients, without the identity.
    pub received_bytes: IntCounter,
    /// Bytes of the frames sent to clients, without the identity.
    pub sent_bytes: IntCounter,
    /// Connected peers.
    pub peers: IntGauge,
    /// Handshakes that succeeded.
    pub established: IntCounter,
    /// Handshakes that failed.
    pub failed: IntCounter,
    /// Failed handshakes, by reason.
    pub failures: IntCounterVec,
    /// Established connections that ended, by reason.
    pub disconnections: IntCounterVec,
    /// Replies that could not be sent, and requests in flight that need no reply any more, because
    /// the peer had disconnected.
    pub undeliverable_peer_gone: IntCounter,
    /// Requests whose peer left, or was disconnected, before the service got them.
    pub lost_requests: IntCounter,
    /// Requests that were received during a drain and discarded.
    pub discarded_requests: IntCounter,
    /// Bytes that were received during a drain and discarded, in an unknown number of requests.
    pub discarded_bytes: IntCounter,
    /// Replies that the kernel has not accepted yet.
    pub pending_replies: IntGauge,
    /// Bytes held for peers: partial messages, unsent replies and requests in flight.
    pub buffered_bytes: IntGauge,
    /// Replies and their latency, by method.
    pub methods: Methods,
    limits: LimitMetrics,
}

/// The socket's limits that are in force, so that an alert can compare a value with its limit.
#[derive(Debug, Clone)]
struct LimitMetrics {
    peers: IntGauge,
    peers_per_address: IntGauge,
    buffered_bytes: IntGauge,
    message_bytes: IntGauge,
    message_frames: IntGauge,
    in_flight: IntGauge,
    in_flight_per_peer: IntGauge,
    metadata_bytes: IntGauge,
    socket_buffer_bytes: IntGauge,
    handshake_seconds: Gauge,
    stall_seconds: Gauge,
    stall_bytes: IntGauge,
    heartbeat_seconds: Gauge,
}

impl LimitMetrics {
    fn new(r: &Registry) -> Result<Self> {
        Ok(Self {
            peers: gauge(r, "zmq_echo_limit_peers", "Maximum connections.")?,
            peers_per_address: gauge(
                r,
                "zmq_echo_limit_peers_per_address",
                "Maximum connections from one address of another host; 0 for no limit.",
            )?,
            buffered_bytes: gauge(
                r,
                "zmq_echo_limit_buffered_bytes",
                "Maximum bytes held for all peers together, beyond each peer's allowance.",
            )?,
            message_bytes: gauge(r, "zmq_echo_limit_message_bytes", "Maximum bytes of a message.")?,
            message_frames: gauge(
                r,
                "zmq_echo_limit_message_frames",
                "Maximum frames of a message.",
            )?,
            in_flight: gauge(
                r,
                "zmq_echo_limit_in_flight_requests",
                "Maximum requests in flight outside the loop, from all clients.",
            )?,
            in_flight_per_peer: gauge(
                r,
                "zmq_echo_limit_in_flight_requests_per_peer",
                "Maximum requests in flight outside the loop, from one client.",
            )?,
            metadata_bytes: gauge(
                r,
                "zmq_echo_limit_metadata_bytes",
                "Maximum bytes of metadata in a handshake.",
            )?,
            socket_buffer_bytes: gauge(
                r,
                "zmq_echo_limit_socket_buffer_bytes",
                "Requested size of the kernel's receive buffer of a connection.",
            )?,
            handshake_seconds: seconds(
                r,
                "zmq_echo_limit_handshake_seconds",
                "Maximum duration of a handshake.",
            )?,
            stall_seconds: seconds(
                r,
                "zmq_echo_limit_stall_seconds",
                "Window in which a partial message must receive a minimum number of bytes.",
            )?,
            stall_bytes: gauge(
                r,
                "zmq_echo_limit_stall_bytes",
                "Minimum number of bytes that a partial message must receive in each window.",
            )?,
            heartbeat_seconds: seconds(
                r,
                "zmq_echo_limit_heartbeat_seconds",
                "Silence after which a heartbeat is sent; 0 for never.",
            )?,
        })
    }
}

/// Counts a socket's events.
///
/// One event reports all replies that are sent together, so that counting does not cost an atomic
/// operation per message.
#[derive(Debug)]
pub struct SocketObserver {
    metrics: SocketMetrics,
}

impl SocketObserver {
    /// An observer that counts in `metrics`.
    pub fn new(metrics: SocketMetrics) -> Self {
        Self { metrics }
    }
}

impl Observer for SocketObserver {
    #[inline]
    fn event(&mut self, event: Event) {
        let metrics = &self.metrics;
        match event {
            Event::Connected => metrics.established.inc(),
            Event::HandshakeFailed(reason) => metrics.handshake_failed(reason),
            Event::Disconnected(reason) => metrics.disconnected(reason),
            Event::Peers(peers) => metrics.peers.set(peers as i64),
            Event::Malformed => metrics.malformed_requests.inc(),
            Event::Replied { replies, label, latency } => {
                metrics.methods.replied(replies as u64, Label::of_number(label), latency);
            }
            Event::Undeliverable(replies) => metrics.undeliverable_peer_gone.inc_by(replies),
            Event::Lost(requests) => metrics.lost_requests.inc_by(requests),
            Event::Discarded { requests, bytes } => {
                metrics.discarded_requests.inc_by(requests);
                metrics.discarded_bytes.inc_by(bytes);
            }
            Event::Turned(totals) => self.turned(&totals),
        }
    }
}

impl SocketObserver {
    fn turned(&mut self, totals: &Totals) {
        let metrics = &self.metrics;
        metrics.received_bytes.inc_by(totals.received_bytes as u64);
        metrics.sent_bytes.inc_by(totals.sent_bytes as u64);
        metrics.pending_replies.set(totals.pending_replies as i64);
        metrics.buffered_bytes.set(totals.buffered_bytes as i64);
    }
}

impl SocketMetrics {
    /// Counts a failed handshake.
    pub fn handshake_failed(&self, reason: Reason) {
        self.failed.inc();
        self.failures.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts the end of an established connection.
    pub fn disconnected(&self, reason: Reason) {
        self.disconnections.with_label_values(&[reason.as_str()]).inc();
    }

    /// Sets the gauges of the limits that are in force.
    pub fn show_limits(&self, limits: &Limits) {
        let shown = &self.limits;
        shown.peers.set(limits.peers as i64);
        shown.peers_per_address.set(limits.peers_per_address as i64);
        shown.buffered_bytes.set(limits.buffer_bytes as i64);
        shown.message_bytes.set(limits.message_bytes as i64);
        shown.message_frames.set(limits.message_frames as i64);
        shown.in_flight.set(limits.in_flight as i64);
        shown.in_flight_per_peer.set(limits.in_flight_per_peer as i64);
        shown.metadata_bytes.set(limits.metadata_bytes as i64);
        shown.socket_buffer_bytes.set(limits.socket_buffer as i64);
        shown.handshake_seconds.set(limits.handshake_timeout.as_secs_f64());
        shown.stall_seconds.set(limits.stall_timeout.as_secs_f64());
        shown.stall_bytes.set(limits.stall_bytes as i64);
        shown.heartbeat_seconds.set(limits.heartbeat_interval.as_secs_f64());
    }
}

impl Metrics {
    /// All series at zero, in a new registry.
    ///
    /// `buckets` are the upper bounds of the latency buckets in seconds, in ascending order.
    /// `methods` are the names of the service's methods, without duplicates. `log_records_dropped`
    /// is passed in because the log starts before the registry exists.
    pub fn new(buckets: &[f64], methods: &[&'static str], log_records_dropped: IntCounter) -> Self {
        Self::registered(buckets, methods, log_records_dropped)
            .expect("names and labels are valid, and each name is registered once")
    }

    fn registered(
        buckets: &[f64],
        methods: &[&'static str],
        log_records_dropped: IntCounter,
    ) -> Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let requests =
            counters(r, "zmq_echo_requests_total", "Requests received, by source.", "source")?;
        let connections = counters(
            r,
            "zmq_echo_connections_total",
            "Connections accepted, by outcome of the handshake.",
            "outcome",
        )?;
        let disconnections = counters(
            r,
            "zmq_echo_disconnections_total",
            "Established connections that ended, by reason.",
            "reason",
        )?;
        let undeliverable = counters(
            r,
            "zmq_echo_undeliverable_total",
            "Replies that could not be sent, by reason.",
            "reason",
        )?;
        let failures = counters(
            r,
            "zmq_echo_handshake_failures_total",
            "Connections refused or lost before the handshake was complete, by reason.",
            "reason",
        )?;
        for reason in Reason::ALL {
            if reason.before_ready() {
                failures.with_label_values(&[reason.as_str()]);
            }
            if reason.after_ready() {
                disconnections.with_label_values(&[reason.as_str()]);
            }
        }
        let metrics = Self {
            client_requests: requests.with_label_values(&["client"]),
            probe_requests: requests.with_label_values(&["probe"]),
            socket: SocketMetrics {
                malformed_requests: counter(
                    r,
                    "zmq_echo_malformed_requests_total",
                    "Messages from REQ peers that were dropped because they are not valid requests.",
                )?,
                received_bytes: counter(
                    r,
                    "zmq_echo_received_bytes_total",
                    "Bytes of message frames received from clients, without the identity.",
                )?,
                sent_bytes: counter(
                    r,
                    "zmq_echo_sent_bytes_total",
                    "Bytes of message frames sent to clients, without the identity.",
                )?,
                peers: gauge(r, "zmq_echo_peers", "Connected peers.")?,
                established: connections.with_label_values(&["established"]),
                failed: connections.with_label_values(&["failed"]),
                failures,
                disconnections,
                undeliverable_peer_gone: undeliverable.with_label_values(&["peer_gone"]),
                lost_requests: counter(
                    r,
                    "zmq_echo_lost_requests_total",
                    "Requests whose peer left, or was disconnected, before the service got them.",
                )?,
                discarded_requests: counter(
                    r,
                    "zmq_echo_discarded_requests_total",
                    "Requests that were received during a drain and not answered.",
                )?,
                discarded_bytes: counter(
                    r,
                    "zmq_echo_discarded_bytes_total",
                    "Bytes that were received during a drain and discarded, in an unknown number of requests.",
                )?,
                pending_replies: gauge(
                    r,
                    "zmq_echo_pending_replies",
                    "Replies that the kernel has not accepted yet.",
                )?,
                buffered_bytes: gauge(
                    r,
                    "zmq_echo_buffered_bytes",
                    "Bytes held for peers: partial messages, replies and requests in flight.",
                )?,
                methods: Methods::new(r, methods, buckets)?,
                limits: LimitMetrics::new(r)?,
            },
            rejected: counter(
                r,
                "zmq_echo_rejected_total",
                "Requests that were answered with an error.",
            )?,
            panics: counter(r, "zmq_echo_panics_total", "Panics of the service.")?,
            slow_turns: counter(
                r,
                "zmq_echo_slow_turns_total",
                "Turns of the loop that kept every client waiting for over 100 ms.",
            )?,
            in_flight: gauge(
                r,
                "zmq_echo_in_flight_requests",
                "Requests that are being worked on outside the loop, or wait for that work to start.",
            )?,
            queue_duration: histogram(
                r,
                "zmq_echo_queue_duration_seconds",
                "Time from reading a request to the start of work on it, outside the loop.",
                buckets,
            )?,
            work_duration: histogram(
                r,
                "zmq_echo_work_duration_seconds",
                "Time from the start of work on a request to its last reply, outside the loop.",
                buckets,
            )?,
            undeliverable_deadline: undeliverable.with_label_values(&["deadline"]),
            draining: gauge(r, "zmq_echo_draining", "1 while the server drains, else 0.")?,
            drain_deadline: seconds(
                r,
                "zmq_echo_drain_deadline_timestamp_seconds",
                "Deadline of the drain as Unix time in seconds; 0 before it begins.",
            )?,
            registry: registry.clone(),
        };
        register(r, log_records_dropped)?;
        let build_info = register(
            r,
            IntGaugeVec::new(
                Opts::new(
                    "zmq_echo_build_info",
                    "Always 1; the labels name the version and revision.",
                ),
                &["version", "revision"],
            )?,
        )?;
        build_info.with_label_values(&[VERSION, REVISION]).set(1);
        registry.register(Box::new(Process::for_self()))?;
        Ok(metrics)
    }

    /// All series in the text format of [`CONTENT_TYPE`].
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(8 << 10);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail, and no family is without a series");
        text
    }
}

/// The counter `zmq_echo_log_records_dropped_total`, not registered yet.
pub fn log_records_dropped() -> IntCounter {
    IntCounter::new(
        "zmq_echo_log_records_dropped_total",
        "Log records dropped because stdout was not read.",
    )
    .expect("the name is valid")
}
