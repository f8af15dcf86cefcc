//! The protocol, without I/O and without a clock.
//!
//! In these modules, "RFC 23" is <https://rfc.zeromq.org/spec/23/> (ZMTP 3.0), "RFC 28" is
//! <https://rfc.zeromq.org/spec/28/> (request-reply), and "RFC 37" is
//! <https://rfc.zeromq.org/spec/37/> (ZMTP 3.1, which adds PING and PONG).
//!
//! 1. [`greeting`]: the first 64 bytes of a connection.
//! 2. [`frame`]: frames, and where a message ends.
//! 3. [`command`]: PING, PONG and ERROR, and the framing of all commands.
//! 4. [`metadata`]: the properties in a READY.
//! 5. [`peer_info`]: the role, socket type and identity of each side.
//! 6. [`mechanism`]: security mechanisms. NULL is the only one.
//! 7. [`handshake`]: greeting and mechanism as a state machine, for both roles.
//! 8. [`out_queue`]: bytes that are waiting to be sent to a peer.
//! 9. [`connection`]: a complete connection: bytes in, events out; messages in, bytes out.

pub mod command;
pub mod connection;
pub mod frame;
pub mod greeting;
pub mod handshake;
pub mod mechanism;
pub mod metadata;
pub mod out_queue;
pub mod peer_info;
