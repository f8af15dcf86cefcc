//! Every flag by argument and by environment; what is wrong is refused with what
//! would be right.

use clap::CommandFactory;
use zmq_echo::config::{ProbeConfig, ServerConfig};
use zmq_echo::exit::{self, Exit};
use zmq_echo::log::LogFormat;
use zmq_echo::simulation::EchoConfig;

use crate::support::{SERVER, Server, command};

/// A value that each flag refuses, and a part of what would be right.
const REFUSED: [(&str, &str, &str); 45] = [
    ("--bind", "127.0.0.1:5555", "expected tcp://HOST:PORT, such as tcp://127.0.0.1:5555"),
    ("--bind", "tcp://127.0.0.1", "expected tcp://HOST:PORT"),
    ("--bind", "tcp://127.0.0.1:99999", "expected a port from 0 to 65535"),
    ("--bind", "tcp://::1:5555", "expected an IPv6 address in brackets, such as tcp://[::1]:5555"),
    ("--http", "8080", "expected IP:PORT, such as 127.0.0.1:8080"),
    ("--http", "localhost:8080", "expected IP:PORT"),
    ("--log-level", "verbose", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "inof,zmq_echo=debug", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "zmq_ehco", "directives such as info,zmtp=debug"),
    ("--log-level", "zmq_echo=loud", "directives such as info,zmtp=debug"),
    ("--log-format", "xml", "[possible values: auto, json, text]"),
    ("--drain-delay", "5", "a number with its unit, such as 500ms, 1s or 2m"),
    ("--drain-delay", "20s", "--drain-delay 20s leaves nothing of --drain-timeout 20s"),
    ("--drain-quiet", "soon", "a number with its unit"),
    ("--drain-quiet", "-1s", "a number with its unit"),
    ("--drain-timeout", "100years", "expected 1day at most"),
    ("--drain-timeout", "0s", "--drain-delay 0s leaves nothing of --drain-timeout 0s"),
    ("--latency-buckets", "0.1,0.1", "expected seconds, comma-separated and rising"),
    ("--latency-buckets", "0.1,nan", "expected seconds"),
    ("--message-limit", "8 apples", "such as 65536, 64KiB or 8MiB"),
    ("--message-limit", "1GiB", "--message-limit 1GiB is more than --buffer-limit 64MiB"),
    ("--frame-limit", "1", "1 is not in 2..="),
    ("--metadata-limit", "1", "expected 1KiB to 3GiB"),
    ("--peer-limit", "8", "8 is not in 9..="),
    ("--address-limit", "9999999", "9999999 is not in 0..="),
    ("--handshake-timeout", "0s", "more than 0s"),
    ("--stall-timeout", "0s", "more than 0s"),
    ("--stall-bytes", "8", "1KiB to 3GiB"),
    ("--buffer-limit", "4GiB", "expected 1KiB to 3GiB"),
    ("--buffer-limit", "1MiB", "--message-limit 8MiB is more than --buffer-limit 1MiB"),
    ("--in-flight-limit", "0", "0 is not in 1..="),
    ("--peer-in-flight-limit", "0", "0 is not in 1..="),
    ("--request-deadline", "soon", "a number with its unit"),
    ("--client-deadlines", "1", "[possible values: true, false]"),
    ("--on-panic", "ignore", "[possible values: reply, exit]"),
    ("--socket-buffer", "64kB", "such as 65536, 64KiB or 8MiB"),
    ("--heartbeat-interval", "often", "a number with its unit"),
    ("--busy-poll", "1s", "expected 1ms at most, such as 10us"),
    ("--work", "5", "a number with its unit"),
    ("--work-mode", "think", "[possible values: sleep, burn]"),
    ("--work-jitter", "0.2", "expected 0% to 100%, such as 20%"),
    ("--work-threads", "0", "expected 1 to 1024, such as 4"),
    ("--work-threads", "1025", "expected 1 to 1024"),
    ("--faults", "maybe", "[possible values: true, false]"),
];

#[test]
fn a_wrong_value_is_refused_with_what_would_be_right() {
    refuses(SERVER, &REFUSED);
}

