//! Metrics and health over HTTP, under any load.

use std::collections::{BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use socket2::{Domain, SockRef, Socket, Type};
use zmq_echo::log::POD_NAME;
use zmq_echo::metrics::{self, Metrics};
use zmq_echo::service::health::{Health, Phase};
use zmq_echo::side_port::address::HttpAddress;
use zmq_echo::side_port::own_addresses::OwnAddresses;
use zmq_echo::side_port::{self, PATHS, SidePort};
use zmq_echo::version::{REVISION, VERSION};
use zmtp::Reason;

use crate::support::{
    Server, TEST_SERVER, command, echo, get, message, raw, request, sample, wait_until,
};

/// Every series of the service except those by reason, with its documented type.
const SERIES: [(&str, &str); 45] = [
    ("zmq_echo_requests_total{source=\"client\"}", "counter"),
    ("zmq_echo_requests_total{source=\"probe\"}", "counter"),
    ("zmq_echo_request_duration_seconds{method=\"echo\"}", "histogram"),
    ("zmq_echo_request_duration_seconds{method=\"other\"}", "histogram"),
    ("zmq_echo_replies_total{method=\"echo\",outcome=\"ok\"}", "counter"),
    ("zmq_echo_replies_total{method=\"echo\",outcome=\"error\"}", "counter"),
    ("zmq_echo_replies_total{method=\"other\",outcome=\"ok\"}", "counter"),
    ("zmq_echo_replies_total{method=\"other\",outcome=\"error\"}", "counter"),
    ("zmq_echo_received_bytes_total", "counter"),
    ("zmq_echo_sent_bytes_total", "counter"),
    ("zmq_echo_peers", "gauge"),
    ("zmq_echo_connections_total{outcome=\"established\"}", "counter"),
    ("zmq_echo_connections_total{outcome=\"failed\"}", "counter"),
    ("zmq_echo_rejected_total", "counter"),
    ("zmq_echo_panics_total", "counter"),
    ("zmq_echo_slow_turns_total", "counter"),
    ("zmq_echo_in_flight_requests", "gauge"),
    ("zmq_echo_queue_duration_seconds", "histogram"),
    ("zmq_echo_work_duration_seconds", "histogram"),
    ("zmq_echo_malformed_requests_total", "counter"),
    ("zmq_echo_undeliverable_total{reason=\"peer_gone\"}", "counter"),
    ("zmq_echo_undeliverable_total{reason=\"deadline\"}", "counter"),
    ("zmq_echo_lost_requests_total", "counter"),
    ("zmq_echo_discarded_requests_total", "counter"),
    ("zmq_echo_discarded_bytes_total", "counter"),
    ("zmq_echo_pending_replies", "gauge"),
    ("zmq_echo_buffered_bytes", "gauge"),
    ("zmq_echo_draining", "gauge"),
    ("zmq_echo_drain_deadline_timestamp_seconds", "gauge"),
    ("zmq_echo_log_records_dropped_total", "counter"),
    ("zmq_echo_build_info{version,revision}", "gauge"),
    ("zmq_echo_limit_peers", "gauge"),
    ("zmq_echo_limit_peers_per_address", "gauge"),
    ("zmq_echo_limit_buffered_bytes", "gauge"),
    ("zmq_echo_limit_message_bytes", "gauge"),
    ("zmq_echo_limit_message_frames", "gauge"),
    ("zmq_echo_limit_in_flight_requests", "gauge"),
    ("zmq_echo_limit_in_flight_requests_per_peer", "gauge"),
    ("zmq_echo_limit_metadata_bytes", "gauge"),
    ("zmq_echo_limit_socket_buffer_bytes", "gauge"),
    ("zmq_echo_limit_handshake_seconds", "gauge"),
    ("zmq_echo_limit_stall_seconds", "gauge"),
    ("zmq_echo_limit_stall_bytes", "gauge"),
    ("zmq_echo_limit_heartbeat_seconds", "gauge"),
    ("process_start_time_seconds", "gauge"),
];

/// Every series of the service, with its type.
pub fn series() -> Vec<(String, &'static str)> {
    let mut series: Vec<_> =
        SERIES.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    for reason in Reason::ALL {
        let word = reason.as_str();
        if reason.before_ready() {
            series.push((
                format!("zmq_echo_handshake_failures_total{{reason=\"{word}\"}}"),
                "counter",
            ));
        }
        if reason.after_ready() {
            series.push((format!("zmq_echo_disconnections_total{{reason=\"{word}\"}}"), "counter"));
        }
    }
    series
}

#[test]
fn every_server_series_exists_at_zero_before_the_first_request() {
    let server = Server::start(&[]);
    let (_, text) = server.get("/metrics");
    let scrape = server.scrape();
    let mut families = BTreeSet::new();
    for (series, kind) in series() {
        let name = series.split('{').next().unwrap();
        families.insert(name.to_owned());
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is not a {kind}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no HELP line");
        match name {
            "zmq_echo_build_info" => assert_eq!(sample(&scrape, name), Some(1.0)),
            // By default there is no such limit.
            "zmq_echo_limit_peers_per_address" => assert_eq!(sample(&scrape, name), Some(0.0)),
            _ if name.starts_with("process_") || name.starts_with("zmq_echo_limit_") => {
                assert!(sample(&scrape, name).is_some_and(|value| value > 0.0), "{name}");
            }
            _ => assert_eq!(sample(&scrape, &series), Some(0.0), "{series}"),
        }
    }
    let shown = scrape.docs.into_keys().filter(|name| !name.starts_with("process_"));
    families.retain(|name| !name.starts_with("process_"));
    assert_eq!(shown.collect::<BTreeSet<_>>(), families);
    assert!(text.contains(&format!(
        "zmq_echo_build_info{{revision=\"{REVISION}\",version=\"{VERSION}\"}} 1"
    )));
}

#[tokio::test]
async fn requests_and_connections_of_clients_are_counted() {
    let server = Server::start(&["--latency-buckets", "0.5,60"]);
    let mut dealer = server.dealer().await;
    for _ in 0..3 {
        echo(&mut dealer, message(&[b"12345", b"", b"678"])).await;
    }
    server.wait_for_metric("zmq_echo_request_duration_seconds", |count| count == 3.0);
    assert_eq!(server.metric("zmq_echo_requests_total{source=\"client\"}"), 3.0);
    assert_eq!(server.metric("zmq_echo_received_bytes_total"), 24.0);
    assert_eq!(server.metric("zmq_echo_sent_bytes_total"), 24.0);
    assert_eq!(server.metric("zmq_echo_replies_total{method=\"echo\",outcome=\"ok\"}"), 3.0);
    assert_eq!(server.metric("zmq_echo_peers"), 1.0);
    let (_, text) = server.get("/metrics");
    for bucket in ["0.5", "60", "+Inf"] {
        assert!(
            text.contains(&format!(
                "zmq_echo_request_duration_seconds_bucket{{method=\"echo\",le=\"{bucket}\"}}"
            )),
            "{text}"
        );
    }
}

/// Under constant load, the loop must also publish the counts that it keeps to itself.
#[test]
fn metrics_stay_current_under_a_load_that_never_lets_the_loop_sleep() {
    let server = Server::start(&[]);
    raw::keep_busy(server.address(), 4);
    for _ in 0..5 {
        // A received request is observed soon, but maybe not in the same scrape, which reads one
        // series after another while the loop continues.
        let received = server.metric("zmq_echo_requests_total{source=\"client\"}");
        server.wait_for_metric("zmq_echo_request_duration_seconds", |n| n > received);
    }
}

const CPU_SECONDS: &str = "process_cpu_seconds_total";

#[test]
fn cpu_time_is_fractional_and_never_decreases() {
    let server = Server::start(&[]);
    raw::keep_busy(server.address(), 1);
    let mut seen = Vec::new();
    // Wait past a whole second, where the fraction starts again from zero.
    wait_until("the reported CPU time grows past a whole second", || {
        seen.push(server.metric(CPU_SECONDS));
        assert!(seen.is_sorted(), "the CPU time decreased: {seen:?}");
        seen.last() > Some(&1.5)
    });
    seen.dedup();
    assert!(
        seen.len() > 2 && seen.iter().any(|seconds| seconds.fract() != 0.0),
        "the CPU time has no fractions: {seen:?}"
    );
}

#[test]
fn cpu_time_matches_the_kernels_figure_for_all_threads() {
    // The kernel's figures are in hundredths of a second, with user and system time rounded down
    // separately.
    const STEP: Duration = Duration::from_millis(50);
    let server = Server::start(&[]);
    raw::keep_busy(server.address(), 1);
    wait_until("the server has used some CPU time", || server.cpu_time() > 10 * STEP);
    let before = server.cpu_time().saturating_sub(STEP);
    let shown = server.metric(CPU_SECONDS);
    let after = server.cpu_time() + STEP;
    assert!(
        (before.as_secs_f64()..=after.as_secs_f64()).contains(&shown),
        "{shown} is not between the kernel's figures {before:?} and {after:?}"
    );
}

/// Of the standard series, only the value of the CPU time is not computed by the crate.
#[test]
fn process_series_have_the_standard_names() {
    let mut text = String::new();
    let families = ProcessCollector::for_self().collect();
    TextEncoder::new().encode_utf8(&families, &mut text).unwrap();
    let docs = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.starts_with('#'));
        lines.filter(|line| line.contains(" process_")).map(str::to_owned).collect()
    };
    let (_, shown) = Server::start(&[]).get("/metrics");
    assert!(docs(&text).iter().any(|line| line.contains(CPU_SECONDS)), "{text}");
    assert_eq!(docs(&shown), docs(&text));
}

