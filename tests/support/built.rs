//! Programs that cargo does not hand to these tests: the load generator and the examples.
//!
//! Cargo hands a test only the binaries of its own package. So the first test that needs
//! another program has cargo build it, and no test runs an outdated one. It is built with the
//! features that `cargo test` has chosen before: then this takes a moment.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value as Json;

/// The path of `zmq-echo-load`, in the profile of these tests.
///
/// It is built as the client's own tests need it. (`cargo build` would choose other features of
/// shared crates, and build all of them once more.)
pub static LOAD: LazyLock<String> = LazyLock::new(|| {
    let mut built = build(&["test", "--no-run", "--test", "discovery"]);
    built.remove("zmq-echo-load").expect("cargo names the executable")
});

/// The paths of the examples by their names.
#[allow(dead_code, reason = "not every test binary runs them")]
pub static EXAMPLES: LazyLock<HashMap<String, String>> =
    LazyLock::new(|| build(&["build", "--examples"]));

/// Has cargo build, and returns the executables by their names.
fn build(arguments: &[&str]) -> HashMap<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    build.args(arguments).args(["--locked", "--offline"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // What cargo tells this test of its package. Build scripts that look at it would run again,
    // and all that depends on them would be built again, here and the next time elsewhere.
    for (name, _) in std::env::vars_os() {
        let is_of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"]
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix));
        if is_of_package || name == "OUT_DIR" || name == "LD_LIBRARY_PATH" {
            build.env_remove(name);
        }
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output();
    let built = built.expect("cargo starts");
    assert!(built.status.success(), "cargo {arguments:?} fails");
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let executables = messages.lines().filter_map(|line| {
        let message: Json = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.to_owned()))
    });
    executables.collect()
}
