//! A drain answers everything that was received and then exits, for every way to end a drain.

mod peers;
mod random;
mod relay;
mod slow;

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use zeromq::{SocketRecv, SocketSend};

use crate::support::{Server, echo, message, raw, wait_until};

#[test]
fn without_connected_clients_it_exits_at_once() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let mut server = Server::start(&["--drain-quiet", "50s", "--drain-timeout", "60s"]);
        let signalled = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait(), 0);
        assert!(
            signalled.elapsed() < Duration::from_secs(50),
            "with no client connected, the drain still waited for the quiet period"
        );
        assert_eq!(server.wait_for_record("draining")["signal"], name);
        let drained = server.wait_for_record("drained");
        assert_eq!(drained["reason"], "no_peers");
        for field in ["answered", "owed", "owed_bytes", "discarded", "discarded_bytes", "lost"] {
            assert_eq!(drained[field], 0, "{field}");
        }
        assert!(drained["duration"].is_f64(), "the record has no duration: {drained}");
    }
}

#[tokio::test]
async fn a_drain_serves_connected_peers_until_they_are_quiet() {
    let mut server = Server::start(&["--drain-quiet", "5s"]);
    let mut dealer = server.dealer().await;
    assert_eq!(echo(&mut dealer, "before".into()).await, [b"before"]);
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    let refused = TcpStream::connect(server.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(server.get("/readyz"), (503, "draining\n".to_owned()));
    wait_until("/livez answers 200 during the drain", || server.get("/livez").0 == 200);
    assert_eq!(server.metric("zmq_echo_draining"), 1.0);
    for _ in 0..3 {
        assert_eq!(echo(&mut dealer, "while draining".into()).await, [b"while draining"]);
    }
    assert_eq!(server.wait_with(dealer).await, 0);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "quiet");
    assert_eq!(drained["answered"], 3);
    assert!(
        drained["duration"].as_f64().unwrap() >= 5.0,
        "the drain ended before its quiet period: {drained}"
    );
}

#[tokio::test]
async fn the_drain_deadline_is_shown_from_the_signal_on() {
    let unix_time = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let server = Server::start(&["--drain-delay", "30s", "--drain-timeout", "1m"]);
    let _dealer = server.dealer().await;
    let deadline = "zmq_echo_drain_deadline_timestamp_seconds";
    assert_eq!(server.metric(deadline), 0.0);
    let before = unix_time();
    server.signal(Signal::TERM);
    server.wait_for_metric("zmq_echo_draining", |draining| draining == 1.0);
    let earliest = before + 60.0;
    // A millisecond for the text, which has no more digits than it needs.
    let range = earliest - 0.001..=unix_time() + 60.001;
    assert!(range.contains(&server.metric(deadline)), "the deadline is not in {range:?}");
}

#[tokio::test]
async fn during_the_drain_delay_it_still_accepts() {
    let mut server = Server::start(&["--drain-delay", "5s", "--drain-quiet", "100ms"]);
    server.wait_until_ready();
    assert_eq!(server.get("/readyz"), (200, "ready\n".to_owned()));
    server.signal(Signal::TERM);
    server.wait_for_record("draining");
    assert_eq!(server.get("/readyz").0, 503);
    let mut dealer = server.dealer().await;
    assert_eq!(echo(&mut dealer, "newcomer".into()).await, [b"newcomer"]);
    assert_eq!(server.wait_with(dealer).await, 0);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["answered"], 1);
    assert!(
        drained["duration"].as_f64().unwrap() >= 5.0,
        "the drain ended before its delay: {drained}"
    );
}

#[tokio::test]
async fn every_request_pipelined_before_the_signal_is_answered() {
    const REQUESTS: usize = 20_000;
    let mut server = Server::start(&[]);
    let mut client = raw::connect(server.address(), b"");
    let mut requests = Vec::new();
    for number in 0..REQUESTS {
        requests.extend(raw::frame(&number.to_be_bytes(), false));
    }
    client.write_all(&requests).unwrap();
    server.signal(Signal::TERM);
    for number in 0..REQUESTS {
        assert_eq!(raw::read_frame(&mut client).1, number.to_be_bytes());
    }
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
    let drained = server.wait_for_record("drained");
    assert_eq!((&drained["owed"], &drained["discarded"]), (&0.into(), &0.into()), "{drained}");
}

