//! Turns samples into medians, ratios, floors and Markdown.

mod dealers;

use std::fmt;

use anyhow::Error;

use crate::cases::{Case, IDLE_CEILING};
use crate::machine::Machine;
use crate::measure::Sample;
use crate::sides::Side;

pub use dealers::{Dealers, Pairing};

/// All results of a run.
#[derive(Debug)]
pub struct Results {
    machine: Machine,
    sides: Vec<Side>,
    rounds: usize,
    cases: Vec<CaseResults>,
    idle: Vec<Idle>,
    /// The measurement of clients.
    pub dealers: Dealers,
}

/// The samples of one case, round by round.
#[derive(Debug)]
struct CaseResults {
    case: Case,
    rounds: Vec<Round>,
    /// The sides that failed this case, each listed once.
    failed: Vec<(Side, Failure)>,
}

/// A sample of each side that has not failed, all taken within a short time.
type Round = Vec<(Side, Sample)>;

/// The outcome of a measurement.
pub type Outcome<T> = Result<T, Failure>;

/// Why a side has no figures in a case. It is shown in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

impl From<Error> for Failure {
    /// The error and its causes, on one line that fits into a table cell.
    fn from(error: Error) -> Self {
        let words = format!("{error:#}").replace('|', "/");
        Self(words.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}", self.0)
    }
}

/// The memory of a side for each idle connection.
#[derive(Debug, Clone)]
pub struct Idle {
    /// The server whose memory was measured.
    pub side: Side,
    /// Number of idle connections.
    pub connections: usize,
    /// Bytes for each connection.
    pub bytes: Outcome<u64>,
}

/// A promise, and whether it was kept.
struct Floor {
    of: String,
    promised: String,
    measured: String,
    met: bool,
}

impl Results {
    /// Empty results, before any measurement.
    pub fn new(machine: Machine, sides: &[Side], cases: &[Case]) -> Self {
        let empty = |&case| CaseResults { case, rounds: Vec::new(), failed: Vec::new() };
        let cases = cases.iter().map(empty).collect();
        let (idle, dealers) = (Vec::new(), Dealers::default());
        Self { machine, sides: sides.to_vec(), rounds: 0, cases, idle, dealers }
    }

    /// Adds one round of one case: the outcome of each side that has not failed the case before.
    ///
    /// # Panics
    ///
    /// If a side is missing, or a side that the floors depend on has failed.
    pub fn add(&mut self, case: usize, outcomes: Vec<(Side, Outcome<Sample>)>) {
        let results = &mut self.cases[case];
        let mut round = Round::new();
        for (side, outcome) in outcomes {
            match outcome {
                Ok(sample) => round.push((side, sample)),
                Err(failure) => {
                    assert!(side.may_fail(), "{}: {failure}", side.name());
                    results.failed.push((side, failure));
                }
            }
        }
        for &side in &self.sides {
            let known = results.failure(side).is_some() || sample(&round, side).is_some();
            assert!(known, "the round has no sample of {}", side.name());
        }
        results.rounds.push(round);
        self.rounds = self.rounds.max(results.rounds.len());
    }

    /// Whether `side` failed `case` in an earlier round.
    pub fn has_failed(&self, case: usize, side: Side) -> bool {
        self.cases[case].failure(side).is_some()
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
                let ratio = results.ratio(Side::Server, side, rate).unwrap_or(0.0);
                Floor {
                    of: format!("{}, of {}", case.name, side.name()),
                    promised: format!("{floor:.2}"),
                    measured: format!("{ratio:.2}"),
                    met: ratio >= floor,
                }
            })
        });
        let server = self.idle.iter().filter(|idle| idle.side == Side::Server);
        let memory = server.map(|idle| Floor {
            of: format!("bytes per idle connection, of {}", idle.connections),
            promised: format!("at most {IDLE_CEILING}"),
            measured: shown(idle.bytes.as_ref()),
            met: idle.bytes.as_ref().is_ok_and(|bytes| *bytes <= IDLE_CEILING),
        });
        rates.chain(memory).collect()
    }

    /// One table with the messages per second by side and case, without the baseline.
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
                let rate = results.median(side, rate).map(thousands);
                text.push_str(&format!(" {} |", rate.unwrap_or_else(|| "failed".to_owned())));
            }
        }
        for other in [Side::Libzmq, Side::Crate, Side::Rzmq, Side::Tcp] {
            text.push_str(&format!("\n| of {} |", other.name()));
            for results in &self.cases {
                text.push_str(&format!(" {} |", factor(results.ratio(Side::Server, other, rate))));
            }
        }
        text.push_str(&format!("\n\n{}\n", self.machine));
        text
    }
}

