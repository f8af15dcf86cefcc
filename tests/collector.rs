//! The log, read by a real collector: syslog-ng reads a server's stdout as a container runtime
//! does. This is not among the default tests, because syslog-ng must be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value as Json;
use zmq_echo::log::{self, LogFormat};

#[allow(dead_code, reason = "the default tests use the rest")]
mod support;

use support::{
    DEADLINE, EVERY_RECORD, POD, PROBE, Process, TEST_SERVER, command, get, raw, sample, scrape,
    wait_until,
};

/// syslog-ng in the foreground, with its own configuration and directory.
struct Collector {
    process: Process,
    directory: PathBuf,
}

impl Collector {
    /// Starts a collector that reads the output of `program`, and the program.
    fn behind(mut program: Command, name: &str) -> (Self, Process) {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/collector.conf");
        let mut syslog_ng = Command::new("syslog-ng");
        let path = std::env::var("PATH").unwrap_or_default();
        syslog_ng.current_dir(&directory).env("PATH", format!("{path}:/usr/sbin"));
        syslog_ng.args(["--foreground", "--no-caps", "--cfgfile"]).arg(config);
        syslog_ng.args(["--persist-file=persist", "--control=control", "--pidfile"]);
        // Relative paths would be in the system's directory.
        syslog_ng.arg(directory.join("pid"));
        let mut child = syslog_ng.stdin(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("syslog-ng: {error}; it is in Debian's package syslog-ng-core")
        });
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let collector = Self { process: Process(child), directory };
        let program = program.stdout(stdin).spawn().expect("the program starts");
        (collector, Process(program))
    }

    /// What it has collected so far: each line, and the fields that it found in it.
    fn collected(&self) -> Vec<(String, Json)> {
        let text = fs::read_to_string(self.directory.join("collected")).unwrap_or_default();
        // The last line may still be incomplete.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                let mut parsed: Json = serde_json::from_str(line).expect("syslog-ng writes JSON");
                let line = parsed["line"].as_str().expect("the line").to_owned();
                (line, parsed["record"].take())
            })
            .collect()
    }

    fn find(&self, field: &str, value: &str) -> Option<Json> {
        self.collected().into_iter().map(|(_, record)| record).find(|record| record[field] == value)
    }

    fn wait_for(&self, field: &str, value: &str) -> Json {
        wait_until(&format!("{field} {value} is collected"), || self.find(field, value).is_some());
        self.find(field, value).expect("it was found a moment ago")
    }

    /// Waits until it has read everything and exited. Also returns the lines that were not records.
    fn finish(mut self) -> (Vec<(String, Json)>, String) {
        assert_eq!(self.process.wait(), 0);
        let collected = self.collected();
        let others = fs::read_to_string(self.directory.join("unparsed")).unwrap_or_default();
        fs::remove_dir_all(&self.directory).unwrap();
        (collected, others)
    }
}

fn server() -> Command {
    let mut server = command(&TEST_SERVER);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    server.args(["--log-level", EVERY_RECORD]);
    server.envs(POD.map(|(variable, _, value)| (variable, value)));
    server
}

/// Whether the collector has found a field's value. It keeps every value as text, with six decimal
/// places.
fn is_same(written: &Json, parsed: &Json) -> bool {
    let parsed = parsed.as_str().unwrap_or_else(|| panic!("{parsed} is not text"));
    match written {
        Json::String(text) => text == parsed,
        Json::Number(number) if number.is_f64() => {
            let parsed: f64 = parsed.parse().unwrap();
            (number.as_f64().unwrap() - parsed).abs() < 1e-6
        }
        Json::Number(number) => number.to_string() == parsed,
        other => panic!("records are flat: {other}"),
    }
}

#[test]
fn the_collector_parses_every_field_of_the_servers_records() {
    let (collector, mut server) = Collector::behind(server(), "fields");
    let listening = collector.wait_for("message", "listening");
    assert_eq!(listening["pid"], server.0.id().to_string());
    let address = address(&listening);
    let identities = [&b"a\nb\r\n{\"level\":\"ERROR\"}"[..], b"\"quoted\\", b"\x1b[31m", b"\xff"];
    for identity in identities {
        let mut peer = raw::connect(address, identity);
        raw::echoes(&mut peer, &raw::frame(b"hello", false));
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    let (collected, others) = collector.finish();
    assert_eq!(others, "");
    for (line, parsed) in &collected {
        let written: Json =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("not a record: {e}: {line}"));
        let (written, parsed) = (written.as_object().unwrap(), parsed.as_object().unwrap());
        assert!(
            written.keys().eq(parsed.keys()),
            "the collector found other fields in {line}: {parsed:?}"
        );
        for (field, value) in written {
            assert!(is_same(value, &parsed[field]), "{field} of {line}: {}", parsed[field]);
        }
        for (_, field, value) in POD {
            assert_eq!(parsed[field], value);
        }
    }
    for identity in identities {
        let identity = identity.escape_ascii().to_string();
        for message in ["peer connected", "request", "peer disconnected"] {
            let holds = |(_, record): &(String, Json)| {
                record["identity"] == *identity && record["message"] == message
            };
            assert!(
                collected.iter().any(holds),
                "the record `{message}` of {identity} was not collected"
            );
        }
    }
    assert_eq!(collected.last().expect("records").1["message"], "drained");
}

