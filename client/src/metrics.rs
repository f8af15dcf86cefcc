//! The metrics of a client, in its caller's registry.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};

use super::error::RequestError;
use zmq_echo::metrics::LATENCY_BUCKETS;
use zmq_echo::metrics::series::{counter, counters, gauge, histogram};

/// The metrics of one client, or of several clients that share them. Cloning is cheap.
///
/// Every series exists at zero from the start. Labels are closed sets: no endpoint and no error
/// text becomes a label.
///
/// - `zmq_echo_client_requests_total`: requests that have ended, by `outcome`: `answered`,
///   `abandoned` (the caller dropped the future), or a kind of [`RequestError`].
/// - `zmq_echo_client_request_duration_seconds`: from an answered request's start to its reply.
/// - `zmq_echo_client_outstanding` and `zmq_echo_client_queued`: requests that hold a slot, and
///   callers that wait for one.
/// - `zmq_echo_client_attempts_total`, `zmq_echo_client_retries_total` and
///   `zmq_echo_client_attempt_failures_total`: attempts, those beyond a request's first, and those
///   that failed by `reason`.
/// - `zmq_echo_client_not_sent_total`: requests that a connection did not write before it broke.
///   They are not attempts.
/// - `zmq_echo_client_stray_replies_total`: replies that no caller waited for, by `kind`.
/// - `zmq_echo_client_endpoints_known` and `zmq_echo_client_endpoints_usable`: endpoints that the
///   source lists, and those that get requests.
/// - `zmq_echo_client_connections_total` and `zmq_echo_client_checks_total`: attempts to connect,
///   and checks of suspect endpoints, by `outcome`.
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
    pub(super) attempts_not_one_frame: IntCounter,
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
    /// Registers all series at zero in `registry`.
    ///
    /// # Errors
    ///
    /// If the registry already has series with these names. Clients in one process share one
    /// `ClientMetrics`.
    pub fn new(registry: &Registry) -> Result<Self> {
        let r = registry;
        let requests = counters(
            r,
            "zmq_echo_client_requests_total",
            "Requests that have ended, by outcome.",
            "outcome",
        )?;
        for kind in RequestError::KINDS {
            requests.with_label_values(&[kind]);
        }
        let failures = counters(
            r,
            "zmq_echo_client_attempt_failures_total",
            "Attempts that failed, by reason.",
            "reason",
        )?;
        let strays = counters(
            r,
            "zmq_echo_client_stray_replies_total",
            "Replies that no caller waited for: late ones, and ones that match no request.",
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
            attempts_not_one_frame: failures.with_label_values(&["not_one_frame"]),
            not_sent: counter(
                r,
                "zmq_echo_client_not_sent_total",
                "Requests that a connection did not write before it broke or their timeout passed.",
            )?,
            late_replies: strays.with_label_values(&["late"]),
            unknown_replies: strays.with_label_values(&["unknown"]),
            outstanding: gauge(
                r,
                "zmq_echo_client_outstanding",
                "Requests that hold a slot: attempts without a reply, and requests between two attempts.",
            )?,
            queued: gauge(
                r,
                "zmq_echo_client_queued",
                "Callers that wait for a slot because the maximum number of requests is outstanding.",
            )?,
            request_duration: histogram(
                r,
                "zmq_echo_client_request_duration_seconds",
                "Time from an answered request's start to its reply, all attempts included.",
                &LATENCY_BUCKETS,
            )?,
            known: gauge(r, "zmq_echo_client_endpoints_known", "Endpoints that the source lists.")?,
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
