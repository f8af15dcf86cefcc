//! The comparison. All sides take turns, so that a disturbance affects all of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::awake::Awake;
use crate::cases::{self, ADAPTER_CASE, ADAPTER_FLOORS, CASES, Case, DEALER_IN_FLIGHT, Times};
use crate::dealer::{self, Dealer};
use crate::machine::{self, Machine};
use crate::measure::{self, Sample};
use crate::pin::{self, Cpus};
use crate::results::{Dealers, Idle, Outcome, Pairing, Results};
use crate::sides::{Binaries, Side, build_server};

/// The file for the complete results.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");

/// The page that shows the summary, between two marker lines.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance.md");
const BEGIN: &str = "<!-- results of compare/ begin -->\n";
const END: &str = "<!-- results of compare/ end -->";

/// Whether the memory for an idle connection is measured. It means nothing for raw TCP, whose
/// buffer is sized for speed.
const fn has_idle_memory(side: Side) -> bool {
    !matches!(side, Side::Tcp)
}

/// The ROUTERs that DEALERs are measured with.
const DEALER_SERVERS: [Side; 3] = [Side::Server, Side::Libzmq, Side::Crate];

/// The options of a comparison.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// How many times each side is measured in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its documentation would become the command's")]
    pub times: Times,

    /// Measure only this case; can be repeated
    ///
    /// The results are then printed and no file is changed.
    #[arg(long = "case", value_name = "NAME", value_parser = cases::by_name)]
    pub cases: Vec<Case>,

    /// Measure the DEALER clients; without --case, nothing else
    ///
    /// The results are then printed and no file is changed.
    #[arg(long)]
    pub dealers: bool,

    /// Number of idle connections whose memory is measured; 0 skips that
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,

    /// Let a CPU sleep while the server or the client on it waits
    #[arg(long)]
    pub may_sleep: bool,

    /// The CPU of the servers
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,

    /// The CPU of the generator
    #[arg(long, default_value_t = 1)]
    pub generator_cpu: usize,

    /// Measure this zmq-echo-server instead of building one
    ///
    /// The results are then printed and no file is changed.
    #[arg(long, value_name = "PATH")]
    pub server: Option<PathBuf>,

    /// Also measure this zmq-echo-server in the same rounds, such as one built from the previous
    /// commit
    ///
    /// The results then show the ratio of the server to it in each case, and how much that ratio
    /// varied between rounds.
    #[arg(long, value_name = "PATH")]
    pub baseline: Option<PathBuf>,

    /// Measure only the cost of a service's adapters
    ///
    /// The results are then printed and no file is changed.
    #[arg(long, conflicts_with_all = ["cases", "dealers"])]
    pub adapters: bool,

    /// Exit with code 1 if a floor is missed
    #[arg(long)]
    pub check: bool,
}

impl RunArgs {
    /// Whether the run is complete, so that its results replace those in the files.
    fn is_whole(&self) -> bool {
        self.cases.is_empty() && !self.dealers && self.server.is_none()
    }

    fn measured_cases(&self) -> &[Case] {
        if self.cases.is_empty() && !self.dealers { &CASES } else { &self.cases }
    }

    fn measures_dealers(&self) -> bool {
        self.cases.is_empty() || self.dealers
    }
}

