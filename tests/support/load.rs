//! The load generator's binary.

use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value as Json;

/// The path of `zmq-echo-load`, in the profile of these tests.
///
/// Cargo hands a test only the binaries of its own package, and this one is in `client/`. So
/// the first test that needs it has cargo build it, and no test runs an outdated one. It is
/// built as the client's own tests need it, which `cargo test` has done before: then this takes
/// a moment. (`cargo build` would choose other features of shared crates, and build all of them
/// once more.)
pub static LOAD: LazyLock<String> = LazyLock::new(|| {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    build.args(["test", "--no-run", "--locked", "--offline", "--test", "discovery"]);
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
    assert!(built.status.success(), "zmq-echo-load cannot be built");
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let mut paths = messages.lines().filter_map(|line| {
        let message: Json = serde_json::from_str(line).ok()?;
        let is_load = message["target"]["name"] == "zmq-echo-load";
        message["executable"].as_str().filter(|_| is_load).map(str::to_owned)
    });
    paths.next().expect("cargo names the executable")
});