/// Holds a program to what it refuses: a flag, a value, and a part of what would be
/// right.
pub fn refuses(program: &str, refused: &[(&str, &str, &str)]) {
    for (flag, value, right) in refused {
        let output = command(program).arg(format!("{flag}={value}")).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {stderr}");
        assert!(stderr.contains(flag) && stderr.contains(right), "{flag} {value}: {stderr}");
        assert!(output.stdout.is_empty(), "{flag} {value}");
    }
}

#[test]
fn every_flag_is_an_environment_variable_that_a_wrong_value_names() {
    refuses_from_the_environment(SERVER, "ZMQ_ECHO", &EchoConfig::command(), &REFUSED);
}

/// Holds every flag of a program to its variable, with a value that it refuses.
pub fn refuses_from_the_environment(
    program: &str,
    prefix: &str,
    parser: &clap::Command,
    refused: &[(&str, &str, &str)],
) {
    let flags =
        parser.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?)));
    let mut checked = 0;
    for (long, variable) in flags {
        assert_eq!(variable, format!("{prefix}_{}", long.to_uppercase().replace('-', "_")));
        let flag = format!("--{long}");
        let (_, value, right) = refused
            .iter()
            .find(|(refused, ..)| *refused == flag)
            .unwrap_or_else(|| panic!("no value in the list that {flag} refuses"));
        let output = command(program).env(variable, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{variable}: {stderr}");
        assert!(stderr.contains(variable) && stderr.contains(right), "{variable}: {stderr}");
        checked += 1;
    }
    let with_values = parser.get_arguments().filter(|arg| arg.get_long().is_some()).count();
    assert_eq!(checked, with_values, "a flag without an environment variable");
}

#[test]
fn the_environment_configures_and_an_argument_overrides_it() {
    let mut server = command(SERVER);
    server.envs([
        ("ZMQ_ECHO_BIND", "tcp://[::1]:0"),
        ("ZMQ_ECHO_HTTP", "127.0.0.1:0"),
        ("ZMQ_ECHO_LOG_LEVEL", "warn"),
        ("ZMQ_ECHO_LOG_FORMAT", "text"),
        ("ZMQ_ECHO_LATENCY_BUCKETS", "1,2"),
    ]);
    server.args(["--bind", "tcp://127.0.0.1:0", "--log-level", "info", "--log-format", "json"]);
    let server = Server::spawn(server);
    assert!(server.endpoint.starts_with("tcp://127.0.0.1:"), "{}", server.endpoint);
    let (_, metrics) = server.get("/metrics");
    let bucket = "zmq_echo_request_duration_seconds_bucket{method=\"echo\"";
    assert_eq!(metrics.matches(bucket).count(), 3, "{metrics}");
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    // The environment of the test run is not the subject: every flag is read
    // from the command's own defaults.
    let command = EchoConfig::command();
    let default = |flag: &str| {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag)).unwrap();
        arg.get_default_values()[0].to_str().unwrap().to_owned()
    };
    for (flag, expected) in [
        ("bind", "tcp://127.0.0.1:5555"),
        ("http", "127.0.0.1:8080"),
        ("log-level", "info"),
        ("log-format", "auto"),
        ("drain-delay", "0s"),
        ("drain-quiet", "1s"),
        ("drain-timeout", "20s"),
        ("work", "0s"),
        ("faults", "false"),
    ] {
        assert_eq!(default(flag), expected, "--{flag}");
    }
    let buckets = default("latency-buckets");
    assert!(buckets.starts_with("0.00001,") && buckets.ends_with(",5"), "{buckets}");
}

#[test]
fn nothing_is_simulated_unless_a_flag_says_so() {
    let is_on = |args: &[&str]| {
        let args = [&["zmq-echo-server"], args].concat();
        EchoConfig::parse_args(args).unwrap().simulation.is_on()
    };
    let others = ["--work-mode", "burn", "--work-jitter", "20%", "--work-threads", "8"];
    for args in [&[][..], &others, &["--work", "0s"], &["--faults=false"]] {
        assert!(!is_on(args), "{args:?}");
    }
    for args in [&["--work", "1us"][..], &["--faults"], &["--faults=true"]] {
        assert!(is_on(args), "{args:?}");
    }
}

