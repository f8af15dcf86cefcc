//! Every flag by argument and by environment. A wrong value is rejected with an example of a correct
//! one.

use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use zmq_echo::config::{ProbeConfig, ServerConfig};
use zmq_echo::exit::{self, Exit};
use zmq_echo::log::LogFormat;
use zmq_echo::simulation::EchoConfig;

use crate::support::built::LOAD;
use crate::support::{DEADLINE, PROBE, SERVER, Server, command, wait_until};

/// A value that each flag rejects, and a part of the message.
const REFUSED: [(&str, &str, &str); 51] = [
    ("--bind", "127.0.0.1:5555", "expected tcp://HOST:PORT, such as tcp://127.0.0.1:5555"),
    ("--bind", "tcp://127.0.0.1", "expected tcp://HOST:PORT"),
    ("--bind", "tcp://127.0.0.1:99999", "expected a port from 0 to 65535"),
    ("--bind", "tcp://::1:5555", "expected an IPv6 address in brackets, such as tcp://[::1]:5555"),
    ("--http", "8080", "expected HOST:PORT, such as 127.0.0.1:8080"),
    ("--http", "http://localhost:8080", "expected HOST:PORT"),
    ("--http", "localhost:99999", "expected a port from 0 to 65535"),
    ("--log-level", "verbose", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "inof,zmq_echo=debug", "expected off, error, warn, info, debug or trace"),
    ("--log-level", "zmq_ehco", "directives such as info,zmtp=debug"),
    ("--log-level", "zmq_echo=loud", "directives such as info,zmtp=debug"),
    ("--log-format", "xml", "[possible values: auto, json, text]"),
    ("--drain-delay", "5", "expected a number with a unit, such as 500ms, 1s or 2m"),
    ("--drain-delay", "20s", "leaves no time to drain within --drain-timeout 20s"),
    ("--drain-delay", "18s", "only 1s is left after --drain-delay 18s"),
    ("--drain-quiet", "soon", "expected a number with a unit"),
    ("--drain-quiet", "-1s", "expected a number with a unit"),
    ("--drain-quiet", "19s", "--drain-quiet 19s does not fit into --drain-timeout 20s"),
    ("--drain-timeout", "1s", "--drain-quiet 1s does not fit into --drain-timeout 1s"),
    ("--drain-timeout", "100years", "expected 1day at most"),
    ("--drain-timeout", "0s", "more than 0s"),
    ("--latency-buckets", "0.1,0.1", "expected seconds in rising order, comma-separated"),
    ("--latency-buckets", "0.1,nan", "expected seconds"),
    ("--message-limit", "8 apples", "such as 65536, 64KiB or 8MiB"),
    ("--message-limit", "1GiB", "--message-limit 1GiB is more than --buffer-limit 64MiB"),
    ("--frame-limit", "1", "expected a whole number from 2 to 1048576"),
    ("--metadata-limit", "1", "expected 1KiB to 3GiB"),
    ("--peer-limit", "8", "expected a whole number from 9 to 1048576"),
    ("--peer-limit", "100000000", "expected a whole number from 9 to 1048576"),
    ("--address-limit", "9999999", "expected a whole number from 0 to 1048576"),
    ("--handshake-timeout", "0s", "more than 0s"),
    ("--stall-timeout", "0s", "more than 0s"),
    ("--stall-bytes", "8", "1KiB to 3GiB"),
    ("--buffer-limit", "4GiB", "expected 1KiB to 3GiB"),
    ("--buffer-limit", "1MiB", "--message-limit 8MiB is more than --buffer-limit 1MiB"),
    ("--in-flight-limit", "0", "expected a whole number from 1 to 1048576"),
    ("--peer-in-flight-limit", "0", "expected a whole number from 1 to 1048576"),
    ("--request-deadline", "soon", "expected a number with a unit"),
    ("--client-deadlines", "1", "[possible values: true, false]"),
    ("--on-panic", "ignore", "[possible values: reply, exit]"),
    ("--socket-buffer", "64kB", "such as 65536, 64KiB or 8MiB"),
    ("--heartbeat-interval", "often", "expected a number with a unit"),
    ("--busy-poll", "1s", "expected 0s to 1ms with a unit, such as 10us"),
    ("--busy-poll", "10", "expected 0s to 1ms with a unit, such as 10us"),
    ("--work", "5", "expected a number with a unit"),
    ("--work-mode", "think", "[possible values: sleep, burn]"),
    ("--work-jitter", "0.2", "expected 0% to 100%, such as 20%"),
    ("--work-threads", "0", "expected 1 to 1024, such as 4"),
    ("--work-threads", "1025", "expected 1 to 1024"),
    ("--faults", "maybe", "[possible values: true, false]"),
];

