//! How a run starts: what it waits for, what it rejects at once, and what it prints in each case.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::Signal;
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{LOAD, PATIENT, load};
use crate::support::api_server::{ApiServer, Condition};
use crate::support::dns_server::DnsServer;
use crate::support::{Process, Server, TEST_SERVER, command, raw, wait_until};

/// A port that refuses connections while this is held: it is bound but not listening.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A port that answers no SYN while this is held, because its backlog is full.
fn black_hole() -> (Vec<Socket>, SocketAddr) {
    let (socket, address) = refusing();
    socket.listen(0).unwrap();
    let mut sockets = vec![socket];
    for _ in 0..4 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&SockAddr::from(address));
        sockets.push(socket);
    }
    (sockets, address)
}

/// A port that handles each connection with `does`, until the tests end.
fn port_that(does: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let does = does.clone();
            thread::spawn(move || does(stream));
        }
    });
    address
}

/// Starts a run that must report its failure on stderr.
fn starts(args: &[&str], kubeconfig: Option<PathBuf>) -> Child {
    let mut run = command(&LOAD);
    run.args(args).args(["--duration", "1h"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    run.envs(kubeconfig.map(|path| ("KUBECONFIG", path)));
    run.spawn().expect("the program starts")
}

/// The last line on stderr of a run that fails without a result.
#[track_caller]
fn last_line(run: Child) -> String {
    let output = run.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    stderr.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn if_no_endpoint_answers_one_line_says_the_last_reason_and_what_to_do() {
    let (_refusing, refused) = refusing();
    let (_hole, hole) = black_hole();
    let silent = port_that(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let closing = port_that(drop);
    let http = port_that(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let publisher = port_that(|mut stream| {
        let _ = stream.write_all(&raw::hello(0, "PUB", b""));
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let cases = [
        (refused.to_string(), "connection refused; is the server running?"),
        (
            "no-such-host.invalid:5555".to_owned(),
            "the name cannot be resolved: Name or service not known; is the name right?",
        ),
        (
            hole.to_string(),
            "no connection within 1s; is the address right, and does a firewall or network policy \
             drop packets?",
        ),
        (
            silent.to_string(),
            "connected, but no handshake within 1s; is this a ZeroMQ port, and is the server \
             alive?",
        ),
        (
            closing.to_string(),
            "the server closed the connection during the handshake; is the server full, or draining?",
        ),
        (
            http.to_string(),
            "this is not a ZeroMQ port: the peer does not speak ZMTP; is this the port of \
             --bind, 5555 by default, and not the server's HTTP port?",
        ),
        (
            publisher.to_string(),
            "the peer is not a ROUTER; is this the port of --bind, 5555 by default, and not the \
             server's HTTP port?",
        ),
    ];
    // All at once, because each waits for five seconds.
    let running = cases.map(|(address, reason)| {
        let endpoint = format!("tcp://{address}");
        let run = starts(&[&endpoint], None);
        (run, format!("no endpoint answers at {endpoint} after 5s: {reason}"))
    });
    for (run, expected) in running {
        assert_eq!(last_line(run), expected);
    }
}

#[test]
fn endpoints_that_fail_for_different_reasons_are_told_apart_and_many_are_counted() {
    let (_refusing, refused) = refusing();
    let closing = port_that(drop);
    let [one, other] = [refused, closing].map(|address| format!("tcp://{address}"));
    let two = starts(&[&one, &other], None);
    let many: Vec<_> = (2..10).map(|at| format!("tcp://127.0.0.{at}:{}", refused.port())).collect();
    let many = starts(&many.iter().map(String::as_str).collect::<Vec<_>>(), None);
    let line = last_line(two);
    for (endpoint, reason) in [(one, "connection refused"), (other, "the server closed")] {
        assert!(
            line.contains(&format!("{endpoint}: {reason}")),
            "the line does not name {endpoint} with its reason: {line}"
        );
    }
    let line = last_line(many);
    assert!(line.contains(", and 5 more after 5s: connection refused; is the"), "{line}");
}

#[test]
fn if_a_source_names_no_endpoint_the_line_says_why() {
    let denying = ApiServer::start();
    denying.fail_with(Some(403));
    denying.answer_with(r#"{"kind":"Status","code":403,"message":"endpointslices is forbidden"}"#);
    let empty = ApiServer::start();
    let other_port = ApiServer::start();
    other_port.set(SocketAddr::from(([127, 0, 0, 1], 1)), Condition::Ready);
    let dns = DnsServer::start();
    let unknown = dns.url("zmq-echo-headless.test.", 5555);
    let of_port = "k8s://default/zmq-echo:zeromq";
    let several_ports = ApiServer::start();
    let ports = json!([{"name": "zeromq", "port": 5555}, {"name": "http", "port": 8080}]);
    let endpoints = json!([{"addresses": ["127.0.0.1"]}]);
    let slice = json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    several_ports.put("a", slice);
    let cases = [
        (
            ApiServer::URL,
            Some(&denying),
            "the API answered 403: endpointslices is forbidden; may this account list and watch \
             EndpointSlices there?",
        ),
        (
            ApiServer::URL,
            Some(&empty),
            "the endpoint source lists no endpoints; is a pod ready, and does the Service have this \
             port?",
        ),
        (
            of_port,
            Some(&other_port),
            "no TCP port is named zeromq; the ports are: zmq (1); which of these ports do you want?",
        ),
        (
            "k8s://default/zmq-echo:5556",
            Some(&several_ports),
            "the pods have no TCP port 5556; the ports are: zeromq (5555), http (8080); which of \
             these ports do you want?",
        ),
        (
            "k8s://default/zmq-echo",
            Some(&several_ports),
            "the Service has several TCP ports; the ports are: zeromq (5555), http (8080); which \
             of these ports do you want?",
        ),
        (
            &*unknown,
            None,
            "the name has no address; does the Service exist, and is one of its pods ready?",
        ),
    ];
    let running = cases.map(|(url, api, reason)| {
        let run = starts(&["--discover", url], api.map(ApiServer::kubeconfig));
        (run, format!("no endpoint answers at {url} after 5s: {reason}"))
    });
    for (run, expected) in running {
        assert_eq!(last_line(run), expected);
    }
}

/// Starts a run that waits for an endpoint, and returns once it has printed that.
fn waiting(args: &[&str]) -> Process {
    let mut run = command(&LOAD);
    run.args(args).args(["--wait", "1h"]).args(PATIENT).stderr(Stdio::piped());
    let mut run = Process::spawn(&mut run);
    let mut stderr = BufReader::new(run.0.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains(" s, waiting for an endpoint: ") && line.contains("refused"), "{line}");
    // Later output is discarded.
    thread::spawn(move || drop(stderr.read_to_end(&mut Vec::new())));
    run
}

#[test]
fn the_load_generator_waits_for_a_server_that_starts_late() {
    let (socket, address) = refusing();
    let endpoint = format!("tcp://{address}");
    let mut run = waiting(&[&endpoint, "--duration", "100ms"]);
    drop(socket);
    let mut server = command(&TEST_SERVER);
    server.args(["--bind", &endpoint, "--http", "127.0.0.1:0"]);
    let _server = Server::spawn(server);
    assert_eq!(run.wait(), 0);
}

#[test]
fn a_signal_ends_the_wait_for_a_server() {
    let (_socket, address) = refusing();
    let mut run = waiting(&[&format!("tcp://{address}")]);
    run.signal(Signal::TERM);
    assert_eq!(run.wait(), 3);
}

#[test]
fn an_error_that_waiting_cannot_fix_is_reported_at_once() {
    for args in [
        &["--discover", ApiServer::URL][..],
        &["--report", "/no/such/directory/report.html"],
        &["--report", "/"],
    ] {
        let mut run = command(&LOAD);
        run.args(args).args(["--wait", "1h"]).env("KUBECONFIG", "/no/such/file");
        run.env_remove("HOME").stderr(Stdio::piped());
        let mut run = Process::spawn(&mut run);
        assert_eq!(run.wait(), 1, "{args:?}");
        let mut stderr = String::new();
        run.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let subject = if args[0] == "--report" { args[1] } else { "cannot discover endpoints: " };
        assert!(stderr.starts_with(subject), "{stderr}");
    }
}

/// A file that only this test uses.
fn report(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("zmq-echo-load-{}-{name}.html", std::process::id()))
}

#[test]
fn an_old_report_stays_until_a_new_one_is_complete() {
    let (_socket, address) = refusing();
    let nobody = format!("tcp://{address}");
    let server = Server::start(&[]);
    let old = "old ".repeat(100_000);
    for before in [Some(&old), None] {
        let path = report(if before.is_some() { "old" } else { "new" });
        before.inspect(|old| std::fs::write(&path, old).unwrap());
        let args = ["--report", path.to_str().unwrap(), "--duration", "100ms"];
        let output = load(&[&[&*nobody, "--wait", "100ms"], &args[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(std::fs::read_to_string(&path).ok().as_ref(), before);
        let output = load(&[&[&*server.endpoint], &args[..], &PATIENT].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let page = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(
            page.trim_end().ends_with("</html>") && !page.contains("old old"),
            "the new report is incomplete or contains the old one"
        );
    }
}

#[test]
fn a_report_that_cannot_be_written_does_not_lose_the_result() {
    let server = Server::start(&[]);
    // It can be opened, but has no space.
    let args = ["--duration", "100ms", "--report", "/dev/full"];
    let output = load(&[&[&*server.endpoint], &args[..], &PATIENT].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("answered"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("/dev/full: cannot write the report: No space left"), "{stderr}");
}

#[test]
fn an_endpoint_that_was_never_reached_is_in_table_json_and_page() {
    let (_socket, address) = refusing();
    let (server, nobody) = (Server::start(&[]), format!("tcp://{address}"));
    let path = report("never");
    let args = [&*server.endpoint, &nobody, "--duration", "100ms"];
    let with_page = ["--report", path.to_str().unwrap()];
    let table = load(&[&args[..], &PATIENT, &with_page].concat());
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    let table = String::from_utf8(table.stdout).unwrap();
    let row = |name: &str| {
        let row = table.lines().find(|line| line.starts_with(name));
        row.unwrap_or_else(|| panic!("the table has no row {name}: {table}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(row("endpoint"), ["endpoint", "answered", "share", "last", "failure"]);
    assert_eq!(row(&nobody)[1..], ["0", "0.0", "%", "connection", "refused"]);
    assert_eq!(row(&server.endpoint)[2..], ["100.0", "%"]);
    let page = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (_, embedded) = page.split_once(r#"id="result">"#).expect("the page embeds the result");
    let (embedded, script) = embedded.split_once("</script>").expect("the embedded result ends");
    assert!(script.contains("last_failure"), "the page does not show the last failure");
    let run: serde_json::Value = serde_json::from_str(embedded).unwrap();
    let of = |endpoint: &str| {
        let shares = run["endpoints"].as_array().unwrap();
        shares
            .iter()
            .find(|share| share["endpoint"] == endpoint)
            .expect("the result lists the endpoint")
            .clone()
    };
    assert_eq!(of(&nobody)["answered"], 0);
    assert_eq!(of(&nobody)["last_failure"], "connection refused");
    assert!(of(&server.endpoint)["last_failure"].is_null());
}

#[test]
fn an_endpoint_that_comes_during_the_run_and_is_never_reached_is_in_the_result() {
    const NAME: &str = "zmq-echo-headless.test.";
    let server = Server::start(&[]);
    let port = server.address().port();
    let dns = DnsServer::start();
    dns.set(NAME, &["127.0.0.1"], 0);
    let mut run = command(&LOAD);
    run.args(["--discover", &dns.url(NAME, port), "--duration", "1h", "--rate", "100"]);
    let mut run = Process::spawn(run.args(["--output", "json"]).args(PATIENT));
    server.wait_for_metric(r#"zmq_echo_requests_total{source="client"}"#, |count| count >= 10.0);
    // Nothing listens at this address.
    dns.set(NAME, &["127.0.0.1", "127.0.0.9"], 0);
    let asked = || dns.questions().len();
    let goal = asked() + 8;
    wait_until("the load generator has asked again", || asked() >= goal);
    run.signal(Signal::INT);
    let result: serde_json::Value = serde_json::from_reader(run.stdout()).expect("JSON");
    assert_eq!(run.wait(), 3);
    let never = format!("tcp://127.0.0.9:{port}");
    let shares = result["endpoints"].as_array().unwrap();
    assert!(
        shares.iter().any(|share| share["endpoint"] == *never),
        "the unreached endpoint is not in the result: {shares:?}"
    );
}

#[test]
fn text_from_an_api_server_cannot_forge_records_or_control_a_terminal() {
    let forged = "2026-11-29T00:00:00Z  INFO zmq_echo_client::pool: endpoint added";
    let message = format!("no\n{forged}\r\u{1b}[2K\u{9b}31m\u{2028}\u{202e}yes\u{2066} é");
    let api = ApiServer::start();
    api.fail_with(Some(403));
    api.answer_with(json!({"kind": "Status", "code": 403, "message": message}).to_string());
    // The name of a port, and the type of an event.
    let ports = ApiServer::start();
    let slice = json!({
        "addressType": "IPv4", "ports": [{"name": message, "port": 1}],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    });
    ports.put("a", slice);
    let event = ApiServer::start();
    let args = ["--log-level", "debug", "--discover", ApiServer::URL];
    let runs = [&api, &ports, &event].map(|api| starts(&args, Some(api.kubeconfig())));
    wait_until("the load generator watches the API", || event.watchers() == 1);
    event.send(format!("{}\n", json!({"type": message, "object": {}})));
    for run in runs {
        let output = run.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.contains(forged) && stderr.contains(" é"),
            "the message is not printed: {stderr}"
        );
        for line in stderr.lines() {
            assert!(!line.starts_with(forged), "a message forges a log line: {stderr}");
            assert!(
                !line.contains(|c: char| c.is_control()),
                "a control character is not escaped: {line:?}"
            );
            assert!(
                !line.contains(['\u{2028}', '\u{202e}', '\u{2066}']),
                "a character that changes the layout is not escaped: {line:?}"
            );
        }
    }
}