/// Measures and prints the results, and writes the files if every case was measured. Returns false
/// if `--check` was given and a floor was missed.
///
/// # Errors
///
/// If the server cannot be built, a side that the floors depend on fails, or a file cannot be
/// written.
pub fn run(args: &RunArgs) -> Result<bool> {
    let cpus = Cpus { server: args.server_cpu, generator: args.generator_cpu };
    cpus.check()?;
    pin::raise_open_files()?;
    let machine = Machine::here();
    let binaries = Binaries {
        server: args.server.clone().map_or_else(build_server, Ok)?,
        baseline: args.baseline.clone(),
    };
    if machine::tracks_connections() {
        eprintln!(
            "a firewall tracks connections here, which slows down every packet; see the README"
        );
    }
    let comparison = Comparison { args, cpus, sides: binaries.sides(), binaries };
    if args.adapters {
        let met = comparison.adapters()?;
        return Ok(!args.check || met);
    }
    let mut results = Results::new(machine, &comparison.sides, args.measured_cases());
    comparison.servers(&mut results)?;
    if args.measures_dealers() {
        comparison.dealers(&mut results.dealers)?;
    }
    if args.connections > 0 && !args.measured_cases().is_empty() {
        comparison.idle(&mut results)?;
    }

    println!("{results}");
    if args.is_whole() {
        fs::write(RESULTS, results.to_string()).with_context(|| format!("writing {RESULTS}"))?;
        show_summary(Path::new(PAGE), &results.summary())?;
    }
    Ok(!args.check || results.floors_met())
}

/// Everything that a run needs.
struct Comparison<'a> {
    args: &'a RunArgs,
    cpus: Cpus,
    binaries: Binaries,
    sides: Vec<Side>,
}

impl Comparison<'_> {
    /// Measures each server under each load.
    fn servers(&self, results: &mut Results) -> Result<()> {
        let _awake = self.keep_awake(&[self.cpus.server])?;
        for round in 1..=self.args.rounds {
            for (index, case) in self.args.measured_cases().iter().enumerate() {
                eprint!("round {round} of {}, {}:", self.args.rounds, case.name);
                let mut outcomes = Vec::with_capacity(self.sides.len());
                for side in order(&self.sides, round) {
                    // Otherwise a side that hangs would take ten seconds of every round.
                    if results.has_failed(index, side) {
                        continue;
                    }
                    let outcome = self.throughput(side, case)?;
                    match &outcome {
                        Ok(sample) => eprint!(" {} {:.0}/s", side.name(), sample.rate),
                        Err(failure) => eprint!(" {} {failure}", side.name()),
                    }
                    outcomes.push((side, outcome));
                }
                eprintln!();
                results.add(index, outcomes);
            }
        }
        Ok(())
    }

    fn throughput(&self, side: Side, case: &Case) -> Result<Outcome<Sample>> {
        let times = self.args.times;
        tolerated(side, measure::throughput(side, &self.binaries, case.load, times, self.cpus))
    }

    /// Compares an echo behind each adapter with the inline one. Returns whether the floors are
    /// met.
    fn adapters(&self) -> Result<bool> {
        let _awake = self.keep_awake(&[self.cpus.server])?;
        let case = cases::by_name(ADAPTER_CASE).expect("the name is that of a case");
        let mut ratios = ADAPTER_FLOORS.map(|_| Vec::new());
        for round in 1..=self.args.rounds {
            let rate = |side| {
                let times = self.args.times;
                measure::throughput(side, &self.binaries, case.load, times, self.cpus)
                    .map(|sample| sample.rate)
                    .with_context(|| side.name())
            };
            let inline = rate(Side::Server)?;
            eprint!("round {round} of {}, {}: {inline:.0}/s", self.args.rounds, case.name);
            for ((side, _), ratios) in ADAPTER_FLOORS.iter().zip(&mut ratios) {
                let rate = rate(*side)?;
                eprint!(" {} {rate:.0}/s", side.name());
                ratios.push(rate / inline);
            }
            eprintln!();
        }
        let mut met = true;
        println!("| {ADAPTER_CASE} | of the inline echo | floor | |\n|---|--:|--:|---|");
        for ((side, floor), ratios) in ADAPTER_FLOORS.iter().zip(&mut ratios) {
            ratios.sort_by(f64::total_cmp);
            let median = ratios[ratios.len() / 2];
            let verdict = if median >= *floor { "met" } else { "**missed**" };
            println!("| {} | {median:.3} | {floor:.2} | {verdict} |", side.name());
            met &= median >= *floor;
        }
        Ok(met)
    }

    /// Measures each client with each of a few servers. Both CPUs are kept awake, because both
    /// sides sleep while they wait.
    fn dealers(&self, results: &mut Dealers) -> Result<()> {
        let _awake = self.keep_awake(&[self.cpus.server, self.cpus.generator])?;
        for round in 1..=self.args.rounds {
            for (in_flight, server) in
                DEALER_IN_FLIGHT.into_iter().flat_map(|n| DEALER_SERVERS.map(|server| (n, server)))
            {
                eprint!("round {round} of {}, ", self.args.rounds);
                eprint!("DEALERs at {}, {in_flight} in flight:", server.name());
                for client in Dealer::ALL {
                    let pairing = Pairing { in_flight, server, client };
                    if results.has_failed(pairing) {
                        continue;
                    }
                    let outcome = self.dealer(pairing);
                    match &outcome {
                        Ok(sample) => eprint!(" {} {:.0}/s", client.name(), sample.rate),
                        Err(failure) => eprint!(" {} {failure}", client.name()),
                    }
                    results.add(pairing, outcome);
                }
                eprintln!();
            }
        }
        Ok(())
    }

    /// Every error counts as a result, because no floor depends on clients.
    fn dealer(&self, pairing: Pairing) -> Outcome<dealer::Sample> {
        let Pairing { in_flight, server, client } = pairing;
        let times = self.args.times;
        Ok(measure::dealer(client, server, &self.binaries, in_flight, times, self.cpus)?)
    }

    /// Measures the memory of each server for idle connections.
    fn idle(&self, results: &mut Results) -> Result<()> {
        let connections = self.args.connections;
        for &side in self.sides.iter().filter(|side| has_idle_memory(**side)) {
            let bytes = tolerated(side, measure::idle(side, &self.binaries, connections))?;
            results.add_idle(Idle { side, connections, bytes });
        }
        Ok(())
    }

    /// Keeps these CPUs awake until the returned value is dropped.
    fn keep_awake(&self, cpus: &[usize]) -> Result<Vec<Awake>> {
        let cpus = cpus.iter().filter(|_| !self.args.may_sleep);
        cpus.map(|cpu| Awake::keep(*cpu)).collect()
    }
}