#[test]
fn a_wrong_value_is_rejected_with_an_example_of_a_correct_one() {
    assert_rejected(SERVER, &REFUSED);
}

/// Checks that a program rejects a value of a flag with a message that has this part.
pub fn assert_rejected(program: &str, refused: &[(&str, &str, &str)]) {
    for (flag, value, right) in refused {
        let mut command = command(program);
        command.arg(format!("{flag}={value}"));
        let output = output_of_a_rejection(&mut command, &format!("{flag} {value}"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {stderr}");
        assert!(
            stderr.contains(flag) && stderr.contains(right),
            "the message about {flag} {value} lacks `{right}`: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{flag} {value} printed to stdout");
    }
}

/// Waits until the program has exited. A program that accepts the value by mistake may start and
/// never exit: then it is killed at the deadline, and the test fails. Both outputs are short enough
/// for a pipe to hold them until the program has exited.
fn output_of_a_rejection(command: &mut Command, what: &str) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{what}: the program did not exit within {DEADLINE:?}; was the value accepted?");
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn every_flag_is_an_environment_variable_that_a_wrong_value_names() {
    assert_rejected_in_the_environment(SERVER, "ZMQ_ECHO", &EchoConfig::command(), &REFUSED);
}

/// Checks that every flag of a program has its environment variable, with a value that is rejected.
pub fn assert_rejected_in_the_environment(
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
            .unwrap_or_else(|| panic!("the list has no rejected value for {flag}"));
        let mut command = command(program);
        command.env(variable, value);
        let output = output_of_a_rejection(&mut command, &format!("{variable} {value}"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{variable}: {stderr}");
        assert!(
            stderr.contains(variable) && stderr.contains(right),
            "the message about {variable} lacks `{right}`: {stderr}"
        );
        checked += 1;
    }
    let with_values = parser.get_arguments().filter(|arg| arg.get_long().is_some()).count();
    assert_eq!(checked, with_values, "not every flag with a value has an environment variable");
}

#[test]
fn an_unknown_argument_gets_no_misleading_tip() {
    let said = |program: &str, argument: &str| {
        let output = command(program).arg(argument).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("unexpected argument '{argument}'")), "{stderr}");
        assert!(stderr.contains("try '--help'") && !stderr.contains("'-- "), "{stderr}");
        stderr
    };
    for program in [SERVER, PROBE, &LOAD] {
        assert!(
            !said(program, "--concurrency").contains("tip:"),
            "{program} gives a misleading tip"
        );
    }
    let endpoint = "tcp://127.0.0.1:5555";
    let right = |flag| format!("tip: put a flag before the endpoint: --{flag} {endpoint}");
    assert!(said(SERVER, endpoint).contains(&right("bind")));
    assert!(said(PROBE, endpoint).contains(&right("endpoint")));
    assert!(said(SERVER, "true").contains(
        "tip: write the value with an equals sign: --client-deadlines=true or --faults=true"
    ));
    assert!(said(PROBE, "--timout").contains("a similar argument exists: '--timeout'"));
}

#[test]
fn an_address_that_is_not_available_is_reported_with_the_flag_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _taken = std::net::TcpListener::bind(taken).unwrap();
    // A documentation address block, which no host uses.
    let foreign = "192.0.2.1:0";
    let in_use = "Address already in use (os error 98); choose another";
    for (flag, value, begin, end) in [
        ("--bind", format!("tcp://{taken}"), "cannot listen on", in_use),
        ("--http", taken.to_string(), "cannot serve HTTP on", in_use),
        ("--bind", format!("tcp://{foreign}"), "cannot listen on", "no such address"),
        ("--http", foreign.to_owned(), "cannot serve HTTP on", "no such address"),
        ("--bind", "tcp://no-such-host.invalid:0".to_owned(), "cannot listen on", "check"),
        ("--http", "no-such-host.invalid:0".to_owned(), "cannot serve HTTP on", "check"),
    ] {
        let mut server = command(SERVER);
        let other = if flag == "--bind" {
            ["--http", "127.0.0.1:0"]
        } else {
            ["--bind", "tcp://127.0.0.1:0"]
        };
        let output = server.args([flag, &value]).args(other).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(record["message"], "cannot start");
        let error = record["error"].as_str().unwrap();
        assert!(error.starts_with(&format!("{begin} {value}: ")), "{error}");
        assert!(
            error.contains(end) && error.contains(flag),
            "the error does not name the cause and {flag}: {error}"
        );
    }
}

