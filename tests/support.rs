//! Servers as processes, clients of every kind, and waiting on conditions.

// By path, because in some test binaries this file is in the parent folder.
#[path = "../client/tests/support/api_server.rs"]
#[allow(dead_code, reason = "the client's own tests use the rest")]
pub mod api_server;
#[path = "support/built.rs"]
pub mod built;
#[path = "../client/tests/support/dns_server.rs"]
#[allow(dead_code, reason = "the client's own tests use the rest")]
pub mod dns_server;
#[path = "support/open_files.rs"]
mod open_files;
#[path = "support/raw.rs"]
#[allow(dead_code, reason = "the socket's own tests use the rest")]
pub mod raw;
#[path = "support/relay.rs"]
pub mod relay;
#[path = "support/shell.rs"]
#[allow(dead_code, reason = "not every test binary reads commands")]
pub mod shell;
#[path = "support/tables.rs"]
pub mod tables;
#[path = "support/test_echo.rs"]
#[allow(dead_code, reason = "not every test binary runs a loop of its own")]
pub mod test_echo;
#[path = "support/waiting.rs"]
mod waiting;

#[allow(unused_imports, reason = "not every test binary starts a server of its own")]
pub use built::TEST_SERVER;
#[allow(unused_imports, reason = "not every test binary opens many files")]
pub use open_files::raise_open_files;
#[allow(unused_imports, reason = "not every test binary waits in a runtime")]
pub use waiting::{DEADLINE, runtime, until, wait_until};

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_parse::{Scrape, Value};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};
use zmq_echo::log::PLACE;

/// The server that you make your own. Only the tests of its service and of the program itself, such
/// as its flags, start it. All others start [`TEST_SERVER`].
pub const SERVER: &str = env!("CARGO_BIN_EXE_zmq-echo-server");
pub const PROBE: &str = env!("CARGO_BIN_EXE_zmq-echo-probe");

/// A log filter for every record of the service and its socket.
pub const EVERY_RECORD: &str = "zmq_echo=trace,zmtp=trace";

/// The environment variables that name a server's pod. Each comes with the field that it sets in
/// every record, and with a sample value.
pub const POD: [(&str, &str, &str); 3] = [
    (PLACE[0].0, PLACE[0].1, "default"),
    (PLACE[1].0, PLACE[1].1, "zmq-echo-7f9c6d5b8-x2x4z"),
    (PLACE[2].0, PLACE[2].1, "a \"quoted\\ node"),
];

/// A command without the `ZMQ_ECHO_` variables of the shell that runs the tests.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let place = POD.iter().any(|(variable, ..)| name == *variable);
        let ours = name.to_string_lossy().starts_with("ZMQ_ECHO_");
        if ours || place || name == "RUST_BACKTRACE" {
            command.env_remove(name);
        }
    }
    command
}

