//! Programs that cargo does not hand to these tests: the load generator, the examples and the tests'
//! own server.
//!
//! Cargo hands a test only the binaries of its own package. So the first test that needs another
//! program lets cargo build it, and no test runs an outdated one. The build uses the features that
//! `cargo test` chose before, so it takes only a moment.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value as Json;

/// The path of `zmq-echo-load`, in the profile of these tests.
///
/// It is built with the features that the client's own tests use. `cargo build` would choose other
/// features for shared crates and build all of them again.
pub static LOAD: LazyLock<String> = LazyLock::new(|| {
    let mut built = build(&["test", "--no-run", "--test", "discovery"]);
    built.remove("zmq-echo-load").expect("cargo names the executable")
});

/// The paths of the examples, by name.
#[allow(dead_code, reason = "not every test binary runs them")]
pub static EXAMPLES: LazyLock<HashMap<String, String>> =
    LazyLock::new(|| build(&["build", "--examples"]));

/// The path of the tests' own echo server.
pub static TEST_SERVER: LazyLock<String> = LazyLock::new(|| {
    let built = EXAMPLES.get("test-server");
    built.expect("cargo names the executable").clone()
});

/// Runs `cargo build` with these arguments, and returns the paths of the executables by name.
fn build(arguments: &[&str]) -> HashMap<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    build.args(arguments).args(["--locked", "--offline"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // Remove what cargo tells this test about its package. Otherwise build scripts that read these
    // variables would run again, and everything that depends on them would be rebuilt, here and at
    // the next build elsewhere.
    for (name, _) in std::env::vars_os() {
        let is_of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"]
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix));
        if is_of_package || name == "OUT_DIR" || name == "LD_LIBRARY_PATH" {
            build.env_remove(name);
        }
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output();
    let built = built.expect("cargo can be run");
    assert!(built.status.success(), "cargo build {arguments:?} failed");
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let executables = messages.lines().filter_map(|line| {
        let message: Json = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.to_owned()))
    });
    executables.collect()
}
