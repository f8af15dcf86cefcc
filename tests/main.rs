//! Integration tests: real sockets, real processes, real signals. Each is named
//! after the promise that it keeps.

mod attacks;
#[cfg(feature = "client")]
mod client;
mod config;
mod drain;
mod echo;
#[cfg(feature = "client")]
mod load;
mod logs;
mod poll_loop;
mod probe;
mod readme;
mod router;
mod side_port;
mod support;
