//! `zmq-echo-server`, the real process, must meet the expectations of libzmq's clients. Also checks
//! the servers that it is compared with.

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