#[tokio::test]
async fn a_client_that_never_stops_is_cut_off_at_the_deadline() {
    let mut server = Server::start(&["--drain-timeout", "5s", "--drain-quiet", "4s"]);
    let mut dealer = server.dealer().await;
    server.signal(Signal::TERM);
    server.wait_for_record("draining");
    let mut echoes = 0;
    while server.find_record("drained").is_none() {
        if dealer.send("more".into()).await.is_err() {
            break;
        }
        let reply = tokio::time::timeout(Duration::from_millis(500), dealer.recv()).await;
        echoes += u64::from(matches!(reply, Ok(Ok(_))));
    }
    let code = server.wait();
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "deadline");
    // The last request may have arrived too late to be answered.
    assert_eq!(
        code,
        if is_clean(&drained) { 0 } else { 4 },
        "the exit code does not match the record: {drained}"
    );
    assert!(
        drained["answered"].as_u64().unwrap() >= echoes,
        "the client got {echoes} replies, the record reports fewer: {drained}"
    );
    assert!(
        drained["duration"].as_f64().unwrap() >= 4.0,
        "the drain ended before its deadline: {drained}"
    );
}

#[test]
fn an_endless_flood_leaves_requests_unanswered_and_exits_4() {
    let mut server = Server::start(&["--drain-timeout", "2s"]);
    let mut stream = raw::connect(server.address(), b"flood");
    let writing = raw::flood(&stream, raw::frame(b"flood", false).repeat(10_000));
    let reading = std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    server.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |requests| requests > 0.0);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 4);
    let drained = server.wait_for_record("drained");
    assert_eq!(drained["reason"], "deadline");
    assert!(!is_clean(&drained), "the flood left no request unanswered: {drained}");
    assert!(
        drained["answered"].as_u64().unwrap() > 0,
        "nothing was answered during the drain: {drained}"
    );
    writing.join().unwrap();
    let _ = reading.join().unwrap();
}

#[test]
fn requests_that_arrived_while_the_process_was_stopped_are_answered() {
    let mut server = Server::start(&["--drain-quiet", "1s"]);
    let mut client = raw::connect(server.address(), b"patient");
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    server.stop();
    client.write_all(&raw::frame(b"anybody there?", false).repeat(100)).unwrap();
    // The quiet period must pass while the loop does not run.
    std::thread::sleep(Duration::from_millis(1500));
    server.signal(Signal::CONT);
    for _ in 0..100 {
        assert_eq!(raw::read_frame(&mut client).1, b"anybody there?");
    }
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
    assert_eq!(server.wait_for_record("drained")["answered"], 100);
}

#[test]
fn a_message_that_began_while_the_process_was_stopped_is_awaited() {
    let mut server = Server::start(&["--drain-quiet", "1s"]);
    let mut client = raw::connect(server.address(), b"patient");
    let request = raw::frame(&[5; 300_000], false);
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    server.stop();
    client.write_all(&request[..100_000]).unwrap();
    // The quiet period must pass while the loop does not run.
    std::thread::sleep(Duration::from_millis(1500));
    server.signal(Signal::CONT);
    std::thread::sleep(Duration::from_millis(300));
    client.write_all(&request[100_000..]).unwrap();
    assert!(raw::read(&mut client, request.len()) == request);
    raw::leave_when_closed(client);
    assert_eq!(server.wait(), 0);
}

#[test]
fn many_peers_that_only_ping_do_not_hide_a_request_at_the_end_of_the_drain() {
    let mut server = Server::start(&["--drain-quiet", "1s"]);
    let mut crowd: Vec<_> = (0..500).map(|_| raw::dealer(server.address(), 1, b"")).collect();
    let mut client = raw::connect(server.address(), b"patient");
    server.signal(Signal::TERM);
    server.wait_for_record("stopped listening; connected peers are still served");
    server.stop();
    let ping = raw::command(b"\x04PING\0\0");
    crowd.iter_mut().for_each(|peer| peer.write_all(&ping).unwrap());
    client.write_all(&raw::frame(b"anybody there?", false)).unwrap();
    // The quiet period must pass while the loop does not run.
    std::thread::sleep(Duration::from_millis(1500));
    server.signal(Signal::CONT);
    assert_eq!(raw::read_frame(&mut client).1, b"anybody there?");
    crowd.into_iter().chain([client]).for_each(raw::leave_when_closed);
    assert_eq!(server.wait(), 0);
}

#[tokio::test]
async fn unread_replies_make_it_exit_4_at_the_deadline() {
    let mut server = Server::start(&["--drain-timeout", "3s", "--drain-quiet", "500ms"]);
    let mut stuck = raw::connect(server.address(), b"stuck");
    let request = raw::frame(&[0; 1 << 20], false);
    server.flood_until_stuck(std::slice::from_mut(&mut stuck), &request);
    server.signal(Signal::TERM);
    server.wait_for_record("draining");
    // Liveness holds while the last replies wait to be read.
    let mut asked = 0;
    while server.find_record("drained").is_none() {
        match live(&server) {
            Ok(text) => assert!(
                text.starts_with("HTTP/1.1 200"),
                "/livez fails while replies wait to be read: {text}"
            ),
            Err(_) => break,
        }
        asked += 1;
    }
    assert!(asked > 0, "the server exited before its liveness was checked once");
    assert_eq!(server.wait(), 4);
    let drained = server.wait_for_record("drained");
    assert!(drained["owed"].as_u64().unwrap() > 0, "the record shows no owed replies: {drained}");
    assert!(
        drained["owed_bytes"].as_u64().unwrap() > 0,
        "the record shows no owed bytes: {drained}"
    );
    drop(stuck);
}

