//! Simulated work and faults: what they do, what they leave alone, and who may switch them on.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use humantime::parse_rfc3339;
use rustix::process::Signal;
use zmq_echo::service::Rejection;
use zmq_echo::simulation::EchoConfig;

use crate::log_schema::assert_documented;
use crate::support::{DEADLINE, Server, raw, wait_until};

/// Sends a request of one frame after an envelope that holds an id.
fn ask(client: &mut TcpStream, id: &str, payload: &str) {
    client.write_all(&raw::message(&[id.as_bytes(), b"", payload.as_bytes()])).unwrap();
}

/// Returns the id of a reply with its payload or the error's code.
fn answer(client: &mut TcpStream) -> (String, Result<String, String>) {
    let frames = raw::read_message(client);
    let text = |frame: &Vec<u8>| String::from_utf8_lossy(frame).into_owned();
    let reply = match Rejection::of_payload(frames[2..].iter().map(|frame| &frame[..])) {
        Some(rejection) => Err(rejection.code.into_owned()),
        None => Ok(text(&frames[2])),
    };
    (text(&frames[0]), reply)
}

fn asked(client: &mut TcpStream, payload: &str) -> Result<String, String> {
    ask(client, "id", payload);
    answer(client).1
}

/// Returns the side port's response to these header lines and this body.
fn http(server: &Server, head: &[&str], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.http).unwrap();
    let head = head.join("\r\n");
    let length = body.len();
    // The server may answer before it has read all of the body.
    let _ = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {answer}")), answer)
}

const POST: &str = "POST /faults HTTP/1.1";
const HOST: &str = "Host: localhost:8080";
const HEADER: &str = "X-Faults: 1";

/// Switches faults as `curl -H 'X-Faults: 1' -d ...` does.
pub fn switch(server: &Server, faults: &str) {
    let (status, answer) = http(server, &[POST, HOST, HEADER], faults);
    assert_eq!(status, 200, "{answer}");
}

const OFF: &str = "delay=0s errors=0% silence=0% panics=0\n";

/// Sends SIGTERM while 100 clients have requests that take 50 ms each. Returns how long the server
/// took to notice it, and whether liveness held. Also checks that nothing is lost.
fn terminated_at_work() -> (Duration, bool) {
    let args = ["--work", "50ms", "--work-threads", "10", "--drain-quiet", "50ms"];
    let mut server = Server::start(&[&args[..], &["--drain-timeout", "60s"]].concat());
    let mut clients: Vec<_> = (0..100).map(|_| raw::connect(server.address(), b"")).collect();
    // One second of work: 200 requests, ten at a time.
    for (number, client) in clients.iter_mut().enumerate() {
        ask(client, "first", &number.to_string());
        ask(client, "second", &number.to_string());
    }
    server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests > 10.0);
    let mut is_live = server.get("/livez").0 == 200;
    let sent = SystemTime::now();
    server.signal(Signal::TERM);
    let record = server.wait_for_record("draining");
    let noticed = parse_rfc3339(record["timestamp"].as_str().unwrap()).unwrap();
    is_live &= server.get("/livez").0 == 200;
    let clients: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            thread::spawn(move || {
                let number = Ok(number.to_string());
                let replies = BTreeSet::from([answer(&mut client), answer(&mut client)]);
                let expected = ["first", "second"].map(|id| (id.to_owned(), number.clone()));
                assert_eq!(replies, expected.into());
                raw::leave_when_closed(client);
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(server.wait(), 0);
    let drained = server.wait_for_record("drained");
    for field in ["unfinished", "owed", "discarded", "lost"] {
        assert_eq!(drained[field], 0, "{drained}");
    }
    assert!(
        drained["answered"].as_u64().unwrap() > 100,
        "SIGTERM was noticed only after most requests were answered: {drained}"
    );
    (noticed.duration_since(sent).unwrap_or_default(), is_live)
}

#[test]
fn under_load_sigterm_is_noticed_within_100_ms_livez_stays_200_and_the_drain_loses_nothing() {
    // A busy machine may be slower, so the test tries again.
    wait_until("SIGTERM is noticed within 100 ms, and /livez stays 200", || {
        let (noticed, is_live) = terminated_at_work();
        noticed < Duration::from_millis(100) && is_live
    });
}

/// With one thread, replies come in the order of the requests. So the first reply on the new
/// connection shows what happened to the reply for the old one.
#[test]
fn a_late_reply_is_not_delivered_to_a_new_connection_with_the_same_identity() {
    let server = Server::start(&["--work", "2s", "--work-threads", "1"]);
    let mut old = raw::connect(server.address(), b"me");
    for id in ["old", "never begun"] {
        ask(&mut old, id, "hello");
    }
    server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests == 2.0);
    drop(old);
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
    let mut new = raw::connect(server.address(), b"me");
    ask(&mut new, "new", "hello");
    assert_eq!(answer(&mut new), ("new".to_owned(), Ok("hello".to_owned())));
    let undeliverable = "zmq_echo_undeliverable_total{reason=\"peer_gone\"}";
    server.wait_for_metric(undeliverable, |replies| replies == 2.0);
}

