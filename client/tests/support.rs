//! Stand-ins for the servers that the client queries, and waiting on conditions.

#[allow(dead_code, reason = "shared with the service's tests")]
pub mod api_server;
#[allow(dead_code, reason = "shared with the service's tests")]
pub mod dns_server;
#[path = "../../tests/support/tables.rs"]
pub mod tables;
#[path = "../../tests/support/waiting.rs"]
#[allow(dead_code, reason = "shared with the service's tests")]
mod waiting;

pub use waiting::{DEADLINE, runtime, until};