#[test]
fn an_error_hidden_by_the_log_filter_goes_to_stderr() {
    let mut server = command(SERVER);
    server.args(["--bind", "tcp://192.0.2.1:0", "--log-level", "off"]);
    let output = server.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("cannot start: cannot listen on tcp://192.0.2.1:0: "), "{stderr}");
}

#[test]
fn the_side_port_listens_on_every_address_of_a_name() {
    let mut server = command(SERVER);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "localhost:0"]);
    let mut server = crate::support::Process::spawn(&mut server);
    let mut records = std::io::BufRead::lines(server.stdout());
    let record = records.next().unwrap().unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let addresses = record["http"].as_str().unwrap().split(',').map(|address| {
        address.parse::<std::net::SocketAddr>().unwrap_or_else(|_| panic!("{record}"))
    });
    let addresses: Vec<_> = addresses.collect();
    let of_name = std::net::ToSocketAddrs::to_socket_addrs("localhost:0").unwrap();
    for ip in of_name.map(|address| address.ip()) {
        // `lo` may not have `::1`.
        let is_here = std::net::TcpListener::bind((ip, 0)).is_ok();
        assert_eq!(addresses.iter().any(|address| address.ip() == ip), is_here, "{record}");
    }
    for address in addresses {
        // The record comes before the loop's first turn.
        wait_until(&format!("the server is ready at {address}"), || {
            crate::support::get(address, "/readyz").0 == 200
        });
    }
}

#[test]
fn variables_that_the_server_ignores_are_logged_and_those_of_kubernetes_are_not() {
    let mut server = command(SERVER);
    server.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]).envs([
        ("ZMQ_ECHO_LOAD_RATE", "fast"),
        ("ZMQ_ECHO_PROBE_TIMEOUT", "1s"),
        ("ZMQ_ECHO_LOGLEVEL", "debug"),
        ("ZMQ_ECHO_WORKK", "5ms"),
        ("ZMQ_ECHO_PORT", "tcp://10.0.0.1:5555"),
        ("ZMQ_ECHO_SERVICE_HOST", "10.0.0.1"),
    ]);
    let server = Server::spawn(server);
    let records = server.lines();
    let records: Vec<serde_json::Value> =
        records.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = |variable: &str| records.iter().find(|record| record["variable"] == *variable);
    for (variable, field, value, level) in [
        ("ZMQ_ECHO_LOAD_RATE", "read_by", "zmq-echo-load", "INFO"),
        ("ZMQ_ECHO_PROBE_TIMEOUT", "read_by", "zmq-echo-probe", "INFO"),
        ("ZMQ_ECHO_LOGLEVEL", "meant", "ZMQ_ECHO_LOG_LEVEL", "WARN"),
        ("ZMQ_ECHO_WORKK", "meant", "ZMQ_ECHO_WORK", "WARN"),
    ] {
        let record = about(variable).unwrap_or_else(|| panic!("{variable}: {records:?}"));
        assert_eq!((&record[field], &record["level"]), (&value.into(), &level.into()), "{record}");
    }
    assert_eq!(records.iter().filter(|record| record["variable"].is_string()).count(), 4);
}

#[test]
fn variables_that_the_other_programs_ignore_are_named_on_stderr() {
    let said = |program: &str, args: &[&str], variable: &str| {
        let output = command(program).args(args).env(variable, "tcp://127.0.0.1:6000").output();
        String::from_utf8(output.unwrap().stderr).unwrap()
    };
    let nobody = "tcp://no-such-host.invalid:1";
    let probe =
        |args: &[&str]| said(PROBE, &[&["--endpoint", nobody], args].concat(), "ZMQ_ECHO_BIND");
    let load = |variable| said(&LOAD, &[nobody, "--wait", "1ms"], variable);
    let of_server = "ZMQ_ECHO_BIND is ignored: only zmq-echo-server reads it";
    assert!(probe(&["-v"]).contains(of_server));
    assert!(load("ZMQ_ECHO_BIND").contains(of_server));
    // The exec probe shares its server's variables, and its event in Kubernetes has room for one
    // line.
    assert_eq!(probe(&[]).lines().count(), 1);
    let meant = load("ZMQ_ECHO_RATE");
    assert!(
        meant.contains("ZMQ_ECHO_RATE is ignored: did you mean ZMQ_ECHO_LOAD_RATE?"),
        "{meant}"
    );
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
    // Every service has this method.
    let bucket = "zmq_echo_request_duration_seconds_bucket{method=\"other\"";
    assert_eq!(metrics.matches(bucket).count(), 3, "{metrics}");
}

