//! Integration tests: real sockets, real processes, real signals. Each is named
//! after the promise that it keeps.

mod attacks;
mod busy_poll;
#[cfg(feature = "client")]
mod client;
mod config;
#[cfg(feature = "client")]
mod discovery;
mod drain;
mod echo;
#[cfg(feature = "client")]
mod load;
mod log_schema;
mod logs;
mod poll_loop;
mod probe;
mod readme;
#[cfg(feature = "client")]
mod rollout;
mod router;
mod side_port;
mod support;
