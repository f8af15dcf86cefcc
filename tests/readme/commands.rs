//! The shell commands of the README and of `docs/`: some are run as written, and a shell can parse
//! all of them.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{KUBERNETES, LOAD_GENERATOR, README};
use crate::support::built::LOAD;
use crate::support::shell::{blocks_of, blocks_under, commands, commands_of, documents, inline};
use crate::support::{PROBE, Process, SERVER, Server, command, get, sample, scrape, wait_until};

/// Commands that no test runs as written: how they begin, and the reason.
const NOT_RUN: &[(&str, &str)] = &[
    ("docker ", "needs Docker"),
    ("kind ", "needs Docker"),
    ("helm ", "needs a cluster and the charts' servers"),
    ("kubectl ", "needs a cluster; the test `cluster` types it there"),
    ("cargo build              # the", "builds what these tests have already built"),
    ("cargo build --profile image", "takes minutes; .ci/image builds with this profile"),
    ("cargo clippy --workspace", "needs a C++ compiler; .ci/run runs it"),
    ("cargo deny", "needs cargo-deny; .ci/run runs it"),
    ("cargo fmt --all", "changes the sources; .ci/run checks the format"),
    ("cargo machete", "needs cargo-machete; .ci/run runs it"),
    ("cargo run -p zmq-echo-client --example manual", "a test runs this example in its own folder"),
    ("cargo test               # everything", "is this suite"),
    ("cargo build --release", "takes minutes; the commands after it run with the tests' own build"),
    ("cargo run     # serves", "serves until Ctrl-C; every test starts such a server"),
    ("cargo test    # runs", "is this suite"),
    ("cargo test -p zmq-echo-compare", "builds libzmq; .ci/run runs it"),
    ("cargo test --test ", "needs other programs, and minutes; .ci/run runs it"),
    ("cargo run --profile image -p zmq-echo-compare", "takes six minutes"),
    ("cargo doc ", "opens a browser; .ci/run builds the documentation"),
    ("cargo +nightly fuzz run session", "needs a nightly compiler, and never ends"),
    (".ci/cluster --all", "takes an hour; .ci/run runs the shorter scenarios"),
    ("cp target/scaling/scaling.svg docs/", "changes the picture in this repository"),
    ("promtool test rules ", "needs promtool; the test `observability` runs it"),
    ("curl http://127.0.0.1:8080/metrics", "follows a port-forward to a pod"),
    ("./new-project ", "the tests of the script run it, with other names"),
    ("CARGO_TARGET_DIR=", "builds and tests a whole project"),
    ("cd ../quotes ", "builds and tests a whole project"),
    (
        "cargo run -- --work ",
        "serves until Ctrl-C; the tests of the simulation start such a server",
    ),
    ("cargo run -p zmq-echo-client --bin zmq-echo-load -- --rate 20", "needs the server above"),
    ("curl -H 'X-Faults: 1'", "the tests of the simulation send the same"),
    ("curl http://127.0.0.1:8080/faults", "the tests of the simulation send the same"),
];

/// Documents and sections with blocks that a test runs as written, each with a command that
/// identifies the block. The tests of the manifests run the one of kubernetes.md.
const RUN: [(&str, &str, &str); 5] = [
    (README, "## One minute", "zmq-echo-probe"),
    (README, "## Three replicas", "for n in 1 2 3"),
    (README, "## Three replicas", ">> 2.log"),
    (LOAD_GENERATOR, "# The load generator", "zmq-echo-load"),
    (KUBERNETES, "## In production", "sha256:DIGEST"),
];

/// The command in the text that stops all three servers.
const STOP: &str = "kill $(cat ?.pid)";

#[test]
fn every_documented_command_is_tested_or_listed_with_a_reason() {
    let run: Vec<_> = RUN
        .iter()
        .flat_map(|(document, heading, part)| commands_of(&block_under(document, heading, part)))
        .collect();
    let commands = commands();
    let begins = |command: &str| NOT_RUN.iter().any(|(begin, _)| command.starts_with(begin));
    for (file, command) in &commands {
        let is_run = run.contains(command) || command == STOP;
        assert!(
            is_run || begins(command),
            "no test runs this command of {}: {command}",
            file.display()
        );
    }
    for (begin, reason) in NOT_RUN {
        let any = commands.iter().any(|(_, command)| command.starts_with(begin));
        assert!(any, "the list is outdated: no command begins with `{begin}` ({reason})");
    }
}