impl CaseResults {
    /// The table cells of a side that has not failed.
    fn figures(&self, side: Side) -> String {
        let median = |value: Figure| self.median(side, value).unwrap_or(0.0);
        format!(
            "{rate} | {of_libzmq} | {of_tcp} | {p50:.0} | {p99:.0} | {cpu:.2} |\n",
            rate = thousands(median(rate)),
            of_libzmq = factor(self.ratio(side, Side::Libzmq, rate)),
            of_tcp = factor(self.ratio(side, Side::Tcp, rate)),
            p50 = median(|sample| sample.p50),
            p99 = median(|sample| sample.p99),
            cpu = median(|sample| sample.cpu),
        )
    }

    fn failure(&self, side: Side) -> Option<&Failure> {
        self.failed.iter().find(|(of, _)| *of == side).map(|(_, failure)| failure)
    }

    /// The median over the rounds, or `None` if the side failed in any of them.
    fn median(&self, side: Side, value: Figure) -> Option<f64> {
        let values = || self.rounds.iter().filter_map(|round| sample(round, side)).map(value);
        self.failure(side).is_none().then(|| median(values().collect()))
    }

    /// The median of the ratios of each round, in which both sides ran shortly after each other.
    /// `None` if one of them has failed.
    fn ratio(&self, side: Side, other: Side, value: Figure) -> Option<f64> {
        self.ratios(side, other, value).map(median)
    }

    fn ratios(&self, side: Side, other: Side, value: Figure) -> Option<Vec<f64>> {
        if self.failure(side).or(self.failure(other)).is_some() {
            return None;
        }
        let ratio = |round| Some(value(sample(round, side)?) / value(sample(round, other)?));
        self.rounds.iter().map(ratio).collect()
    }
}

/// One figure of a sample.
type Figure = fn(&Sample) -> f64;

fn rate(sample: &Sample) -> f64 {
    sample.rate
}

fn sample(round: &Round, side: Side) -> Option<&Sample> {
    round.iter().find(|(of, _)| *of == side).map(|(_, sample)| sample)
}

/// Minimum rounds for a verdict. With fewer, all rounds agree by chance too often.
const ENOUGH: usize = 5;

/// The median of a ratio over the rounds, and its range.
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

    /// A difference counts only if every round shows it.
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

/// The whole report, as it is written to the file.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Results\n\nWritten by the run of {}", self.machine)?;
        let rounds = self.rounds.max(self.dealers.rounds());
        writeln!(f, "Medians of {rounds} rounds; how to read them: [README](README.md).\n")?;
        if !self.cases.is_empty() {
            writeln!(f, "{}", self.throughput())?;
        }
        if self.sides.contains(&Side::Baseline) {
            writeln!(f, "## Compared with the baseline\n\n{}", self.against_baseline())?;
        }
        if !self.idle.is_empty() {
            writeln!(f, "## Idle connections\n\n{}", self.memory())?;
        }
        if !self.dealers.is_empty() {
            writeln!(f, "## DEALER clients\n\n{}", self.dealers)?;
        }
        if !self.cases.is_empty() {
            writeln!(f, "## Floors of {}\n\n{}", Side::Server.name(), self.promises())?;
        }
        Ok(())
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
                text.push_str(&format!("| {} | {} | ", results.case.name, side.name()));
                match results.failure(side) {
                    Some(failure) => text.push_str(&format!("{failure} | | | | | |\n")),
                    None => text.push_str(&results.figures(side)),
                }
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
            let ratios = |value| results.ratios(Side::Server, Side::Baseline, value);
            let spread = |value| Spread::of(ratios(value).unwrap_or_default());
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
            let bytes = shown(bytes.as_ref());
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

/// The middle value, or the mean of the two in the middle; zero if there are no values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn shown(outcome: Result<&u64, &Failure>) -> String {
    outcome.map_or_else(ToString::to_string, ToString::to_string)
}

