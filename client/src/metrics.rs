//! What a client counts, in its caller's registry.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};

use super::error::RequestError;
use zmq_echo::metrics::LATENCY_BUCKETS;
use zmq_echo::metrics::series::{counter, counters, gauge, histogram};

/// The series of one client, or of several that share them. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    requests: IntCounterVec,
    pub(super) answered: IntCounter,
    pub(super) abandoned: IntCounter,
    pub(super) attempts: IntCounter,
    pub(super) retries: IntCounter,
    pub(super) attempts_timed_out: IntCounter,
    pub(super) attempts_disconnected: IntCounter,
    pub(super) attempts_reply_memory: IntCounter,
    pub(super) attempts_rejected: IntCounter,
    pub(super) not_sent: IntCounter,
    pub(super) late_replies: IntCounter,
    pub(super) unknown_replies: IntCounter,
    pub(super) outstanding: IntGauge,
    pub(super) queued: IntGauge,
    pub(super) request_duration: Histogram,
    pub(super) known: IntGauge,
    pub(super) usable: IntGauge,
    pub(super) connected: IntCounter,
    pub(super) connect_failed: IntCounter,
    pub(super) checks_answered: IntCounter,
    pub(super) checks_failed: IntCounter,
}

impl ClientMetrics {
    /// All series at zero, in `registry`.
    ///
    /// # Errors
    ///
    /// Where the registry has series of these names already: clients in one process
    /// share one `ClientMetrics`.
    pub fn new(registry: &Registry) -> Result<Self> {
        let r = registry;
        let requests = counters(
            r,
            "zmq_echo_client_requests_total",
            "Requests that have ended, by how they did.",
            "outcome",
        )?;
        for kind in RequestError::KINDS {
            requests.with_label_values(&[kind]);
        }
        let failures = counters(
            r,
            "zmq_echo_client_attempt_failures_total",
            "Attempts without a reply, by what ended them.",
            "reason",
        )?;
        let strays = counters(
            r,
            "zmq_echo_client_stray_replies_total",
            "Replies that nobody waited for: late ones, and ones to no request.",
            "kind",
        )?;
        let connections = counters(
            r,
            "zmq_echo_client_connections_total",
            "Attempts to connect to an endpoint, by outcome.",
            "outcome",
        )?;
        let checks = counters(
            r,
            "zmq_echo_client_checks_total",
            "Checks of endpoints on which a request timed out, by outcome.",
            "outcome",
        )?;
        Ok(Self {
            answered: requests.with_label_values(&["answered"]),
            abandoned: requests.with_label_values(&["abandoned"]),
            requests,
            attempts: counter(r, "zmq_echo_client_attempts_total", "Attempts that have ended.")?,
            retries: counter(
                r,
                "zmq_echo_client_retries_total",
                "Attempts beyond a request's first.",
            )?,
            attempts_timed_out: failures.with_label_values(&["timed_out"]),
            attempts_disconnected: failures.with_label_values(&["disconnected"]),
            attempts_reply_memory: failures.with_label_values(&["reply_memory"]),
            attempts_rejected: failures.with_label_values(&["rejected"]),
            not_sent: counter(
                r,
                "zmq_echo_client_not_sent_total",
                "Requests handed to a connection that broke or was full before they were written.",
            )?,
            late_replies: strays.with_label_values(&["late"]),
            unknown_replies: strays.with_label_values(&["unknown"]),
            outstanding: gauge(r, "zmq_echo_client_outstanding", "Requests outstanding.")?,
            queued: gauge(
                r,
                "zmq_echo_client_queued",
                "Callers that wait because as many are outstanding as may be.",
            )?,
            request_duration: histogram(
                r,
                "zmq_echo_client_request_duration_seconds",
                "Time from an answered request's start to its reply, all attempts included.",
                &LATENCY_BUCKETS,
            )?,
            known: gauge(r, "zmq_echo_client_endpoints_known", "Endpoints that the source names.")?,
            usable: gauge(
                r,
                "zmq_echo_client_endpoints_usable",
                "Endpoints that get new requests.",
            )?,
            connected: connections.with_label_values(&["established"]),
            connect_failed: connections.with_label_values(&["failed"]),
            checks_answered: checks.with_label_values(&["answered"]),
            checks_failed: checks.with_label_values(&["failed"]),
        })
    }

    pub(super) fn failed(&self, error: &RequestError) {
        self.requests.with_label_values(&[error.kind()]).inc();
    }
}
