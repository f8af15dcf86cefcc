//! The DEALER socket: one connection to one endpoint. Its memory is bounded by its
//! [`DealerConfig`], whatever the server does.
//!
//! 1. `connect`: from a name to a connection with a completed handshake.
//! 2. `socket`: sends, receives, and notices when the server is lost.
//!
//! The socket spawns no task. It works while [`Dealer::recv`] is polled, and dropping it closes
//! the connection. It does not reconnect by itself.
//!
//! # Example
//!
//! A client that sends a request and gives up on the reply after a second.
//!
//! ```
//! use std::time::Duration;
//!
//! use zmtp::dealer::DealerConfig;
//! use zmtp::{Dealer, Message};
//!
//! async fn ask(endpoint: &str) -> Result<Message, Box<dyn std::error::Error>> {
//!     let endpoint = endpoint.parse()?;
//!     let mut dealer = Dealer::connect(&endpoint, &DealerConfig::default()).await?;
//!     dealer.send(Message::from(["".into(), "hello".into()]))?;
//!     // This also writes the request, so poll it even if you expect no reply.
//!     Ok(tokio::time::timeout(Duration::from_secs(1), dealer.recv()).await??)
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! #     let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! #     let endpoint = format!("tcp://{}", listener.local_addr()?);
//! #     let mut router = zmtp::Router::bind([listener], zmtp::router::Limits::default(), ())?;
//! #     let server = async {
//! #         loop {
//! #             let mut message = router.recv().await;
//! #             router.send(&mut message).unwrap();
//! #         }
//! #     };
//! #     tokio::select! {
//! #         reply = ask(&endpoint) => assert_eq!(reply.unwrap().frames()[1], "hello"),
//! #         () = server => {}
//! #     }
//! #     Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! Whatever the server does, the socket takes at most this many bytes:
//!
//! ```text
//! send_bytes + one message        unwritten messages
//! + 2 * message_bytes             the message being received
//! + 192 KiB                       one read, and PONGs
//! ```
//!
//! A [`MemoryPool`] bounds the incoming messages of several sockets together.

mod connect;
mod socket;

use std::time::Duration;

use bytes::Bytes;

use crate::memory_pool::MemoryPool;
use crate::proto::connection::ConnectionLimits;
use crate::proto::peer_info::SocketType;

pub use connect::{ConnectError, connect_to};
pub use socket::{Dealer, Unsent};

/// The settings of a [`Dealer`], each with its default.
#[derive(Debug, Clone)]
pub struct DealerConfig {
    /// The socket type to announce. Default: DEALER. If you announce REQ, send REQ's envelope (an
    /// empty first frame), and wait for each reply before you send the next request.
    pub socket_type: SocketType,
    /// The identity to announce, at most 255 bytes. Default: empty, which lets the server choose.
    pub identity: Bytes,
    /// What the server may send. Default: messages of 8 MiB and 1,024 frames, the limits of
    /// `zmq-echo-server`, and 4 KiB of metadata.
    pub limits: ConnectionLimits,
    /// How long connecting may take in total, including the handshake. Default: 1 s.
    pub connect_timeout: Duration,
    /// A PING is sent after this much silence, if the server speaks ZMTP 3.1. Zero means never.
    /// Default: 1 s.
    pub heartbeat_interval: Duration,
    /// The server counts as lost if it leaves a PING unanswered for this long, or if its host
    /// acknowledges nothing for this long. Default: 3 s.
    pub heartbeat_timeout: Duration,
    /// How many bytes may be waiting to be written. A single message is always accepted. Default:
    /// 16 MiB.
    pub send_bytes: usize,
    /// A pool that bounds the memory of incoming messages beyond 64 KiB per socket. Default:
    /// `None`, which leaves only each socket's own bound.
    pub memory: Option<MemoryPool>,
}

impl Default for DealerConfig {
    fn default() -> Self {
        Self {
            socket_type: SocketType::Dealer,
            identity: Bytes::new(),
            limits: ConnectionLimits {
                message_bytes: 8 << 20,
                message_frames: 1024,
                metadata_bytes: 4 << 10,
            },
            connect_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(3),
            send_bytes: 16 << 20,
            memory: None,
        }
    }
}
