//! The README and `docs/` match the code: every table is compared with its source.

mod commands;
mod front_page;
mod links;

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Command, CommandFactory};
use zmq_echo::config::ProbeConfig;
use zmq_echo::exit;
use zmq_echo::side_port::PATHS;
use zmq_echo::simulation::EchoConfig;
use zmq_echo_client::load::config::LoadConfig;
use zmtp::Reason;

use crate::side_port::series;
use crate::support::tables::table_of;

const README: &str = include_str!("../README.md");
const CLIENT: &str = include_str!("../docs/client.md");
const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const DEVELOPMENT: &str = include_str!("../docs/development.md");
const KUBERNETES: &str = include_str!("../docs/kubernetes.md");
const LOAD_GENERATOR: &str = include_str!("../docs/load-generator.md");
const METRICS: &str = include_str!("../docs/metrics.md");
const REFUSED_PEERS: &str = include_str!("../docs/refused-peers.md");
const SERVICES: &str = include_str!("../docs/services.md");

fn pairs(rows: &[Vec<String>]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect()
}

/// A binary's document and heading, with its flags and its exit codes.
type Binary = (&'static str, &'static str, Command, &'static [(&'static str, &'static str)]);

fn binaries() -> Vec<Binary> {
    vec![
        (CONFIGURATION, "## The server", EchoConfig::command(), &exit::SERVER),
        (CONFIGURATION, "## The probe", ProbeConfig::command(), &exit::PROBE),
        (LOAD_GENERATOR, "# The load generator", LoadConfig::command(), &exit::LOAD),
    ]
}

#[test]
fn the_documented_flags_match_the_parsers() {
    for (document, heading, command, _) in binaries() {
        let valued = command.get_arguments().filter(|arg| arg.get_action().takes_values());
        let flags: Vec<Vec<String>> = valued
            .map(|arg| {
                let text = |value: &std::ffi::OsStr| value.to_str().unwrap().to_owned();
                let place = || arg.get_value_names().unwrap()[0].to_string();
                let flag = arg.get_long().map_or_else(place, |long| format!("--{long}"));
                let default = arg.get_default_values().first().map(|value| text(value));
                vec![flag, text(arg.get_env().unwrap()), default.unwrap_or_default()]
            })
            .collect();
        let rows = table_of(document, heading, "| flag | environment |");
        let documented: Vec<_> = rows.iter().map(|row| row[..3].to_vec()).collect();
        assert_eq!(documented, flags);
    }
}

#[test]
fn the_documented_exit_codes_match_the_binaries() {
    for (document, heading, _, codes) in binaries() {
        assert_eq!(pairs(&table_of(document, heading, "| code | meaning |")), codes);
    }
}
#[test]
fn the_documented_failures_match_the_load_generator() {
    let rows = table_of(LOAD_GENERATOR, "# The load generator", "| failed | when |");
    assert_eq!(pairs(&rows), zmq_echo_client::load::FAILURES);
}

#[test]
fn the_documented_paths_match_the_side_port() {
    let rows = table_of(METRICS, "# The side port", "| path | answer |");
    assert_eq!(pairs(&rows), PATHS);
}

/// The series in the table of a document, each with its type.
fn documented_series(document: &str) -> BTreeSet<(String, String)> {
    let mut documented = BTreeSet::new();
    for row in table_of(document, "## Series", "| series | type |") {
        let (name, kind) = (&row[0], &row[1]);
        match row[2].split_once(": ") {
            Some(_) => {
                // Each value of one label with each of the next.
                let mut sets = vec![String::new()];
                for (label, values) in row[2].split("; ").filter_map(|it| it.split_once(": ")) {
                    let label = label.trim_matches('`');
                    let values = values.split(", ").map(|value| value.trim_matches('`'));
                    let pairs: Vec<_> =
                        values.map(|value| format!("{label}=\"{value}\"")).collect();
                    let joined = |set: &String| {
                        let comma = if set.is_empty() { "" } else { "," };
                        pairs.iter().map(|pair| format!("{set}{comma}{pair}")).collect::<Vec<_>>()
                    };
                    sets = sets.iter().flat_map(joined).collect();
                }
                let series = sets.into_iter().map(|set| format!("{name}{{{set}}}"));
                documented.extend(series.map(|series| (series, kind.clone())));
            }
            None if row[2].is_empty() => drop(documented.insert((name.clone(), kind.clone()))),
            None => {
                let labels = row[2].replace("`, `", ",");
                documented.insert((format!("{name}{{{labels}}}"), kind.clone()));
            }
        }
    }
    documented
}

#[test]
fn the_documented_series_match_the_registry() {
    let held: BTreeSet<_> = series()
        .into_iter()
        .filter(|(series, _)| series.starts_with("zmq_echo_"))
        .map(|(series, kind)| (series, kind.to_owned()))
        .collect();
    assert_eq!(documented_series(METRICS), held);
}
#[test]
fn the_documented_client_series_match_its_registry() {
    assert_eq!(documented_series(CLIENT), crate::client::series());
}
#[test]
fn the_documented_client_program_is_the_one_that_a_test_runs() {
    let program = |text: &'static str, fence: &str| {
        let (_, rest) = text.split_once(fence).expect("the document has the program");
        let lines = rest.lines().map(|line| line.trim_start_matches("//!").trim());
        let shown = lines.take_while(|line| *line != "```").filter(|line| !line.starts_with("# "));
        shown.skip(1).collect::<Vec<_>>()
    };
    let rustdoc = include_str!("../client/src/lib.rs");
    let readme = include_str!("../client/README.md");
    let run = program(rustdoc, "//! The program:\n//!\n//! ```");
    let dependencies = program(rustdoc, "//! ```toml");
    for (document, fence) in [(CLIENT, "```rust"), (readme, "```rust,no_run")] {
        assert_eq!(program(document, fence), run);
        assert_eq!(program(document, "```toml"), dependencies);
    }
    assert!(run.len() <= 24, "the program has {} lines", run.len());
}

