//! From samples to medians, ratios, floors and Markdown.

use std::fmt;

use crate::cases::{Case, IDLE_CEILING};
use crate::machine::Machine;
use crate::measure::Sample;
use crate::sides::Side;

/// Everything that a run has shown.
#[derive(Debug)]
pub struct Results {
    machine: Machine,
    rounds: usize,
    cases: Vec<CaseResults>,
    idle: Vec<Idle>,
}

/// The samples of one case, a row for each round with a column for each side.
#[derive(Debug)]
struct CaseResults {
    case: Case,
    rounds: Vec<[Sample; Side::ALL.len()]>,
}

/// What an idle connection takes of a side.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// Whose memory.
    pub side: Side,
    /// How many there were.
    pub connections: usize,
    /// Bytes for each.
    pub bytes: u64,
}

/// A promise and what became of it.
struct Floor {
    of: String,
    promised: String,
    measured: String,
    met: bool,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(machine: Machine, cases: &[Case]) -> Self {
        let cases = cases.iter().map(|&case| CaseResults { case, rounds: Vec::new() }).collect();
        Self { machine, rounds: 0, cases, idle: Vec::new() }
    }

    /// Adds one round of one case, a sample for each of [`Side::ALL`].
    pub fn add(&mut self, case: usize, samples: [Sample; Side::ALL.len()]) {
        self.cases[case].rounds.push(samples);
        self.rounds = self.rounds.max(self.cases[case].rounds.len());
    }

    /// Adds a measurement of idle connections.
    pub fn add_idle(&mut self, idle: Idle) {
        self.idle.push(idle);
    }

    /// Whether the server keeps every promise that was measured.
    pub fn floors_met(&self) -> bool {
        self.floors().iter().all(|floor| floor.met)
    }

    fn floors(&self) -> Vec<Floor> {
        let rates = self.cases.iter().flat_map(|results| {
            let case = results.case;
            [(Side::Libzmq, case.of_libzmq), (Side::Tcp, case.of_tcp)].map(|(side, floor)| {
                let ratio = results.ratio(Side::Server, side);
                Floor {
                    of: format!("{}, of {}", case.name, side.name()),
                    promised: format!("{floor:.2}"),
                    measured: format!("{ratio:.2}"),
                    met: ratio >= floor,
                }
            })
        });
        let memory = self.idle.iter().filter(|idle| idle.side == Side::Server).map(|idle| Floor {
            of: format!("bytes an idle connection, of {}", idle.connections),
            promised: format!("at most {IDLE_CEILING}"),
            measured: idle.bytes.to_string(),
            met: idle.bytes <= IDLE_CEILING,
        });
        rates.chain(memory).collect()
    }

    /// Messages per second by side and case, for a page that has room for one
    /// table.
    pub fn summary(&self) -> String {
        let mut text = String::from("| messages/s |");
        for results in &self.cases {
            text.push_str(&format!(" {} |", results.case.name));
        }
        text.push_str("\n|---|");
        text.push_str(&"--:|".repeat(self.cases.len()));
        for side in Side::ALL {
            text.push_str(&format!("\n| {} |", side.name()));
            for results in &self.cases {
                text.push_str(&format!(" {} |", thousands(results.median(side, |s| s.rate))));
            }
        }
        for other in [Side::Libzmq, Side::Crate, Side::Tcp] {
            text.push_str(&format!("\n| of {} |", other.name()));
            for results in &self.cases {
                text.push_str(&format!(" {:.2} |", results.ratio(Side::Server, other)));
            }
        }
        text.push_str(&format!("\n\n{}\n", self.machine));
        text
    }
}

impl CaseResults {
    fn median(&self, side: Side, value: impl Fn(&Sample) -> f64) -> f64 {
        median(self.rounds.iter().map(|samples| value(&samples[side as usize])).collect())
    }

    /// The median of the rounds' ratios: in a round, both ran within seconds.
    fn ratio(&self, side: Side, other: Side) -> f64 {
        let ratio =
            |samples: &[Sample; 4]| samples[side as usize].rate / samples[other as usize].rate;
        median(self.rounds.iter().map(ratio).collect())
    }
}

