//! Waiting on conditions, and the runtime to wait in.

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Conditions that hold within milliseconds on an idle machine get this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits on a condition.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits on a condition, without stopping the runtime that it needs.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// For a thread of its own.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
