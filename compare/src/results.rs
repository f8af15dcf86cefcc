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
    sides: Vec<Side>,
    rounds: usize,
    cases: Vec<CaseResults>,
    idle: Vec<Idle>,
}

/// The samples of one case, round by round.
#[derive(Debug)]
struct CaseResults {
    case: Case,
    rounds: Vec<Round>,
}

/// A sample of each side, all taken within seconds.
type Round = Vec<(Side, Sample)>;

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
    pub fn new(machine: Machine, sides: &[Side], cases: &[Case]) -> Self {
        let cases = cases.iter().map(|&case| CaseResults { case, rounds: Vec::new() }).collect();
        Self { machine, sides: sides.to_vec(), rounds: 0, cases, idle: Vec::new() }
    }

    /// Adds one round of one case, a sample of each side.
    ///
    /// # Panics
    ///
    /// If a side is missing.
    pub fn add(&mut self, case: usize, samples: Vec<(Side, Sample)>) {
        for side in &self.sides {
            assert!(samples.iter().any(|(of, _)| of == side), "no sample of {}", side.name());
        }
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
                let ratio = results.ratio(Side::Server, side, rate);
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
    /// table. The baseline is not in it.
    pub fn summary(&self) -> String {
        let mut text = String::from("| messages/s |");
        for results in &self.cases {
            text.push_str(&format!(" {} |", results.case.name));
        }
        text.push_str("\n|---|");
        text.push_str(&"--:|".repeat(self.cases.len()));
        for side in Side::ALWAYS {
            text.push_str(&format!("\n| {} |", side.name()));
            for results in &self.cases {
                text.push_str(&format!(" {} |", thousands(results.median(side, rate))));
            }
        }
        for other in [Side::Libzmq, Side::Crate, Side::Tcp] {
            text.push_str(&format!("\n| of {} |", other.name()));
            for results in &self.cases {
                text.push_str(&format!(" {:.2} |", results.ratio(Side::Server, other, rate)));
            }
        }
        text.push_str(&format!("\n\n{}\n", self.machine));
        text
    }
}

impl CaseResults {
    fn median(&self, side: Side, value: Figure) -> f64 {
        median(self.rounds.iter().map(|round| value(sample(round, side))).collect())
    }

    /// The median of the rounds' ratios: in a round, both ran within seconds.
    fn ratio(&self, side: Side, other: Side, value: Figure) -> f64 {
        median(self.ratios(side, other, value))
    }

    fn ratios(&self, side: Side, other: Side, value: Figure) -> Vec<f64> {
        let ratio = |round: &Round| value(sample(round, side)) / value(sample(round, other));
        self.rounds.iter().map(ratio).collect()
    }
}

/// One figure of a sample.
type Figure = fn(&Sample) -> f64;

fn rate(sample: &Sample) -> f64 {
    sample.rate
}

fn sample(round: &Round, side: Side) -> &Sample {
    let found = round.iter().find(|(of, _)| *of == side);
    &found.expect("a round has a sample of each side").1
}

/// With fewer rounds, all of them show the same too often by chance.
const ENOUGH: usize = 5;

/// A ratio's median over the rounds, and how far it varied between them.
struct Spread {
    rounds: usize,
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        let (least, most) = values
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(least, most), &v| (least.min(v), most.max(v)));
        Self { rounds: values.len(), median: median(values), least, most }
    }

    /// A difference counts if every single round shows it.
    const fn verdict(&self) -> &'static str {
        if self.rounds < ENOUGH {
            "too few rounds"
        } else if self.most < 1.0 {
            "**slower** in every round"
        } else if self.least > 1.0 {
            "faster in every round"
        } else {
            "within noise"
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} | {:.3}–{:.3}", self.median, self.least, self.most)
    }
}

