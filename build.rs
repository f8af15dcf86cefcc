//! Tells the build which commit it is built from, for `--version`, the log and the metrics.
//!
//! In this order: the environment variable `ZMQ_ECHO_REVISION`, as the Dockerfile sets it; the file
//! that `cargo package` adds; git. A copy without any of them is `unknown`.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the programs are built from. A commit that changes nothing here builds nothing again.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "build.rs", "bin", "src", "zmtp/src"];

/// The file in a package, with the commit that it was made from.
const IN_PACKAGE: &str = ".cargo_vcs_info.json";

/// How much of a commit's hash is shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-env-changed=ZMQ_ECHO_REVISION");
    // cargo takes a file that is missing for one that has changed.
    for source in SOURCES.into_iter().filter(|source| Path::new(source).exists()) {
        println!("cargo:rerun-if-changed={source}");
    }
    let given = env::var("ZMQ_ECHO_REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(from_package).or_else(from_git);
    // Another name, because cargo sets it for what it runs as well, which may run cargo.
    println!("cargo:rustc-env=ZMQ_ECHO_BUILT_FROM={}", revision.as_deref().unwrap_or("unknown"));
}

fn from_package() -> Option<String> {
    let info = fs::read_to_string(IN_PACKAGE).ok()?;
    let (_, hash) = info.split_once("\"sha1\": \"")?;
    Some(shown(hash.split('"').next()?, info.contains("\"dirty\": true")))
}

fn from_git() -> Option<String> {
    // A copy inside of another checkout is not a checkout.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(".").canonicalize().ok()? {
        return None;
    }
    let hash = git(&["rev-parse", "HEAD"])?;
    let status = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    let is_changed = !status.is_empty();
    if is_changed {
        // The next commit may have these changes, without a change of any file.
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
        println!("cargo:rerun-if-changed={log}");
    }
    Some(shown(&hash, is_changed))
}

fn shown(hash: &str, is_changed: bool) -> String {
    let hash = hash.get(..DIGITS).unwrap_or(hash);
    format!("{hash}{}", if is_changed { "-dirty" } else { "" })
}

/// What git says, or `None` if there is no git or it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    // Set if a hook of git runs cargo, possibly one of another repository.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        git.env_remove(variable);
    }
    let output = git.arg("--no-optional-locks").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
