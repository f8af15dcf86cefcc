//! Finds out which commit the programs are built from, for `--version`, the log and the metrics.
//!
//! The first of these that exists decides: the environment variable `ZMQ_ECHO_REVISION`, which the
//! Dockerfile sets; the file that `cargo package` adds; git. Without any of them, the commit is
//! shown as `unknown`.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The sources of the programs. A commit that changes none of them does not cause a rebuild.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "build.rs", "bin", "src", "zmtp/src"];

/// The file in a package that says which commit the package was made from.
const IN_PACKAGE: &str = ".cargo_vcs_info.json";

/// How many digits of a commit's hash are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-env-changed=ZMQ_ECHO_REVISION");
    // Cargo treats a missing file as changed and would run this script in every build.
    for source in SOURCES.into_iter().filter(|source| Path::new(source).exists()) {
        println!("cargo:rerun-if-changed={source}");
    }
    let given = env::var("ZMQ_ECHO_REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(from_package).or_else(from_git);
    // Cargo also sets this variable for the programs that it runs. If it had the name of the one
    // above, a build that such a program starts would take it for a given revision.
    println!("cargo:rustc-env=ZMQ_ECHO_BUILT_FROM={}", revision.as_deref().unwrap_or("unknown"));
}

fn from_package() -> Option<String> {
    let info = fs::read_to_string(IN_PACKAGE).ok()?;
    let (_, hash) = info.split_once("\"sha1\": \"")?;
    Some(shown(hash.split('"').next()?, info.contains("\"dirty\": true")))
}

fn from_git() -> Option<String> {
    // If this is a copy inside another checkout, git would name that checkout's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(".").canonicalize().ok()? {
        return None;
    }
    let hash = git(&["rev-parse", "HEAD"])?;
    let status = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    let is_changed = !status.is_empty();
    if is_changed {
        // A commit of these changes removes `-dirty` but changes no source file, so watch git's log
        // as well.
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
        println!("cargo:rerun-if-changed={log}");
    }
    Some(shown(&hash, is_changed))
}

fn shown(hash: &str, is_changed: bool) -> String {
    let hash = hash.get(..DIGITS).unwrap_or(hash);
    format!("{hash}{}", if is_changed { "-dirty" } else { "" })
}

/// What git prints, or `None` if git is missing or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    // Git sets these for its hooks. If a hook of another repository runs cargo, they name that one.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        git.env_remove(variable);
    }
    let output = git.arg("--no-optional-locks").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