#[test]
fn a_flood_of_slow_requests_stays_within_the_memory_formula() {
    let args = ["--work", "50ms", "--work-threads", "10", "--message-limit", "1MiB"];
    let limits = ["--buffer-limit", "16MiB", "--socket-buffer", "64KiB", "--peer-limit", "300"];
    let args = [&args[..], &limits].concat();
    let command = [&["zmq-echo-server"], &args[..]].concat();
    let limits = EchoConfig::parse_args(command).unwrap().server.limits();
    let server = Server::start(&args);
    // Each client would send without end. One client may have 128 requests of 64 KiB in flight,
    // which is half the pool; all clients together would need 50 times the pool.
    let request = raw::message(&[b"id", b"", &[7; 64 << 10]]);
    for mut client in raw::crowd(server.address(), 100) {
        raw::flood(&client, request.clone());
        thread::spawn(move || raw::read_until_closed(&mut client));
    }
    let replies = "zmq_echo_replies_total{method=\"echo\",outcome=\"ok\"}";
    server.wait_for_metric(replies, |replies| replies >= 400.0);
    // The rows of docs/sizing.md except those about the kernel.
    let most = (limits.most_memory() + zmq_echo::log::QUEUE_BYTES + (16 << 20)) as u64;
    let taken = server.memory("VmHWM");
    eprintln!("{} MiB of {} MiB", taken >> 20, most >> 20);
    assert!(taken <= most, "{taken} of {most}");
    let in_flight = server.metric("zmq_echo_in_flight_requests");
    assert!((10.0..=4096.0).contains(&in_flight), "{in_flight} in flight");
    // Reading stops before the pool is full, so no client that reads its replies is closed.
    let closed = server.metric("zmq_echo_disconnections_total{reason=\"pool_full\"}");
    assert_eq!(closed, 0.0, "clients closed for a full pool");
    assert_eq!(server.metric("zmq_echo_peers"), 100.0);
    server.wait_until_alive();
}

/// Ten requests are worked on at a time, and the limit of requests in flight is always reached.
#[test]
fn a_flood_of_slow_requests_leaves_livez_at_200_and_its_clients_take_turns() {
    const CLIENTS: usize = 100;
    let args = ["--work", "50ms", "--work-threads", "10", "--in-flight-limit", "20"];
    let server = Server::start(&args);
    let (sender, replies) = mpsc::channel();
    for (number, mut client) in raw::crowd(server.address(), CLIENTS).into_iter().enumerate() {
        raw::flood(&client, raw::message(&[b"id", b"", b"hello"]).repeat(1000));
        let sender = sender.clone();
        // Ends with the test, which receives nothing more.
        thread::spawn(move || {
            while client.read_exact(&mut [0; 13]).is_ok() && sender.send(number).is_ok() {}
        });
    }
    server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests == 20.0);
    let mut counts = [0; CLIENTS];
    while counts.contains(&0) {
        counts[replies.recv_timeout(DEADLINE).unwrap()] += 1;
        // A busy machine may let some clients send later than others.
        assert!(counts.iter().sum::<u32>() < 3000, "some clients have no turn: {counts:?}");
    }
    // The result of a check is shared for a second, so each of these gets one of its own.
    let checks = [(); 6].map(|()| {
        thread::sleep(Duration::from_millis(1100));
        server.get("/livez").0
    });
    // The check has a time limit, which a busy machine may exceed once.
    let failed = checks.iter().filter(|status| **status != 200).count();
    assert!(failed <= 1, "/livez at the limit: {checks:?}");
}

/// 200 requests that arrive together and are worked on four at a time, so that the last ones wait
/// for 2.5 s. Most of them wait in the server before the service gets them.
fn pipelined(args: &[&str]) -> (Server, Vec<Result<String, String>>) {
    let work = ["--work", "50ms", "--work-threads", "4", "--peer-in-flight-limit", "8"];
    let server = Server::start(&[&work[..], args].concat());
    let mut client = raw::connect(server.address(), b"");
    client.write_all(&raw::message(&[b"id", b"", b"hello"]).repeat(200)).unwrap();
    let replies = (0..200).map(|_| answer(&mut client).1).collect();
    (server, replies)
}

