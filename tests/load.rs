//! The load generator: its counts match the server's, its measurements match servers with a known
//! delay, and its outputs match each other.

mod starting;

use std::collections::VecDeque;
use std::io::Read;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use clap::CommandFactory;
use rustix::process::Signal;
use serde_json::Value as Json;
use tokio::time::{Instant, sleep, sleep_until};
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};
use zmq_echo_client::load::config::LoadConfig;

use crate::config::{assert_rejected, assert_rejected_in_the_environment};
use crate::log_schema::assert_text_documented;
use crate::simulation::switch;
use crate::support::built::LOAD;
use crate::support::dns_server::DnsServer;
use crate::support::{Process, Server, command, runtime, wait_until};

fn load(args: &[&str]) -> Output {
    command(&LOAD).args(args).output().expect("the program starts")
}

/// A timeout so long that no attempt that gets a reply times out, however slow it is.
const PATIENT: [&str; 2] = ["--timeout", "1m"];

/// Makes a run that must exit with this code, and returns its result. The run uses the long timeout
/// unless it sets another.
#[track_caller]
fn result(code: i32, args: &[&str]) -> Json {
    let patience = if args.contains(&"--timeout") { &[][..] } else { &PATIENT };
    let output = load(&[args, patience, &["--output", "json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("stdout is JSON and nothing else")
}

fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn sum(list: &Json, field: &str) -> f64 {
    list.as_array().expect("a list").iter().map(|entry| number(&entry[field])).sum()
}

/// How a ROUTER treats its messages.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Replies, and each reply takes this long.
    Delays(Duration),
    /// Replies at once, except during one second that starts one second after the first request.
    StallsOnce,
    /// Replies with another last byte.
    Alters,
    /// Replies with another frame at the end.
    AddsFrame,
    /// Never replies.
    IsSilent,
}

/// Starts a server with this behaviour, which runs until the tests end. Returns its endpoint.
fn server_with(behaviour: Behaviour) -> String {
    let (sender, endpoint) = std::sync::mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async {
            let mut socket = RouterSocket::new();
            let endpoint = socket.bind("tcp://127.0.0.1:0").await.unwrap();
            sender.send(endpoint.to_string()).unwrap();
            serve(socket, behaviour).await;
        });
    });
    endpoint.recv().expect("the server binds")
}

