//! Servers as processes, clients of every kind, and waiting on conditions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_parse::{Scrape, Value};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// For conditions that come true in milliseconds where all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const SERVER: &str = env!("CARGO_BIN_EXE_zmq-echo-server");
pub const PROBE: &str = env!("CARGO_BIN_EXE_zmq-echo-probe");

/// A command without the settings of the shell that runs the tests.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ZMQ_ECHO_") || name == "RUST_BACKTRACE" {
            command.env_remove(name);
        }
    }
    command
}

/// A child process that does not outlive its test, whatever comes.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().expect("the program starts"))
    }

    /// What it writes from here on.
    pub fn stdout(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().expect("stdout is taken once"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal)
            .expect("the process has not been waited for");
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end and returns the exit code.
    pub fn wait(&mut self) -> i32 {
        wait_until("the process ends", || !self.is_running());
        self.0.wait().unwrap().code().expect("an exit code")
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

/// A server process on ports of its own, whose log is read.
pub struct Server {
    process: Process,
    log: Arc<Mutex<Log>>,
    pub endpoint: String,
    pub http: SocketAddr,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let mut server = command(SERVER);
        server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]).args(args);
        Self::spawn(server)
    }

    /// Starts what writes its log as a server does, JSON, to stdout.
    pub fn spawn(mut server: Command) -> Self {
        let mut process = Process::spawn(&mut server);
        let log = Arc::new(Mutex::new(Log::default()));
        read_lines(process.stdout(), Arc::clone(&log));
        let mut server = Self {
            process,
            log,
            endpoint: String::new(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let listening = server.wait_for_record("listening");
        server.endpoint = listening["endpoint"].as_str().expect("an endpoint").to_owned();
        server.http = listening["http"].as_str().expect("an address").parse().expect("an address");
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.strip_prefix("tcp://").expect("tcp").parse().expect("an address")
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
            assert!(!ended, "it has ended without `{message}`: {:?}", self.lines());
            assert!(Instant::now() < deadline, "no record `{message}` in {:?}", self.lines());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
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
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("the text format")
    }

    /// The value of the series `name{label="value"}`, or of `name` alone.
    pub fn metric(&self, series: &str) -> f64 {
        sample(&self.scrape(), series).unwrap_or_else(|| panic!("no series {series}"))
    }

    pub fn wait_for_metric(&self, series: &str, holds: impl Fn(f64) -> bool) {
        wait_until(&format!("{series} is as expected"), || holds(self.metric(series)));
    }

    pub async fn dealer(&self) -> DealerSocket {
        let mut dealer = DealerSocket::new();
        dealer.connect(&self.endpoint).await.expect("the server accepts");
        dealer
    }
}

fn read_lines(stdout: impl BufRead + Send + 'static, log: Arc<Mutex<Log>>) {
    thread::spawn(move || {
        for line in stdout.split(b'\n') {
            let line = line.expect("a pipe can be read");
            log.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        log.lock().unwrap().ended = true;
    });
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The value of `name` or `name{label="value"}`; a histogram's is its count.
pub fn sample(scrape: &Scrape, series: &str) -> Option<f64> {
    let (name, label) = match series.split_once('{') {
        Some((name, label)) => (name, label.strip_suffix('}')?.split_once('=')),
        None => (series, None),
    };
    let matches = |sample: &&prometheus_parse::Sample| {
        sample.metric == name
            && label.is_none_or(|(label, value)| {
                sample.labels.get(label) == Some(value.trim_matches('"'))
            })
    };
    scrape.samples.iter().find(matches).map(|sample| match &sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
        Value::Histogram(buckets) => buckets.last().map_or(0.0, |bucket| bucket.count),
        Value::Summary(_) => panic!("no summaries here"),
    })
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
    (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
}

/// Sends one message and waits for the reply.
pub async fn echo(
    socket: &mut (impl SocketSend + SocketRecv),
    message: ZmqMessage,
) -> Vec<Vec<u8>> {
    socket.send(message).await.expect("the message is taken");
    receive(socket).await
}

pub async fn receive(socket: &mut impl SocketRecv) -> Vec<Vec<u8>> {
    let reply = tokio::time::timeout(DEADLINE, socket.recv()).await.expect("a reply in time");
    reply.expect("a reply").iter().map(|frame| frame.to_vec()).collect()
}

pub fn message(frames: &[&[u8]]) -> ZmqMessage {
    let (first, rest) = frames.split_first().expect("at least one frame");
    let mut message = ZmqMessage::from(first.to_vec());
    for frame in rest {
        message.push_back(frame.to_vec().into());
    }
    message
}

/// ZMTP by hand, for peers that no library would make: RFC 23.
pub mod zmtp {
    use super::{DEADLINE, Read, SocketAddr, TcpStream, Write};

    pub fn greeting() -> Vec<u8> {
        let mut greeting = vec![0; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        greeting
    }

    pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
        let mut body = b"\x05READY".to_vec();
        for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
            body.push(name.len() as u8);
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            body.extend_from_slice(value);
        }
        let mut command = vec![0x06];
        command.extend_from_slice(&(body.len() as u64).to_be_bytes());
        command.extend(body);
        command
    }

    pub fn frame(body: &[u8], more: bool) -> Vec<u8> {
        let mut frame = vec![0x02 | u8::from(more)];
        frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        frame.extend_from_slice(body);
        frame
    }

    /// Connects as `identity` and shakes hands. What comes next is the caller's.
    pub fn connect(address: SocketAddr, identity: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&greeting()).unwrap();
        stream.write_all(&ready("DEALER", identity)).unwrap();
        stream.read_exact(&mut [0; 64]).expect("a greeting");
        read_frame(&mut stream);
        stream
    }

    /// One frame or command: its flags and its body.
    pub fn read_frame(stream: &mut impl Read) -> (u8, Vec<u8>) {
        let mut flags = [0];
        stream.read_exact(&mut flags).expect("a frame");
        let length = if flags[0] & 0x02 == 0 {
            let mut length = [0];
            stream.read_exact(&mut length).unwrap();
            u64::from(length[0])
        } else {
            let mut length = [0; 8];
            stream.read_exact(&mut length).unwrap();
            u64::from_be_bytes(length)
        };
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).expect("a whole frame");
        (flags[0], body)
    }
}
