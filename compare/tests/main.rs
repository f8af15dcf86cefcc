//! Checks that `zmq-echo-server`, as a real process, behaves as libzmq's clients expect. Also
//! checks the servers that it is compared with.

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