/// A child process that never outlives its test.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().expect("the program starts"))
    }

    /// The child's output from now on.
    pub fn stdout(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().expect("stdout is taken once"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("the process was already waited for");
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits until the process has exited, and returns its exit code.
    pub fn wait(&mut self) -> i32 {
        wait_until("the process has exited", || !self.is_running());
        self.0.wait().unwrap().code().expect("the process exited by itself, without a signal")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process has written so far.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

/// A server process on its own ports. Its log is read all the time.
pub struct Server {
    process: Process,
    log: Arc<Mutex<Log>>,
    pub endpoint: String,
    pub http: SocketAddr,
    /// The process id of the server, which may not be the process that was started.
    pub pid: u32,
}

impl Server {
    /// Starts the tests' own echo server.
    pub fn start(args: &[&str]) -> Self {
        Self::start_on("tcp://127.0.0.1:0", args)
    }

    pub fn start_on(endpoint: &str, args: &[&str]) -> Self {
        let mut server = command(&TEST_SERVER);
        server.args(["--bind", endpoint, "--http", "127.0.0.1:0"]).args(args);
        Self::spawn(server)
    }

    /// Starts `zmq-echo-server`, for a test of its service.
    pub fn start_real() -> Self {
        let mut server = command(SERVER);
        server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
        Self::spawn(server)
    }

    /// Starts a program that writes its log as JSON to stdout, as a server does.
    pub fn spawn(mut server: Command) -> Self {
        let mut process = Process::spawn(&mut server);
        let log = Arc::new(Mutex::new(Log::default()));
        read_lines(process.stdout(), Arc::clone(&log));
        let mut server = Self {
            pid: process.0.id(),
            process,
            log,
            endpoint: String::new(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let listening = server.wait_for_record("listening");
        server.endpoint =
            listening["endpoint"].as_str().expect("the record names the endpoint").to_owned();
        server.http = listening["http"]
            .as_str()
            .expect("the record names the side port")
            .parse()
            .expect("an address");
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.strip_prefix("tcp://").expect("a tcp endpoint").parse().expect("an address")
    }

    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().lines.clone()
    }

    pub fn find_record(&self, message: &str) -> Option<Json> {
        let lines = self.lines();
        let records = lines.iter().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        records.into_iter().find(|record| record["message"] == message)
    }

    pub fn wait_for_record(&self, message: &str) -> Json {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self.log.lock().unwrap().ended;
            if let Some(record) = self.find_record(message) {
                return record;
            }
            assert!(!ended, "the process exited without logging `{message}`: {:?}", self.lines());
            assert!(
                Instant::now() < deadline,
                "not logged within {DEADLINE:?}: `{message}`; the log is {:?}",
                self.lines()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops the process with SIGSTOP, which takes effect with a delay. Returns once the process
    /// has stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        wait_until("the process is stopped by SIGSTOP", || {
            self.proc("status").contains("State:\tT")
        });
    }

    pub fn wait(&mut self) -> i32 {
        self.process.wait()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.http, path)
    }

    pub fn scrape(&self) -> Scrape {
        scrape(self.http)
    }

    /// The value of the series `name{label="value"}` or `name`.
    pub fn metric(&self, series: &str) -> f64 {
        sample(&self.scrape(), series).unwrap_or_else(|| panic!("no series {series}"))
    }

    pub fn wait_for_metric(&self, series: &str, holds: impl Fn(f64) -> bool) {
        wait_until(&format!("{series} has the expected value"), || holds(self.metric(series)));
    }

    /// A line of `/proc/<pid>/status`, in bytes: `VmRSS` is the resident memory now, `VmHWM` its
    /// maximum so far.
    pub fn memory(&self, line: &str) -> u64 {
        self.status(line) << 10
    }

    /// The number in a line of `/proc/<pid>/status`.
    fn status(&self, line: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .expect("/proc/PID/status has the line");
        number.parse().expect("a number")
    }

    /// The CPU time that the process has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = self.proc("stat");
        // The program's name, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(") ").expect("the program's name in parentheses");
        let ticks = |at| fields.split(' ').nth(at).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = (ticks(11).expect("utime"), ticks(12).expect("stime"));
        // In hundredths of a second, on every Linux that Rust supports.
        Duration::from_millis((user + system) * 10)
    }

    /// Waits until `/readyz` returns 200. The record `listening` comes before the loop's first turn.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_until("/readyz answers 200", || self.get("/readyz").0 == 200);
    }

    /// Waits until `/livez` returns 200. The check has a time limit, which a busy machine may
    /// exceed.
    #[track_caller]
    pub fn wait_until_alive(&self) {
        wait_until("/livez answers 200", || self.get("/livez").0 == 200);
    }

    /// Waits until the process is idle: without requests it uses at most 5 % of a CPU, plus the
    /// error of the clock's ticks. It may have earlier work to finish, so this measures again; a
    /// loop that spins never becomes idle.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        wait_until("the process is idle: it uses at most 5 % of a CPU", || {
            let (started, before) = (Instant::now(), self.cpu_time());
            thread::sleep(Duration::from_millis(800));
            let (spent, passed) = (self.cpu_time() - before, started.elapsed());
            eprintln!("cpu: {spent:?} in {passed:?}");
            spent <= passed / 20 + Duration::from_millis(30)
        });
    }

    /// The number of descriptors that the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the process is running").count()
    }

    /// Writes `request` repeatedly to all `peers`, which read nothing, until the server reads from
    /// none of them any more and holds a reply for each. On a busy machine a server may pause for a
    /// moment, so nothing may move for half a second.
    pub fn flood_until_stuck(&self, peers: &mut [TcpStream], request: &[u8]) -> Vec<Taken> {
        const STUCK: Duration = Duration::from_millis(500);
        let started = Instant::now();
        let mut moved_at = started;
        let mut taken = vec![Taken::default(); peers.len()];
        peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
        loop {
            for (peer, taken) in peers.iter_mut().zip(&mut taken) {
                while !taken.closed {
                    match peer.write(&request[taken.bytes % request.len()..]) {
                        Ok(count) => taken.bytes += count,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                        Err(_) => taken.closed = true,
                    }
                    moved_at = Instant::now();
                }
            }
            let open = taken.iter().filter(|taken| !taken.closed).count();
            let is_stuck = moved_at.elapsed() >= STUCK;
            if is_stuck && self.metric("zmq_echo_pending_replies") >= open as f64 {
                break;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "the server still reads from peers that read no replies"
            );
            thread::sleep(Duration::from_millis(1));
        }
        peers.iter().for_each(|peer| peer.set_nonblocking(false).unwrap());
        taken
    }

    /// Writes `bytes` repeatedly to a peer that reads nothing, until the server takes no more.
    /// Returns how much it took.
    pub fn flood_until_full(&self, peer: &mut TcpStream, bytes: &[u8]) -> usize {
        peer.set_nonblocking(true).unwrap();
        let (mut taken, mut moved_at) = (0, Instant::now());
        while moved_at.elapsed() < Duration::from_secs(1) {
            match peer.write(&bytes[taken % bytes.len()..]) {
                Ok(count) => (taken, moved_at) = (taken + count, Instant::now()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    panic!("the server closed a peer that only has to be held back: {error}")
                }
            }
        }
        peer.set_nonblocking(false).unwrap();
        taken
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.pid);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Waits until the process has exited, and returns its exit code. Meanwhile `dealer` keeps
    /// receiving, because the crate notices only then that a connection has ended.
    pub async fn wait_with(&mut self, mut dealer: DealerSocket) -> i32 {
        while self.is_running() {
            let _ = timeout(Duration::from_millis(5), dealer.recv()).await;
        }
        self.wait()
    }

    pub async fn dealer(&self) -> DealerSocket {
        dealer(&self.endpoint).await
    }
}

