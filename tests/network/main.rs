//! Hosts that disappear and networks that are slow: servers and peers in network
//! namespaces of their own. They are not among the default tests, because they need
//! iproute2 and the right to create network namespaces.

mod drain;
mod loopback;
mod namespace;
mod other_hosts;
#[allow(dead_code, reason = "shared with the integration tests")]
#[path = "../support.rs"]
mod support;
mod vanished;