#[test]
fn only_the_known_paths_are_served() {
    let server = Server::start(&[]);
    for (path, _) in PATHS {
        let mut body = String::new();
        // Liveness has a time limit, which a busy machine may exceed.
        wait_until("each path answers 200", || {
            let status;
            (status, body) = server.get(path);
            status == 200
        });
        if !matches!(path, "/" | "/metrics") {
            assert_eq!(body.lines().count(), 1, "{path}: {body}");
        }
        wait_until("each path answers HEAD with 200", || {
            request(server.http, "HEAD", path).0 == 200
        });
        assert_eq!(request(server.http, "HEAD", path).1, "", "{path}");
        assert_eq!(request(server.http, "POST", path).0, 405, "{path}");
    }
    let (status, body) = server.get("/metricsx");
    assert_eq!(status, 404);
    assert!(
        PATHS.iter().all(|(path, _)| body.contains(path)),
        "the response to an unknown path does not list all paths: {body}"
    );
}

/// Returns the head and body of `/` for this `Accept` header.
fn index(server: &Server, accept: &str) -> (String, String) {
    let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    let answer = raw(server, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// The `Accept` header of a browser.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[test]
fn browsers_get_the_page_and_other_clients_get_text() {
    let server = Server::start(&[]);
    for accept in [BROWSER, "text/html", "application/json, TEXT/HTML;level=1;q=0.1"] {
        let (head, page) = index(&server, accept);
        assert!(head.contains("\r\ncontent-type: text/html; charset=utf-8"), "{accept}: {head}");
        assert!(page.starts_with("<!doctype html>") && !page.contains("{{"), "{accept}: {page}");
        assert!(page.contains(VERSION) && page.contains(REVISION));
        let linked = |path| page.contains(&format!("href=\".{path}\""));
        assert!(
            PATHS.iter().all(|(path, _)| linked(path)),
            "the page does not link all paths: {page}"
        );
    }
    for accept in ["*/*", "", "text/*", "text/plain", "text/html;q=0, */*", "text/html5"] {
        let (head, text) = index(&server, accept);
        assert!(head.contains("\r\ncontent-type: text/plain; charset=utf-8"), "{accept}: {head}");
        assert!(
            text.starts_with("zmq-echo, ") && text.contains(VERSION) && text.contains(REVISION)
        );
        assert!(PATHS.iter().all(|(path, purpose)| text.contains(path) && text.contains(purpose)));
    }
}

/// Returns the SHA-256 of the content of the page's only element `tag`, in the form used by a
/// policy.
pub fn hash_of(page: &str, tag: &str) -> String {
    let (_, rest) = page.split_once(&format!("<{tag}>")).expect("one element");
    let (content, rest) = rest.split_once(&format!("</{tag}>")).expect("its end");
    assert!(!rest.contains(&format!("<{tag}")), "the page has a second {tag} element");
    let hash = ring::digest::digest(&ring::digest::SHA256, content.as_bytes());
    base64::prelude::BASE64_STANDARD.encode(hash)
}

#[test]
fn the_page_may_run_only_its_own_script_and_call_only_its_own_server() {
    let server = Server::start(&[]);
    let (head, page) = index(&server, BROWSER);
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of(&page, "script"),
        hash_of(&page, "style"),
    );
    for header in [
        format!("content-security-policy: {policy}"),
        "x-content-type-options: nosniff".to_owned(),
        "referrer-policy: no-referrer".to_owned(),
        "cache-control: no-store".to_owned(),
        "vary: accept".to_owned(),
    ] {
        assert!(
            head.contains(&format!("\r\n{header}")),
            "the response lacks the header `{header}`: {head}"
        );
    }
}

#[test]
fn the_page_is_small_and_complete() {
    let (_, page) = index(&Server::start(&[]), BROWSER);
    assert!(page.len() < 40 << 10, "the page has {} bytes", page.len());
    // This is the name of an XML namespace, which no browser fetches.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "//cdn", "src=", "@import", "url(", "innerHTML"] {
        assert!(!page.contains(outside), "the page refers to another host: {outside}");
    }
}