async fn serve(mut socket: RouterSocket, behaviour: Behaviour) {
    let mut replies: VecDeque<(Instant, ZmqMessage)> = VecDeque::new();
    let mut stall = None;
    loop {
        let due = replies.front().map(|(due, _)| *due);
        tokio::select! {
            message = socket.recv() => {
                let Ok(message) = message else { continue };
                let now = Instant::now();
                match behaviour {
                    Behaviour::Delays(delay) => replies.push_back((now + delay, message)),
                    Behaviour::Alters => replies.push_back((now, altered(message))),
                    Behaviour::AddsFrame => {
                        let mut reply = message;
                        reply.push_back("more".into());
                        replies.push_back((now, reply));
                    }
                    Behaviour::IsSilent => {}
                    Behaviour::StallsOnce => {
                        if now >= *stall.get_or_insert(now + Duration::from_secs(1)) {
                            stall = Some(now + Duration::from_secs(3600));
                            sleep(Duration::from_secs(1)).await;
                        }
                        replies.push_back((now, message));
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let (_, reply) = replies.pop_front().expect("a reply is due");
                let _ = socket.send(reply).await;
            }
        }
    }
}

fn altered(message: ZmqMessage) -> ZmqMessage {
    let mut frames = message.into_vec();
    let mut last = frames.pop().expect("a frame").to_vec();
    *last.last_mut().expect("the frame is not empty") ^= 1;
    frames.push(last.into());
    ZmqMessage::try_from(frames).expect("a message has at least one frame")
}

#[test]
fn an_open_loop_keeps_the_rate_and_the_server_counts_the_same_requests() {
    let args = ["--rate", "400", "--duration", "2s", "--size", "16-4KiB"];
    // A busy machine may not keep the rate, so the test tries again.
    wait_until("a run sends at its rate", || {
        let server = Server::start(&[]);
        let run = result(0, &[&[&*server.endpoint], &args[..]].concat());
        assert_eq!((number(&run["sent"]), number(&run["answered"])), (800.0, 800.0), "{run}");
        assert_eq!(number(&run["failed"]), 0.0, "{run}");
        let requests = server.metric(r#"zmq_echo_requests_total{source="client"}"#);
        assert_eq!(requests, number(&run["sent"]) + number(&run["retried"]));
        let received = server.metric("zmq_echo_received_bytes_total") / 800.0;
        assert!(
            (1024.0..3072.0).contains(&received),
            "sizes are not drawn evenly: {received} bytes"
        );
        // The last request is due one period before the end.
        let rate = number(&run["achieved_rate"]);
        assert!(rate <= 401.0, "{rate} requests/s are more than the rate of 400");
        rate >= 380.0
    });
}

#[test]
fn a_closed_loop_gets_every_reply_and_the_server_counts_the_same_requests() {
    let server = Server::start(&[]);
    let run = result(0, &[&server.endpoint, "--rate", "max", "--duration", "1s"]);
    let answered = number(&run["answered"]);
    assert!(
        answered >= 256.0 && run["rate"].is_null(),
        "the closed loop answered too little or has a rate: {run}"
    );
    assert_eq!(answered, number(&run["sent"]), "{run}");
    let requests = server.metric(r#"zmq_echo_requests_total{source="client"}"#);
    assert_eq!(requests, answered + number(&run["retried"]));
}

#[test]
fn the_result_adds_up() {
    let servers = [Server::start(&[]), Server::start(&[])];
    let [one, other] = &servers;
    let args = [&one.endpoint, &*other.endpoint, "--rate", "1000", "--duration", "2s"];
    let run = result(0, &args);
    let answered = number(&run["answered"]);
    assert_eq!(number(&run["due"]), answered + number(&run["failed"]));
    assert_eq!(sum(&run["failures"], "count"), number(&run["failed"]));
    assert_eq!(sum(&run["timeline"], "answered"), answered);
    assert_eq!(sum(&run["endpoints"], "answered"), answered);
    assert!(
        (sum(&run["endpoints"], "share") - 1.0).abs() < 1e-9,
        "the shares do not add up to 1: {run}"
    );
    let of = |server: &Server| server.metric(r#"zmq_echo_requests_total{source="client"}"#);
    for share in run["endpoints"].as_array().unwrap() {
        let server = servers.iter().find(|server| share["endpoint"] == *server.endpoint);
        assert_eq!(
            number(&share["answered"]),
            of(server.expect("the endpoint is one of the two servers"))
        );
    }
    let latency = &run["latency"];
    let rising = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"];
    assert!(rising.windows(2).all(|pair| number(&latency[pair[0]]) <= number(&latency[pair[1]])));
    assert!(number(&latency["min"]) > 0.0);
}

#[test]
fn the_table_has_the_counts_the_percentiles_and_the_endpoints() {
    let server = Server::start(&[]);
    let args = ["--rate", "100", "--duration", "1s"];
    let output = load(&[&[&*server.endpoint], &args[..], &PATIENT].concat());
    assert_eq!(output.status.code(), Some(0));
    let table = String::from_utf8(output.stdout).unwrap();
    let row = |name: &str| {
        let row = table.lines().find(|line| line.trim_start().starts_with(name));
        row.unwrap_or_else(|| panic!("the table has no row {name}: {table}"))
            .split_whitespace()
            .nth(1)
            .unwrap()
    };
    assert_eq!([row("sent"), row("answered"), row("failed")], ["100", "100", "0"]);
    assert_eq!(row(&server.endpoint), "100");
    for name in ["retried", "rate", "p50", "p99.99", "max"] {
        row(name);
    }
    assert!(table.contains("lateness"), "{table}");
}

#[test]
fn the_report_is_one_file_with_the_figures_of_the_json_and_names_no_other() {
    let server = Server::start(&[]);
    let directory = std::env::temp_dir().join(format!("zmq-echo-load-{}", std::process::id()));
    // The command is on the page, and would end its script if it were not escaped.
    let path = directory.join("<!--/</script>.html");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let run = result(
        0,
        &[
            &server.endpoint,
            "--duration",
            "1s",
            "--rate",
            "500",
            "--report",
            path.to_str().unwrap(),
        ],
    );
    let page = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    let (_, embedded) = page.split_once(r#"id="result">"#).expect("the page embeds the result");
    let (embedded, script) = embedded.split_once("</script>").expect("the embedded result ends");
    assert!(!embedded.contains('<'), "the embedded result is not escaped: {embedded}");
    assert_eq!(serde_json::from_str::<Json>(embedded).expect("JSON"), run);
    assert!(run["command"].as_str().unwrap().contains("</script>.html"), "{}", run["command"]);
    assert_eq!(script.matches("<script").count(), 1, "the page has more than its own script");
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for mark in ["http:", "https:", "src=", "@import", "url(", "fetch(", "\"//"] {
        assert!(!outside.contains(mark), "the page names another file: {mark}");
    }
    assert_eq!(outside.matches("href=").count(), outside.matches("href=\"data:,\"").count());
}

#[test]
fn an_altered_reply_fails_the_run_unless_failures_are_allowed() {
    let endpoint = server_with(Behaviour::Alters);
    let args = [&*endpoint, "--rate", "100", "--duration", "1s"];
    let run = result(1, &args);
    assert_eq!((number(&run["answered"]), number(&run["failed"])), (0.0, 100.0), "{run}");
    assert_eq!(run["failures"][0]["kind"], "altered");
    assert_eq!(run["failures"].as_array().unwrap().len(), 1);
    result(1, &[&args[..], &["--max-failures", "99"]].concat());
    result(0, &[&args[..], &["--max-failures", "100"]].concat());
}

#[test]
fn a_reply_of_several_frames_fails_at_once_with_its_own_reason() {
    let endpoint = server_with(Behaviour::AddsFrame);
    let run = result(1, &[&endpoint, "--rate", "100", "--duration", "200ms", "--expect", "any"]);
    assert_eq!((number(&run["answered"]), number(&run["failed"])), (0.0, 20.0), "{run}");
    assert_eq!(run["failures"][0]["kind"], "not_one_frame", "{run}");
    assert_eq!(number(&run["retried"]), 0.0, "{run}");
}

#[test]
fn a_reply_is_compared_with_the_expected_one() {
    let endpoint = server_with(Behaviour::Alters);
    let server = Server::start(&[]);
    let args = ["--rate", "100", "--duration", "500ms", "--payload-template", "order {number}"];
    for (endpoint, expect, failure) in [
        (&endpoint, "any", None),
        (&endpoint, "echo", Some("altered")),
        (&endpoint, "contains:order ", None),
        (&endpoint, "contains:order 0", Some("unexpected")),
        (&server.endpoint, "echo", None),
    ] {
        let args = [&[&**endpoint, "--expect", expect][..], &args].concat();
        let run = result(i32::from(failure.is_some()), &args);
        let kinds: Vec<_> = run["failures"].as_array().unwrap().iter().collect();
        match failure {
            None => assert_eq!((number(&run["answered"]), kinds.len()), (50.0, 0), "{run}"),
            Some(kind) => assert!(kinds.iter().all(|one| one["kind"] == kind), "{expect}: {run}"),
        }
    }
}

#[test]
fn the_payload_of_every_request_can_come_from_a_file() {
    let server = Server::start(&[]);
    let path = std::env::temp_dir().join(format!("zmq-echo-payload-{}", std::process::id()));
    std::fs::write(&path, [7; 10_000]).unwrap();
    let args = ["--rate", "100", "--duration", "500ms", "--payload", path.to_str().unwrap()];
    let run = result(0, &[&[&*server.endpoint], &args[..]].concat());
    let requests = server.metric(r#"zmq_echo_requests_total{source="client"}"#);
    assert_eq!((number(&run["answered"]), requests), (50.0, 50.0), "{run}");
    // The client's envelope adds a few bytes.
    let received = server.metric("zmq_echo_received_bytes_total") / requests;
    assert!((10_000.0..10_100.0).contains(&received), "{received} bytes do not match the files");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn two_kinds_of_payload_are_rejected_together() {
    for args in [
        ["--payload", "Cargo.toml", "--size", "64"],
        ["--payload-template", "x", "--size", "64"],
        ["--payload-template", "x", "--payload", "Cargo.toml"],
    ] {
        let output = load(&args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("cannot be used with"), "{stderr}");
    }
}

#[test]
fn an_error_reply_is_retried_and_counted_whatever_reply_is_expected() {
    let server = Server::start(&["--faults"]);
    switch(&server, "errors=100%");
    let args = ["--rate", "100", "--duration", "500ms", "--expect", "any", "--retries", "1"];
    let run = result(1, &[&[&*server.endpoint], &args[..]].concat());
    assert_eq!((number(&run["failed"]), number(&run["retried"])), (50.0, 50.0), "{run}");
    assert_eq!(run["failures"][0]["kind"], "rejected", "{run}");
    let rejected = server.metric("zmq_echo_rejected_total");
    assert_eq!(rejected, 100.0);
}

#[test]
fn requests_that_could_not_be_sent_count_as_failed() {
    let endpoint = server_with(Behaviour::IsSilent);
    let run = result(
        1,
        &[
            &*endpoint,
            "--rate",
            "100",
            "--duration",
            "1s",
            "--timeout",
            "200ms",
            "--retries",
            "0",
            "--connections",
            "1",
            "--in-flight",
            "1",
        ],
    );
    assert_eq!((number(&run["due"]), number(&run["answered"])), (100.0, 0.0), "{run}");
    let count = |kind: &str| {
        let failures = run["failures"].as_array().unwrap();
        let failure = failures.iter().find(|failure| failure["kind"] == kind);
        failure.map_or(0.0, |failure| number(&failure["count"]))
    };
    assert!(count("unsent") >= 50.0, "too few requests count as unsent: {run}");
    assert_eq!(number(&run["sent"]) + count("unsent"), 100.0, "{run}");
    assert!(number(&run["most_waiting"]) >= 50.0, "the longest queue is too short: {run}");
}

#[test]
fn the_median_of_a_known_delay_is_that_delay_in_both_loops() {
    let endpoint = server_with(Behaviour::Delays(Duration::from_millis(20)));
    for rate in ["200", "max"] {
        // A busy machine may add its own delay, so the test tries again.
        wait_until("the median is about the server's delay", || {
            let run =
                result(0, &[&endpoint, "--rate", rate, "--duration", "1s", "--in-flight", "8"]);
            assert!(
                number(&run["latency"]["min"]) >= 0.02,
                "with rate {rate}, a latency is below the server's delay: {run}"
            );
            number(&run["latency"]["p50"]) < 0.2
        });
    }
}

#[test]
fn an_open_loop_sees_a_stall_that_a_closed_one_hides() {
    let args = ["--duration", "3s", "--connections", "1"];
    let endpoint = server_with(Behaviour::StallsOnce);
    let open = result(0, &[&[&*endpoint, "--rate", "500"], &args[..]].concat());
    assert!(
        number(&open["latency"]["max"]) >= 0.9,
        "the open loop does not see the stall: {}",
        open["latency"]
    );
    assert!(
        number(&open["latency"]["p90"]) >= 0.5,
        "the open loop does not count the queue during the stall: {}",
        open["latency"]
    );
    let endpoint = server_with(Behaviour::StallsOnce);
    let closed =
        result(0, &[&[&*endpoint, "--rate", "max", "--in-flight", "1"], &args[..]].concat());
    assert!(
        number(&closed["latency"]["max"]) >= 0.9,
        "the closed loop does not see the stall at all: {}",
        closed["latency"]
    );
    // In its remaining two seconds, it makes more than ten requests on any machine.
    assert!(
        number(&closed["latency"]["p90"]) < 0.5,
        "the closed loop counts the stall more than once: {}",
        closed["latency"]
    );
}

#[test]
fn an_endpoint_that_ends_is_reported() {
    let (stays, goes) = (Server::start(&[]), Server::start(&[]));
    let mut run = command(&LOAD);
    run.args([&*stays.endpoint, &goes.endpoint, "--output", "json"]);
    run.args(["--rate", "500", "--duration", "1h"]).args(PATIENT);
    let mut run = Process::spawn(&mut run);
    goes.wait_for_metric(r#"zmq_echo_requests_total{source="client"}"#, |count| count >= 100.0);
    goes.signal(Signal::KILL);
    let before = stays.metric(r#"zmq_echo_requests_total{source="client"}"#);
    let since = |count: f64| count >= before + 1000.0;
    stays.wait_for_metric(r#"zmq_echo_requests_total{source="client"}"#, since);
    run.signal(Signal::INT);
    let result: Json = serde_json::from_reader(run.stdout()).expect("JSON");
    assert_eq!(run.wait(), 3, "{}", result["failures"]);
    let changes = result["changes"].as_array().unwrap();
    let are = |what: &str| changes.iter().filter(|change| change["what"] == what).count();
    assert_eq!((are("came"), are("gone")), (2, 1), "{changes:?}");
    // At least one endpoint was present at the start. Whether the other was depends on how soon it
    // answered.
    assert_eq!(number(&changes[0]["at"]), 0.0, "{changes:?}");
    let gone = changes.last().unwrap();
    assert_eq!(gone["what"], "gone", "{changes:?}");
    assert_eq!(gone["endpoint"], *goes.endpoint);
}

#[test]
fn endpoints_that_come_and_go_in_dns_cause_no_failure() {
    const NAME: &str = "zmq-echo-headless.test.";
    let first = Server::start(&[]);
    let port = first.address().port();
    let second = Server::start_on(&format!("tcp://127.0.0.2:{port}"), &[]);
    let dns = DnsServer::start();
    dns.set(NAME, &["127.0.0.1"], 0);
    let mut run = command(&LOAD);
    run.args(["--discover", &dns.url(NAME, port), "--rate", "500", "--duration", "1h"]);
    let mut run = Process::spawn(run.args(["--output", "json"]).args(PATIENT));
    let requests = r#"zmq_echo_requests_total{source="client"}"#;
    first.wait_for_metric(requests, |count| count >= 100.0);
    dns.set(NAME, &["127.0.0.1", "127.0.0.2"], 0);
    second.wait_for_metric(requests, |count| count >= 100.0);
    dns.set(NAME, &["127.0.0.2"], 0);
    first.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
    run.signal(Signal::INT);
    let result: Json = serde_json::from_reader(run.stdout()).expect("JSON");
    assert_eq!(run.wait(), 3, "{}", result["failures"]);
    let changes = result["changes"].as_array().unwrap();
    let seen = |server: &Server, what: &str| {
        changes
            .iter()
            .any(|change| change["endpoint"] == *server.endpoint && change["what"] == what)
    };
    assert!(
        seen(&second, "came") && seen(&first, "gone"),
        "the change in DNS is not in the result: {changes:?}"
    );
    assert!(!seen(&second, "gone"), "an endpoint that stayed counts as gone: {changes:?}");
    assert_eq!(sum(&result["endpoints"], "answered"), number(&result["sent"]));
}

#[test]
fn the_log_is_documented_text_on_stderr() {
    let server = Server::start(&[]);
    let args = [&*server.endpoint, "tcp://127.0.0.1:1", "--rate", "100", "--duration", "500ms"];
    let output = load(&[&args[..], &["--log-level", "zmq_echo=debug"], &PATIENT].concat());
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    // On a machine that stalls, there may be a progress line.
    log.lines().filter(|line| !line.contains(", p50 ")).for_each(assert_text_documented);
    for message in ["endpoint added", "connected", "cannot connect"] {
        assert!(
            log.contains(&format!(": {message} endpoint=")),
            "`{message}` is not logged: {log}"
        );
    }
    assert!(!String::from_utf8(output.stdout).unwrap().contains(" zmq_echo::"));
}

#[test]
fn a_signal_ends_the_run_with_a_result_and_its_own_exit_code() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(&[]);
        let args = [&*server.endpoint, "--duration", "1h", "--rate", "1000", "--output", "json"];
        let mut run = Process::spawn(command(&LOAD).args(args).args(PATIENT));
        let requests = r#"zmq_echo_requests_total{source="client"}"#;
        server.wait_for_metric(requests, |count| count >= 100.0);
        run.signal(signal);
        let result: Json = serde_json::from_reader(run.stdout()).expect("JSON");
        assert_eq!(run.wait(), 3);
        assert_eq!(result["interrupted"], true);
        assert_eq!(result["sent"], result["answered"]);
        assert_eq!(number(&result["answered"]), server.metric(requests));
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Server::start(&[]);
    // In a closed loop, one request is always waiting for its reply.
    let args = [&*server.endpoint, "--duration", "1h", "--timeout", "1h", "--rate", "max"];
    let mut run = Process::spawn(command(&LOAD).args(args));
    let mut stdout = run.stdout();
    server.wait_for_metric(r#"zmq_echo_requests_total{source="client"}"#, |count| count >= 10.0);
    // From here on, nothing is answered, so the first signal would wait.
    server.stop();
    // The kernel may merge two signals that come close together.
    wait_until("the second signal ends the run", || {
        run.signal(Signal::INT);
        !run.is_running()
    });
    assert_eq!(run.wait(), 130);
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "");
}

#[test]
fn without_a_terminal_progress_is_a_line_now_and_then() {
    let server = Server::start(&[]);
    let mut run = command(&LOAD);
    run.args([&*server.endpoint, "--duration", "1h", "--rate", "100"]).args(PATIENT);
    run.stderr(Stdio::piped());
    let mut run = Process::spawn(&mut run);
    let mut stderr = std::io::BufReader::new(run.0.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    for part in ["/s, p50 ", ", p99 ", ", failed 0, endpoints 1\n"] {
        assert!(line.contains(part), "{line}");
    }
    run.signal(Signal::INT);
    assert_eq!(run.wait(), 3);
}

/// A value that each flag rejects, and part of the message.
const REFUSED: [(&str, &str, &str); 26] = [
    ("--discover", "zmq-echo", "such as dns://zmq-echo-headless:5555"),
    ("--rate", "0", "expected 1 to 10000000 requests per second, such as 5000, or max"),
    ("--rate", "fast", "such as 5000, or max"),
    ("--rate", "1e9", "such as 5000, or max"),
    ("--connections", "0", "expected a whole number from 1 to 4096"),
    ("--in-flight", "0", "expected a whole number from 1 to 65536"),
    ("--size", "7", "expected 8 to 16MiB, such as 64 or 4KiB, or a rising range such as 64-4KiB"),
    ("--size", "17MiB", "expected 8 to 16MiB"),
    ("--size", "4KiB-64", "a rising range"),
    (
        "--size",
        "16MiB",
        "256 requests in flight with --size 16MiB are 4.0 GiB of payload; the limit is 1 GiB",
    ),
    ("--payload", "/no/such/file", "cannot be read: No such file"),
    ("--payload", "/dev/zero", "expected a file of at most 16MiB"),
    ("--payload-template", "", "expected text, such as 'order {number}'"),
    ("--expect", "ok", "expected echo, any or contains:TEXT, such as contains:ok"),
    ("--wait", "0s", "more than 0s"),
    ("--duration", "0s", "more than 0s"),
    ("--duration", "30", "expected a number with a unit"),
    ("--timeout", "0s", "more than 0s"),
    ("--retries", "101", "expected a whole number from 0 to 100"),
    ("--max-failures", "some", "expected a whole number from 0 to"),
    ("--max-reply", "17 apples", "such as 65536, 64KiB or 8MiB"),
    ("--max-connection-replies", "1", "such as 65536, 64KiB or 8MiB"),
    ("--max-replies", "4GiB", "such as 65536, 64KiB or 8MiB"),
    ("--output", "xml", "[possible values: table, json]"),
    ("--report", "", "a value is required"),
    ("--log-level", "verbose", "expected off, error, warn, info, debug or trace"),
];

#[test]
fn a_wrong_value_is_rejected_with_an_example_of_a_correct_one() {
    assert_rejected(&LOAD, &REFUSED);
    let output = load(&["--connections", "4096", "--in-flight", "100"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("409600 requests in flight; the limit is 262144"), "{stderr}");
}

#[test]
fn every_flag_is_an_environment_variable_too() {
    assert_rejected_in_the_environment(&LOAD, "ZMQ_ECHO_LOAD", &LoadConfig::command(), &REFUSED);
}

#[test]
fn a_wrong_endpoint_in_the_environment_is_rejected_naming_the_variable() {
    let endpoints = "tcp://127.0.0.1:5555,localhost:5555";
    let output = command(&LOAD).env("ZMQ_ECHO_LOAD_ENDPOINTS", endpoints).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for part in ["ZMQ_ECHO_LOAD_ENDPOINTS", "'localhost:5555'", "expected tcp://HOST:PORT"] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn wrong_endpoints_are_rejected_and_named_endpoints_exclude_discovery() {
    for (args, right) in [
        (&["localhost:5555"][..], "expected tcp://HOST:PORT"),
        (&["tcp://*:5555"], "a client needs a host to connect to"),
        (&["tcp://a:1", "--discover", "dns://a:1"], "cannot be used with"),
    ] {
        let output = load(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(right), "{stderr}");
    }
}
