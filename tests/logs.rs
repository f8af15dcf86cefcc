//! Each line is one record that any parser can read, and logging never blocks an echo.

use std::io::{BufRead, Read, Write};

use rustix::process::Signal;
use serde_json::Value as Json;
use zmq_echo::log::{self, LogFormat};

use crate::log_schema::assert_documented;
use crate::support::{
    DEADLINE, EVERY_RECORD, Process, Server, TEST_SERVER, command, raw, sample, scrape, wait_until,
};

/// Identities and payloads that would break a careless log.
const NASTY: [&[u8]; 5] = [
    b"a\nb\r\n{\"level\":\"ERROR\"}",
    b"\"quoted\\",
    b"\x1b[31mred\x07",
    b"\xff\xfe\x80not utf-8",
    "\u{2028}\u{202e}".as_bytes(),
];

fn provoke(server: &Server) {
    for nasty in NASTY {
        let mut peer = raw::connect(server.address(), nasty);
        peer.write_all(&raw::frame(nasty, false)).unwrap();
        assert_eq!(raw::read_frame(&mut peer).1, nasty);
    }
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}

#[test]
fn every_line_is_one_json_record_whatever_a_peer_sends() {
    let server = Server::start(&["--log-level", EVERY_RECORD]);
    provoke(&server);
    wait_until("the requests are logged at trace level", || {
        server.lines().iter().filter(|line| line.contains("\"request\"")).count() >= NASTY.len()
    });
    for line in server.lines() {
        let record: Json = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("not a JSON record: {error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(record[field].is_string(), "the record has no {field}: {line}");
        }
        let timestamp = record["timestamp"].as_str().unwrap();
        // RFC 3339, UTC, microseconds: 2026-01-31T12:34:56.123456Z
        assert_eq!(timestamp.len(), 27, "{timestamp}");
        assert!(timestamp.ends_with('Z') && timestamp.as_bytes()[19] == b'.', "{timestamp}");
        assert!(line.len() < log::RECORD_LIMIT);
    }
}

#[test]
fn every_line_is_one_text_record_whatever_a_peer_sends() {
    let mut server = command(&TEST_SERVER);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    server.args(["--log-level", EVERY_RECORD, "--log-format", "text"]);
    let mut child = Process::spawn(&mut server);
    let mut stdout = child.stdout();
    let mut listening = String::new();
    stdout.read_line(&mut listening).unwrap();
    let endpoint = listening.split("endpoint=tcp://").nth(1).unwrap().split(' ').next().unwrap();
    for nasty in NASTY {
        drop(raw::connect(endpoint.parse().unwrap(), nasty));
    }
    child.signal(Signal::TERM);
    let mut text = listening;
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait(), 0);
    assert!(text.lines().count() > NASTY.len());
    for line in text.lines() {
        assert_eq!(line.as_bytes()[26], b'Z', "the line does not start with a time: {line}");
        assert!(
            !line.contains(|c: char| c.is_control()),
            "the line has a control character: {line:?}"
        );
    }
}

#[test]
fn at_the_default_level_untrusted_peers_cannot_trigger_log_lines() {
    let server = Server::start(&[]);
    provoke(&server);
    for _ in 0..10 {
        let mut peer = std::net::TcpStream::connect(server.address()).unwrap();
        let _ = peer.write_all(&[b'x'; 100]);
        let _ = peer.read_to_end(&mut Vec::new());
    }
    server
        .wait_for_metric("zmq_echo_connections_total{outcome=\"failed\"}", |failed| failed == 10.0);
    let messages: Vec<_> = server
        .lines()
        .iter()
        .map(|line| serde_json::from_str::<Json>(line).unwrap()["message"].clone())
        .collect();
    assert_eq!(messages, ["listening"]);
}

#[test]
fn if_nobody_reads_stdout_records_are_dropped_but_echoes_go_on() {
    let mut server = command(&TEST_SERVER);
    server.args([
        "--log-level",
        EVERY_RECORD,
        "--bind",
        "tcp://127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]);
    let mut child = Process::spawn(&mut server);
    let mut stdout = child.stdout();
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    let listening: Json = serde_json::from_str(&first).unwrap();
    // From here on, nothing reads stdout.
    let address =
        listening["endpoint"].as_str().unwrap().strip_prefix("tcp://").unwrap().parse().unwrap();
    let http = listening["http"].as_str().unwrap().parse().unwrap();
    let mut peer = raw::connect(address, b"chatty");
    let mut dropped = 0.0;
    wait_until("records are dropped once nobody reads stdout", || {
        peer.write_all(&raw::frame(b"x", false).repeat(1000)).unwrap();
        for _ in 0..1000 {
            assert_eq!(raw::read_frame(&mut peer).1, b"x");
        }
        dropped = sample(&scrape(http), "zmq_echo_log_records_dropped_total").unwrap();
        dropped > 0.0
    });
    drop(peer);
    // It also exits, although nobody reads its last records.
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), 0);
    drop(stdout);
}

