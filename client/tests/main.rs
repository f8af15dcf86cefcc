//! What the client does without a service: its discovery.
//!
//! Tests that need the server's process are in the service's `tests/`, as cargo hands a
//! test only the binaries of its own package.

mod discovery;
mod log_schema;
mod support;
