//! The machine, date and versions that the numbers belong to.

use std::fmt;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::SystemTime;

/// What a reader needs to know to judge the numbers.
#[derive(Debug, Clone)]
pub struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    kernel: String,
    rustc: String,
    revision: String,
}

/// The lock file, which has the versions that are compared.
const LOCK: &str = include_str!("../../Cargo.lock");

impl Machine {
    /// Describes this machine. Call it before pinning the thread, because it counts the cores that
    /// the calling thread may use.
    pub fn here() -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
        let kernel = |name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
        let release = kernel("kernel/osrelease");
        let congestion = kernel("net/ipv4/tcp_congestion_control");
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self {
            date: date.split('T').next().unwrap_or_default().to_owned(),
            cpu: model.unwrap_or("an unnamed CPU").to_owned(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: format!(
                "Linux {} with TCP {}{}",
                release.trim(),
                congestion.trim(),
                if tracks_connections() { " and connection tracking" } else { "" }
            ),
            rustc: output("rustc", &["--version"]),
            revision: output(
                "git",
                &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"],
            ),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, cpu, cores, kernel, rustc, revision } = self;
        let (major, minor, patch) = zmq::version();
        write!(
            f,
            "{date}, {cpu}, {cores} cores, {kernel}; commit {revision}, libzmq \
             {major}.{minor}.{patch}, zeromq {zeromq}, rzmq {rzmq}, tokio {tokio}, {rustc}.",
            zeromq = locked("zeromq"),
            rzmq = locked("rzmq"),
            tokio = locked("tokio"),
        )
    }
}

/// Whether the kernel tracks every connection on this machine, including those on loopback, because
/// of firewall rules such as those that a container engine leaves behind. Tracking slows down every
/// packet.
pub fn tracks_connections() -> bool {
    let connect = || {
        let listener = TcpListener::bind("127.0.0.1:0").ok()?;
        let _connection = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
        count.trim().parse::<u64>().ok()
    };
    connect().is_some_and(|count| count > 0)
}

/// What a program prints, or "unknown" if it fails: this is only a note beside the numbers.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    output
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn locked(package: &str) -> &'static str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    LOCK.split_once(&entry).and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_what_is_compared_are_known() {
        for package in ["zeromq", "rzmq", "tokio"] {
            assert_ne!(locked(package), "unknown", "{package}");
        }
    }
}
