//! The README says what the code does: every table, held to its source.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;
use zmq_echo::config::ServerConfig;
use zmq_echo::exit;
use zmq_echo::side_port::PATHS;

use crate::side_port::SERIES;

const README: &str = include_str!("../README.md");

/// The rows of the table whose header starts with these columns, cells trimmed
/// and freed of backticks.
fn table(header: &str) -> Vec<Vec<String>> {
    let (_, rest) = README.split_once(header).unwrap_or_else(|| panic!("no table `{header}`"));
    rest.lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
        })
        .collect()
}

fn pairs(rows: &[Vec<String>]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect()
}

#[test]
fn the_flags_are_those_of_the_parser() {
    let command = ServerConfig::command();
    let flags: Vec<Vec<String>> = command
        .get_arguments()
        .filter_map(|arg| {
            let default = arg.get_default_values().first()?.to_str()?;
            Some(vec![
                format!("--{}", arg.get_long()?),
                arg.get_env()?.to_str()?.to_owned(),
                default.to_owned(),
            ])
        })
        .collect();
    let documented: Vec<Vec<String>> =
        table("| flag | environment |").into_iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(documented, flags);
}

#[test]
fn the_exit_codes_are_those_of_the_binaries() {
    let tables: Vec<_> = README.split("| code | meaning |").collect();
    assert_eq!(tables.len(), 3, "a table for the server and one for the probe");
    assert_eq!(pairs(&table("| code | meaning |")), exit::SERVER);
    let (_, probe) = README.split_once("## The probe").unwrap();
    for (code, meaning) in exit::PROBE {
        assert!(probe.contains(&format!("| `{code}` | {meaning} |")), "{code}");
    }
}

#[test]
fn the_paths_are_those_of_the_side_port() {
    assert_eq!(pairs(&table("| path | answer |")), PATHS);
}

#[test]
fn the_series_are_those_of_the_registry() {
    let mut documented = BTreeSet::new();
    for row in table("| series | type |") {
        let (name, kind) = (&row[0], &row[1]);
        match row[2].split_once(": ") {
            Some((label, values)) => {
                for value in values.split(", ") {
                    let (label, value) = (label.trim_matches('`'), value.trim_matches('`'));
                    documented.insert((format!("{name}{{{label}=\"{value}\"}}"), kind.clone()));
                }
            }
            None => drop(documented.insert((name.clone(), kind.clone()))),
        }
    }
    let held: BTreeSet<_> = SERIES
        .iter()
        .filter(|(series, _)| series.starts_with("zmq_echo_"))
        .map(|(series, kind)| ((*series).to_owned(), (*kind).to_owned()))
        .collect();
    assert_eq!(documented, held);
}

#[test]
fn every_file_that_it_points_to_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for row in table("| pattern | file |") {
        assert!(root.join(&row[1]).is_file(), "{}", row[1]);
    }
    let library = include_str!("../src/lib.rs");
    let modules =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(library.contains(&format!("[`{module}`]")), "{module} is not in lib.rs's list");
    }
}
