//! A reference ZeroMQ microservice that serves an echo: one poll loop over a ROUTER socket, a
//! termination socket that delivers signals for a graceful drain, a probe, and an HTTP side port
//! with health checks and Prometheus metrics.
//!
//! The modules, in reading order:
//!
//! 1. [`service`]: the core: the handler, the poll loop, the drain and the signals.
//! 2. [`server`]: puts the parts together: binds, starts the threads, runs the loop.
//! 3. [`side_port`]: `/metrics`, `/livez`, `/readyz` and a live page over HTTP.
//! 4. [`probe`]: one real echo through the public endpoint, within a time limit.
//! 5. [`metrics`]: every series, in a registry that is owned and passed in.
//! 6. [`simulation`]: an echo that takes time and fails on demand.
//! 7. [`log`]: one record per line on stdout, panics included; it never blocks the service.
//! 8. [`config`]: the flags of the server and the probe, validated once.
//! 9. [`version`]: the version and the commit.
//! 10. [`units`]: sizes and durations, in human-readable form.
//! 11. [`exit`]: the exit codes, on which supervisors rely.
//!
//! The ROUTER socket is in its own library, [`zmtp`]. The client and the load generator are in the
//! package `zmq-echo-client`. `examples/` has services to copy, `compare/` measures this service
//! beside others, and `fuzz/` feeds the socket arbitrary bytes.
#![deny(unsafe_code)]

pub mod config;
pub mod exit;
pub mod log;
pub mod metrics;
pub mod probe;
pub mod server;
pub mod service;
pub mod side_port;
pub mod simulation;
pub mod units;
pub mod version;