/// What a server has taken from a peer that reads nothing.
#[derive(Debug, Default, Clone)]
pub struct Taken {
    pub bytes: usize,
    pub closed: bool,
}

fn read_lines(stdout: impl BufRead + Send + 'static, log: Arc<Mutex<Log>>) {
    thread::spawn(move || {
        for line in stdout.split(b'\n') {
            let line = line.expect("the server's output can be read");
            log.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        log.lock().unwrap().ended = true;
    });
}

pub fn scrape(address: SocketAddr) -> Scrape {
    let (status, text) = get(address, "/metrics");
    assert_eq!(status, 200);
    parse_metrics(&text)
}

pub fn parse_metrics(text: &str) -> Scrape {
    Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))
        .expect("the metrics are in the text format")
}

/// The value of `name` or `name{label="value",...}`. For histograms, this is the count of all that
/// match, because the parser returns them in any order.
pub fn sample(scrape: &Scrape, series: &str) -> Option<f64> {
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let labels: Vec<_> = labels.split(',').filter_map(|label| label.split_once('=')).collect();
    let matches = |sample: &&prometheus_parse::Sample| {
        let holds = |(label, value): &(&str, &str)| {
            sample.labels.get(label) == Some(value.trim_matches('"'))
        };
        sample.metric == name && labels.iter().all(holds)
    };
    let mut found = scrape.samples.iter().filter(matches).map(|sample| match &sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => (false, *value),
        Value::Histogram(buckets) => (true, buckets.last().map_or(0.0, |bucket| bucket.count)),
        Value::Summary(_) => panic!("the server exports no summaries, but {series} is one"),
    });
    let (is_histogram, first) = found.next()?;
    let others = if is_histogram { found.map(|(_, count)| count).sum() } else { 0.0 };
    Some(first + others)
}

pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, "GET", path)
}

pub fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .build()
        .into();
    let request =
        ureq::http::Request::builder().method(method).uri(format!("http://{address}{path}"));
    let mut response = agent.run(request.body(()).unwrap()).expect("the side port answers");
    (
        response.status().as_u16(),
        response.body_mut().read_to_string().expect("the response is text"),
    )
}

pub async fn dealer(endpoint: &str) -> DealerSocket {
    let mut dealer = DealerSocket::new();
    dealer.connect(endpoint).await.expect("the server accepts");
    dealer
}

/// Sends one message and waits for the reply.
pub async fn echo(
    socket: &mut (impl SocketSend + SocketRecv),
    message: ZmqMessage,
) -> Vec<Vec<u8>> {
    socket.send(message).await.expect("the message is sent");
    receive(socket).await
}

pub async fn receive(socket: &mut impl SocketRecv) -> Vec<Vec<u8>> {
    let reply =
        tokio::time::timeout(DEADLINE, socket.recv()).await.expect("a reply arrives in time");
    reply
        .expect("the connection stays open until the reply")
        .iter()
        .map(|frame| frame.to_vec())
        .collect()
}

pub fn message(frames: &[&[u8]]) -> ZmqMessage {
    let (first, rest) = frames.split_first().expect("at least one frame");
    let mut message = ZmqMessage::from(first.to_vec());
    for frame in rest {
        message.push_back(frame.to_vec().into());
    }
    message
}