/// A project of your own has no such section.
#[test]
fn the_service_in_the_readme_is_an_example() {
    let Some((_, section)) = README.split_once("\n## Make it your own\n") else { return };
    let (_, block) = section.split_once("```rust\n").expect("the section has a service");
    let (service, _) = block.split_once("```").expect("the block ends");
    assert!(
        include_str!("../examples/echo.rs").contains(service),
        "the service is not in examples/echo.rs: {service}"
    );
}

/// The lines of a program without its comments. Imports are apart and sorted, because another name
/// of the crate changes their order.
fn code_of(text: &str) -> (BTreeSet<&str>, Vec<&str>) {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.trim().starts_with("//"));
    let (imports, rest): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("use "));
    (imports.into_iter().collect(), rest)
}

#[test]
fn the_complete_services_in_the_guide_are_examples() {
    let (_, section) = SERVICES.split_once("\n## A complete service\n").expect("a section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```rust\n").skip(1);
    let shown: Vec<_> = blocks.map(|block| code_of(block.split("```").next().unwrap())).collect();
    let examples =
        [include_str!("../examples/echo.rs"), include_str!("../examples/counter.rs")].map(code_of);
    assert_eq!(shown, examples);
}

#[test]
fn the_documented_reasons_match_the_socket() {
    let rows = table_of(REFUSED_PEERS, "# Refused peers", "| reason | handshake |");
    let documented: Vec<_> = rows.iter().map(|row| row[..4].to_vec()).collect();
    let yes_or_no = |yes| if yes { "yes" } else { "" };
    let held: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| {
            let yes = [reason.before_ready(), reason.after_ready(), reason.sends_error()];
            let [before, after, error] = yes.map(yes_or_no);
            vec![reason.as_str(), before, after, error]
        })
        .collect();
    assert_eq!(documented, held);
}

#[test]
fn every_file_that_the_readme_links_to_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for row in table_of(DEVELOPMENT, "## Where each pattern lives", "| pattern | file |") {
        assert!(root.join(&row[1]).is_file(), "{} does not exist", row[1]);
    }
    let libraries = [
        include_str!("../src/lib.rs"),
        include_str!("../src/service/mod.rs"),
        include_str!("../client/src/lib.rs"),
        include_str!("../zmtp/src/lib.rs"),
    ];
    for library in libraries {
        let modules =
            library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        for module in modules {
            let linked = [format!("[`{module}`]"), format!("[`mod@{module}`]")];
            assert!(
                linked.iter().any(|link| library.contains(link)),
                "{module} is not in its list"
            );
        }
    }
}