/// The block under a heading that contains this part of a command.
fn block_under(document: &str, heading: &str, part: &str) -> String {
    let blocks = blocks_under(document, heading);
    let block = blocks.into_iter().find(|block| block.contains(part));
    block.unwrap_or_else(|| panic!("no block under `{heading}` contains `{part}`"))
}

#[test]
fn a_shell_can_parse_every_documented_command() {
    let documents = documents();
    let blocks = documents.iter().flat_map(|(file, text)| {
        blocks_of(text).into_iter().chain(inline(text)).map(move |block| (file, block))
    });
    let mut count = 0;
    for (file, block) in blocks {
        let output = Command::new("sh").args(["-n", "-c", &block]).output().unwrap();
        assert!(
            output.status.success(),
            "a shell cannot parse a block of {}: {block}\n{output:?}",
            file.display()
        );
        count += 1;
    }
    assert!(count > 30, "only {count} blocks were found");
}

/// Runs a block from the README, but with the tests' own build and at other addresses.
fn shell(block: &str, addresses: &[(&str, String)], place: &Path) -> Command {
    let mut text = block.to_owned();
    for (program, path) in
        [("probe", PROBE.to_owned()), ("load", LOAD.clone()), ("server", SERVER.to_owned())]
    {
        let built = [
            format!("cargo run --bin zmq-echo-{program} --"),
            format!("cargo run --release --bin zmq-echo-{program} --"),
            format!("target/release/zmq-echo-{program}"),
        ];
        text = built.iter().fold(text, |text, built| text.replace(built, &path));
    }
    for (from, to) in addresses {
        text = text.replace(from, to);
    }
    let mut shell = command("sh");
    shell.args(["-e", "-c", &text]).current_dir(place);
    shell
}

#[test]
fn the_probe_and_the_side_port_answer_as_the_readme_says() {
    let block = block_under(README, "## One minute", "zmq-echo-probe");
    let server = Server::start(&[]);
    let place = Place::new("see");
    let addresses = [("127.0.0.1:8080", server.http.to_string())];
    let mut said = String::new();
    for one in commands_of(&block) {
        if one.starts_with("curl") && Command::new("curl").arg("--version").output().is_err() {
            // Replaces curl if it is not installed.
            let path = one.split("8080").nth(1).unwrap().split_whitespace().next().unwrap();
            said += &get(server.http, path).1;
            continue;
        }
        let mut shell = shell(&one, &addresses, &place.0);
        // The README's command names no endpoint and uses the default.
        let output = shell.env("ZMQ_ECHO_PROBE_ENDPOINT", &server.endpoint).output().unwrap();
        assert!(output.status.success(), "the command `{one}` failed: {output:?}");
        said += &String::from_utf8(output.stdout).unwrap();
    }
    assert!(
        said.contains(": echoed in ") && said.contains("alive, echoed in "),
        "the commands did not print both echoes: {said}"
    );
    assert!(
        said.contains("zmq_echo_requests_total{source=\"probe\"} "),
        "the commands did not print the metrics: {said}"
    );
}

#[test]
fn the_load_generator_writes_its_report_as_documented() {
    let block = block_under(LOAD_GENERATOR, "# The load generator", "zmq-echo-load");
    let server = Server::start(&[]);
    let place = Place::new("load");
    // Shorter, and at a rate that a busy machine can keep.
    let shorter = [("--duration 30s", "--duration 1s".to_owned()), ("5000", "500".to_owned())];
    let mut shell = shell(&block, &shorter, &place.0);
    shell.env("ZMQ_ECHO_LOAD_ENDPOINTS", &server.endpoint).env("ZMQ_ECHO_LOAD_TIMEOUT", "1m");
    let output = shell.output().unwrap();
    assert!(output.status.success(), "the block failed: {output:?}");
    assert!(place.0.join("report.html").exists());
}

