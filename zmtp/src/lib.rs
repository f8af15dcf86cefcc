//! ZMTP 3.1, the protocol of ZeroMQ (<https://rfc.zeromq.org/spec/37/>), with sockets on tokio
//! that an untrusted peer cannot fill, stall or crash.
//!
//! The modules, in the order in which they are best read:
//!
//! 1. [`message`]: frames that belong together.
//! 2. [`proto`]: the protocol without I/O.
//! 3. [`reason`]: why a connection ends.
//! 4. [`event`]: what a socket reports.
//! 5. [`endpoint`]: `tcp://HOST:PORT` to bind to and to connect to.
//! 6. [`listeners`]: opens listeners.
//! 7. [`newcomers`]: which connection gives way when there is no room for the next.
//! 8. [`memory_pool`]: a bound on memory that several connections share.
//! 9. [`tcp_info`]: whether the other host of a connection still acknowledges.
//! 10. [`mod@printable`]: text from outside, made printable.
//! 11. [`router`]: the ROUTER socket.
//! 12. [`dealer`]: the DEALER socket.
#![cfg_attr(feature = "zeromq", doc = "13. [`mod@zeromq`]: the zeromq crate's traits.")]

pub mod dealer;
pub mod endpoint;
pub mod event;
pub mod listeners;
pub mod memory_pool;
pub mod message;
pub mod newcomers;
pub mod printable;
pub mod proto;
pub mod reason;
pub mod router;
pub mod tcp_info;
#[cfg(feature = "zeromq")]
pub mod zeromq;

pub use dealer::Dealer;
pub use event::{Event, Observer};
pub use message::Message;
pub use printable::printable;
pub use reason::Reason;
pub use router::Router;

/// The README's program is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
