//! The protocol, without I/O and without a clock.
//!
//! 1. [`wire`]: greetings, frames and commands to and from bytes.
//! 2. [`handshake`]: greeting and READY as a state machine.
//! 3. [`out_queue`]: what a peer is still to be sent.

pub mod handshake;
pub mod out_queue;
pub mod wire;
