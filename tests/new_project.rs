//! `new-project` makes a project with its own name everywhere, and rejects names and folders that
//! cannot work.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, io};

use crate::side_port::hash_of;
use crate::support::wait_until;

/// A folder for one test, which is removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("new-project-{name}-{}", std::process::id());
        // With links resolved, because the script prints the folder like that.
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

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(program: impl AsRef<Path>, arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(program.as_ref());
    for variable in ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"] {
        command.env(variable, "Somebody");
    }
    for variable in ["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"] {
        command.env(variable, "somebody@example.com");
    }
    command.args(arguments).current_dir(folder);
    // If another test starts a process while a script is copied, that process inherits the open
    // file until it has executed its own program.
    let mut output = None;
    wait_until("no other process has the script open", || {
        let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ExecutableFileBusy;
        let result = output.insert(command.output());
        !result.as_ref().is_err_and(is_busy)
    });
    let output = output.expect("the command was run");
    output.unwrap_or_else(|error| panic!("{}: {error}", program.as_ref().display()))
}

/// Runs a command that must succeed, and returns its output.
fn succeed(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = run(program, arguments, folder);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?} failed: {stdout}{stderr}");
    stdout
}

/// Makes a project with this name in a folder, and returns the output of the script.
fn make(name: &str, folder: &Path) -> String {
    let script = root().join("new-project");
    succeed(script.to_str().unwrap(), &[name, folder.to_str().unwrap()], root())
}

/// Every tracked file of a project: its path in the project, and its content.
fn files(project: &Path) -> Vec<(String, Vec<u8>)> {
    let listed = succeed("git", &["ls-files", "-z"], project);
    // A link contains no name: its target is a file of its own.
    let is_file = |path: &&str| !path.is_empty() && !project.join(path).is_symlink();
    let paths = listed.split('\0').filter(is_file);
    paths.map(|path| (path.to_owned(), fs::read(project.join(path)).unwrap())).collect()
}

/// Whether a line has the name of this project in any form, such as `ZmqEcho` or `zmq.echo`.
fn has_old_name(line: &[u8]) -> bool {
    let line = line.to_ascii_lowercase();
    let mut places = (0..line.len()).filter(|place| line[*place..].starts_with(b"zmq"));
    places.any(|place| {
        let rest = &line[place + 3..];
        rest.starts_with(b"echo") || rest.get(1..).is_some_and(|rest| rest.starts_with(b"echo"))
    })
}

#[test]
fn a_new_project_has_its_own_name_everywhere_and_cargo_accepts_it() {
    for (name, snake, camel) in [
        ("quotes", "quotes", "Quotes"),
        ("my-very-long-service-name", "my_very_long_service_name", "MyVeryLongServiceName"),
        ("a1", "a1", "A1"),
    ] {
        let folder = Folder::new(name);
        let project = folder.0.join(name);
        let said = make(name, &project);
        assert!(said.contains("src/service/echo.rs") && said.contains("cargo test"), "{said}");

        let files = files(&project);
        let mut attributions = Vec::new();
        for (path, content) in &files {
            assert!(
                !has_old_name(path.as_bytes()),
                "{name}: the path still has the old name: {path}"
            );
            for line in content.split(|byte| *byte == b'\n').filter(|line| has_old_name(line)) {
                attributions.push((path.as_str(), String::from_utf8_lossy(line).into_owned()));
            }
        }
        let [(licence, authors), (readme, origin)] = &attributions[..] else {
            panic!("{name}: {attributions:?}")
        };
        assert_eq!((*licence, *readme), ("LICENSE", "README.md"));
        assert_eq!(authors, "Copyright (c) 2026 The zmq-echo authors");
        let commit = origin.strip_prefix(&format!("{name} was started from zmq-echo, commit "));
        assert!(commit.is_some_and(|commit| commit.len() > 12), "{origin}");

        let text = |path: &str| fs::read_to_string(project.join(path)).unwrap();
        let expected = [
            ("Cargo.toml", format!("name = \"{name}-server\"")),
            ("bin/server.rs", format!("use {snake}::simulation;")),
            ("docs/configuration.md", format!("`{}_BIND`", snake.to_uppercase())),
            ("docs/metrics.md", format!("`{snake}_requests_total`")),
            ("k8s/base/service.yaml", format!("name: {name}-headless")),
            ("docs/operations.md", format!("### {camel}Errors\n")),
            ("k8s/components/prometheus/rules.yml", format!("#{}errors\n", camel.to_lowercase())),
        ];
        for (path, part) in expected {
            assert!(text(path).contains(&part), "{name}: {path} lacks {part}");
        }
        assert_markers_have_16_bytes(&text("src/service/rejection.rs"));
        let policy = text("src/side_port/page.rs");
        for tag in ["script", "style"] {
            let hash = hash_of(&text("src/side_port/status.html"), tag);
            assert!(policy.contains(&format!("{tag}-src 'sha256-{hash}'")), "{name}: {tag}");
        }
        assert_own_parts_are_left_out(&files);

        for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
            let packages = names_of_packages(&text(lock));
            assert!(packages.iter().any(|package| package == name), "{name}: {lock}");
            assert!(packages.is_sorted(), "{name}: {lock}");
        }
        // `--locked` fails if cargo would write the lock file in another way.
        succeed("cargo", &["tree", "--locked", "--offline"], &project);
        succeed("cargo", &["fmt", "--all", "--check"], &project);
        let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
        succeed("cargo", &fuzz, &project);

        assert_eq!(succeed("git", &["status", "--porcelain"], &project), "");
        assert_eq!(succeed("git", &["rev-list", "--count", "HEAD"], &project).trim(), "1");
    }
}

