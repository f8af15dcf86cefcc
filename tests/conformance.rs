//! `docs/conformance.md` names tests that exist, and the library's defaults are the server's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use zmq_echo::simulation::EchoConfig;
use zmtp::router::Limits;

const TABLES: &str = include_str!("../docs/conformance.md");

fn source(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of all tables, each with its cells.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = TABLES.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| req"));
    rows.map(|row| {
        let row = row.strip_prefix('|').and_then(|row| row.strip_suffix('|')).expect("a whole row");
        row.split('|').map(str::trim).collect()
    })
}

/// The tests that a text names, each by its file and function.
fn tests_in(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|code| code.split_once("::")).filter(|(file, _)| file.ends_with(".rs"))
}

/// The tests in a file: functions with an attribute that makes them one.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        match function.and_then(|rest| rest.split_once('(')) {
            Some((name, _)) if is_test => _ = tests.insert(name),
            _ => {}
        }
        is_test = matches!(line, "#[test]" | "#[tokio::test]");
    }
    tests
}

#[test]
fn every_test_named_in_the_conformance_table_exists() {
    let mut named = 0;
    for (file, name) in tests_in(TABLES) {
        assert!(tests_of(&source(file)).contains(name), "{file} has no test {name}");
        named += 1;
    }
    assert!(named > 50, "only {named} tests found: the tables were not read");
}

#[test]
fn every_row_of_the_conformance_table_has_a_test_or_a_reason() {
    for row in rows() {
        let [requirement, kept, tests] = row[..] else {
            panic!("a row must have three cells: {row:?}")
        };
        let (word, reason) = kept.split_once(':').unwrap_or((kept, ""));
        match word.split([' ', ',']).next().unwrap() {
            "yes" => assert!(
                tests_in(tests).next().is_some(),
                "the requirement counts as kept but names no test: {requirement}"
            ),
            "in" | "no" | "n/a" => {
                assert!(
                    !reason.is_empty() || kept.contains("(deviation "),
                    "no reason: {requirement}"
                );
            }
            _ => panic!("expected yes, in part, no or n/a, not {kept}"),
        }
    }
    for number in TABLES.split("(deviation ").skip(1).map(|rest| &rest[..1]) {
        assert!(TABLES.contains(&format!("\n{number}. **")), "there is no deviation {number}");
    }
}

#[test]
fn every_test_that_was_written_for_the_conformance_table_is_named_in_it() {
    let named: BTreeSet<_> = tests_in(TABLES).collect();
    for file in ["zmtp/tests/router/conformance.rs", "zmtp/tests/dealer/conformance.rs"] {
        for name in tests_of(&source(file)) {
            assert!(named.contains(&(file, name)), "{file}::{name} is in no table");
        }
    }
}

#[test]
fn the_librarys_default_limits_are_those_of_the_server() {
    let config = EchoConfig::try_parse_from(["zmq-echo-server"]).unwrap();
    assert_eq!(Limits::default(), config.server.limits());
}