fn address(listening: &Json) -> std::net::SocketAddr {
    let endpoint = listening["endpoint"].as_str().expect("the record names the endpoint");
    endpoint.strip_prefix("tcp://").expect("a tcp endpoint").parse().expect("an address")
}

#[test]
fn if_the_collector_stops_reading_records_are_dropped_and_counted_but_echoes_go_on() {
    let (collector, mut server) = Collector::behind(server(), "stopped");
    let listening = collector.wait_for("message", "listening");
    let (address, http) = (address(&listening), listening["http"].as_str().unwrap());
    let http = http.parse().unwrap();
    let dropped = || sample(&scrape(http), "zmq_echo_log_records_dropped_total").unwrap();
    collector.process.signal(Signal::STOP);
    let mut peer = raw::connect(address, b"chatty");
    let requests = raw::frame(b"x", false).repeat(1000);
    wait_until("records are dropped once the collector has stopped", || {
        raw::echoes(&mut peer, &requests);
        dropped() > 0.0
    });
    // The server continues while the collector is stopped.
    let before = dropped();
    raw::echoes(&mut peer, &requests);
    wait_until("/livez answers 200 while the collector is stopped", || {
        get(http, "/livez").0 == 200
    });
    let probe = command(PROBE)
        .args(["--timeout", "10s", "--endpoint", listening["endpoint"].as_str().unwrap()])
        .status();
    assert_eq!(probe.unwrap().code(), Some(0));
    assert!(dropped() >= before + 1000.0, "fewer than 1000 further records were dropped");
    drop(peer);

    // The collector may also start reading again.
    collector.process.signal(Signal::CONT);
    wait_until("records are collected again", || {
        drop(raw::connect(address, b"later"));
        collector.find("identity", "later").is_some()
    });
    wait_until("all peers are disconnected", || {
        sample(&scrape(http), "zmq_echo_peers") == Some(0.0)
    });
    let metrics = scrape(http);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    let total = |name: &str| {
        let of_name = metrics.samples.iter().filter(|sample| sample.metric == name);
        of_name
            .map(|sample| match sample.value {
                prometheus_parse::Value::Counter(value) => value,
                _ => panic!("{name} is not a counter"),
            })
            .sum::<f64>()
    };
    // One record for each of these, and one for listening.
    let caused = total("zmq_echo_requests_total")
        + total("zmq_echo_connections_total")
        + total("zmq_echo_disconnections_total");
    let drain = ["draining", "stopped listening; connected peers are still served", "drained"];
    let (collected, others) = collector.finish();
    assert_eq!(others, "");
    let records = collected
        .iter()
        .filter(|(_, record)| !drain.iter().any(|message| record["message"] == *message))
        .count() as f64;
    assert_eq!(records + total("zmq_echo_log_records_dropped_total"), 1.0 + caused);
}

/// A panic in this test binary, which the test starts again as a child process.
mod panic {
    use super::*;

    const MESSAGE: &str = "out of luck,\n\"twice\"";

    #[test]
    #[ignore = "the body of another test's child"]
    fn child() {
        let _logs = log::init(tracing_subscriber::EnvFilter::new("info"), LogFormat::Json).unwrap();
        std::thread::Builder::new()
            .name("doomed".to_owned())
            .spawn(|| panic!("{MESSAGE}"))
            .unwrap();
        std::thread::sleep(DEADLINE);
    }

    #[test]
    fn with_its_backtrace_is_one_record() {
        let mut child = command(std::env::current_exe().unwrap().to_str().unwrap());
        child.args(["--ignored", "--exact", "panic::child", "--nocapture", "--test-threads=2"]);
        let (collector, mut child) = Collector::behind(child, "panic");
        assert_eq!(child.wait(), 101);
        let (collected, others) = collector.finish();
        // The first line is the test harness's. It is preceded by an empty line, which syslog-ng
        // omits.
        assert_eq!(others, "running 1 test\n");
        let [(line, record)] = &collected[..] else {
            panic!("expected exactly one record: {collected:?}")
        };
        assert!(line.len() < log::RECORD_LIMIT);
        assert_eq!(record["message"], "panicked");
        assert_eq!(record["level"], "ERROR");
        assert_eq!(record["panic"], MESSAGE);
        assert_eq!(record["thread"], "doomed");
        let backtrace = record["backtrace"].as_str().unwrap();
        assert!(
            backtrace.lines().count() > 5 && backtrace.contains("panic"),
            "the backtrace is incomplete: {backtrace}"
        );
    }
}