#[test]
fn request_duration_includes_the_time_that_a_pipelined_request_waits() {
    let (server, replies) = pipelined(&[]);
    assert!(replies.iter().all(Result::is_ok));
    let (_, metrics) = server.get("/metrics");
    let total = |part: &str| -> f64 {
        let series = format!("zmq_echo_request_duration_seconds_{part}");
        let samples = metrics.lines().filter(|line| line.starts_with(&series));
        samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    };
    let (sum, count) = (total("sum"), total("count"));
    assert_eq!(count, 200.0);
    // Request n cannot be done before (n / 4 + 1) * 50 ms, which is 1.275 s on average.
    let mean = sum / count;
    assert!(mean > 1.2, "the mean is {mean} s");
}

#[test]
fn the_request_deadline_includes_the_time_that_a_pipelined_request_waits() {
    let (_server, replies) = pipelined(&["--request-deadline", "500ms"]);
    let answered = replies.iter().filter(|reply| reply.is_ok()).count();
    // Work on the last one begins before the deadline: ten times four requests, and a few more
    // that may arrive a moment later than the first.
    assert!(answered <= 60, "{answered} requests were worked on");
    let rejected = replies.iter().filter(|reply| **reply == Err("deadline".to_owned())).count();
    assert_eq!(answered + rejected, 200, "{replies:?}");
}

#[test]
fn livez_stays_200_while_hung_work_fills_the_limit_of_requests_in_flight() {
    let server = Server::start(&["--work", "1h", "--in-flight-limit", "8"]);
    let mut client = raw::connect(server.address(), b"");
    (0..20).for_each(|_| ask(&mut client, "id", "hello"));
    server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests == 8.0);
    server.wait_until_alive();
    // The result of a check is shared for a second, so this is another check.
    thread::sleep(Duration::from_millis(1100));
    server.wait_until_alive();
}

/// Sends copies of `request` from `clients` clients to a server whose work never ends, until no
/// more of them get in flight. Checks the server's memory against the formula.
fn hung_requests_stay_within_the_memory_formula(clients: usize, request: &[u8]) {
    let limits = ["--buffer-limit", "16MiB", "--socket-buffer", "64KiB", "--peer-limit", "300"];
    let args = [&["--work", "1h"][..], &limits].concat();
    let command = [&["zmq-echo-server"], &args[..]].concat();
    let limits = EchoConfig::parse_args(command).unwrap().server.limits();
    let server = Server::start(&args);
    let clients = raw::crowd(server.address(), clients);
    for client in &clients {
        raw::flood(client, request.to_vec());
    }
    let in_flight = || server.metric("zmq_echo_in_flight_requests");
    let (mut last, mut changed_at) = (0.0, Instant::now());
    while last == 0.0 || changed_at.elapsed() < Duration::from_secs(1) {
        let now = in_flight();
        if now != last {
            (last, changed_at) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(20));
    }
    // The rows of docs/operations.md except those about the kernel.
    let most = (limits.most_memory() + zmq_echo::log::QUEUE_BYTES + (16 << 20)) as u64;
    let taken = server.memory("VmHWM");
    eprintln!("{} MiB of {} MiB with {last} in flight", taken >> 20, most >> 20);
    assert!(taken <= most, "{taken} of {most}");
}

#[test]
fn requests_with_large_envelopes_stay_within_the_memory_formula() {
    let request = raw::message(&[&[7; 4 << 20], b"", b"hello"]);
    hung_requests_stay_within_the_memory_formula(60, &request);
}

#[test]
fn requests_of_many_small_frames_stay_within_the_memory_formula() {
    let request = raw::message(&[b"7".as_slice(); 1022]);
    hung_requests_stay_within_the_memory_formula(32, &request);
}

#[test]
fn simulated_work_takes_its_time_and_only_burn_mode_uses_the_cpu() {
    for (mode, is_costly) in [("sleep", false), ("burn", true)] {
        let server = Server::start(&["--work", "20ms", "--work-mode", mode]);
        let mut client = raw::connect(server.address(), b"");
        let (started, before) = (Instant::now(), server.cpu_time());
        for n in 0..25 {
            assert_eq!(asked(&mut client, &n.to_string()), Ok(n.to_string()));
        }
        assert!(started.elapsed() >= Duration::from_millis(500), "{mode}: the work ended early");
        // The kernel accounts CPU time in hundredths of a second.
        let spent = server.cpu_time() - before;
        assert_eq!(
            spent >= Duration::from_millis(450),
            is_costly,
            "{mode} used {spent:?} of CPU time"
        );
    }
}

#[test]
fn without_the_flag_there_are_no_faults() {
    let server = Server::start(&["--work", "1ms"]);
    assert_eq!(server.get("/faults").0, 404);
    assert_eq!(http(&server, &[POST, HOST, HEADER], "panics=1").0, 404);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, "hello"), Ok("hello".to_owned()));
}

