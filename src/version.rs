//! The version and revision of this build.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the programs were built from, as `build.rs` found it. It ends with `-dirty` if
/// the sources had uncommitted changes, and is `unknown` if the commit could not be found.
pub const REVISION: &str = env!("ZMQ_ECHO_BUILT_FROM");

/// Version and revision, for `--version`.
pub const WITH_REVISION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("ZMQ_ECHO_BUILT_FROM"), ")");