#[test]
fn every_series_that_the_page_names_exists() {
    let server = Server::start(&[]);
    let (_, page) = index(&server, BROWSER);
    let (_, text) = server.get("/metrics");
    let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<_> = words
        .filter(|word| word.starts_with("zmq_echo_") || word.starts_with("process_"))
        .collect();
    assert!(named.len() > 20, "too few series were found on the page: {named:?}");
    for name in named {
        let is_sample =
            |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        assert!(text.lines().any(is_sample), "the page names {name}, which is not a series");
    }
}

#[test]
fn the_instance_name_on_the_page_is_escaped() {
    let name = "<b>\"pod\" & {{links}}";
    let (_silent, http) = beside_a_stuck_loop_of(name, Phase::Serving);
    let mut stream = TcpStream::connect(http).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let element = "<span id=\"instance\">&lt;b&gt;&quot;pod&quot; &amp; {{links}}</span>";
    assert!(page.contains(element), "the name is not escaped as `{element}`: {page}");
    assert!(!page.contains(name));
    let (_, text) = get(http, "/");
    assert!(
        text.lines().next().is_some_and(|line| line.ends_with(&format!("on {name}"))),
        "{text}"
    );
}

#[test]
fn the_page_names_the_pod_if_the_environment_does() {
    let mut server = command(&TEST_SERVER);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    server.env(POD_NAME, "quotes-5b8f-x2x4z");
    let server = Server::spawn(server);
    let (_, text) = get(server.http, "/");
    let first = text.lines().next().unwrap_or_default();
    assert!(first.ends_with("on quotes-5b8f-x2x4z"), "{text}");
}

