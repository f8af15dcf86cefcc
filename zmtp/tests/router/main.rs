//! The ROUTER socket against hand-made peers and the zeromq crate's sockets.

mod busy_poll;
mod conformance;
mod counts;
mod fairness;
mod in_flight;
mod polled;
mod socket;
#[allow(dead_code, reason = "shared with the service's tests")]
mod support;
