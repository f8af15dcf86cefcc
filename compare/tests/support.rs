//! The server's process, and libzmq sockets that fail instead of hanging.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use zmq_echo_compare::process::Server;
use zmq_echo_compare::sides::{ANY_ENDPOINT, build_server, server_command};

/// A deadline for everything that is not measured. It is generous, because only a failing test
/// waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server's binary, built on the first call.
fn server_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build_server().expect("the server can be built"))
}

/// A server on a port that the kernel chooses, with additional flags.
pub fn server(flags: &[&str]) -> Server {
    server_on(ANY_ENDPOINT, flags)
}

/// A server on `endpoint`.
pub fn server_on(endpoint: &str, flags: &[&str]) -> Server {
    let mut command = server_command(server_binary(), endpoint);
    command.args(flags);
    Server::start(command).expect("the server starts")
}

/// One of the servers in the comparison.
pub fn compared(kind: &str) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmq-echo-compare"));
    command.args(["serve", kind]);
    Server::start(command).expect("the server starts")
}

/// A socket connected to `endpoint`. `set` is applied before connecting.
///
/// It waits for at most [`PATIENCE`], and drops unsent messages when closed.
pub fn client(
    context: &zmq::Context,
    kind: zmq::SocketType,
    endpoint: &str,
    set: impl FnOnce(&zmq::Socket) -> zmq::Result<()>,
) -> zmq::Socket {
    let socket = context.socket(kind).expect("libzmq can create a socket");
    let milliseconds = PATIENCE.as_millis() as i32;
    socket.set_rcvtimeo(milliseconds).expect("an option that libzmq has");
    socket.set_sndtimeo(milliseconds).expect("an option that libzmq has");
    socket.set_linger(0).expect("an option that libzmq has");
    set(&socket).expect("options that libzmq has");
    socket.connect(endpoint).expect("the endpoint is valid");
    socket
}

/// The value of a series, named with its labels, on the server's side port.
pub fn metric(server: &Server, series: &str) -> f64 {
    let page = metrics(server);
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("the metrics have no {series}:\n{page}"))
        .parse()
        .expect("a number")
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not true within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn metrics(server: &Server) -> String {
    let announcement: serde_json::Value =
        serde_json::from_str(&server.announcement).expect("the log is JSON");
    let http = announcement["http"].as_str().expect("the record names the side port");
    let http: SocketAddr = http.parse().expect("the address is valid");
    let mut stream = TcpStream::connect_timeout(&http, PATIENCE).expect("the side port accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the side port reads");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("the side port answers");
    page
}
