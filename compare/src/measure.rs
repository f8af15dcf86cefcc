//! Single measurements: a server under load, a server with idle connections, and a client.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::cases::{Load, Times};
use crate::dealer::{self, Dealer, DealerArgs};
use crate::generator::{self, Generator};
use crate::pin::{self, Cpus};
use crate::process::Server;
use crate::sides::{Binaries, Side};

/// Connections that are open before memory is first measured, so that what a server allocates only
/// once does not count as the cost of each connection.
const FIRST_CONNECTIONS: usize = 16;

/// The interval between readings of a server's memory until it stops changing, and the maximum
/// number of readings.
const SETTLE: (Duration, u32) = (Duration::from_millis(50), 40);

/// The result of one measurement of a side under load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Messages per second that were echoed.
    pub rate: f64,
    /// Median round trip, in microseconds.
    pub p50: f64,
    /// 99th percentile of the round trips, in microseconds.
    pub p99: f64,
    /// Microseconds of the server's CPU per message.
    pub cpu: f64,
}

/// Starts `side`, puts it under `load` and measures it.
///
/// # Errors
///
/// If the server does not start, or does not echo every message.
pub fn throughput(
    side: Side,
    binaries: &Binaries,
    load: Load,
    times: Times,
    cpus: Cpus,
) -> Result<Sample> {
    let process = pin::scoped(cpus.server, || Server::start(side.command(binaries)?))?;
    let (window, cpu) = pin::scoped(cpus.generator, || {
        let mut generator = Generator::start(process.address, side.protocol(), load)?;
        generator.run(times.warm_up)?;
        let before = process.cpu_time()?;
        let window = generator.run(times.window)?;
        Ok((window, process.cpu_time()? - before))
    })?;
    let messages = window.messages as f64;
    let microseconds = |quantile| window.latency.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Sample {
        rate: messages / window.elapsed.as_secs_f64(),
        p50: microseconds(0.50),
        p99: microseconds(0.99),
        cpu: cpu.as_secs_f64() * 1e6 / messages,
    })
}

/// Starts `side` on the servers' CPU and `dealer` on the generator's, and measures the client.
///
/// # Errors
///
/// If the server does not start, or the client fails.
pub fn dealer(
    dealer: Dealer,
    side: Side,
    binaries: &Binaries,
    in_flight: u32,
    times: Times,
    cpus: Cpus,
) -> Result<dealer::Sample> {
    let process = pin::scoped(cpus.server, || Server::start(side.command(binaries)?))?;
    let args = DealerArgs { dealer, endpoint: process.endpoint(), in_flight, times };
    pin::scoped(cpus.generator, || args.measure())
}

/// The server's memory for each of `connections` idle connections after the handshake, in bytes.
///
/// # Errors
///
/// If the server does not start, or refuses a connection.
pub fn idle(side: Side, binaries: &Binaries, connections: usize) -> Result<u64> {
    let process = Server::start(side.command(binaries)?)?;
    let connect = |count| -> Result<Vec<_>> {
        (0..count).map(|_| generator::connect(process.address, side.protocol())).collect()
    };
    let _first = connect(FIRST_CONNECTIONS)?;
    let before = settled(&process)?;
    let _idle = connect(connections)?;
    Ok(settled(&process)?.saturating_sub(before) / connections as u64)
}

fn settled(process: &Server) -> Result<u64> {
    let mut resident = process.resident()?;
    for _ in 0..SETTLE.1 {
        thread::sleep(SETTLE.0);
        let before = std::mem::replace(&mut resident, process.resident()?);
        if before == resident {
            break;
        }
    }
    Ok(resident)
}
