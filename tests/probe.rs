//! The probe succeeds on an echo and fails on everything else, within its limit.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::thread;

use zmq_echo::metrics::PROBE_IDENTITY;
use zmq_echo::service::rejection::CHECK;

use crate::support::{DEADLINE, PROBE, Server, command, raw};

fn probe(endpoint: &str, args: &[&str]) -> Output {
    command(PROBE).args(["--endpoint", endpoint]).args(args).output().expect("the probe runs")
}

/// A peer that handles each connection with `behaviour`.
fn peer(behaviour: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        // Every connection stays open, because the probe may open another one to look.
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            open.push(stream.try_clone().unwrap());
            behaviour(stream);
        }
    });
    address
}

/// Reads the frames of a REQ request: the delimiter, the marker of a check, and the payload.
/// Returns the payload.
fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let [delimiter, mark, payload] = raw::read_message(stream).try_into().unwrap();
    assert!(delimiter.is_empty() && mark == CHECK);
    payload
}

/// The probe fails at its limit of two seconds, because of a peer that never answers.
#[track_caller]
fn fails_at_the_limit(address: SocketAddr, step: &str, reason: &str) {
    let after = fails_with(address, "2s", step, reason);
    assert!(after >= 2000.0, "the probe gave up early, after {after} ms");
}

/// The probe fails long before its limit, which it would reach only if it hung.
#[track_caller]
fn fails_before_the_limit(address: SocketAddr, step: &str, reason: &str) {
    let after = fails_with(address, "1h", step, reason);
    assert!(
        after < DEADLINE.as_secs_f64() * 1000.0,
        "the probe waited {after} ms although the failure was certain"
    );
}