/// The whole of it, as the file has it.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Results\n\nWritten by the run of {}", self.machine)?;
        writeln!(f, "Medians of {} rounds; how to read them: [README](README.md).\n", self.rounds)?;
        writeln!(f, "{}", self.throughput())?;
        if self.sides.contains(&Side::Baseline) {
            writeln!(f, "## Compared with the baseline\n\n{}", self.against_baseline())?;
        }
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
            for &side in &self.sides {
                let median = |value: Figure| results.median(side, value);
                text.push_str(&format!(
                    "| {case} | {side} | {rate} | {of_libzmq:.2} | {of_tcp:.2} | {p50:.0} | {p99:.0} | {cpu:.2} |\n",
                    case = results.case.name,
                    side = side.name(),
                    rate = thousands(median(rate)),
                    of_libzmq = results.ratio(side, Side::Libzmq, rate),
                    of_tcp = results.ratio(side, Side::Tcp, rate),
                    p50 = median(|sample| sample.p50),
                    p99 = median(|sample| sample.p99),
                    cpu = median(|sample| sample.cpu),
                ));
            }
        }
        text
    }

    fn against_baseline(&self) -> String {
        let mut text = String::from(
            "Ratios of the server to the baseline: the median of the rounds, and the range over \
             them.\n\n\
             | case | messages/s | range | CPU/message | range | messages/s, in short |\n\
             |---|--:|--:|--:|--:|---|\n",
        );
        for results in &self.cases {
            let spread = |value| Spread::of(results.ratios(Side::Server, Side::Baseline, value));
            let (rates, cpu) = (spread(rate), spread(|sample| sample.cpu));
            let (case, verdict) = (results.case.name, rates.verdict());
            text.push_str(&format!("| {case} | {rates} | {cpu} | {verdict} |\n"));
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
        let mut results = Results::new(Machine::here(), &Side::ALWAYS, &CASES[..1]);
        // The second round ran on a machine of half the speed.
        for speed in [1.0, 0.5, 1.0] {
            let rates = [server, 100.0, 80.0, 150.0].map(|rate| sample(rate * speed));
            results.add(0, Side::ALWAYS.into_iter().zip(rates).collect());
        }
        results
    }

    /// Rounds in which the server had these ratios to the baseline.
    fn against_baseline(ratios: &[f64]) -> String {
        let sides = [Side::Server, Side::Baseline, Side::Libzmq, Side::Tcp];
        let mut results = Results::new(Machine::here(), &sides, &CASES[..1]);
        for &ratio in ratios {
            let rates = [ratio * 50.0, 50.0, 25.0, 75.0].map(sample);
            // The order in which they ran changes nothing.
            results.add(0, sides.into_iter().zip(rates).rev().collect());
        }
        results.to_string()
    }

    #[test]
    fn a_loss_against_the_baseline_shows_if_every_round_has_it() {
        let row = "| 64B-1x1 | 0.900 | 0.800–0.950 | 1.000 | 1.000–1.000 | **slower** in every";
        assert!(against_baseline(&[0.9, 0.95, 0.8, 0.9, 0.9]).contains(row));
        let row = "| 64B-1x1 | 0.900 | 0.800–1.010 | 1.000 | 1.000–1.000 | within noise |";
        assert!(against_baseline(&[0.9, 1.01, 0.8, 0.9, 0.9]).contains(row));
        let faster = against_baseline(&[1.1, 1.01, 1.2, 1.1, 1.1]);
        assert!(faster.contains("| faster in every round |"));
        assert!(against_baseline(&[0.9, 0.8, 0.9, 0.9]).contains("| too few rounds |"));
    }

    #[test]
    fn without_a_baseline_the_results_do_not_speak_of_one() {
        assert!(!results(140.0).to_string().contains("baseline"));
        assert!(!results(140.0).summary().contains("baseline"));
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds_whatever_the_machine_did_between_them() {
        let results = results(140.0);
        assert!((results.cases[0].ratio(Side::Server, Side::Libzmq, rate) - 1.4).abs() < 1e-9);
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
