//! Writes the manual pages and the shell completions of the three programs:
//!
//! ```sh
//! cargo run -p zmq-echo-client --example manual -- target/manual
//! ```
//!
//! The programs themselves do not contain them, so that the probe and the image stay small.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use zmq_echo::config::ProbeConfig;
use zmq_echo::simulation::EchoConfig;
use zmq_echo_client::load::config::LoadConfig;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("expected a folder to write to, such as target/manual");
        return ExitCode::from(2);
    };
    let programs = [EchoConfig::command(), ProbeConfig::command(), LoadConfig::command()];
    for program in programs {
        if let Err(error) = write(&program, Path::new(&folder)) {
            eprintln!("cannot write to {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Writes the manual page and the completions of one program, and prints the files' names.
fn write(program: &Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let page = folder.join(format!("{}.1", program.get_name()));
    Man::new(program.clone()).render(&mut File::create(&page)?)?;
    println!("{}", page.display());
    for shell in Shell::value_variants() {
        let name = program.get_name().to_owned();
        let script = clap_complete::generate_to(*shell, &mut program.clone(), name, folder)?;
        println!("{}", script.display());
    }
    Ok(())
}
