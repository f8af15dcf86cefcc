//! Services that panic, are slow or cannot be created again, in a real process.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use zmq_echo::exit;
use zmq_echo::service::panics;

use super::{answer, ask, error};
use crate::log_schema::assert_documented;
use crate::simulation::switch;
use crate::support::built::EXAMPLES;
use crate::support::{Server, command, raw, wait_until};

/// Starts a server with a service of this kind: see `tests/services/server.rs`.
fn serve(kind: &str, args: &[&str]) -> Server {
    let mut server = command(&EXAMPLES["faulty-server"]);
    server.env("SERVICE", kind).args(args);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json"]);
    server.args(["--drain-quiet", "50ms"]);
    Server::spawn(server)
}

fn asked(client: &mut TcpStream, payload: &str) -> String {
    ask(client, "id", payload);
    answer(client).1
}

fn rejected(client: &mut TcpStream, payload: &str) -> String {
    ask(client, "id", payload);
    error(client).1
}

/// Checks that the connection ends without a reply, and that the process ends as after a panic.
#[track_caller]
fn assert_panicked(mut server: Server, mut client: TcpStream) {
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(rest, b"", "a process that ends has sent a reply");
    assert_eq!(server.wait(), i32::from(exit::PANIC));
}

#[test]
fn layers_that_need_a_runtime_when_they_are_created_limit_and_shed_requests() {
    let mut server = serve("tower", &[]);
    let mut client = raw::connect(server.address(), b"");
    for count in ["1", "2", "3"] {
        assert_eq!(asked(&mut client, "hello"), count);
    }
    // The rate limit is reached, and the layer around it rejects what would have to wait.
    assert_eq!(rejected(&mut client, "hello"), "failed");
    assert!(server.is_running());
}

#[test]
fn a_panic_before_the_future_exists_fails_one_request_and_recreates_the_service() {
    let mut server = serve("tower", &[]);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, "hello"), "1");
    assert_eq!(rejected(&mut client, "panic"), "panicked");
    assert_eq!(asked(&mut client, "hello"), "1", "the service was not created again");
    assert_eq!(server.metric("zmq_echo_panics_total"), 1.0);
    assert!(server.is_running());
}

#[test]
fn with_on_panic_exit_the_first_panic_ends_the_process_with_101() {
    for kind in ["inline", "tower"] {
        let server = serve(kind, &["--on-panic", "exit"]);
        let mut client = raw::connect(server.address(), b"");
        ask(&mut client, "id", "panic");
        assert_panicked(server, client);
    }
    let server = Server::start(&["--faults", "--on-panic", "exit"]);
    switch(&server, "panics=1");
    let mut client = raw::connect(server.address(), b"");
    ask(&mut client, "id", "hello");
    assert_panicked(server, client);
}

#[test]
fn too_many_panics_end_the_process_with_101() {
    let threads = Server::start(&["--faults"]);
    switch(&threads, "panics=100");
    for server in [serve("inline", &[]), serve("tower", &[]), threads] {
        let mut client = raw::connect(server.address(), b"");
        for _ in 0..panics::LIMIT {
            assert_eq!(rejected(&mut client, "panic"), "panicked");
        }
        ask(&mut client, "id", "panic");
        assert_panicked(server, client);
    }
}

#[test]
fn a_service_that_cannot_be_created_again_ends_the_process_with_101() {
    let server = serve("inline, created once", &[]);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, "hello"), "hello");
    assert_eq!(rejected(&mut client, "panic"), "panicked");
    let record = server.wait_for_record("cannot continue");
    assert_documented(&record, false);
    let reason = record["error"].as_str().unwrap();
    assert!(reason.ends_with("after a panic: there is no second service"), "{reason}");
    assert_panicked(server, client);
}

#[test]
fn a_state_that_cannot_be_created_again_ends_the_process_with_101() {
    let server = serve("blocking, created once", &[]);
    let mut client = raw::connect(server.address(), b"");
    assert_eq!(asked(&mut client, "hello"), "hello");
    assert_eq!(rejected(&mut client, "panic"), "panicked");
    ask(&mut client, "id", "hello");
    assert_panicked(server, client);
}

#[test]
fn a_slow_turn_after_fast_ones_is_counted_and_logged() {
    let server = serve("inline", &[]);
    let mut probe = raw::connect(server.address(), b"zmq-echo-probe/1");
    let mut client = raw::connect(server.address(), b"");
    for _ in 0..3 {
        probe.write_all(&raw::frame(b"probe", false)).unwrap();
        assert_eq!(raw::read_frame(&mut probe).1, b"probe");
        assert_eq!(asked(&mut client, "hello"), "hello");
    }
    assert_eq!(asked(&mut client, "long sleep"), "long sleep");
    server.wait_for_metric("zmq_echo_slow_turns_total", |turns| turns >= 1.0);
    let record = server.wait_for_record("slow turns: the service blocks the loop");
    assert_documented(&record, false);
    assert!(record["duration"].as_f64().unwrap() >= 0.1, "{record}");
}

/// Sends SIGTERM while an inline service has 40 requests of 50 ms, after many fast ones. Returns
/// how many of the slow ones it answered after it had noticed the signal.
fn answered_after_a_signal() -> u64 {
    let mut server = serve("inline", &[]);
    let mut client = raw::connect(server.address(), b"");
    let fast = raw::frame(b"fast", false).repeat(1000);
    for _ in 0..3 {
        raw::echoes(&mut client, &fast);
    }
    client.write_all(&raw::frame(b"sleep", false).repeat(40)).unwrap();
    assert_eq!(raw::read_frame(&mut client).1, b"sleep");
    server.signal(Signal::TERM);
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
    server.wait_for_record("drained")["answered"].as_u64().unwrap()
}

#[test]
fn a_slow_inline_service_delays_a_signal_by_few_requests_even_after_fast_ones() {
    // A busy machine may be slower, so the test tries again.
    wait_until("a signal is noticed before 14 slow requests are answered", || {
        answered_after_a_signal() > 40 - 14
    });
}