#[test]
fn a_web_page_cannot_switch_faults() {
    let server = Server::start(&["--faults"]);
    for head in [
        // A form, or a script that needs no permission.
        &[POST, HOST][..],
        &[POST, HOST, "X-Faults: 0"],
        // A page of this host's own name.
        &[POST, HOST, HEADER, "Origin: http://localhost:8080"],
        &[POST, HOST, HEADER, "Origin: null"],
        // A page whose name resolves to this host.
        &[POST, "Host: rebound.example:8080", HEADER],
        &[POST, "Host: localhost.example", HEADER],
        // A request that came through a proxy on this host.
        &[POST, "Host: zmq-echo-headless:8080", HEADER],
        &[POST, "Host: 10.0.0.1:8080", HEADER],
    ] {
        let (status, answer) = http(&server, head, "panics=1");
        assert_eq!(status, 403, "{head:?}: {answer}");
    }
    let preflight = [
        "OPTIONS /faults HTTP/1.1",
        HOST,
        "Origin: http://example.com",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: x-faults",
    ];
    let (status, answer) = http(&server, &preflight, "");
    assert_eq!(status, 405, "{answer}");
    assert!(
        !answer.to_lowercase().contains("access-control-"),
        "the response allows other origins: {answer}"
    );
    assert_eq!(server.get("/faults"), (200, OFF.to_owned()));
    assert!(server.find_record("simulated faults changed").is_none());
}

#[test]
fn a_wrong_fault_is_rejected_with_an_example_and_changes_nothing() {
    let server = Server::start(&["--faults"]);
    switch(&server, "errors=10%&delay=5ms");
    let too_long = format!("delay=1ms{}", " ".repeat(2000));
    for (body, right) in [
        ("errors=ten", "errors: expected 0% to 100%, such as 20%; for example: delay=200ms"),
        ("speed=1", "expected delay, errors, silence or panics"),
        (&too_long, "expected 1024 bytes at most"),
    ] {
        let (status, answer) = http(&server, &[POST, HOST, HEADER], body);
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer.contains(right), "the response lacks `{right}`: {answer}");
    }
    let shown = "delay=5ms errors=10% silence=0% panics=0\n";
    assert_eq!(server.get("/faults"), (200, shown.to_owned()));
}

#[test]
fn faults_are_switched_on_and_off_while_the_server_runs() {
    let mut server = Server::start(&["--faults", "--drain-quiet", "50ms"]);
    let mut client = raw::connect(server.address(), b"");
    let hello = || Ok("hello".to_owned());
    assert_eq!(asked(&mut client, "hello"), hello());

    switch(&server, "errors=100%");
    assert_eq!(asked(&mut client, "hello"), Err("simulated".to_owned()));

    switch(&server, "delay=300ms");
    let started = Instant::now();
    assert_eq!(asked(&mut client, "hello"), hello());
    assert!(started.elapsed() >= Duration::from_millis(300));

    switch(&server, "silence=100%");
    for _ in 0..3 {
        ask(&mut client, "unanswered", "hello");
    }
    server.wait_for_metric("zmq_echo_work_duration_seconds", |requests| requests == 6.0);
    switch(&server, "");
    assert_eq!(server.get("/faults").1, OFF);
    // The next reply belongs to the next request.
    ask(&mut client, "answered", "hello");
    assert_eq!(answer(&mut client), ("answered".to_owned(), hello()));

    assert_eq!(server.metric("zmq_echo_rejected_total"), 1.0);
    // A drain does not wait for requests whose reply a fault has dropped.
    assert_eq!(server.metric("zmq_echo_in_flight_requests"), 0.0);
    server.signal(Signal::TERM);
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
    assert_eq!(server.wait_for_record("drained")["unfinished"], 0);
    for message in ["simulating work", "simulated faults changed"] {
        assert_documented(&server.wait_for_record(message), false);
    }
}

#[test]
fn an_injected_panic_fails_one_request_and_closes_no_connection() {
    let mut server = Server::start(&["--faults", "--work", "5ms"]);
    let mut clients: Vec<_> = (0..10).map(|_| raw::connect(server.address(), b"")).collect();
    switch(&server, "panics=1");
    for _ in 0..2 {
        clients.iter_mut().for_each(|client| ask(client, "id", "hello"));
    }
    let replies: Vec<_> = [(); 2]
        .iter()
        .flat_map(|()| clients.iter_mut().map(|client| answer(client).1).collect::<Vec<_>>())
        .collect();
    let panicked = replies.iter().filter(|reply| **reply == Err("panicked".to_owned())).count();
    let echoed = replies.iter().filter(|reply| **reply == Ok("hello".to_owned())).count();
    assert_eq!((panicked, echoed), (1, 19));
    assert_eq!(server.metric("zmq_echo_panics_total"), 1.0);
    assert_eq!(server.get("/faults").1, OFF);
    assert!(server.wait_for_record("panicked")["panic"] == "a simulated panic");
    server.wait_until_alive();
    assert!(server.is_running());
}
