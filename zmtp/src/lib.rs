//! ZeroMQ ROUTER and DEALER sockets for servers and clients that cannot trust their peers.
//!
//! This crate speaks [ZMTP 3.1](https://rfc.zeromq.org/spec/37/), the protocol of ZeroMQ, over TCP
//! on [Tokio](https://docs.rs/tokio). It interoperates with libzmq and other implementations of
//! ZMTP 3.0 and later. Everything that a peer can make a socket hold or wait for has a limit.
//!
//! The package is called `zmtp-sockets`, its library `zmtp`:
//!
//! ```toml
//! [dependencies]
//! tokio = { version = "1", features = ["macros", "rt"] }
//! zmtp-sockets = "0.1"
//! ```
//!
//! There are two sockets and a core:
//!
//! - [`Router`] serves many peers. It is the socket for a server.
//! - [`Dealer`] is one connection to one endpoint. It is the socket for a client.
//! - [`proto`] is the protocol without I/O and without a clock, if you need another transport or
//!   runtime.
//!
//! # A server
//!
//! An echo server. Each message is a list of frames; the echo sends them back unchanged. A real
//! service changes `message` before it replies.
//!
//! ```
//! use std::net::TcpListener;
//!
//! use zmtp::router::Limits;
//! use zmtp::{Message, Router};
//!
//! async fn serve(listener: TcpListener) -> std::io::Result<()> {
//!     // `()` ignores the socket's events. Implement `Observer` to count them.
//!     let mut router = Router::bind([listener], Limits::default(), ())?;
//!     let mut message = Message::default();
//!     loop {
//!         let origin = router.recv_from(&mut message).await;
//!         if let Err(error) = router.send_to(&origin, &mut message) {
//!             eprintln!("no reply: {error}");
//!         }
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #   if true {
//! #       let listener = TcpListener::bind("127.0.0.1:0")?;
//! #       let endpoint = listener.local_addr()?.into();
//! #       let config = Default::default();
//! #       let client = async {
//! #           let mut dealer = zmtp::Dealer::connect(&endpoint, &config).await?;
//! #           dealer.send(Message::from(["a".into(), "b".into()]))?;
//! #           assert_eq!(*dealer.recv().await?.frames(), ["a", "b"]);
//! #           Ok(())
//! #       };
//! #       return tokio::select! {
//! #           result = serve(listener) => Ok(result?),
//! #           result = client => result,
//! #       };
//! #   }
//!     Ok(serve(TcpListener::bind("127.0.0.1:5555")?).await?)
//! }
//! ```
//!
//! The socket spawns no task and does its work while `recv_from` is polled. So do not block in
//! between. To answer requests later, from another task or thread, see [`Router::hold`].
//!
//! # A client
//!
//! A client that sends a request and prints the reply:
//!
//! ```
//! use zmtp::dealer::DealerConfig;
//! use zmtp::endpoint::ConnectEndpoint;
//! use zmtp::{Dealer, Message};
//!
//! async fn ask(endpoint: &ConnectEndpoint) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut dealer = Dealer::connect(endpoint, &DealerConfig::default()).await?;
//!     dealer.send(Message::from(["hello".into()]))?;
//!     // This writes the request as well.
//!     let reply = dealer.recv().await?;
//!     assert_eq!(reply.frames()[0], "hello");
//!     println!("{:?}", reply.frames());
//!     Ok(())
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #   if true {
//! #       let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! #       let endpoint = listener.local_addr()?.into();
//! #       let mut router = zmtp::Router::bind([listener], Default::default(), ())?;
//! #       let server = async {
//! #           loop {
//! #               let mut message = router.recv().await;
//! #               router.send(&mut message).unwrap();
//! #           }
//! #       };
//! #       return tokio::select! {
//! #           result = ask(&endpoint) => result,
//! #           () = server => Ok(()),
//! #       };
//! #   }
//!     ask(&"tcp://127.0.0.1:5555".parse()?).await
//! }
//! ```
//!
//! # Limits, and why
//!
//! A ZeroMQ server on an open port meets peers that are broken, slow or hostile. Each row is
//! something that such a peer can do, and the setting that bounds it. [`router::Limits`] explains
//! the defaults.
//!
//! | A peer | What happens | Setting |
//! | --- | --- | --- |
//! | announces a frame of 2⁴⁷ bytes | It is disconnected at the frame's header. No memory is reserved. | [`message_bytes`](router::Limits::message_bytes) |
//! | sends a message of endless frames | It is disconnected at the limit. | [`message_frames`](router::Limits::message_frames) |
//! | sends requests but reads no replies | The socket stops reading from it. It stays connected, and loses nothing. | [`buffer_bytes`](router::Limits::buffer_bytes) |
//! | opens a connection and sends nothing | It is disconnected after a timeout. | [`handshake_timeout`](router::Limits::handshake_timeout) |
//! | opens thousands of connections | The host with the most unfinished handshakes loses its oldest. Established peers stay. | [`peers`](router::Limits::peers), [`peers_per_address`](router::Limits::peers_per_address) |
//! | sends a message one byte at a time | It is disconnected unless it keeps a minimum rate. | [`stall_timeout`](router::Limits::stall_timeout), [`stall_bytes`](router::Limits::stall_bytes) |
//! | floods the socket with requests | It gets one turn at a time, in rotation with all other peers. | none |
//! | uses another peer's identity | It gets a generated identity. | none |
//! | disappears without closing | Heartbeats detect it, and the connection is closed. | [`heartbeat_interval`](router::Limits::heartbeat_interval) |
//!
//! The total memory of a [`Router`] has an upper bound: [`router::Limits::most_memory`].
//!
//! # What it does not do
//!
//! - Sockets other than ROUTER and DEALER. A DEALER can announce itself as REQ.
//! - Transports other than TCP.
//! - Encryption and authentication. NULL is the only security mechanism, so use it in a private
//!   network, or put TLS in front.
//! - ZMTP 2.0 and 1.0.
//! - Reconnecting. A [`Dealer`] reports the end of its connection, and which of its messages were
//!   written before ([`Dealer::written`]). You decide what to send again, and where.
//! - Operating systems other than Linux. The sockets ask the kernel whether a silent host still
//!   acknowledges data.
//!
//! # Modules
//!
//! In reading order:
//!
//! 1. [`message`]: the message type.
//! 2. [`proto`]: the protocol without I/O.
//! 3. [`reason`]: why a connection ends.
//! 4. [`event`]: the events that a socket reports.
//! 5. [`endpoint`]: `tcp://HOST:PORT` to bind to and to connect to.
//! 6. [`listeners`]: opens TCP listeners.
//! 7. [`newcomers`]: which unfinished handshake makes room for the next connection.
//! 8. [`memory_pool`]: a memory limit that several connections share.
//! 9. [`tcp_info`]: whether the other host of a connection still acknowledges data.
//! 10. [`mod@printable`]: makes untrusted text safe to print.
//! 11. [`router`]: the ROUTER socket.
//! 12. [`dealer`]: the DEALER socket.
#![cfg_attr(feature = "zeromq", doc = "13. [`mod@zeromq`]: the zeromq crate's socket traits.")]
//!
//! With the feature `zeromq`, the sockets also implement the `SocketRecv` and `SocketSend` traits
//! of the [zeromq](https://docs.rs/zeromq) crate.
#![deny(missing_docs)]
#![deny(rustdoc::broken_intra_doc_links)]

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

/// Runs the README's program as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
