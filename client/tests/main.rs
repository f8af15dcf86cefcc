//! Tests of the client that need no service: discovery.
//!
//! Tests that need the server's process are in the `tests/` of the root package, because cargo
//! gives a test only the binaries of its own package.

mod discovery;
mod log_schema;
mod support;
