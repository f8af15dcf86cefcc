//! The flags of the server and the probe, each also an environment variable,
//! validated once. (The load generator's are with its other parts.)
//!
//! The structs live here instead of in `bin/`, so that tests can check manifests and documents
//! against the real parser.
//!
//! 1. `server`: the server's flags, and what they make together.
//! 2. `probe`: the probe's flags.
//! 3. `log_filter` and `latency_buckets`: values that take a parser of their own.
//! 4. `parsing`: names the variable if the environment is at fault.
//!
//! Numbers with units are parsed in [`crate::units`].

mod latency_buckets;
mod log_filter;
mod parsing;
mod probe;
mod server;

pub use latency_buckets::LatencyBuckets;
pub use log_filter::LogFilter;
pub use parsing::parse;
pub use probe::ProbeConfig;
pub use server::ServerConfig;
