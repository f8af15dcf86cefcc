//! The load generator's binary.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value as Json;

/// The path of `zmq-echo-load`, in the profile of these tests.
///
/// Cargo hands a test only the binaries of its own package, and this one is in `client/`. So
/// the first test that needs it builds it, which takes a moment if it is up to date, and no
/// test runs an outdated one.
pub static LOAD: LazyLock<String> = LazyLock::new(|| {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    build.args(["build", "--locked", "--offline", "--package", "zmq-echo-client"]);
    build.args(["--bin", "zmq-echo-load", "--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output();
    let built = built.expect("cargo starts");
    assert!(built.status.success(), "zmq-echo-load cannot be built");
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let mut paths = messages.lines().filter_map(|line| {
        let message: Json = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    let path = paths.next().expect("cargo names the executable");
    path.into_os_string().into_string().expect("a path of UTF-8")
});