/// The probe fails with this step and reason on one line of stderr. Returns the milliseconds that
/// it reports.
#[track_caller]
fn fails_with(address: SocketAddr, limit: &str, step: &str, reason: &str) -> f64 {
    let output = probe(&format!("tcp://{address}"), &["--timeout", limit]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
    let said = stderr.strip_prefix(&format!("tcp://{address}: {step} failed after "));
    let (after, said) =
        said.and_then(|said| said.split_once(" ms: ")).unwrap_or_else(|| panic!("{stderr}"));
    assert!(said.contains(reason), "the reason is not `{reason}`: {stderr}");
    after.parse().unwrap()
}

#[test]
fn the_probe_succeeds_silently_on_an_echo() {
    let server = Server::start(&[]);
    let output = probe(&server.endpoint, &["--timeout", "30s"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let output = probe(&server.endpoint, &["--timeout", "30s", "-v"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.starts_with(&format!("{}: echoed in ", server.endpoint)), "{stdout}");
}

#[test]
fn the_probe_is_counted_as_a_probe_and_leaves_nothing_open() {
    let server = Server::start(&[]);
    assert_eq!(probe(&server.endpoint, &["--timeout", "30s"]).status.code(), Some(0));
    assert_eq!(server.metric("zmq_echo_requests_total{source=\"probe\"}"), 1.0);
    assert_eq!(server.metric("zmq_echo_requests_total{source=\"client\"}"), 0.0);
    assert_eq!(server.metric("zmq_echo_request_duration_seconds"), 0.0);
    assert_eq!(server.metric("zmq_echo_received_bytes_total"), 0.0);
    assert_eq!(server.metric("zmq_echo_sent_bytes_total"), 0.0);
    server.wait_for_metric("zmq_echo_peers", |peers| peers == 0.0);
}

#[test]
fn the_probe_fails_before_its_limit_if_nothing_listens() {
    // Bound, so that no other process gets the port, but not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    fails_with(
        socket.local_addr().unwrap().as_socket().unwrap(),
        "30s",
        "connect",
        "is the server running?",
    );
    let output = probe("tcp://no-such-host.invalid:5555", &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("connect failed") && stderr.contains("is the name in --endpoint right?")
    );
}

#[test]
fn the_probe_fails_if_the_peer_stays_silent() {
    fails_at_the_limit(peer(|_| {}), "handshake", "connected, but no handshake within 2s");
}

#[test]
fn the_probe_fails_if_the_peer_hangs_up() {
    let hangs_up = |stream: TcpStream| stream.shutdown(std::net::Shutdown::Both).unwrap();
    fails_before_the_limit(
        peer(hangs_up),
        "handshake",
        "closed the connection during the handshake",
    );
}

#[test]
fn the_probe_fails_if_the_handshake_hangs() {
    let half = |mut stream: TcpStream| drop(stream.write_all(&raw::greeting(0)[..40]));
    let whole = |mut stream: TcpStream| drop(stream.write_all(&raw::greeting(0)));
    let trickled = |mut stream: TcpStream| {
        thread::spawn(move || {
            for byte in raw::hello(0, "ROUTER", b"") {
                let _ = stream.write_all(&[byte]);
                thread::sleep(std::time::Duration::from_millis(60));
            }
        });
    };
    // All at once, because each one waits for its whole limit.
    thread::scope(|scope| {
        for peer in [peer(half), peer(whole), peer(trickled)] {
            scope.spawn(move || fails_at_the_limit(peer, "handshake", "no handshake"));
        }
    });
}

#[test]
fn the_probe_fails_if_the_handshake_is_garbage() {
    let garbage = |mut stream: TcpStream| drop(stream.write_all(&[b'x'; 200]));
    fails_before_the_limit(peer(garbage), "handshake", "does not speak ZMTP");
    let http = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nyou are not a browser, are you? 0123456789";
    let http = |mut stream: TcpStream| drop(stream.write_all(http));
    fails_before_the_limit(peer(http), "handshake", "does not speak ZMTP");
}

#[test]
fn the_probe_fails_if_the_request_is_not_answered() {
    let silent = |mut stream: TcpStream| {
        if raw::welcome(&mut stream).is_ok() {
            read_request(&mut stream);
        }
    };
    fails_with(peer(silent), "5s", "receive", "no reply");
}

#[test]
fn the_probe_fails_if_the_peer_hangs_up_on_the_request() {
    let hangs_up = |mut stream: TcpStream| {
        if raw::welcome(&mut stream).is_ok() {
            read_request(&mut stream);
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    };
    fails_before_the_limit(peer(hangs_up), "receive", "closed");
}

/// A peer that replies to each request with the result of `reply` for its payload.
fn answering(reply: fn(Vec<u8>) -> Vec<u8>) -> SocketAddr {
    peer(move |mut stream| {
        if raw::welcome(&mut stream).is_ok() {
            let payload = read_request(&mut stream);
            let _ = stream.write_all(&reply(payload));
        }
    })
}

#[test]
fn the_probe_fails_on_another_payload() {
    let another = |_| raw::message(&[&b""[..], CHECK, b"yes, yes"]);
    fails_before_the_limit(answering(another), "verify", "not the payload that was sent");
    let shorter = |payload: Vec<u8>| raw::message(&[b"", CHECK, &payload[1..]]);
    fails_before_the_limit(answering(shorter), "verify", "not the payload that was sent");
}

#[test]
fn the_probe_fails_if_its_payload_comes_in_other_frames() {
    let more = |payload: Vec<u8>| raw::message(&[b"", CHECK, &payload, b"and more"]);
    fails_before_the_limit(answering(more), "verify", "the reply has 4 frames, the request had 3");
    let bare = |payload: Vec<u8>| raw::frame(&payload, false);
    fails_before_the_limit(answering(bare), "verify", "the reply has 1 frames, the request had 3");
    let half = |payload: Vec<u8>| raw::frame(&payload, false)[..20].to_vec();
    fails_with(answering(half), "5s", "receive", "no reply");
}

#[test]
fn the_probe_fails_on_endless_frames() {
    let endless = |mut stream: TcpStream| {
        thread::spawn(move || {
            if raw::welcome(&mut stream).is_ok() {
                let frames = raw::frame(&[0; 1000], true).repeat(100);
                while stream.write_all(&frames).is_ok() {}
            }
        });
    };
    fails_before_the_limit(peer(endless), "receive", "larger than 4096 bytes");
}

#[test]
fn the_probe_fails_at_its_limit_on_endless_commands() {
    let endless = |mut stream: TcpStream| {
        thread::spawn(move || {
            if raw::welcome(&mut stream).is_ok() {
                let pongs = raw::command(b"\x04PONG").repeat(1000);
                while stream.write_all(&pongs).is_ok() {}
            }
        });
    };
    fails_at_the_limit(peer(endless), "receive", "no reply");
}

#[test]
fn the_probe_fails_at_once_on_an_impossible_frame_size() {
    let in_the_handshake = |mut stream: TcpStream| {
        let _ = stream.write_all(&[raw::greeting(0), raw::announced(4, 1 << 47)].concat());
    };
    fails_before_the_limit(peer(in_the_handshake), "handshake", "metadata");
    let behind_it = |mut stream: TcpStream| {
        if raw::welcome(&mut stream).is_ok() {
            let _ = stream.write_all(&raw::announced(0, 1 << 47));
        }
    };
    fails_before_the_limit(peer(behind_it), "receive", "larger than 4096 bytes");
}

#[test]
fn the_probes_exit_code_holds_even_if_its_line_cannot_be_written() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let server = Server::start(&[]);
    let mut yes = command(PROBE);
    yes.args(["-v", "--endpoint", &server.endpoint, "--timeout", "30s"]).stdout(full());
    assert_eq!(yes.status().unwrap().code(), Some(0));
    let mut no = command(PROBE);
    no.args(["--endpoint", "tcp://no-such-host.invalid:5555"]).stderr(full());
    assert_eq!(no.status().unwrap().code(), Some(1));
}

#[test]
fn no_two_probes_send_the_same_payload() {
    let (requests, seen) = std::sync::mpsc::channel();
    let address = peer(move |mut stream| {
        let ready = raw::welcome(&mut stream).unwrap();
        let payload = read_request(&mut stream);
        requests.send((ready, payload.clone())).unwrap();
        stream.write_all(&raw::message(&[b"", CHECK, &payload])).unwrap();
    });
    for _ in 0..2 {
        let output = probe(&format!("tcp://{address}"), &["--timeout", "30s"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let [first, second] = [seen.recv().unwrap(), seen.recv().unwrap()];
    assert_ne!(first.0, second.0, "two probes used the same identity");
    assert_ne!(first.1, second.1, "two probes sent the same payload");
    let announced = String::from_utf8_lossy(&first.0).into_owned();
    assert!(announced.contains(PROBE_IDENTITY), "{announced}");
}

#[test]
fn a_wrong_value_is_rejected_with_an_example_of_a_correct_one() {
    for (args, right) in [
        (["--endpoint", "localhost:5555"], "expected tcp://HOST:PORT"),
        (["--endpoint", "tcp://*:5555"], "a client needs a host"),
        (["--endpoint", "tcp://localhost:0"], "from 1 to 65535"),
        (["--timeout", "500"], "such as 500ms"),
        (["--timeout", "0s"], "more than 0s"),
    ] {
        let output = command(PROBE).args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(args[0]) && stderr.contains(right), "{stderr}");
    }
}
