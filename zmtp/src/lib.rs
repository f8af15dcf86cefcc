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
//! 8. [`router`]: the ROUTER socket.
#![cfg_attr(feature = "zeromq", doc = "9. [`mod@zeromq`]: the zeromq crate's traits.")]

pub mod endpoint;
pub mod event;
pub mod listeners;
pub mod message;
pub mod newcomers;
pub mod proto;
pub mod reason;
pub mod router;
#[cfg(feature = "zeromq")]
pub mod zeromq;

pub use event::{Event, Observer};
pub use message::Message;
pub use reason::Reason;
pub use router::Router;
