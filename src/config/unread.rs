//! Environment variables that look like settings, but that this program does not read.

use std::ffi::OsString;
use std::fmt;

use clap::Command;

/// The prefix of all settings.
const PREFIX: &str = "ZMQ_ECHO_";

/// The other programs whose variables have a prefix of their own.
const PREFIXES: [(&str, &str); 2] =
    [("ZMQ_ECHO_LOAD_", "zmq-echo-load"), ("ZMQ_ECHO_PROBE_", "zmq-echo-probe")];

/// The variables that the Dockerfile sets for the server. The other programs in the image see them
/// as well and must not report them.
pub const IMAGE: [(&str, &str); 2] =
    [("ZMQ_ECHO_BIND", "tcp://*:5555"), ("ZMQ_ECHO_HTTP", "*:8080")];

/// How many letters of a name may be wrong for it to count as a misspelling.
const MISTAKES: usize = 2;

/// A variable that this program ignores, although it looks like a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Its name.
    pub variable: String,
    /// What its name suggests that the user meant.
    pub hint: Hint,
}

/// What was probably meant by an ignored variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// This other program reads it.
    ReadBy(&'static str),
    /// This program reads a variable with nearly the same name.
    Meant(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment variable {} is ignored: ", self.variable)?;
        match &self.hint {
            Hint::ReadBy(program) => write!(f, "only {program} reads it"),
            Hint::Meant(variable) => write!(f, "did you mean {variable}?"),
        }
    }
}