#[test]
fn the_defaults_are_the_documented_ones() {
    // Every flag is read from the command's own defaults, so the environment of the test run does
    // not matter.
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
        assert_eq!(default(flag), expected, "the default of --{flag}");
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
        assert!(!is_on(args), "{args:?} must not simulate anything");
    }
    for args in [&["--work", "1us"][..], &["--faults"], &["--faults=true"]] {
        assert!(is_on(args), "{args:?} must simulate something");
    }
}

#[test]
fn flags_are_checked_against_each_other_including_those_of_the_simulation() {
    let args = ["zmq-echo-server", "--faults", "--drain-delay", "20s"];
    assert!(EchoConfig::parse_args(args).unwrap_err().to_string().contains("leaves no time"));
}

#[test]
fn by_the_memory_formula_the_default_limits_stay_under_160_mib() {
    // The process without clients, as in `zmtp::router`'s formula, and its queued log records.
    let rest = (6 << 20) + zmq_echo::log::QUEUE_BYTES;
    let config = ServerConfig::parse_args(["zmq-echo-server"]).unwrap();
    assert!(
        config.limits().most_memory() + rest < 160 << 20,
        "the default limits allow {} bytes without the rest of the process",
        config.limits().most_memory()
    );
}

#[test]
fn log_format_auto_is_text_on_a_terminal_and_json_elsewhere() {
    assert!(!LogFormat::Auto.is_json(true));
    assert!(LogFormat::Auto.is_json(false));
    assert!(LogFormat::Json.is_json(true));
    assert!(!LogFormat::Text.is_json(false));
}

fn texts(arg: &clap::Arg) -> String {
    arg.get_help().into_iter().chain(arg.get_long_help()).map(ToString::to_string).collect()
}

#[test]
fn help_shows_every_default_and_variable_and_the_exit_codes() {
    for (command, codes) in [
        (EchoConfig::command(), &exit::SERVER[..]),
        (ProbeConfig::command(), &exit::PROBE[..]),
        (zmq_echo_client::load::config::LoadConfig::command(), &exit::LOAD[..]),
    ] {
        let help = command.clone().render_long_help().to_string();
        // clap turns its own placeholders, such as {n}, into something else.
        let source: String = command.get_arguments().map(texts).collect();
        assert!(!["{n}", "{bin}"].iter().any(|own| source.contains(own)), "{source}");
        for (code, _) in codes {
            assert!(
                help.contains(&format!("\n  {code}")),
                "the help lacks exit code {code}: {help}"
            );
        }
        for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
            let place = || vec![format!("  [{}]...", arg.get_value_names().unwrap()[0])];
            // A flag with an optional value shows it in brackets.
            let flag = |long| vec![format!("  --{long} <"), format!("  --{long}[")];
            let names = arg.get_long().map_or_else(place, flag);
            let (_, about) = names.iter().find_map(|name| help.split_once(name)).unwrap();
            let about = about.split("\n      --").next().unwrap().replace("\n          ", " ");
            assert!(about.contains("[env: ZMQ_ECHO_"), "the help names no variable: {about}");
            let Some(default) = arg.get_default_values().first() else { continue };
            assert!(
                about.contains(&format!("[default: {}]", default.display())),
                "the help shows no default: {about}"
            );
            assert!(
                about.contains("The default"),
                "the help gives no reason for the default: {about}"
            );
        }
    }
}

#[test]
fn the_exit_code_tables_match_the_code() {
    let codes = exit::SERVER.map(|(code, _)| code);
    for exit in [Exit::Success, Exit::Failed, Exit::Deadline] {
        assert!(codes.contains(&&*exit.code().to_string()), "the table lacks {exit:?}");
    }
    assert!(codes.contains(&&*exit::PANIC.to_string()));
    let codes = exit::LOAD.map(|(code, _)| code);
    for exit in [Exit::Success, Exit::Failed, Exit::Interrupted] {
        assert!(codes.contains(&&*exit.code().to_string()), "the table lacks {exit:?}");
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
fn a_variable_that_is_not_valid_text_is_named_in_the_error() {
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"\xff");
    let output = command(SERVER).env("ZMQ_ECHO_BIND", value).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("ZMQ_ECHO_BIND"), "{stderr}");
}

#[test]
fn the_probe_is_configured_by_its_environment_too() {
    let output = command(PROBE)
        .env("ZMQ_ECHO_PROBE_ENDPOINT", "tcp://no-such-host.invalid:1")
        .env("ZMQ_ECHO_PROBE_TIMEOUT", "30s")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("tcp://no-such-host.invalid:1: connect failed"), "{stderr}");
}