/// The whole of it, as the file has it.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Results\n\nWritten by the run of {}", self.machine)?;
        writeln!(f, "Medians of {} rounds; how to read them: [README](README.md).\n", self.rounds)?;
        writeln!(f, "{}", self.throughput())?;
        if !self.idle.is_empty() {
            writeln!(f, "## Idle connections\n\n{}", self.memory())?;
        }
        writeln!(f, "## Floors of {}\n\n{}", Side::Server.name(), self.promises())
    }
}

impl Results {
    fn throughput(&self) -> String {
        let mut text = String::from(
            "## Throughput and latency\n\n\
             | case | server | messages/s | of libzmq | of raw TCP | p50 µs | p99 µs | CPU µs/message |\n\
             |---|---|--:|--:|--:|--:|--:|--:|\n",
        );
        for results in &self.cases {
            for side in Side::ALL {
                let median = |value: fn(&Sample) -> f64| results.median(side, value);
                text.push_str(&format!(
                    "| {case} | {side} | {rate} | {of_libzmq:.2} | {of_tcp:.2} | {p50:.0} | {p99:.0} | {cpu:.2} |\n",
                    case = results.case.name,
                    side = side.name(),
                    rate = thousands(median(|sample| sample.rate)),
                    of_libzmq = results.ratio(side, Side::Libzmq),
                    of_tcp = results.ratio(side, Side::Tcp),
                    p50 = median(|sample| sample.p50),
                    p99 = median(|sample| sample.p99),
                    cpu = median(|sample| sample.cpu),
                ));
            }
        }
        text
    }

    fn memory(&self) -> String {
        let mut text =
            String::from("| server | connections | resident bytes each |\n|---|--:|--:|\n");
        for Idle { side, connections, bytes } in &self.idle {
            text.push_str(&format!("| {} | {connections} | {bytes} |\n", side.name()));
        }
        text
    }

    fn promises(&self) -> String {
        let mut text = String::from("| promise | floor | measured | |\n|---|--:|--:|---|\n");
        for Floor { of, promised, measured, met } in self.floors() {
            let verdict = if met { "met" } else { "**missed**" };
            text.push_str(&format!("| {of} | {promised} | {measured} | {verdict} |\n"));
        }
        text
    }
}

/// The middle value, or the mean of the two in the middle; zero of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// A rate in thousands where that loses nothing.
fn thousands(rate: f64) -> String {
    match rate {
        rate if rate >= 99_950.0 => format!("{:.0} k", rate / 1e3),
        rate => format!("{:.1} k", rate / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    fn sample(rate: f64) -> Sample {
        Sample { rate, p50: 1.0, p99: 2.0, cpu: 0.5 }
    }

    fn results(server: f64) -> Results {
        let mut results = Results::new(Machine::here(), &CASES[..1]);
        // The second round ran on a machine of half the speed.
        for speed in [1.0, 0.5, 1.0] {
            results.add(0, [server, 100.0, 80.0, 150.0].map(|rate| sample(rate * speed)));
        }
        results
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds_whatever_the_machine_did_between_them() {
        let results = results(140.0);
        assert!((results.cases[0].ratio(Side::Server, Side::Libzmq) - 1.4).abs() < 1e-9);
        assert!(results.floors_met());
    }

    #[test]
    fn a_floor_that_is_missed_is_marked() {
        let mut results = results(130.0);
        assert!(!results.floors_met());
        assert!(results.to_string().contains("| 64B-1x1, of libzmq | 1.40 | 1.30 | **missed** |"));
        assert!(results.to_string().contains("| 64B-1x1, of raw TCP | 0.60 | 0.87 | met |"));
        results.add_idle(Idle { side: Side::Server, connections: 10, bytes: IDLE_CEILING + 1 });
        assert!(results.to_string().contains("| 4097 | **missed** |"));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0, 10.0]), 2.5);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