/// The variables of `environment` that `program` ignores, although they look like settings of
/// this program, of the server or of another program here.
///
/// Other names with the same prefix are not reported. A service may read variables of its own, and
/// for a Service named zmq-echo Kubernetes sets `ZMQ_ECHO_PORT`, `ZMQ_ECHO_SERVICE_HOST` and
/// more in every pod.
pub fn unread(
    program: &Command,
    server: &Command,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<Unread> {
    let is_server = program.get_name() == server.get_name();
    let own = variables(program);
    let of_server = variables(server);
    let mut found = Vec::new();
    for (variable, value) in environment {
        let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        if own.iter().any(|own| own == variable) || is_from_kubernetes(variable) {
            continue;
        }
        let is_from_image = IMAGE.iter().any(|(name, set)| *name == variable && value == *set);
        let of_other = PREFIXES
            .iter()
            .find(|(prefix, other)| variable.starts_with(prefix) && *other != program.get_name());
        let hint = if let Some((_, other)) = of_other {
            Some(Hint::ReadBy(other))
        } else if !is_server && of_server.iter().any(|name| name == variable) {
            (!is_from_image).then_some(Hint::ReadBy("zmq-echo-server"))
        } else {
            own.iter().find(|own| is_meant(own, variable)).cloned().map(Hint::Meant)
        };
        found.extend(hint.map(|hint| Unread { variable: variable.to_owned(), hint }));
    }
    found.sort_by(|one, other| one.variable.cmp(&other.variable));
    found
}

/// The variables that a program reads.
fn variables(program: &Command) -> Vec<String> {
    let names = program.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
    names.map(str::to_owned).collect()
}

/// Whether Kubernetes sets a variable of this name for a Service, in the form of Docker's links:
/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_SERVICE_PORT_METRICS`, `NAME_PORT`,
/// `NAME_PORT_5555_TCP` and `NAME_PORT_5555_TCP_ADDR`.
fn is_from_kubernetes(variable: &str) -> bool {
    let of_port = |rest: &str| {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.is_empty() || (digits.len() < rest.len() && digits.starts_with('_'))
    };
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable
            .match_indices("_PORT")
            .map(|(at, port)| &variable[at + port.len()..])
            .any(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(of_port))
}

/// Whether somebody who set `variable` probably meant `own`: it differs in a few letters, or lacks
/// the name of the program.
fn is_meant(own: &str, variable: &str) -> bool {
    let lacks = PREFIXES.iter().any(|(prefix, _)| {
        let name = own.strip_prefix(prefix);
        name.is_some_and(|name| variable.strip_prefix(PREFIX) == Some(name))
    });
    lacks || distance(own.as_bytes(), variable.as_bytes()) <= MISTAKES
}

/// How many letters have to be added, removed or replaced to make one text from the other
/// (Levenshtein).
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for column in 0..other.len() {
            let replaced = diagonal + usize::from(*letter != other[column]);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{ProbeConfig, ServerConfig};

    fn hints(program: &Command, environment: &[(&str, &str)]) -> Vec<String> {
        let environment =
            environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let unread = unread(program, &ServerConfig::command(), environment);
        unread.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_variable_of_another_program_is_reported_with_the_program_that_reads_it() {
        let said = hints(
            &ServerConfig::command(),
            &[("ZMQ_ECHO_LOAD_RATE", "1"), ("ZMQ_ECHO_PROBE_TIMEOUT", "1s")],
        );
        let ignored = |variable: &str, program: &str| {
            format!("the environment variable {variable} is ignored: only {program} reads it")
        };
        let expected = [
            ignored("ZMQ_ECHO_LOAD_RATE", "zmq-echo-load"),
            ignored("ZMQ_ECHO_PROBE_TIMEOUT", "zmq-echo-probe"),
        ];
        assert_eq!(said, expected);
        let said = hints(&ProbeConfig::command(), &[("ZMQ_ECHO_BIND", "tcp://127.0.0.1:1")]);
        assert_eq!(said, [ignored("ZMQ_ECHO_BIND", "zmq-echo-server")]);
    }

    #[test]
    fn a_misspelt_variable_is_reported_with_the_right_name() {
        for (program, wrong, right) in [
            (ServerConfig::command(), "ZMQ_ECHO_LOGLEVEL", "ZMQ_ECHO_LOG_LEVEL"),
            (ServerConfig::command(), "ZMQ_ECHO_DRIAN_DELAY", "ZMQ_ECHO_DRAIN_DELAY"),
            (ProbeConfig::command(), "ZMQ_ECHO_TIMEOUT", "ZMQ_ECHO_PROBE_TIMEOUT"),
            (ProbeConfig::command(), "ZMQ_ECHO_PROBE_TIMEOUTS", "ZMQ_ECHO_PROBE_TIMEOUT"),
        ] {
            let said = hints(&program, &[(wrong, "")]);
            let expected =
                format!("the environment variable {wrong} is ignored: did you mean {right}?");
            assert_eq!(said, [expected]);
        }
    }

    #[test]
    fn variables_set_by_kubernetes_the_image_or_a_service_are_not_reported() {
        for variable in [
            "ZMQ_ECHO_SERVICE_HOST",
            "ZMQ_ECHO_SERVICE_PORT",
            "ZMQ_ECHO_SERVICE_PORT_METRICS",
            "ZMQ_ECHO_PORT",
            "ZMQ_ECHO_PORT_5555_TCP",
            "ZMQ_ECHO_PORT_5555_TCP_PROTO",
            "ZMQ_ECHO_PORT_5555_TCP_PORT",
            "ZMQ_ECHO_PORT_5555_TCP_ADDR",
            "ZMQ_ECHO_HTTP_PORT",
            "ZMQ_ECHO_LOAD_PORT_80_UDP_ADDR",
            "ZMQ_ECHO_DATABASE_URL",
            "ZMQ_ECHO_REVISION",
            "ZMQ_ECHOES",
            "PATH",
        ] {
            for program in [ServerConfig::command(), ProbeConfig::command()] {
                assert!(hints(&program, &[(variable, "")]).is_empty(), "{variable}");
            }
        }
        assert!(hints(&ProbeConfig::command(), &IMAGE).is_empty());
        assert!(!hints(&ProbeConfig::command(), &[("ZMQ_ECHO_HTTP", "*:8081")]).is_empty());
        let dockerfile = include_str!("../../Dockerfile");
        let set = IMAGE.map(|(name, value)| format!("{name}={value}"));
        assert!(dockerfile.contains(&format!("ENV {}\n", set.join(" "))), "{set:?}");
    }
}
