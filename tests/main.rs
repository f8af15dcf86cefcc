//! Integration tests: real sockets, real processes, real signals.
