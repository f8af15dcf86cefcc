//! `--version` names the commit that a program was built from, for every program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::built::LOAD;
use crate::support::{PROBE, SERVER, command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_program_prints_its_version_and_its_commit() {
    let mut revisions = Vec::new();
    for (program, name) in
        [(SERVER, "zmq-echo-server"), (PROBE, "zmq-echo-probe"), (&LOAD, "zmq-echo-load")]
    {
        let output = command(program).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let start = format!("{name} {} (", env!("CARGO_PKG_VERSION"));
        let revision = text.trim().strip_prefix(&start).and_then(|rest| rest.strip_suffix(')'));
        revisions.push(revision.unwrap_or_else(|| panic!("{text}")).to_owned());
    }
    revisions.dedup();
    let [revision] = &revisions[..] else { panic!("{revisions:?}") };
    if !Path::new(ROOT).join(".git").exists() {
        return;
    }
    // Later commits may have changed only files that are not sources of the programs.
    let commit = revision.trim_end_matches("-dirty");
    succeeds(git(Path::new(ROOT), &["cat-file", "-e", &format!("{commit}^{{commit}}")]));
    if commit == *revision {
        succeeds(git(
            Path::new(ROOT),
            &["diff", "--quiet", commit, "--", "src", "bin", "zmtp/src"],
        ));
    }
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    let identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"];
    git.current_dir(folder).args(identity).args(arguments);
    git
}

/// Runs a command that must succeed, and returns its output.
#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder outside every checkout, which is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("zmq-echo-revision-{}", std::process::id());
        let folder = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_commit_comes_from_the_environment_the_package_or_git() {
    let folder = Folder::new();
    let script = folder.0.join("script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile.args(["--edition", "2024", "-o"]).arg(&script).arg(Path::new(ROOT).join("build.rs"));
    succeeds(compile);
    // The output of the script, and the revision in it.
    let run = |place: &Path, given: &str| {
        let mut run = Command::new(&script);
        run.current_dir(place).env("ZMQ_ECHO_REVISION", given);
        let said = succeeds(run);
        let start = "cargo:rustc-env=ZMQ_ECHO_BUILT_FROM=";
        let revision = said.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned();
        (said, revision)
    };
    let place = folder.0.join("copy");
    fs::create_dir_all(place.join("src")).unwrap();
    fs::write(place.join("src/lib.rs"), "").unwrap();
    assert_eq!(run(&place, "").1, "unknown");
    assert_eq!(run(&place, "0123").1, "0123");

    // A checkout around the copy must not affect the copy.
    succeeds(git(&folder.0, &["init", "--quiet"]));
    succeeds(git(&folder.0, &["commit", "--quiet", "--allow-empty", "--message", "another"]));
    assert_eq!(run(&place, "").1, "unknown");

    for arguments in [&["init", "--quiet"][..], &["add", "."], &["commit", "--quiet", "-m", "one"]]
    {
        succeeds(git(&place, arguments));
    }
    let commit = succeeds(git(&place, &["rev-parse", "--short=12", "HEAD"]));
    // Unless the sources change, nothing is built again.
    fs::write(place.join("README.md"), "").unwrap();
    let (said, revision) = run(&place, "");
    assert_eq!(revision, commit);
    assert!(said.contains("rerun-if-changed=src") && !said.contains("logs/HEAD"), "{said}");
    fs::write(place.join("src/lib.rs"), "// changed").unwrap();
    let (said, revision) = run(&place, "");
    assert_eq!(revision, format!("{commit}-dirty"));
    assert!(said.contains("rerun-if-changed=.git/logs/HEAD"), "{said}");

    let packaged = |dirty| {
        format!("{{\n  \"git\": {{\n    \"sha1\": \"{}\"{dirty}\n  }}\n}}", "ab".repeat(20))
    };
    for (dirty, expected) in
        [("", "abababababab"), (",\n    \"dirty\": true", "abababababab-dirty")]
    {
        fs::write(place.join(".cargo_vcs_info.json"), packaged(dirty)).unwrap();
        assert_eq!(run(&place, "").1, expected);
    }
}