#[test]
fn the_servers_flags_are_held_against_each_other_with_those_of_the_simulation_too() {
    let args = ["zmq-echo-server", "--faults", "--drain-delay", "20s"];
    assert!(EchoConfig::parse_args(args).unwrap_err().to_string().contains("leaves nothing"));
}

#[test]
fn at_its_defaults_the_server_stays_under_160_mib_by_the_formula() {
    // The process without a client, as `zmtp::router` has it, and its waiting records.
    let rest = (6 << 20) + zmq_echo::log::QUEUE_BYTES;
    let config = ServerConfig::parse_args(["zmq-echo-server"]).unwrap();
    assert!(config.limits().most_memory() + rest < 160 << 20, "{}", config.limits().most_memory());
}

#[test]
fn auto_is_text_on_a_terminal_and_json_elsewhere() {
    assert!(!LogFormat::Auto.is_json(true));
    assert!(LogFormat::Auto.is_json(false));
    assert!(LogFormat::Json.is_json(true));
    assert!(!LogFormat::Text.is_json(false));
}

#[test]
fn help_says_every_default_and_variable_and_the_exit_codes() {
    for (command, codes) in [
        (EchoConfig::command(), &exit::SERVER[..]),
        (ProbeConfig::command(), &exit::PROBE[..]),
        (zmq_echo_client::load::config::LoadConfig::command(), &exit::LOAD[..]),
    ] {
        let help = command.clone().render_long_help().to_string();
        for (code, _) in codes {
            assert!(help.contains(&format!("\n  {code}")), "{code}: {help}");
        }
        for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
            let place = || vec![format!("  [{}]...", arg.get_value_names().unwrap()[0])];
            // A flag whose value may be left out has it in brackets.
            let flag = |long| vec![format!("  --{long} <"), format!("  --{long}[")];
            let names = arg.get_long().map_or_else(place, flag);
            let (_, about) = names.iter().find_map(|name| help.split_once(name)).unwrap();
            let about = about.split("\n      --").next().unwrap().replace("\n          ", " ");
            assert!(about.contains("[env: ZMQ_ECHO_"), "{about}");
            let Some(default) = arg.get_default_values().first() else { continue };
            assert!(about.contains(&format!("[default: {}]", default.display())), "{about}");
            assert!(about.contains("The default"), "no reason for the default: {about}");
        }
    }
}

#[test]
fn the_exit_codes_in_the_tables_are_those_that_are_used() {
    let codes = exit::SERVER.map(|(code, _)| code);
    for exit in [Exit::Answered, Exit::Failed, Exit::Deadline] {
        assert!(codes.contains(&&*exit.code().to_string()), "{exit:?}");
    }
    assert!(codes.contains(&&*exit::PANIC.to_string()));
    let codes = exit::LOAD.map(|(code, _)| code);
    for exit in [Exit::Answered, Exit::Failed, Exit::Interrupted] {
        assert!(codes.contains(&&*exit.code().to_string()), "{exit:?}");
    }
}

#[test]
fn the_probe_and_livez_have_the_same_limit() {
    let command = ProbeConfig::command();
    let timeout = command.get_arguments().find(|arg| arg.get_long() == Some("timeout")).unwrap();
    let default = timeout.get_default_values()[0].to_str().unwrap();
    assert_eq!(humantime::parse_duration(default).unwrap(), zmq_echo::side_port::LIVE_LIMIT);
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"\xff");
    let output = command(SERVER).env("ZMQ_ECHO_BIND", value).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("ZMQ_ECHO_BIND"), "{stderr}");
}

#[test]
fn the_probe_is_configured_by_its_environment_too() {
    let output = command(crate::support::PROBE)
        .env("ZMQ_ECHO_PROBE_ENDPOINT", "tcp://no-such-host.invalid:1")
        .env("ZMQ_ECHO_PROBE_TIMEOUT", "30s")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("tcp://no-such-host.invalid:1: connect failed"), "{stderr}");
}
