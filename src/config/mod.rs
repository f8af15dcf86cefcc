//! The flags of the server and the probe. Each is also an environment variable, and each is
//! validated once. (The load generator has its own, in `client/src/load/config.rs`.)
//!
//! The structs live here instead of in `bin/`, so that tests can check manifests and documents
//! against the real parser.
//!
//! 1. `server`: the server's flags, and the settings that are built from them.
//! 2. `probe`: the probe's flags.
//! 3. `log_filter` and `latency_buckets`: values with parsers of their own.
//! 4. `parsing`: parses arguments and the environment, with errors that say what to do.
//! 5. `unread`: environment variables that look like settings but are not read.
//!
//! Numbers with units are parsed in [`crate::units`].

mod latency_buckets;
mod log_filter;
mod parsing;
mod probe;
mod server;
mod unread;

pub use latency_buckets::LatencyBuckets;
pub use log_filter::LogFilter;
pub use parsing::{conflict, parse};
pub use probe::ProbeConfig;
pub use server::ServerConfig;
pub use unread::{Hint, IMAGE, Unread, unread};
