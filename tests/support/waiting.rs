//! Waiting on conditions, and the runtime to wait in.

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Conditions that hold within milliseconds on an idle machine get this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until a condition holds. `what` states the condition, for the message of a failed test.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not true within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`wait_until`], without blocking the runtime that the condition depends on.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not true within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A runtime for blocking tests that need async sockets, on the test's own thread.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
