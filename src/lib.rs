//! A ZeroMQ echo service as a microservice should be: one poll loop over a
//! ROUTER socket, a termination socket for a graceful drain, a probe, and an
//! HTTP side port with health and Prometheus metrics.
//!
//! The modules, in the order in which they are best read:
//!
//! 1. [`handler`]: the one function that a user replaces with their own work.
//! 2. [`poll_loop`]: the loop that takes one event a turn and answers requests.
//! 3. [`drain`]: the states of a graceful shutdown, free of any socket.
//! 4. [`socket`]: what the loop needs of a ROUTER socket, and the crate's.
//! 5. [`router`]: the server's own ROUTER socket, bounded by its configuration.
//! 6. [`termination`]: SIGTERM and SIGINT as a byte in a socket, and the watchdog.
//! 7. [`server`]: puts the parts together: binds, starts the threads, runs the loop.
//! 8. [`side_port`]: `/metrics`, `/livez`, `/readyz` and a live page over HTTP.
//! 9. [`health`]: what the loop tells the side port about itself.
//! 10. [`probe`]: one real echo through the public endpoint, within a limit.
//! 11. [`metrics`]: every series, in a registry that is owned and passed.
//! 12. [`log`]: one record a line on stdout, panics included; never in the way.
//! 13. [`config`]: the flags of the server and the probe, validated once.
//! 14. [`endpoint`]: `tcp://HOST:PORT` to bind to and to connect to.
//! 15. [`listeners`]: opens them, and finds the way to them from this host.
//! 16. [`newcomers`]: which connection gives way when there is no room for the next.
//! 17. [`exit`]: the exit codes, a contract with whoever starts the process.
//! 18. [`client`]: knows the endpoints, spreads its requests over them and retries.
//! 19. [`load`]: the load generator, with its result as table, JSON and page.
#![deny(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod config;
pub mod drain;
pub mod endpoint;
pub mod exit;
pub mod handler;
pub mod health;
pub mod listeners;
#[cfg(feature = "client")]
pub mod load;
pub mod log;
pub mod metrics;
pub mod newcomers;
pub mod poll_loop;
pub mod probe;
pub mod router;
pub mod server;
pub mod side_port;
pub mod socket;
pub mod termination;
