//! The table of DEALERs as clients.

use std::fmt;

use super::{Failure, Outcome, factor, median, thousands};
use crate::dealer::{Dealer, Sample};
use crate::sides::Side;

/// What a row of the table describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pairing {
    /// Messages in flight.
    pub in_flight: u32,
    /// The ROUTER.
    pub server: Side,
    /// The DEALER that is measured.
    pub client: Dealer,
}

/// The outcomes of each pairing, in the order in which they were first measured.
#[derive(Debug, Default)]
pub struct Dealers {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    pairing: Pairing,
    samples: Vec<Sample>,
    failure: Option<Failure>,
}

impl Dealers {
    /// Adds a round of a pairing that has not failed before.
    pub fn add(&mut self, pairing: Pairing, outcome: Outcome<Sample>) {
        let index = self.rows.iter().position(|row| row.pairing == pairing);
        let index = index.unwrap_or_else(|| {
            self.rows.push(Row { pairing, samples: Vec::new(), failure: None });
            self.rows.len() - 1
        });
        match outcome {
            Ok(sample) => self.rows[index].samples.push(sample),
            Err(failure) => self.rows[index].failure = Some(failure),
        }
    }

    /// Whether a round of this pairing has failed.
    pub fn has_failed(&self, pairing: Pairing) -> bool {
        self.row(pairing).is_some_and(|row| row.failure.is_some())
    }

    /// The number of rounds.
    pub fn rounds(&self) -> usize {
        self.rows.iter().map(|row| row.samples.len()).max().unwrap_or(0)
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn row(&self, pairing: Pairing) -> Option<&Row> {
        self.rows.iter().find(|row| row.pairing == pairing)
    }

    /// The median of the ratios of each round to libzmq's DEALER at the same server.
    fn of_libzmq(&self, row: &Row) -> Option<f64> {
        let other = self.row(Pairing { client: Dealer::Libzmq, ..row.pairing })?;
        if row.failure.is_some() || other.failure.is_some() {
            return None;
        }
        let rounds = row.samples.iter().zip(&other.samples);
        Some(median(rounds.map(|(this, other)| this.rate / other.rate).collect()))
    }
}

impl fmt::Display for Dealers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| in flight | server | client | messages/s | of libzmq | CPU µs/message |")?;
        writeln!(f, "|--:|---|---|--:|--:|--:|")?;
        for row in &self.rows {
            let Pairing { in_flight, server, client } = row.pairing;
            write!(f, "| {in_flight} | {} | {} | ", server.name(), client.name())?;
            if let Some(failure) = &row.failure {
                writeln!(f, "{failure} | | |")?;
                continue;
            }
            let median =
                |value: fn(&Sample) -> f64| median(row.samples.iter().map(value).collect());
            let rate = thousands(median(|sample| sample.rate));
            let cpu = median(|sample| sample.cpu);
            writeln!(f, "{rate} | {} | {cpu:.2} |", factor(self.of_libzmq(row)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairing(server: Side, client: Dealer) -> Pairing {
        Pairing { in_flight: 100, server, client }
    }

    #[test]
    fn a_client_is_compared_with_libzmqs_at_the_same_server() {
        let mut dealers = Dealers::default();
        for (server, client, rates) in [
            (Side::Server, Dealer::Libzmq, [1000.0, 500.0, 1000.0]),
            (Side::Server, Dealer::Crate, [2000.0, 1000.0, 4000.0]),
            (Side::Crate, Dealer::Libzmq, [4000.0; 3]),
        ] {
            for rate in rates {
                dealers.add(pairing(server, client), Ok(Sample { rate, cpu: 1.5 }));
            }
        }
        let table = dealers.to_string();
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 100 | zmq-echo-server | libzmq | 1.0 k | 1.00 | 1.50 |",
                "| 100 | zmq-echo-server | zeromq crate | 2.0 k | 2.00 | 1.50 |",
                "| 100 | zeromq crate | libzmq | 4.0 k | 1.00 | 1.50 |",
            ]
        );
    }

    #[test]
    fn the_row_of_a_client_that_fails_shows_the_reason() {
        let mut dealers = Dealers::default();
        let [good, bad] =
            [Dealer::Crate, Dealer::Libzmq].map(|client| pairing(Side::Libzmq, client));
        dealers.add(good, Ok(Sample { rate: 1000.0, cpu: 1.5 }));
        dealers.add(bad, Ok(Sample { rate: 1000.0, cpu: 1.5 }));
        assert!(!dealers.has_failed(bad));
        dealers.add(bad, Err(anyhow::anyhow!("no reply").into()));
        assert!(dealers.has_failed(bad) && !dealers.has_failed(good));
        let table = dealers.to_string();
        assert!(table.contains("| 100 | libzmq | libzmq | failed: no reply | | |\n"), "{table}");
        assert!(table.contains("| 100 | libzmq | zeromq crate | 1.0 k | – | 1.50 |\n"), "{table}");
    }
}
