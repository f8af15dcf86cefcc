//! The shell commands of the README and of `docs/`: some are run as they are written, and all can
//! be read by a shell.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::README;
use crate::support::built::LOAD;
use crate::support::{Process, SERVER, command, sample, scrape, wait_until};

/// Every block of shell commands, with the file that it is in.
fn blocks() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = documents
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    files.push(root.join("README.md"));
    let blocks = files.into_iter().flat_map(|file| {
        let text = fs::read_to_string(&file).unwrap();
        blocks_of(&text).into_iter().map(move |block| (file.clone(), block)).collect::<Vec<_>>()
    });
    blocks.collect()
}

fn blocks_of(text: &str) -> Vec<String> {
    let code = text.split("\n```").skip(1).step_by(2);
    code.filter_map(|block| block.strip_prefix("sh\n")).map(str::to_owned).collect()
}

#[test]
fn a_shell_reads_every_command() {
    let blocks = blocks();
    assert!(blocks.len() > 8, "{} blocks", blocks.len());
    for (file, block) in blocks {
        let output = Command::new("sh").args(["-n", "-c", &block]).output().unwrap();
        assert!(output.status.success(), "{}: {block}\n{output:?}", file.display());
    }
}

#[test]
fn no_command_is_of_a_kind_that_has_failed_readers() {
    for (file, block) in blocks() {
        for line in block.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let place = format!("{}: {line}", file.display());
            let has = |word: &str| words.contains(&word);
            // They match by text, the load generator's arguments too.
            assert!(!has("pkill") && !has("killall"), "{place}");
            // Not installed with kubectl, which has no `edit` of it.
            assert!(words.first() != Some(&"kustomize"), "{place}");
            // Only one type of object can be watched.
            let types = words.iter().skip_while(|word| **word != "get").nth(1);
            let many = types.is_some_and(|types| types.contains(','));
            assert!(!(many && (has("--watch") || has("-w"))), "{place}");
            // It fails if there is one, and nothing after `&&` is run.
            let creates = line.contains("create namespace");
            assert!(!creates || line.contains("--dry-run=client"), "{place}");
        }
    }
}

/// A directory in which the commands leave their files, and the servers that they have started.
struct Place(PathBuf);

impl Place {
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
    let (_, section) = README.split_once("## Three replicas").expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let [start, restart] = &blocks_of(section)[..] else { panic!("two blocks") };
    let stop = section.split('`').find(|code| code.starts_with("kill ")).expect("how to stop");

    let name = format!("zmq-echo-replicas-{}", std::process::id());
    let place = Place(std::env::temp_dir().join(name));
    fs::create_dir_all(&place.0).unwrap();
    // An address of this process's own, as the ports are the README's.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 1 + high % 200, low, 1);
    let shell = |text: &str| {
        let text =
            text.replace("cargo build --release\n", "").replace("127.0.0.1", &host.to_string());
        let text = text.replace("target/release/zmq-echo-server", SERVER);
        let text = text.replace("target/release/zmq-echo-load", &LOAD).replace("20s", "12s");
        let mut shell = command("sh");
        shell.args(["-c", &text]).current_dir(&place.0).stderr(Stdio::null());
        // Patient, for a machine that has much else to do.
        shell.env("ZMQ_ECHO_LOAD_TIMEOUT", "1m").env("ZMQ_ECHO_LOAD_RATE", "200");
        shell
    };
    let is_up = |port| TcpStream::connect(SocketAddr::from((host, port))).is_ok();

    let mut load = Process::spawn(&mut shell(start));
    wait_until("the second server is under load", || {
        let requests = r#"zmq_echo_requests_total{source="client"}"#;
        is_up(8082) && sample(&scrape(SocketAddr::from((host, 8082))), requests) > Some(10.0)
    });
    let status = shell(restart).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
    wait_until("the second server is back", || is_up(5552));
    let mut table = String::new();
    load.stdout().read_to_string(&mut table).unwrap();
    assert_eq!(load.wait(), 0, "{table}");
    let failed = table.lines().find(|line| line.starts_with("failed")).expect("a row");
    assert_eq!(failed.split_whitespace().nth(1), Some("0"), "{table}");
    assert!(place.0.join("report.html").exists());
    // Its log goes on where it stopped.
    let log = fs::read_to_string(place.0.join("2.log")).unwrap();
    assert!(log.contains("\"drained\"") && log.matches("\"listening\"").count() == 2, "{log}");

    assert_eq!(place.pids().len(), 3);
    assert!(shell(stop).stdout(Stdio::null()).status().unwrap().success());
    for port in 5551..=5553 {
        wait_until("it is stopped", || !is_up(port));
    }
}