/// Turns an error into a result if no floor depends on this side.
fn tolerated<T>(side: Side, result: Result<T>) -> Result<Outcome<T>> {
    match result {
        Err(error) if side.may_fail() => Ok(Err(error.into())),
        result => result.map(Ok).with_context(|| side.name()),
    }
}

/// The order of a round. The server and the baseline run one after the other, and every other round
/// begins with the baseline, so that an advantage of running first cancels out.
fn order(sides: &[Side], round: u32) -> Vec<Side> {
    let mut order = sides.to_vec();
    if order.get(1) == Some(&Side::Baseline) && round.is_multiple_of(2) {
        order.swap(0, 1);
    }
    order
}

/// Puts `summary` between the marker lines of the page.
fn show_summary(page: &Path, summary: &str) -> Result<()> {
    let text = fs::read_to_string(page).unwrap_or_default();
    match replaced(&text, summary) {
        Some(text) => fs::write(page, text).with_context(|| format!("writing {}", page.display())),
        None => {
            eprintln!("{} does not have the marker lines for the summary", page.display());
            Ok(())
        }
    }
}

fn replaced(page: &str, summary: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{summary}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_baseline_take_turns_in_running_first() {
        let with = [Side::Server, Side::Baseline, Side::Libzmq];
        assert_eq!(order(&with, 1), with);
        assert_eq!(order(&with, 2), [Side::Baseline, Side::Server, Side::Libzmq]);
        assert_eq!(order(&Side::ALWAYS, 2), Side::ALWAYS);
    }

    #[test]
    fn the_page_keeps_what_is_around_the_summary() {
        let page = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let shown = replaced(&page, "new").unwrap();
        assert_eq!(shown, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&shown, "new").unwrap(), shown);
        assert_eq!(replaced("a page without a place", "new"), None);
    }

    #[test]
    fn the_page_has_a_place_for_the_summary() {
        assert!(replaced(include_str!("../../docs/performance.md"), "new").is_some());
    }
}
