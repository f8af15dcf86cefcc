//! The core: one loop over one socket, and how it ends.
//!
//! 1. [`handler`]: the one function that you replace with your own work.
//! 2. [`poll_loop`]: takes one event a turn and answers requests.
//! 3. [`drain`]: the states of a graceful shutdown, free of any socket.
//! 4. [`socket`]: what the loop needs of a ROUTER socket.
//! 5. [`termination`]: SIGTERM and SIGINT as a byte in a socket, and the watchdog.
//! 6. [`health`]: what the loop tells the side port about itself.

pub mod drain;
pub mod handler;
pub mod health;
pub mod poll_loop;
pub mod socket;
pub mod termination;
