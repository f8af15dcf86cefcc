//! What is measured, for how long, and how fast the server must be.

use std::time::Duration;

use clap::Args;

use crate::sides::Side;

/// A load: a number of connections, each with a number of messages in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Number of connections, all from one thread.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub in_flight: usize,
    /// Size of each message's only frame, in bytes.
    pub payload: usize,
}

/// A load, with the minimum performance that the server must reach.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The name in `--case` and in the tables.
    pub name: &'static str,
    /// The load that the generator produces.
    pub load: Load,
    /// Minimum messages per second, as a multiple of libzmq's.
    pub of_libzmq: f64,
    /// Minimum messages per second, as a multiple of a raw TCP echo's.
    pub of_tcp: f64,
}

/// One message at a time shows the latency. Many messages in flight show the cost per message. With
/// few and with many connections, they also show how well a server batches. Large messages show the
/// cost of copies.
pub const CASES: [Case; 6] = [
    case("64B-1x1", 1, 1, 64, 1.4, 0.6),
    case("64B-1x100", 1, 100, 64, 2.0, 0.35),
    case("64B-16x100", 16, 100, 64, 2.0, 0.25),
    case("64B-64x10", 64, 10, 64, 2.0, 0.6),
    case("1KiB-16x100", 16, 100, 1 << 10, 4.0, 0.6),
    case("64KiB-4x10", 4, 10, 64 << 10, 1.4, 0.6),
];

/// Minimum messages per second of an echo behind each adapter, as a multiple of the inline echo's,
/// in [`ADAPTER_CASE`] with all threads of the server on one CPU.
pub const ADAPTER_FLOORS: [(Side, f64); 2] = [(Side::Concurrent, 0.10), (Side::Blocking, 0.05)];

/// The case in which adapters are measured.
pub const ADAPTER_CASE: &str = "64B-16x100";

/// How many messages a DEALER keeps in flight when clients are measured.
pub const DEALER_IN_FLIGHT: [u32; 2] = [1, 100];

/// Size of the only frame of those messages, in bytes.
pub const DEALER_PAYLOAD: usize = 64;

/// Maximum memory of the server for each idle connection, in bytes.
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

/// How long a measurement takes.
#[derive(Debug, Clone, Copy, Args)]
pub struct Times {
    /// Length of a measurement, in seconds
    #[arg(long = "seconds", default_value = "1", value_parser = parse_seconds)]
    pub window: Duration,

    /// Time under load before the measurement begins, in seconds
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    pub warm_up: Duration,
}

impl Times {
    /// The same times as arguments for another process.
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

/// The case with this name.
///
/// # Errors
///
/// If there is none, with a list of the names.
pub fn by_name(name: &str) -> Result<Case, String> {
    CASES
        .into_iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("expected one of {}", CASES.map(|case| case.name).join(", ")))
}