#[test]
fn no_command_repeats_a_known_mistake() {
    for (file, command) in commands() {
        for line in command.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let place = format!("{}: {line}", file.display());
            let has = |word: &str| words.contains(&word);
            // They match processes by their text, even in the arguments of the load generator.
            assert!(
                !has("pkill") && !has("killall"),
                "the command may end other processes: {place}"
            );
            // Not everyone has kustomize, and the `kustomize` in kubectl has no `edit`.
            assert!(
                words.first() != Some(&"kustomize"),
                "the command needs kustomize itself: {place}"
            );
            // kubectl can watch only one type of object.
            let types = words.iter().skip_while(|word| **word != "get").nth(1);
            let many = types.is_some_and(|types| types.contains(','));
            assert!(
                !(many && (has("--watch") || has("-w"))),
                "the command watches several types: {place}"
            );
            // It fails if the namespace exists, and then nothing after `&&` is run.
            let creates = line.contains("create namespace");
            assert!(
                !creates || line.contains("--dry-run=client"),
                "the command fails if the namespace exists: {place}"
            );
        }
    }
}

/// A directory for the files that the commands write, and the servers that they have started.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("zmq-echo-readme-{name}-{}", std::process::id());
        let place = std::env::temp_dir().join(name);
        fs::create_dir_all(&place).unwrap();
        Self(place)
    }

    fn pids(&self) -> Vec<String> {
        let files = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|name| name == "pid"));
        files.map(|path| fs::read_to_string(path).unwrap().trim().to_owned()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("-9").args(self.pids()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn one_of_three_servers_is_restarted_under_load_and_all_are_stopped_as_the_readme_says() {
    let block = |part| block_under(README, "## Three replicas", part);
    let (start, restart) = (block("for n in 1 2 3"), block(">> 2.log"));
    assert!(README.contains(&format!("`{STOP}`")));
    let place = Place::new("replicas");
    // The ports are those of the README, so the process uses an address of its own.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 1 + high % 200, low, 1);
    let shell = |text: &str| {
        let text = text.replace("cargo build --release\n", "");
        let addresses = [("127.0.0.1", host.to_string()), ("20s", "12s".to_owned())];
        let mut shell = shell(&text, &addresses, &place.0);
        shell.stderr(Stdio::null());
        // With long timeouts, for a busy machine.
        shell.env("ZMQ_ECHO_LOAD_TIMEOUT", "1m").env("ZMQ_ECHO_LOAD_RATE", "200");
        shell
    };
    let is_up = |port| TcpStream::connect(SocketAddr::from((host, port))).is_ok();

    let mut load = Process::spawn(&mut shell(&start));
    wait_until("the second server gets requests", || {
        let requests = r#"zmq_echo_requests_total{source="client"}"#;
        is_up(8082) && sample(&scrape(SocketAddr::from((host, 8082))), requests) > Some(10.0)
    });
    let status = shell(&restart).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "the documented restart failed: {status}");
    wait_until("the second server has restarted", || is_up(5552));
    let mut table = String::new();
    load.stdout().read_to_string(&mut table).unwrap();
    assert_eq!(load.wait(), 0, "{table}");
    let failed = table
        .lines()
        .find(|line| line.starts_with("failed"))
        .expect("the table has a row for failures");
    assert_eq!(failed.split_whitespace().nth(1), Some("0"), "{table}");
    assert!(place.0.join("report.html").exists());
    // The restarted server appends to its log.
    let log = fs::read_to_string(place.0.join("2.log")).unwrap();
    assert!(
        log.contains("\"drained\"") && log.matches("\"listening\"").count() == 2,
        "the restart has overwritten the log: {log}"
    );

    assert_eq!(place.pids().len(), 3);
    assert!(shell(STOP).stdout(Stdio::null()).status().unwrap().success());
    for port in 5551..=5553 {
        wait_until("the documented command has stopped the server", || !is_up(port));
    }
}
