//! Attacks by untrusted peers on the real process. Each test measures memory, CPU and the latency
//! of a well-behaved peer, and compares them with the values before the attack in the same run.

mod accepting;
mod fairness;
mod memory;
mod replies;
mod silence;
mod together;
mod trickle;
mod wrong_peers;

use std::net::TcpStream;
use std::ops::Deref;
use std::time::{Duration, Instant};

use crate::support::{PROBE, Server, command, raise_open_files, raw, wait_until};

/// Upper bound on resident memory at the default flags.
const MEMORY: u64 = 160 << 20;

/// The well-behaved peer's request, of a typical small size.
const REQUEST: usize = 64;

/// A server and a well-behaved peer that was connected before the attack.
struct Attacked {
    server: Server,
    well_behaved: TcpStream,
    baseline: Duration,
}

impl Deref for Attacked {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Attacked {
    fn start(args: &[&str]) -> Self {
        Self::new(Server::start(args))
    }

    fn new(server: Server) -> Self {
        raise_open_files();
        let mut well_behaved = raw::dealer(server.address(), 0, b"well-behaved");
        median_echo(&mut well_behaved, 100);
        let baseline = median_echo(&mut well_behaved, 200);
        Self { server, well_behaved, baseline }
    }

    fn failures(&self, reason: &str) -> f64 {
        self.metric(&format!("zmq_echo_handshake_failures_total{{reason=\"{reason}\"}}"))
    }

    fn disconnections(&self, reason: &str) -> f64 {
        self.metric(&format!("zmq_echo_disconnections_total{{reason=\"{reason}\"}}"))
    }

    fn wait_for_failures(&self, reason: &str, count: usize) {
        let series = format!("zmq_echo_handshake_failures_total{{reason=\"{reason}\"}}");
        self.wait_for_metric(&series, |value| value == count as f64);
    }

    fn wait_for_disconnections(&self, reason: &str, count: usize) {
        let series = format!("zmq_echo_disconnections_total{{reason=\"{reason}\"}}");
        self.wait_for_metric(&series, |value| value == count as f64);
    }

    /// During the attack, an echo of the well-behaved peer may take at most a few times as long as
    /// before. Other work on the machine can delay either side for a while, so this measures again
    /// until it holds. An attack that really slows the server down does not stop doing so.
    #[track_caller]
    fn assert_serves_others(&mut self) {
        let bound = 10 * self.baseline + Duration::from_millis(50);
        wait_until("during the attack, an echo takes about as long as before", || {
            let now = median_echo(&mut self.well_behaved, 50);
            eprintln!("echo of the well-behaved peer: {now:?}, before {:?}", self.baseline);
            now <= bound
        });
    }

    /// After the attack: memory has stayed within its bound, the probe succeeds, the well-behaved
    /// peer is still served, and the log contains only lifecycle records of the server.
    #[track_caller]
    fn assert_unharmed(&mut self) {
        self.assert_serves_others();
        let (peak, now) = (self.memory("VmHWM"), self.memory("VmRSS"));
        eprintln!("memory: {} KiB at most, {} KiB at the end", peak >> 10, now >> 10);
        assert!(
            peak < MEMORY,
            "the server exceeded its memory bound: {peak} bytes were resident at the peak"
        );
        self.assert_probe_succeeds();
        for line in self.lines() {
            // A busy machine can make any turn slow.
            let own = [
                "\"listening\"",
                "\"peer limit lowered to fit the limit on open files\"",
                "\"slow turns: the service blocks the loop\"",
            ];
            assert!(
                own.iter().any(|own| line.contains(own)),
                "untrusted peers caused this log line: {line}"
            );
        }
        assert!(self.server.is_running());
    }

    #[track_caller]
    fn assert_probe_succeeds(&self) {
        let output = command(PROBE)
            .args(["--endpoint", &self.endpoint, "--timeout", "20s"])
            .output()
            .expect("the probe can be run");
        assert!(output.status.success(), "the probe failed: {output:?}");
    }
}

fn median_echo(peer: &mut TcpStream, count: usize) -> Duration {
    let request = raw::frame(&[7; REQUEST], false);
    let echoes = (0..count).map(|_| {
        let started = Instant::now();
        raw::echoes(peer, &request);
        started.elapsed()
    });
    quantile(echoes.collect(), 0.5)
}

fn quantile(mut values: Vec<Duration>, quantile: f64) -> Duration {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * quantile).round() as usize]
}
