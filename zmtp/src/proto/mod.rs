//! The protocol, without I/O and without a clock. "RFC 23" is
//! <https://rfc.zeromq.org/spec/23/> (ZMTP 3.0), "RFC 28" <https://rfc.zeromq.org/spec/28/>
//! (request and reply), and "RFC 37" <https://rfc.zeromq.org/spec/37/> (ZMTP 3.1, which adds
//! PING and PONG).
//!
//! 1. [`greeting`]: the first 64 bytes.
//! 2. [`frame`]: frames, and where a message ends.
//! 3. [`command`]: PING, PONG, ERROR and the frame of every command.
//! 4. [`metadata`]: the properties of a READY.
//! 5. [`peer_info`]: what the two sides are.
//! 6. [`mechanism`]: what they say before the first message.
//! 7. [`handshake`]: all of that as a state machine, for both roles.
//! 8. [`out_queue`]: what a peer is still to be sent.
//! 9. [`connection`]: one connection as a whole: bytes in, events out; messages in, bytes out.

pub mod command;
pub mod connection;
pub mod frame;
pub mod greeting;
pub mod handshake;
pub mod mechanism;
pub mod metadata;
pub mod out_queue;
pub mod peer_info;