fn factor(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// A rate in thousands, with one decimal below 100 k.
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
        // In the second round the machine ran at half speed.
        for speed in [1.0, 0.5, 1.0] {
            let rates = [server, 100.0, 80.0, 90.0, 150.0].map(|rate| Ok(sample(rate * speed)));
            results.add(0, Side::ALWAYS.into_iter().zip(rates).collect());
        }
        results
    }

    /// rzmq failed in the second of three rounds.
    fn with_a_failure() -> Results {
        let mut results = Results::new(Machine::here(), &Side::ALWAYS, &CASES[..1]);
        for round in 1..=3 {
            let running = Side::ALWAYS.into_iter().filter(|side| !results.has_failed(0, *side));
            let outcome = |side| match (side, round) {
                (Side::Rzmq, 2) => Err(Error::msg("a | b").context("no reply\nfor 10s").into()),
                _ => Ok(sample(140.0)),
            };
            let outcomes = running.map(|side| (side, outcome(side))).collect();
            results.add(0, outcomes);
        }
        results
    }

    /// The report of rounds in which the server had these ratios to the baseline.
    fn against_baseline(ratios: &[f64]) -> String {
        let sides = [Side::Server, Side::Baseline, Side::Libzmq, Side::Tcp];
        let mut results = Results::new(Machine::here(), &sides, &CASES[..1]);
        for &ratio in ratios {
            let rates = [ratio * 50.0, 50.0, 25.0, 75.0].map(|rate| Ok(sample(rate)));
            // The order in which the sides ran does not matter.
            results.add(0, sides.into_iter().zip(rates).rev().collect());
        }
        results.to_string()
    }

    #[test]
    fn a_loss_against_the_baseline_counts_only_if_every_round_shows_it() {
        let row = "| 64B-1x1 | 0.900 | 0.800–0.950 | 1.000 | 1.000–1.000 | **slower** in every";
        assert!(against_baseline(&[0.9, 0.95, 0.8, 0.9, 0.9]).contains(row));
        let row = "| 64B-1x1 | 0.900 | 0.800–1.010 | 1.000 | 1.000–1.000 | within noise |";
        assert!(against_baseline(&[0.9, 1.01, 0.8, 0.9, 0.9]).contains(row));
        let faster = against_baseline(&[1.1, 1.01, 1.2, 1.1, 1.1]);
        assert!(faster.contains("| faster in every round |"));
        assert!(against_baseline(&[0.9, 0.8, 0.9, 0.9]).contains("| too few rounds |"));
    }

    #[test]
    fn the_row_of_a_side_that_fails_a_case_shows_the_reason() {
        let results = with_a_failure();
        let row = "| 64B-1x1 | rzmq | failed: no reply for 10s: a / b | | | | | |\n";
        assert!(results.to_string().contains(row), "{results}");
        assert!(results.summary().contains("\n| rzmq | failed |\n"));
        assert!(results.summary().contains("\n| of rzmq | – |\n"));
    }

    #[test]
    fn the_floors_do_not_depend_on_a_side_that_may_fail() {
        let mut results = with_a_failure();
        let bytes = Err(Error::msg("refused").into());
        results.add_idle(Idle { side: Side::Rzmq, connections: 10, bytes });
        assert!(results.to_string().contains("| rzmq | 10 | failed: refused |"));
        assert!(results.floors().iter().all(|floor| !floor.of.contains("rzmq")));
        assert_eq!(results.floors().len(), 2);
    }

    #[test]
    #[should_panic(expected = "libzmq: failed: gone")]
    fn a_run_in_which_libzmq_fails_is_rejected() {
        let mut results = Results::new(Machine::here(), &Side::ALWAYS, &CASES[..1]);
        results.add(0, vec![(Side::Libzmq, Err(Error::msg("gone").into()))]);
    }

    #[test]
    fn results_without_a_baseline_do_not_mention_one() {
        assert!(!results(140.0).to_string().contains("baseline"));
        assert!(!results(140.0).summary().contains("baseline"));
    }

    #[test]
    fn ratios_are_taken_within_each_round() {
        let results = results(140.0);
        let ratio = results.cases[0].ratio(Side::Server, Side::Libzmq, rate).unwrap();
        assert!((ratio - 1.4).abs() < 1e-9);
        assert!(results.floors_met());
    }

    #[test]
    fn a_missed_floor_is_marked() {
        let mut results = results(130.0);
        assert!(!results.floors_met());
        assert!(results.to_string().contains("| 64B-1x1, of libzmq | 1.40 | 1.30 | **missed** |"));
        assert!(results.to_string().contains("| 64B-1x1, of raw TCP | 0.60 | 0.87 | met |"));
        results.add_idle(Idle { side: Side::Server, connections: 10, bytes: Ok(IDLE_CEILING + 1) });
        assert!(results.to_string().contains("| 4097 | **missed** |"));
    }

    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0, 10.0]), 2.5);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
