//! Integration tests: real sockets, real processes, real signals.

mod router;
