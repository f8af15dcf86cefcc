//! Support code shared with the service's tests.

#[path = "../../../tests/support/open_files.rs"]
mod open_files;
#[path = "../../../tests/support/raw.rs"]
pub mod raw;
#[path = "../../../tests/support/waiting.rs"]
mod waiting;

pub use open_files::raise_open_files;
pub use waiting::{DEADLINE, runtime, wait_until};
