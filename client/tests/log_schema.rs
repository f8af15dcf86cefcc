//! Checks the client's log records against docs/logs.md.

#[path = "../../tests/log_schema/captured.rs"]
#[allow(dead_code, reason = "shared with the service's tests")]
pub mod captured;
#[path = "../../tests/log_schema/documented.rs"]
#[allow(dead_code, reason = "shared with the service's tests")]
mod documented;
