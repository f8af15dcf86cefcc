//! A client that knows the endpoints: it connects to every one, follows them as
//! they come and go, spreads its requests over them and retries.

pub mod discovery;
