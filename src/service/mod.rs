//! The core: one loop over one socket, the service that it calls, and how it ends.
//!
//! 1. [`echo`]: the service that you replace with your own work.
//! 2. [`interface`]: what a service is: [`Service`].
//! 3. [`request`]: what it gets: the payload, and the ways to answer.
//! 4. [`rejection`]: how a client learns that its request was not answered, and why.
//! 5. [`time_limit`]: how long a request is worth working on, as its client says.
//! 6. [`blocking`]: work on a pool of threads.
//! 7. [`concurrent`]: work in futures, behind tower's layers.
//! 8. [`methods`]: several methods in one service.
//! 9. [`in_flight`]: the requests that are answered later, and `completions`: the way of their
//!    replies to the loop.
//! 10. [`poll_loop`]: takes one event a turn, calls the service and sends replies.
//! 11. [`turn`]: how long a turn may take, without a clock read for each message.
//! 12. [`panics`]: how many panics of a service are too many.
//! 13. [`drain`]: the states of a graceful shutdown, free of any socket.
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
