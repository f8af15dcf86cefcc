//! The ROUTER socket, bounded by its [`Limits`] whatever peers do.
//!
//! In layers that can be read and tested apart, above those of [`crate::proto`]:
//!
//! 1. `progress`: how fast the bytes of a peer move.
//! 2. `places`: which peer makes room if there is none for the next.
//! 3. `peer`: one connection.
//! 4. `ready`, `clock` and `busy_poll`: which peer has something to do, when, and how
//!    to wait for it.
//! 5. `socket`: accepting, fairness, flow control, accounts, shutdown.
//!
//! There is no task but the caller's: the socket owns the listeners and every connection,
//! works while it is polled, and is gone when it is dropped.
//!
//! # What it can take
//!
//! At most, in bytes, whatever peers do ([`Limits::most_memory`]):
//!
//! ```text
//! peers * (ALLOWANCE + 4 KiB)     each peer's allowance, and the peer itself
//! + buffer_bytes                  the pool, for all that exceeds the allowances
//! + 2 * message_bytes + 1 MiB     the message and the reads under way
//! ```
//!
//! and in the kernel `peers * 2.5 * socket_buffer`: one buffer for requests and a
//! quarter of it for replies, which Linux makes twice as large as it is told. (The 4 KiB
//! are what a peer costs at most without a byte buffered; it is about 1 KiB.) That is of an echo: replies are held against the pool when their batch
//! is through, so a handler that makes more of its requests adds what it makes of a
//! batch (`socket` says how much that is).
//!
//! # What it leaves out
//!
//! Other socket types, connecting, other transports, mechanisms other than NULL, and
//! ZMTP before 3.0. RFC 37's rule against identities that begin with a zero byte is not
//! kept ([`crate::proto::handshake`] says why). Peers that are refused in their handshake are told why
//! by an ERROR, unless a later attempt may survive it ([`Reason::sends_error`](crate::Reason::sends_error)).

mod busy_poll;
mod clock;
mod limits;
mod peer;
mod places;
mod progress;
mod ready;
mod socket;

pub use limits::{ALLOWANCE, Limits, RESERVED_PEERS};
pub use socket::{Closed, ConnectedPeer, Origin, PeerId, Router, SendError};
