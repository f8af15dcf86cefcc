//! `zmq-echo-server`, the real process, held to what libzmq's clients expect; and what it is
//! compared with.

mod clients;
mod crowd;
mod dealers;
mod heartbeat;
mod pool;
mod reconnect;
mod refused;
mod sizes;
mod slow_reader;
mod support;
mod yardstick;