#[test]
fn metrics_are_served_in_text_format_0_0_4() {
    let server = Server::start(&[]);
    let head = raw(&server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{head}");
}

fn raw(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset after the response counts as a close.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn an_http_request_that_is_too_long_is_rejected() {
    let server = Server::start(&[]);
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(server.http).unwrap();
    let _ = stream.write_all(long.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    server.wait_until_ready();
}

#[test]
fn slow_clients_do_not_stop_a_scrape() {
    let server = Server::start(&[]);
    let mut slow: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(server.http).unwrap()).collect();
    // The oldest connections were closed to make room. Otherwise this many descriptors would be
    // open.
    server.wait_for_metric("process_open_fds", |open| open < 300.0);
    for (round, byte) in b"GET /".iter().enumerate() {
        for stream in &mut slow {
            // Connections that the side port has already closed cannot be written to.
            let _ = stream.write_all(&[*byte]);
        }
        assert_eq!(
            server.get("/metrics").0,
            200,
            "a scrape next to slow clients failed in round {round}"
        );
        thread::sleep(Duration::from_millis(200));
    }
    // A byte now and then does not keep a connection alive: every one of them is closed.
    for mut stream in slow {
        stream.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// Opens connections from `source` as fast as it can and sends nothing on them, until it is
/// dropped. Enough of them stay open to take every free place.
struct Flood {
    ended: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    fn start(target: SocketAddr, source: [u8; 4]) -> Self {
        let (ended, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (until, count) = (Arc::clone(&ended), Arc::clone(&opened));
        let thread = thread::spawn(move || {
            let mut open = VecDeque::new();
            while !until.load(Ordering::Relaxed) {
                open.push_back(silent(target, source));
                count.fetch_add(1, Ordering::Relaxed);
                if open.len() > side_port::CONNECTIONS + 50 {
                    open.pop_front();
                }
            }
        });
        Self { ended, opened, thread: Some(thread) }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A connection that leaves no port in TIME_WAIT.
fn silent(target: SocketAddr, source: [u8; 4]) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&target.into()).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket
}

#[test]
fn every_liveness_check_beside_a_flood_of_connections_is_answered() {
    let server = Server::start(&[]);
    let flood = Flood::start(server.http, [127, 0, 0, 2]);
    wait_until("the flood has taken every place", || flood.opened() > 2 * side_port::CONNECTIONS);
    for check in 1..=80 {
        let before = flood.opened();
        let (status, text) = server.get("/livez");
        assert!(status == 200 || used_up_its_limit(&text), "check {check}: {status} {text}");
        wait_until("the flood continues", || flood.opened() > before + side_port::CONNECTIONS);
    }
}

/// Whether a failed echo had all of its time. On a busy machine an echo may be late even without a
/// flood.
fn used_up_its_limit(text: &str) -> bool {
    let after = text.split_once(" after ").and_then(|(_, rest)| rest.split_once(" ms"));
    let after = after.and_then(|(number, _)| number.parse().ok());
    after.is_some_and(|after: f64| after >= side_port::LIVE_LIMIT.as_secs_f64() * 1000.0)
}

#[test]
fn a_request_being_answered_survives_a_flood_of_connections() {
    let (_silent, http) = beside_a_stuck_loop(Phase::Serving);
    let flood = Flood::start(http, [127, 0, 0, 2]);
    wait_until("the flood has taken every place", || flood.opened() > 2 * side_port::CONNECTIONS);
    // Each is answered after half a second, when the echo has failed.
    let asked: Vec<_> = (0..8).map(|_| thread::spawn(move || get(http, "/livez"))).collect();
    for asked in asked {
        let (status, text) =
            asked.join().expect("the flood does not cut off a request that is being answered");
        assert_eq!(status, 503, "{text}");
    }
}

#[test]
fn http_clients_that_do_not_read_do_not_lock_out_others() {
    let listener = "127.0.0.1:0".parse::<HttpAddress>().unwrap().listen().unwrap().remove(0);
    // Bytes that the kernel has taken no longer count as unsent. It takes 64 KiB at once, however
    // small the buffer is, so the response must be larger.
    SockRef::from(&listener).set_send_buffer_size(4 << 10).unwrap();
    let buckets: Vec<f64> = (1..5000).map(f64::from).collect();
    let (_silent, http) = serve_beside_a_stuck_loop(listener, "here", Phase::Serving, &buckets, 8);
    let mut unread = Vec::new();
    for _ in 0..24 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(2 << 10).unwrap();
        socket.connect(&http.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(
            stream.peek(&mut [0]).is_ok_and(|count| count == 1),
            "the side port did not answer"
        );
        unread.push(stream);
        let started = Instant::now();
        assert_eq!(
            get(http, "/readyz").0,
            200,
            "/readyz failed next to {} clients that do not read",
            unread.len()
        );
        // If none of the others gave way, the first would be closed after five seconds.
        let waited = started.elapsed();
        assert!(
            waited < Duration::from_secs(3),
            "/readyz took {waited:?} next to {} clients that do not read",
            unread.len()
        );
    }
}

#[test]
fn a_scrape_answers_while_the_loop_is_saturated() {
    let server = Server::start(&[]);
    let stream = raw::connect(server.address(), b"flood");
    let mut replies = stream.try_clone().unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
    let flood = raw::flood(&stream, raw::frame(b"flood", false).repeat(1000));
    server.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |requests| {
        requests > 10_000.0
    });
    for _ in 0..20 {
        let before = server.metric("zmq_echo_requests_total{source=\"client\"}");
        server.wait_for_metric("zmq_echo_requests_total{source=\"client\"}", |requests| {
            requests > before
        });
    }
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    flood.join().unwrap();
    let _ = reader.join().unwrap();
}

#[test]
fn concurrent_liveness_checks_share_one_echo() {
    let server = Server::start(&[]);
    let started = Instant::now();
    // An echo that takes too long, as it may on a busy machine, is shared too.
    wait_until("fifty concurrent checks report the same echo", || {
        let asking: Vec<_> = (0..50)
            .map(|_| {
                let address = server.http;
                thread::spawn(move || get(address, "/livez"))
            })
            .collect();
        let answers: Vec<_> = asking.into_iter().map(|asked| asked.join().unwrap()).collect();
        let echoes = server.metric("zmq_echo_requests_total{source=\"probe\"}");
        let most = started.elapsed().as_secs_f64() + 1.0;
        assert!(echoes <= most, "checks were not shared: {echoes} echoes, at most {most} expected");
        let (status, text) = &answers[0];
        assert_eq!(text.starts_with("alive, echoed in "), *status == 200, "{text}");
        *status == 200 && answers.iter().all(|answer| *answer == answers[0])
    });
    assert_eq!(server.metric("zmq_echo_requests_total{source=\"client\"}"), 0.0);
}

/// A side port whose loop last ran long ago, next to an endpoint that accepts and stays silent.
fn beside_a_stuck_loop(phase: Phase) -> (std::net::TcpListener, SocketAddr) {
    beside_a_stuck_loop_of("here", phase)
}

fn beside_a_stuck_loop_of(instance: &str, phase: Phase) -> (std::net::TcpListener, SocketAddr) {
    let http = "127.0.0.1:0".parse::<HttpAddress>().unwrap().listen().unwrap().remove(0);
    serve_beside_a_stuck_loop(http, instance, phase, &[1.0], side_port::CONNECTIONS)
}

fn serve_beside_a_stuck_loop(
    http: std::net::TcpListener,
    instance: &str,
    phase: Phase,
    buckets: &[f64],
    connections: usize,
) -> (std::net::TcpListener, SocketAddr) {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    let long_ago = Instant::now()
        .checked_sub(2 * Health::TURN_LIMIT)
        .expect("the machine has been up for longer than the limit");
    let health = Health::new(long_ago);
    health.enter(phase);
    let metrics = Metrics::new(buckets, &["echo"], metrics::log_records_dropped());
    let addresses = OwnAddresses::of(&[silent.try_clone().unwrap()]).unwrap();
    let side_port = SidePort::new(metrics, Arc::new(health), addresses, instance);
    side_port::spawn(vec![http], side_port, connections).unwrap();
    (silent, address)
}

#[test]
fn a_loop_that_does_not_answer_is_not_alive() {
    let (_silent, http) = beside_a_stuck_loop(Phase::Serving);
    for path in ["/livez", "/healthz"] {
        let (status, text) = get(http, path);
        assert_eq!(status, 503, "{text}");
        assert!(text.starts_with("not alive: tcp://127.0.0.1:"), "{text}");
        assert!(text.contains("handshake failed after"), "{text}");
    }
    assert_eq!(get(http, "/readyz"), (200, "ready\n".to_owned()));
}

#[test]
fn while_draining_a_loop_that_hangs_is_not_alive() {
    let (_silent, http) = beside_a_stuck_loop(Phase::Draining);
    let (status, text) = get(http, "/livez");
    assert_eq!(status, 503, "{text}");
    assert!(text.starts_with("draining, the loop ran "), "{text}");
    assert_eq!(get(http, "/readyz"), (503, "draining\n".to_owned()));
}

#[test]
fn the_server_is_not_ready_before_the_first_turn_of_its_loop() {
    let (_silent, http) = beside_a_stuck_loop(Phase::Starting);
    assert_eq!(get(http, "/readyz"), (503, "starting\n".to_owned()));
}
