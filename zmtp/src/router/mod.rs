//! The ROUTER socket. Its memory is bounded by its [`Limits`], whatever its peers do.
//!
//! It is built in layers on top of [`crate::proto`], which can be read and tested one by one:
//!
//! 1. `progress`: how fast a peer's bytes move.
//! 2. `places`: which peer makes room when the server is full.
//! 3. `peer`: one connection.
//! 4. `ready`, `clock` and `busy_poll`: which peer needs attention, when, and how to wait for it.
//! 5. `socket`: accepting, fairness, flow control, accounting and shutdown.
//!
//! The socket spawns no task. It owns the listeners and all connections, works while it is
//! polled, and is gone when it is dropped.
//!
//! # Example
//!
//! An echo server that drains before it exits. `socket.close` sends the remaining replies.
//!
//! ```
//! use std::net::TcpListener;
//! use std::time::{Duration, Instant};
//!
//! use zmtp::router::Limits;
//! use zmtp::{Message, Router};
//!
//! async fn serve(listener: TcpListener, stop: impl Future<Output = ()>) -> std::io::Result<bool> {
//!     let mut socket = Router::bind([listener], Limits::default(), ())?;
//!     let mut message = Message::default();
//!     tokio::pin!(stop);
//!     loop {
//!         tokio::select! {
//!             origin = socket.recv_from(&mut message) => {
//!                 // If the peer has disconnected, there is nobody to reply to.
//!                 let _ = socket.send_to(&origin, &mut message);
//!             }
//!             () = &mut stop => break,
//!         }
//!     }
//!     socket.stop_listening();
//!     let closed = socket.close(Instant::now() + Duration::from_secs(1)).await;
//!     Ok(closed.is_clean())
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! #     let listener = TcpListener::bind("127.0.0.1:0")?;
//! #     assert!(serve(listener, std::future::ready(())).await?);
//! #     Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! Whatever peers do, the socket takes at most this many bytes ([`Limits::most_memory`]):
//!
//! ```text
//! peers * (ALLOWANCE + 4 KiB)     each peer's allowance, and the peer itself
//! + buffer_bytes                  the pool, for everything beyond the allowances
//! + 2 * message_bytes + 1 MiB     the message being handled, and reads in progress
//! ```
//!
//! The kernel takes up to `peers * 2.5 * socket_buffer` more: one buffer for requests, and a
//! quarter of it for replies. Linux doubles both. The 4 KiB are an upper limit for a peer without
//! buffered bytes. In practice it takes about 1 KiB.
//!
//! These figures hold for an echo. Replies are charged to the pool when their batch is done, so a
//! handler whose replies are larger than its requests adds the replies to one batch. `socket`
//! says how large a batch is.
//!
//! # What it leaves out
//!
//! Other socket types, outgoing connections, other transports, mechanisms other than NULL, and
//! ZMTP versions before 3.0. It does not enforce RFC 37's rule against identities that begin with
//! a zero byte ([`crate::proto::handshake`] says why).
//!
//! Peers that are refused during the handshake receive an ERROR with the reason, unless a later
//! attempt may succeed ([`Reason::sends_error`](crate::Reason::sends_error)).

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
