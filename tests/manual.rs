//! Manual pages and shell completions are generated, and name every flag.

use std::collections::BTreeSet;
use std::fs;

use clap::CommandFactory;
use zmq_echo::config::ProbeConfig;
use zmq_echo::exit;
use zmq_echo::simulation::EchoConfig;
use zmq_echo_client::load::config::LoadConfig;

use crate::support::built::EXAMPLES;
use crate::support::command;

/// How a kind of file writes a flag.
type Spelling = fn(&str) -> String;

/// The names of a program's files.
fn files(program: &str) -> [(String, Spelling); 6] {
    let dashed = |flag: &str| format!("--{flag}");
    [
        (format!("{program}.1"), |flag| format!("\\-\\-{}", flag.replace('-', "\\-"))),
        (format!("{program}.bash"), dashed),
        (format!("{program}.elv"), dashed),
        (format!("{program}.fish"), |flag| format!("-l {flag} ")),
        (format!("_{program}"), dashed),
        (format!("_{program}.ps1"), dashed),
    ]
}

#[test]
fn manual_pages_and_completions_name_every_flag() {
    let folder = std::env::temp_dir().join(format!("zmq-echo-manual-{}", std::process::id()));
    let output = command(&EXAMPLES["manual"]).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut expected = BTreeSet::new();
    for (program, codes) in [
        (EchoConfig::command(), &exit::SERVER[..]),
        (ProbeConfig::command(), &exit::PROBE),
        (LoadConfig::command(), &exit::LOAD),
    ] {
        for (name, flag_in) in files(program.get_name()) {
            let path = folder.join(&name);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            for flag in program.get_arguments().filter_map(|arg| arg.get_long()) {
                assert!(text.contains(&flag_in(flag)), "{name} lacks --{flag}");
            }
            if name.ends_with(".1") {
                for variable in program.get_arguments().filter_map(|arg| arg.get_env()) {
                    let variable = variable.to_str().unwrap();
                    assert!(text.contains(variable), "{name} lacks {variable}");
                }
                for (code, _) in codes {
                    assert!(text.contains(&format!("\n  {code}")), "{name} lacks {code}: {text}");
                }
            }
            expected.insert(path.display().to_string());
        }
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn without_a_folder_the_manual_generator_says_what_is_expected() {
    let output = command(&EXAMPLES["manual"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "expected a folder to write to, such as target/manual\n");
}
