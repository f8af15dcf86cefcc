//! The examples, each as a process with a client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use zmq_echo::service::Rejection;

use crate::support::built::EXAMPLES;
use crate::support::{Server, command, raw};

/// An example on ports of its own, with a variable that it reads.
fn start(name: &str, variable: Option<(&str, &str)>) -> Server {
    let mut example = command(&EXAMPLES[name]);
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

/// Ends the example as an orchestrator does.
fn end(mut server: Server, client: TcpStream) {
    server.signal(rustix::process::Signal::TERM);
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
}

#[test]
fn the_echo_replies_with_what_was_asked() {
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
        (&[], "empty"),
    ] {
        assert_eq!(asked(&mut client, payload), Err(code.to_owned()), "{payload:?}");
    }
    end(server, client);
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
    // Four threads work on them, so their order is open.
    let mut counts: Vec<u32> =
        (0..100).map(|_| answer(&mut client).unwrap().parse().unwrap()).collect();
    counts.sort_unstable();
    assert!(counts.iter().copied().eq(1..=100), "{counts:?}");
    end(server, client);
    let server = start("counter", Some(("COUNTER_DB", database)));
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, &["apples"]), Ok("101".to_owned()));
    assert_eq!(asked(&mut client, &["pears"]), Ok("1".to_owned()));
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

/// An HTTP server that takes 50 ms for each answer, and how many it worked on at a time at most.
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
                    thread::sleep(Duration::from_millis(50));
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
fn two_hundred_calls_of_another_service_wait_together() {
    let (address, most) = upstream();
    let server = start("proxy", Some(("UPSTREAM", &address)));
    let mut clients = [(); 4].map(|()| raw::connect(server.address(), b""));
    let started = Instant::now();
    for client in &mut clients {
        for _ in 0..50 {
            ask(client, &["/found"]);
        }
    }
    for client in &mut clients {
        for _ in 0..50 {
            assert_eq!(answer(client), Ok("found".to_owned()));
        }
    }
    // One after the other they would take ten seconds.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(most.load(SeqCst) > 20, "{most:?} at a time");
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
        assert!(lines < 100, "{}: {lines} lines", path.display());
    }
}
