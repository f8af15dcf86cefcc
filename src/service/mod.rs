//! The core: one loop over one socket, the service that it calls, and its shutdown.
//!
//! 1. [`echo`]: the service that you replace with your own work.
//! 2. [`interface`]: the trait that every service implements, [`Service`].
//! 3. [`request`]: what a service receives: the payload, and the ways to answer.
//! 4. [`rejection`]: the error replies that tell a client why its request was not answered.
//! 5. [`time_limit`]: how a client sets a deadline for a request.
//! 6. [`blocking`]: runs work on a pool of threads.
//! 7. [`concurrent`]: runs work as futures, behind tower's layers.
//! 8. [`methods`]: several methods in one service.
//! 9. [`in_flight`]: the requests that are answered later, and `completions`: the channel that
//!    brings their replies to the loop.
//! 10. [`poll_loop`]: handles one event per turn, calls the service and sends replies.
//! 11. [`turn`]: limits the time of a turn without reading the clock for each message.
//! 12. [`panics`]: how many panics of a service are too many.
//! 13. [`drain`]: the states of a graceful shutdown, without a socket.
//! 14. [`termination`]: SIGTERM and SIGINT as a byte in a socket, and the watchdog.
//! 15. [`health`]: what the loop tells the side port about itself.

pub mod blocking;
mod completions;
pub mod concurrent;
pub mod drain;
pub mod echo;
pub mod health;
pub mod in_flight;
pub mod interface;
pub mod methods;
pub mod panics;
pub mod poll_loop;
pub mod rejection;
pub mod request;
pub mod termination;
pub mod time_limit;
pub mod turn;

pub use blocking::Blocking;
pub use concurrent::{Concurrent, Replies, handler_fn};
pub use echo::Echo;
pub use in_flight::Ticket;
pub use interface::{Completion, Service};
pub use methods::Methods;
pub use rejection::Rejection;
pub use request::{Answer, Call, Request};