#[test]
fn an_error_at_the_start_is_one_record_that_names_what_failed() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = ["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"];
    let endpoint = format!("tcp://{address}");
    for (args, named) in [
        (vec!["--bind", &endpoint], &*endpoint),
        (vec!["--http", &address], &*address),
        (vec!["--bind", "tcp://no-such-host.invalid:5555"], "tcp://no-such-host.invalid:5555"),
        (vec!["--bind", "tcp://192.0.2.1:5555"], "tcp://192.0.2.1:5555"),
    ] {
        let mut whole: Vec<&str> =
            free.chunks(2).filter(|pair| pair[0] != args[0]).flatten().copied().collect();
        whole.extend(&args);
        let output = command(&TEST_SERVER).args(&whole).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stdout}");
        let record: Json = serde_json::from_str(stdout.trim())
            .unwrap_or_else(|error| panic!("stdout is not one JSON record: {error}: {stdout}"));
        assert_documented(&record, false);
        let error = record["error"].as_str().unwrap();
        assert!(error.contains(named), "the error does not name {named}: {error}");
        assert!(error.contains("os error") || error.contains("lookup"), "{error}");
    }
}

#[test]
fn the_reason_for_exiting_is_printed_even_with_logging_off() {
    for filter in ["off", "hyper=debug"] {
        let output = command(&TEST_SERVER)
            .args(["--log-level", filter, "--bind", "tcp://192.0.2.1:5555"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("tcp://192.0.2.1:5555") && stderr.contains("os error"), "{stderr}");
    }
}

/// A panic in this test binary, which the test starts again as a child process.
mod panic {
    use super::*;

    const CHILD: &str = "ZMQ_ECHO_TEST_PANIC";
    const FRAMES: &str = "ZMQ_ECHO_TEST_PANIC_FRAMES";

    fn panic_below(frames: usize, message: &str) {
        if frames == 0 {
            panic!("{message}");
        }
        panic_below(frames - 1, message);
        // Otherwise the call before would be a tail call, which leaves no frame.
        std::hint::black_box(());
    }

    #[test]
    #[ignore = "the body of another test's child"]
    fn child() {
        let message = std::env::var(CHILD).unwrap();
        let _logs = log::init(tracing_subscriber::EnvFilter::new("info"), LogFormat::Json).unwrap();
        let frames = std::env::var(FRAMES).unwrap().parse().unwrap();
        // In a thread that nothing joins.
        std::thread::Builder::new()
            .name("doomed".to_owned())
            .spawn(move || panic_below(frames, &message))
            .unwrap();
        std::thread::sleep(DEADLINE);
    }

    #[test]
    fn in_any_thread_it_is_one_record_and_exit_101() {
        let short = ("out of luck".to_owned(), 0, false);
        let long = ("\"\n\u{1}".repeat(20_000), 1_000, true);
        for (message, frames, long) in [short, long] {
            let mut child = command(std::env::current_exe().unwrap().to_str().unwrap());
            child.args(["--ignored", "--exact", "logs::panic::child", "--nocapture"]);
            // With one, as on one CPU, the harness writes the test's name before it runs,
            // on the line of the first record.
            child.arg("--test-threads=2");
            child.env(CHILD, &message).env(FRAMES, frames.to_string());
            if long {
                child.envs(log::PLACE.map(|(variable, _)| (variable, "\u{1}".repeat(1000))));
            }
            let output = child.output().unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(101), "{stdout}");
            // The harness writes lines of its own.
            let records: Vec<Json> =
                stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let [record] = &records[..] else {
                panic!("expected one record, got {}: {stdout}", records.len())
            };
            assert_documented(record, long);
            assert_eq!(record["message"], "panicked");
            assert_eq!(record["thread"], "doomed");
            let panic = record["panic"].as_str().unwrap();
            assert!(message.starts_with(panic.trim_end_matches(log::CUT)), "{record}");
            assert_eq!(panic.ends_with(log::CUT), long, "{record}");
            assert!(record["location"].as_str().unwrap().contains("tests/logs.rs"), "{record}");
            let backtrace = record["backtrace"].as_str().unwrap();
            assert!(backtrace.contains("panic"), "{record}");
            assert_eq!(backtrace.ends_with(log::CUT), long, "{record}");
            assert!(stdout.lines().all(|line| line.len() < log::RECORD_LIMIT));
        }
    }
}
