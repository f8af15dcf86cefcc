//! The servers that are compared, and how each is started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::wire::Protocol;

/// The name of the server's binary.
const SERVER: &str = "zmq-echo-server";

/// The manifest of the server's package.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");

/// A server that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// `zmq-echo-server`, as it ships
    Server,
    /// Another build of `zmq-echo-server`, such as that of the previous commit
    Baseline,
    /// A ROUTER of libzmq
    Libzmq,
    /// A ROUTER of the zeromq crate
    Crate,
    /// The server's loop with an echo behind the adapter for futures
    Concurrent,
    /// The server's loop with an echo behind the adapter for threads
    Blocking,
    /// A ROUTER of the rzmq crate
    Rzmq,
    /// A TCP echo without a message protocol
    Tcp,
}

impl Side {
    /// The sides of every run, in the order of the tables' rows. With a baseline, a run also has
    /// [`Side::Baseline`]; see [`Binaries::sides`].
    pub const ALWAYS: [Side; 5] = [Side::Server, Side::Libzmq, Side::Crate, Side::Rzmq, Side::Tcp];

    /// The name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Server => SERVER,
            Side::Baseline => "baseline",
            Side::Libzmq => "libzmq",
            Side::Crate => "zeromq crate",
            Side::Concurrent => "echo behind Concurrent",
            Side::Blocking => "echo behind Blocking",
            Side::Rzmq => "rzmq",
            Side::Tcp => "raw TCP",
        }
    }

    /// Whether a run continues if this side fails a case. No floor depends on such a side.
    pub const fn may_fail(self) -> bool {
        match self {
            Side::Server | Side::Baseline | Side::Libzmq | Side::Tcp => false,
            Side::Concurrent | Side::Blocking => false,
            Side::Crate | Side::Rzmq => true,
        }
    }

    /// The protocol of this side.
    pub const fn protocol(self) -> Protocol {
        match self {
            Side::Tcp => Protocol::Raw,
            _ => Protocol::Zmtp,
        }
    }

    /// The command that runs this side on a port that the kernel chooses.
    ///
    /// # Errors
    ///
    /// If this program's own path is unknown, or there is no baseline.
    pub fn command(self, binaries: &Binaries) -> Result<Command> {
        let kind = match self {
            Side::Server => return Ok(server_command(&binaries.server, ANY_ENDPOINT)),
            Side::Baseline => {
                let baseline = binaries.baseline.as_deref().context("no --baseline was given")?;
                return Ok(server_command(baseline, ANY_ENDPOINT));
            }
            Side::Libzmq => "libzmq",
            Side::Crate => "crate",
            Side::Concurrent => "concurrent",
            Side::Blocking => "blocking",
            Side::Rzmq => "rzmq",
            Side::Tcp => "tcp",
        };
        let this = std::env::current_exe().context("asking for the path of this program")?;
        let mut command = Command::new(this);
        command.args(["serve", kind]);
        Ok(command)
    }
}

/// The builds of `zmq-echo-server` that are measured.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The build that the tables and the floors are about.
    pub server: PathBuf,
    /// An optional other build, for comparison.
    pub baseline: Option<PathBuf>,
}

impl Binaries {
    /// The sides that can be measured with these binaries, in the order of the tables' rows.
    pub fn sides(&self) -> Vec<Side> {
        let mut sides = Side::ALWAYS.to_vec();
        if self.baseline.is_some() {
            sides.insert(1, Side::Baseline);
        }
        sides
    }
}

/// An endpoint on loopback, with a port that the kernel chooses.
pub const ANY_ENDPOINT: &str = "tcp://127.0.0.1:0";

/// A command that runs the server on `endpoint`, otherwise with its defaults.
pub fn server_command(server: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(server);
    command.args(["--bind", endpoint, "--http", "127.0.0.1:0", "--log-format", "json"]);
    command
}

/// Builds the server and returns its path, because Cargo does not build the binaries of a
/// dependency. If this program is optimised, the profile is that of the image.
///
/// # Errors
///
/// If cargo cannot be run or fails.
pub fn build_server() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--manifest-path", MANIFEST, "--package", "zmq-echo", "--bin", SERVER]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        command.args(["--profile", "image"]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("building {SERVER}: {command:?}"))?;
    ensure!(output.status.success(), "building {SERVER}: {command:?}: {}", output.status);
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == SERVER)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("{command:?} did not report the path of {SERVER}"))
}
