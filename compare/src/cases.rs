//! What is measured, for how long, and how fast the server has promised to be there.

use std::time::Duration;

use clap::Args;

use crate::sides::Side;

/// A load: so many connections, each with so many messages in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Connections, all from one thread.
    pub connections: usize,
    /// Requests on each connection that have no reply yet.
    pub in_flight: usize,
    /// Bytes of a message's only frame.
    pub payload: usize,
}

/// A load with the floors that the server is held to.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// For `--case` and the tables.
    pub name: &'static str,
    /// What the generator does.
    pub load: Load,
    /// The least messages per second, in multiples of libzmq's.
    pub of_libzmq: f64,
    /// The same of a raw TCP echo's.
    pub of_tcp: f64,
}

/// One message at a time shows the latency of the path, many show the cost of a
/// message, many on few and on many connections show batching, large ones copies.
pub const CASES: [Case; 6] = [
    case("64B-1x1", 1, 1, 64, 1.4, 0.6),
    case("64B-1x100", 1, 100, 64, 2.0, 0.35),
    case("64B-16x100", 16, 100, 64, 2.0, 0.25),
    case("64B-64x10", 64, 10, 64, 2.0, 0.6),
    case("1KiB-16x100", 16, 100, 1 << 10, 4.0, 0.6),
    case("64KiB-4x10", 4, 10, 64 << 10, 1.4, 0.6),
];

/// The least that an echo behind an adapter does, in multiples of the inline echo's messages per
/// second, with all threads of the server on one CPU: [`ADAPTER_CASE`].
pub const ADAPTER_FLOORS: [(Side, f64); 2] = [(Side::Concurrent, 0.10), (Side::Blocking, 0.05)];

/// The case at which adapters are measured.
pub const ADAPTER_CASE: &str = "64B-16x100";

/// How many messages a DEALER keeps in flight when clients are measured.
pub const DEALER_IN_FLIGHT: [u32; 2] = [1, 100];

/// Bytes of such a message's only frame.
pub const DEALER_PAYLOAD: usize = 64;

/// The most memory that an idle connection may take of the server, in bytes.
pub const IDLE_CEILING: u64 = 4 << 10;

const fn case(
    name: &'static str,
    connections: usize,
    in_flight: usize,
    payload: usize,
    of_libzmq: f64,
    of_tcp: f64,
) -> Case {
    Case { name, load: Load { connections, in_flight, payload }, of_libzmq, of_tcp }
}

/// The times of a measurement.
#[derive(Debug, Clone, Copy, Args)]
pub struct Times {
    /// How many seconds a measurement counts
    #[arg(long = "seconds", default_value = "1", value_parser = parse_seconds)]
    pub window: Duration,

    /// How many seconds it is under load before they begin to count
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    pub warm_up: Duration,
}

impl Times {
    /// As arguments for another process.
    pub fn arguments(self) -> [String; 4] {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        ["--seconds".into(), seconds(self.window), "--warm-up".into(), seconds(self.warm_up)]
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.01..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds from 0.01 to 3600, such as 1 or 0.3".to_owned())
}

/// The case of that name.
///
/// # Errors
///
/// Which names there are.
pub fn by_name(name: &str) -> Result<Case, String> {
    CASES
        .into_iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("expected one of {}", CASES.map(|case| case.name).join(", ")))
}
