//! DEALERs as clients: each has one connection, keeps messages in flight, and shows what a message
//! costs the client's process.
//!
//! To measure another client, implement [`PipelineClient`] and add a variant to [`Dealer`].

mod libzmq;
mod zeromq_crate;
mod zmtp;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};

use crate::cases::{DEALER_PAYLOAD, Times};
use crate::process;

/// A client that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dealer {
    /// The library's own DEALER
    Zmtp,
    /// A DEALER of libzmq
    Libzmq,
    /// The zeromq crate's DEALER
    Crate,
}

impl Dealer {
    /// The clients of every run, in the order of the table's rows.
    pub const ALL: [Dealer; 3] = [Dealer::Zmtp, Dealer::Libzmq, Dealer::Crate];

    /// The name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Dealer::Zmtp => "zmtp",
            Dealer::Libzmq => "libzmq",
            Dealer::Crate => "zeromq crate",
        }
    }

    fn connect(self, endpoint: &str) -> Result<Box<dyn PipelineClient>> {
        Ok(match self {
            Dealer::Zmtp => Box::new(zmtp::Client::connect(endpoint)?),
            Dealer::Libzmq => Box::new(libzmq::Client::connect(endpoint)?),
            Dealer::Crate => Box::new(zeromq_crate::Client::connect(endpoint)?),
        })
    }
}

/// A DEALER with one connection.
pub trait PipelineClient {
    /// Keeps the exchange's messages in flight for `length`. Sends a request whenever
    /// [`Exchange::next_request`] has one, and passes each reply to [`Exchange::verify`].
    ///
    /// Requests may be in flight when it returns; their replies belong to the next call. If a reply
    /// is lost it may wait forever, and [`DealerArgs::measure`] then kills the process.
    ///
    /// # Errors
    ///
    /// If the socket fails, or a reply differs from its request.
    fn run(&mut self, exchange: &mut Exchange, length: Duration) -> Result<()>;
}

/// The requests of one connection. Their replies must come in the same order.
#[derive(Debug)]
pub struct Exchange {
    /// One message more than are in flight, and all different, so that a duplicate or missing reply
    /// is noticed.
    requests: Vec<Bytes>,
    sent: u64,
    received: u64,
}

impl Exchange {
    /// An exchange with `in_flight` messages, each with one frame of `payload` bytes.
    fn new(in_flight: usize, payload: usize) -> Self {
        let request = |number: usize| {
            number.to_le_bytes().into_iter().cycle().take(payload).collect::<Vec<_>>().into()
        };
        Self { requests: (0..=in_flight).map(request).collect(), sent: 0, received: 0 }
    }

    /// How many messages to keep in flight.
    pub fn in_flight(&self) -> usize {
        self.requests.len() - 1
    }

    /// The next request to send, or `None` if enough are in flight.
    pub fn next_request(&mut self) -> Option<Bytes> {
        if self.sent - self.received == self.in_flight() as u64 {
            return None;
        }
        let request = self.request(self.sent).clone();
        self.sent += 1;
        Some(request)
    }

    /// Checks a reply, which must have one frame, against the oldest unanswered request.
    ///
    /// # Errors
    ///
    /// If it differs from the oldest unanswered request, or there is no such request.
    pub fn verify(&mut self, reply: &[u8]) -> Result<()> {
        ensure!(self.received < self.sent, "got a reply without a request");
        ensure!(reply == self.request(self.received), "a reply differs from its request");
        self.received += 1;
        Ok(())
    }

    fn request(&self, number: u64) -> &Bytes {
        &self.requests[(number % self.requests.len() as u64) as usize]
    }
}

/// One measurement in its own process, so that the CPU time is the client's.
#[derive(Debug, Clone, Args)]
pub struct DealerArgs {
    /// The client
    #[arg(value_enum)]
    pub dealer: Dealer,

    /// The server's endpoint, such as tcp://127.0.0.1:5555
    #[arg(long)]
    pub endpoint: String,

    /// How many messages to keep in flight
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub in_flight: u32,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its documentation would become the command's")]
    pub times: Times,
}

/// The result of one measurement of a client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Messages per second that were echoed.
    pub rate: f64,
    /// Microseconds of the client's CPU per message.
    pub cpu: f64,
}

/// How long a process may run beyond its measurement before it is killed. Without this limit, a
/// lost reply would stop the run.
const GRACE: Duration = Duration::from_secs(10);

impl DealerArgs {
    /// Runs the client in its own process, on the CPU of the calling thread.
    ///
    /// # Errors
    ///
    /// If the client cannot connect, fails, or does not end in time.
    pub fn measure(&self) -> Result<Sample> {
        let this = std::env::current_exe().context("asking for the path of this program")?;
        let dealer = self.dealer.to_possible_value().expect("no variant is skipped");
        let mut command = Command::new(this);
        command.args(["dealer", dealer.get_name(), "--endpoint", &self.endpoint]);
        command.args(["--in-flight", &self.in_flight.to_string()]);
        command.args(self.times.arguments());
        let limit = self.times.warm_up + self.times.window + GRACE;
        let report = process::output(command, limit)?;
        let report: serde_json::Value = serde_json::from_str(&report)
            .with_context(|| format!("reading the report {report:?}"))?;
        let figure = |name| report[name].as_f64().with_context(|| format!("no {name}: {report}"));
        Ok(Sample { rate: figure("rate")?, cpu: figure("cpu")? })
    }

    /// What that process does: it measures, and writes the report that [`DealerArgs::measure`]
    /// reads to stdout.
    ///
    /// # Errors
    ///
    /// If the client cannot connect or fails.
    pub fn run(&self) -> Result<()> {
        let mut client = self.dealer.connect(&self.endpoint)?;
        let mut exchange = Exchange::new(self.in_flight as usize, DEALER_PAYLOAD);
        client.run(&mut exchange, self.times.warm_up)?;
        let (received, cpu) = (exchange.received, process::cpu_time(std::process::id())?);
        let begun = Instant::now();
        client.run(&mut exchange, self.times.window)?;
        let elapsed = begun.elapsed();
        let cpu = process::cpu_time(std::process::id())? - cpu;
        let messages = (exchange.received - received) as f64;
        let rate = messages / elapsed.as_secs_f64();
        let cpu = cpu.as_secs_f64() * 1e6 / messages;
        println!("{}", serde_json::json!({ "rate": rate, "cpu": cpu }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_number_of_messages_is_in_flight() {
        let mut exchange = Exchange::new(3, 64);
        let mut sent = Vec::from_iter(std::iter::from_fn(|| exchange.next_request()));
        assert_eq!(sent.len(), 3);
        for round in 0..10 {
            exchange.verify(&sent.remove(0)).unwrap();
            sent.push(exchange.next_request().unwrap());
            assert_eq!(exchange.next_request(), None, "round {round}");
        }
    }

    #[test]
    fn changed_lost_and_duplicate_replies_are_noticed() {
        let mut exchange = Exchange::new(2, 64);
        let [first, second] = [(); 2].map(|()| exchange.next_request().unwrap());
        let mut changed = first.to_vec();
        changed[63] ^= 1;
        assert!(exchange.verify(&changed).is_err());
        assert!(exchange.verify(&first[..63]).is_err());
        assert!(exchange.verify(&second).is_err());
        exchange.verify(&first).unwrap();
        assert!(exchange.verify(&first).is_err());
        exchange.verify(&second).unwrap();
        assert!(exchange.verify(&second).is_err());
    }
}