/// Whether a drain's record says that everything was answered.
fn is_clean(drained: &serde_json::Value) -> bool {
    let fields = ["owed", "owed_bytes", "discarded", "discarded_bytes"];
    fields.iter().all(|field| drained[field] == 0)
}

/// Requests `/livez` by hand, because the server may exit at any moment.
fn live(server: &Server) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server.http)?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(text) }
}

#[tokio::test]
async fn replies_to_peers_that_have_left_do_not_change_the_exit_code() {
    let mut server = Server::start(&["--drain-quiet", "5s"]);
    let mut stays = server.dealer().await;
    for client in 0..20 {
        let mut leaver = raw::connect(server.address(), format!("leaver {client}").as_bytes());
        leaver.write_all(&raw::frame(&[0; 100_000], false)).unwrap();
    }
    server.signal(Signal::TERM);
    server.wait_for_record("draining");
    assert_eq!(echo(&mut stays, message(&[b"a", b"b"])).await, [b"a", b"b"]);
    assert_eq!(server.wait_with(stays).await, 0);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut server = Server::start(&["--drain-quiet", "50s", "--drain-timeout", "60s"]);
        let mut dealer = server.dealer().await;
        assert_eq!(echo(&mut dealer, "hold it".into()).await, [b"hold it"]);
        server.signal(Signal::TERM);
        server.wait_for_record("draining");
        assert!(server.is_running());
        server.signal(second);
        assert_eq!(server.wait(), code);
    }
}

/// Processes with a stuck loop: this test binary, running one of its own tests.
mod stuck {
    use zmq_echo::log;
    use zmq_echo::service::drain::DrainPolicy;
    use zmq_echo::service::termination::Termination;

    use super::*;
    use crate::log_schema::assert_documented;
    use crate::support::{Process, command};

    const TIMEOUT: &str = "ZMQ_ECHO_TEST_STUCK_TIMEOUT";

    #[test]
    #[ignore = "the body of another test's child"]
    fn child() {
        let timeout = std::env::var(TIMEOUT).unwrap();
        let termination = Termination::register().unwrap();
        let filter = tracing_subscriber::EnvFilter::new("info");
        let logs = log::init(filter, zmq_echo::log::LogFormat::Json).unwrap();
        let timeout = humantime::parse_duration(&timeout).unwrap();
        let policy = DrainPolicy { delay: Duration::ZERO, quiet: Duration::ZERO, timeout };
        termination.watchdog.spawn(policy, logs).unwrap();
        tracing::info!("stuck");
        loop {
            std::thread::park();
        }
    }

    fn start(timeout: &str) -> (Process, impl BufRead) {
        let mut child = Process::spawn(
            command(std::env::current_exe().unwrap().to_str().unwrap())
                .args(["--ignored", "--exact", "drain::stuck::child", "--nocapture"])
                .env(TIMEOUT, timeout),
        );
        let mut stdout = child.stdout();
        wait_until("the child reports that its loop is stuck", || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            line.contains("\"stuck\"")
        });
        (child, stdout)
    }

    #[test]
    fn a_second_signal_ends_even_a_stuck_process() {
        let (mut child, _stdout) = start("1h");
        child.signal(Signal::TERM);
        // The effect of the first signal is not visible from outside, so the second one is repeated
        // until it has worked.
        wait_until("the second signal ends the stuck process", || {
            child.signal(Signal::INT);
            std::thread::sleep(Duration::from_millis(20));
            !child.is_running()
        });
        assert_eq!(child.wait(), 130);
    }

    #[test]
    fn the_watchdog_ends_a_stuck_process_at_the_drain_timeout() {
        let (mut child, mut stdout) = start("300ms");
        child.signal(Signal::TERM);
        assert_eq!(child.wait(), 4);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        let mut records = rest.lines().filter_map(|line| serde_json::from_str(line).ok());
        let record: serde_json::Value = records.next().expect("the watchdog logs a record");
        assert_eq!(record["message"], "stuck at the drain deadline: exiting");
        assert_eq!(record["timeout"], 0.3);
        assert_documented(&record, false);
    }
}
