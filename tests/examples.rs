//! Runs each example as a process, with a client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use zmq_echo::service::Rejection;

use crate::support::built::EXAMPLES;
use crate::support::{Server, command, raw, wait_until};

/// Starts an example on its own ports, with this environment variable.
fn start(name: &str, variable: Option<(&str, &str)>) -> Server {
    start_with(name, variable, &[])
}

fn start_with(name: &str, variable: Option<(&str, &str)>, args: &[&str]) -> Server {
    let mut example = command(&EXAMPLES[name]);
    example.args(args);
    example.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json"]);
    example.args(["--drain-quiet", "50ms"]).envs(variable);
    Server::spawn(example)
}

fn ask(client: &mut TcpStream, payload: &[&str]) {
    let payload = payload.iter().map(|frame| frame.as_bytes());
    let frames: Vec<_> = [&b"id"[..], b""].into_iter().chain(payload).collect();
    client.write_all(&raw::message(&frames)).unwrap();
}

/// The first frame of a reply's payload, or the code of an error.
fn answer(client: &mut TcpStream) -> Result<String, String> {
    let frames = raw::read_message(client);
    assert_eq!(frames[..2], [b"id".to_vec(), Vec::new()]);
    match Rejection::of_payload(frames[2..].iter().map(|frame| &frame[..])) {
        Some(rejection) => Err(rejection.code.into_owned()),
        None => Ok(String::from_utf8(frames[2].clone()).unwrap()),
    }
}

fn asked(client: &mut TcpStream, payload: &[&str]) -> Result<String, String> {
    ask(client, payload);
    answer(client)
}

/// Stops the example as an orchestrator does.
fn end(mut server: Server, client: TcpStream) {
    server.signal(rustix::process::Signal::TERM);
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
}

#[test]
fn the_echo_example_replies_with_the_request() {
    let server = start("echo", None);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, &["hello"]), Ok("hello".to_owned()));
    end(server, client);
}

#[test]
fn methods_are_chosen_by_the_first_frame_and_unknown_ones_are_rejected() {
    let server = start("methods", None);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, &["add", "1", "2", "39"]), Ok("42".to_owned()));
    assert_eq!(asked(&mut client, &["upper", "hello"]), Ok("HELLO".to_owned()));
    for (payload, code) in [
        (&["multiply", "1"][..], "unknown_method"),
        (&["add", "one"], "invalid_argument"),
        (&["add", "1", "9223372036854775807"], "invalid_argument"),
        (&["wait", "long"], "invalid_argument"),
        (&[], "unknown_method"),
    ] {
        assert_eq!(asked(&mut client, payload), Err(code.to_owned()), "{payload:?}");
    }
    end(server, client);
}

/// The replies of a method by outcome, and the number of its latencies.
fn counted(server: &Server, method: &str) -> [f64; 3] {
    let replies = |outcome: &str| {
        let labels = format!("method=\"{method}\",outcome=\"{outcome}\"");
        server.metric(&format!("zmq_echo_replies_total{{{labels}}}"))
    };
    let latencies = format!("zmq_echo_request_duration_seconds{{method=\"{method}\"}}");
    [replies("ok"), replies("error"), server.metric(&latencies)]
}

#[test]
fn requests_are_counted_by_method_and_outcome_from_the_first_scrape_on() {
    let server = start("methods", None);
    for method in ["add", "upper", "wait", "other"] {
        assert_eq!(counted(&server, method), [0.0; 3], "{method}");
    }
    let mut client = raw::connect(server.address(), b"");
    for payload in [
        &["add", "1"][..],
        &["add", "one"],
        &["wait", "1"],
        &["add", "2"],
        &["wait", "1"],
        &["multiply", "1"],
        &["wait", "long"],
    ] {
        let _ = asked(&mut client, payload);
    }
    for (method, expected) in [
        ("add", [2.0, 1.0, 3.0]),
        ("upper", [0.0; 3]),
        ("wait", [2.0, 1.0, 3.0]),
        ("other", [0.0, 1.0, 1.0]),
    ] {
        wait_until(&format!("the replies of {method} are counted"), || {
            counted(&server, method) == expected
        });
    }
    let (_, text) = server.get("/metrics");
    assert!(!text.contains("multiply"), "a name that the client sent became a label: {text}");
    end(server, client);
}

/// The 99th percentile of the latency of a method that does no work, while 100 clients keep ten
/// threads busy with requests of 50 ms.
fn latency_beside_slow_clients() -> Duration {
    let server = start("methods", None);
    let address = server.address();
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), |stop: &AtomicBool| stop.load(SeqCst));
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut client = raw::connect(address, b"");
                while !stopped(&stop) {
                    assert_eq!(asked(&mut client, &["wait", "50"]), Ok("50".to_owned()));
                }
            })
        })
        .collect();
    server.wait_for_metric("zmq_echo_in_flight_requests", |requests| requests > 90.0);
    let mut client = raw::connect(address, b"");
    let mut latencies: Vec<_> = (0..500)
        .map(|_| {
            let asked_at = Instant::now();
            assert_eq!(asked(&mut client, &["add", "1", "2"]), Ok("3".to_owned()));
            asked_at.elapsed()
        })
        .collect();
    stop.store(true, SeqCst);
    slow.into_iter().for_each(|client| client.join().unwrap());
    end(server, client);
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