/// Each marker is a byte string, such as `b"\0quotes--/error\0"`.
fn assert_markers_have_16_bytes(source: &str) {
    for constant in ["ERROR", "CHECK"] {
        let (_, rest) = source.split_once(&format!("pub const {constant}: ")).unwrap();
        let marker = rest.split('"').nth(1).unwrap().replace("\\0", "0");
        assert_eq!(marker.len(), 16, "{marker}");
    }
}

fn assert_own_parts_are_left_out(files: &[(String, Vec<u8>)]) {
    for (path, content) in files {
        assert!(
            !path.contains("new_project") && path != "new-project",
            "{path} is only for this project"
        );
        let text = String::from_utf8_lossy(content);
        assert!(
            !text.contains("new-project") && !text.contains("mod new_project"),
            "{path} still mentions the script new-project"
        );
        if path == "docs/performance.md" || path == "compare/RESULTS.md" {
            assert!(text.contains("\nNot measured yet"), "{path}");
            assert!(!text.contains("| libzmq |"), "{path}");
        }
        // The README's link to a measurement that the new project does not have yet.
        if path == "README.md" {
            assert!(!text.contains("docs/performance.md"), "{path}");
        }
        let measured = ["architecture", "probes", "scaling", "sizing"];
        if measured.iter().any(|page| path == &format!("docs/{page}.md")) {
            assert!(text.contains("\nThe measured figures on this page are those of"), "{path}");
        }
        if path == "CHANGELOG.md" {
            assert!(text.ends_with("\n## [Unreleased]\n"), "{path}: {text}");
        }
        if path == "docs/services.md" {
            assert!(text.contains("\n## What else to look at\n"), "{path}");
        }
    }
}

fn names_of_packages(lock: &str) -> Vec<String> {
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = \""));
    names.map(|name| name.trim_end_matches('"').to_owned()).collect()
}

/// Runs the script, which must fail and leave nothing behind. Returns its output, which names the
/// reason.
fn assert_refused(script: &Path, name: &str, folder: &Path) -> String {
    let before = folder.exists();
    let output = run(script, &[name, folder.to_str().unwrap()], script.parent().unwrap());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
    assert_eq!(folder.exists(), before, "{name}: the script left a folder behind");
    stderr
}

#[test]
fn a_project_name_that_cannot_work_everywhere_is_rejected_with_the_reason() {
    let folder = Folder::new("names");
    let project = folder.0.join("project");
    let too_long = "a".repeat(36);
    for (reason, names) in [
        (
            "lower-case letters",
            &["", "Quotes", "quo_tes", "1a", "-a", "a-", "a--b", "a.b", "é"][..],
        ),
        ("use 2 to 35", &["a", &too_long]),
        ("this project's name", &["zmq-echo", "zmqecho", "my-zmq-echo"]),
        ("means something in Rust", &["match", "self", "std", "test", "u8"]),
        ("not a string in YAML", &["yes", "null"]),
        ("belongs to Kubernetes", &["default", "kubernetes", "kube-system"]),
        ("others", &["cargo", "process", "process-x"]),
        // The last one stands for dependencies such as kube-client.
        ("is a dependency", &["tokio", "futures-util", "zmtp-sockets", "prometheus", "kube"]),
        ("it is the name of a module", &["probe", "support", "proto", "poll-loop"]),
    ] {
        for name in names {
            let said = assert_refused(&root().join("new-project"), name, &project);
            assert!(said.contains(reason), "{name}: {said}");
        }
    }
}

#[test]
fn the_longest_name_is_accepted() {
    let folder = Folder::new("longest");
    let project = folder.0.join("project");
    make(&"a".repeat(35), &project);
}

#[test]
fn a_folder_that_is_not_empty_or_lies_in_the_checkout_is_rejected_and_left_alone() {
    let folder = Folder::new("folders");
    let script = root().join("new-project");
    fs::write(folder.0.join("precious"), "1").unwrap();
    assert!(assert_refused(&script, "quotes", &folder.0).contains("not an empty folder"));
    assert!(
        assert_refused(&script, "quotes", &folder.0.join("precious"))
            .contains("not an empty folder")
    );
    assert_eq!(fs::read_to_string(folder.0.join("precious")).unwrap(), "1");

    let inside = root().join("target/quotes");
    assert!(assert_refused(&script, "quotes", &inside).contains("inside this checkout"));

    let empty = folder.0.join("empty");
    fs::create_dir(&empty).unwrap();
    make("quotes", &empty);
}

#[test]
fn a_copy_that_is_not_a_checkout_is_rejected() {
    let folder = Folder::new("checkout");
    let unpacked = folder.0.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let script = unpacked.join("new-project");
    fs::copy(root().join("new-project"), &script).unwrap();
    let project = folder.0.join("project");
    assert!(assert_refused(&script, "quotes", &project).contains("not a git checkout"));

    // Inside another project's checkout.
    succeed("git", &["init", "--quiet"], &folder.0);
    assert!(assert_refused(&script, "quotes", &project).contains("not a checkout of this project"));
}