#[test]
fn with_a_hundred_slow_clients_a_fast_method_takes_less_than_one_unit_of_slow_work() {
    // A busy machine may be slower, so the test tries again.
    wait_until("the fast method is not delayed by slow clients", || {
        let latency = latency_beside_slow_clients();
        eprintln!("99th percentile: {latency:?}");
        latency < Duration::from_millis(50)
    });
}

#[test]
fn a_database_counts_on_four_threads_and_keeps_its_counts() {
    let folder = std::env::temp_dir().join(format!("zmq-echo-counter-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let database = folder.join("counter.db");
    let database = database.to_str().unwrap();
    let server = start("counter", Some(("COUNTER_DB", database)));
    let mut client = raw::connect(server.address(), b"");
    for _ in 0..100 {
        ask(&mut client, &["apples"]);
    }
    // Four threads handle the requests, so their order is undefined.
    let mut counts: Vec<u32> =
        (0..100).map(|_| answer(&mut client).unwrap().parse().unwrap()).collect();
    counts.sort_unstable();
    assert!(counts.iter().copied().eq(1..=100), "the counts are not 1 to 100: {counts:?}");
    end(server, client);
    let server = start("counter", Some(("COUNTER_DB", database)));
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, &["apples"]), Ok("101".to_owned()));
    assert_eq!(asked(&mut client, &["pears"]), Ok("1".to_owned()));
    assert_eq!(asked(&mut client, &[]), Err("invalid_argument".to_owned()));
    end(server, client);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_stream_replies_several_times_in_order() {
    let server = start("stream", None);
    let mut client = raw::connect(server.address(), b"");
    ask(&mut client, &["20"]);
    for number in 1..=20 {
        assert_eq!(answer(&mut client), Ok(number.to_string()));
    }
    assert_eq!(asked(&mut client, &["none"]), Err("invalid_argument".to_owned()));
    end(server, client);
}

#[test]
fn a_stream_waits_for_a_stalled_reader_and_then_delivers_every_item() {
    const ITEMS: u32 = 300_000;
    // All items together are five times the pool. A client that holds too much of the pool is
    // closed.
    let limits = ["--buffer-limit", "1MiB", "--message-limit", "512KiB"];
    let server = start_with("stream", None, &[&limits[..], &["--socket-buffer", "32KiB"]].concat());
    let mut stopped = raw::dealer(server.address(), 0, b"");
    ask(&mut stopped, &[&ITEMS.to_string()]);
    server.wait_for_metric("zmq_echo_pending_replies", |replies| replies > 100.0);
    let mut other = raw::connect(server.address(), b"");
    for _ in 0..20 {
        ask(&mut other, &["1000"]);
        for number in 1..=1000 {
            assert_eq!(answer(&mut other), Ok(number.to_string()));
        }
    }
    let held = server.metric("zmq_echo_buffered_bytes");
    assert!(held < 64.0 * 1024.0, "{held} bytes are queued for a client that has stopped reading");
    for number in 1..=ITEMS {
        assert_eq!(answer(&mut stopped), Ok(number.to_string()));
    }
    assert_eq!(server.metric("zmq_echo_disconnections_total{reason=\"pool_full\"}"), 0.0);
    drop(stopped);
    end(server, other);
}

/// How many requests the proxy may have in flight.
const CONCURRENT: usize = 200;

/// An HTTP server that takes 50 ms for each response, and its maximum number of concurrent
/// requests. Until that has reached [`CONCURRENT`], it takes up to a second, so that a slow machine
/// has time to send so many.
fn upstream() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let most = Arc::new(AtomicUsize::new(0));
    let (shown, now) = (Arc::clone(&most), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, now, most) = (stream.unwrap(), Arc::clone(&now), Arc::clone(&most));
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                // Connections are kept alive.
                while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                    request.push(byte[0]);
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    let arrived = Instant::now();
                    thread::sleep(Duration::from_millis(50));
                    while most.load(SeqCst) < CONCURRENT && arrived.elapsed().as_secs() < 1 {
                        thread::sleep(Duration::from_millis(5));
                    }
                    now.fetch_sub(1, SeqCst);
                    let status =
                        if request.starts_with(b"GET /found") { "200 OK" } else { "404 Not Found" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\nfound");
                    request.clear();
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, shown)
}

#[test]
fn two_hundred_calls_to_another_service_run_concurrently() {
    let (address, most) = upstream();
    let server = start("proxy", Some(("UPSTREAM", &address)));
    let mut clients = [(); 4].map(|()| raw::connect(server.address(), b""));
    // On a busy machine, calls may exceed the proxy's time limit, so the test tries again.
    wait_until("200 calls run at the same time, and all of them succeed", || {
        for client in &mut clients {
            for _ in 0..CONCURRENT / 4 {
                ask(client, &["/found"]);
            }
        }
        let answers = clients
            .iter_mut()
            .flat_map(|client| (0..CONCURRENT / 4).map(|_| answer(client)).collect::<Vec<_>>());
        let found = answers.filter(|answer| answer.as_deref() == Ok("found")).count();
        eprintln!("{found} found, at most {most:?} at the same time");
        found == CONCURRENT && most.load(SeqCst) >= CONCURRENT
    });
    let [mut client, ..] = clients;
    assert_eq!(asked(&mut client, &["/lost"]), Err("failed".to_owned()));
    assert_eq!(asked(&mut client, &["no path"]), Err("invalid_argument".to_owned()));
    end(server, client);
}

#[test]
fn an_example_fits_on_two_screens() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines < 100,
            "{}: {lines} lines; an example must fit on two screens",
            path.display()
        );
    }
}
