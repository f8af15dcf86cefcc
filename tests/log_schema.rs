//! docs/logs.md matches the source, the records written by a server here, and those that the client
//! and the load generator write in their own tests.
#[allow(dead_code, reason = "shared with the client's own tests")]
pub mod captured;
pub mod documented;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value as Json;

pub use self::documented::assert_documented;
use self::documented::{LOGS, Records, SECTIONS, documented, documented_in, types};
use crate::support::tables::table_of;
use crate::support::{EVERY_RECORD, POD, Server, TEST_SERVER, command, raw};

/// Checks that a record in text form is documented. Only names are checked, because values in text
/// have no types.
#[track_caller]
pub fn assert_text_documented(line: &str) {
    let parts = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once(' '));
    let (level, rest) = parts.unwrap_or_else(|| panic!("no time and level: {line}"));
    let (target, rest) = rest.split_once(": ").unwrap_or_else(|| panic!("no target: {line}"));
    let names = rest.split(' ').filter_map(|word| word.split_once('='));
    let found: BTreeSet<String> = names.map(|(name, _)| name.to_owned()).collect();
    let says = |message: &str| {
        let rest = rest.strip_prefix(message);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    let holds = documented().iter().any(|((message, module), record)| {
        module == target && says(message) && *record == (level.to_owned(), found.clone())
    });
    assert!(holds, "docs/logs.md does not document this record: {line}");
}

#[test]
fn the_documented_records_match_the_source() {
    for (section, of_client) in SECTIONS.into_iter().zip([false, true]) {
        assert_eq!(documented_in(section), records_of(sources(of_client)), "{section}");
    }
}

fn records_of(files: Vec<PathBuf>) -> Records {
    let mut found = Records::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        // A module's own tests are at its end.
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        for unseen in ["event!(", "span!(", "#[instrument", "tracing::instrument"] {
            assert!(
                !source.contains(unseen),
                "this test does not look for {unseen}, which is in {}",
                file.display()
            );
        }
        for (level, arguments) in invocations(source) {
            let (message, fields) = record(arguments);
            let name = (message, target(&file));
            let before = found.insert(name.clone(), (level.to_owned(), fields.clone()));
            let same = before.is_none_or(|(_, before)| before == fields);
            assert!(same, "{name:?} is logged in two places with different fields");
        }
    }
    found
}

#[test]
fn the_documented_examples_are_valid_records() {
    let [json, text] = ["```json\n", "```text\n"].map(|start| {
        let (_, rest) = LOGS.split_once(start).expect("docs/logs.md has an example");
        rest.split_once("\n```").expect("its end").0
    });
    assert_documented(&serde_json::from_str(json).unwrap(), true);
    assert_text_documented(text);
}

#[test]
fn the_documented_fields_match_the_records() {
    let used: BTreeSet<_> = documented().into_values().flat_map(|(_, fields)| fields).collect();
    let fields = types("## Fields");
    assert_eq!(fields.keys().cloned().collect::<BTreeSet<_>>(), used);
    for field in types("## Every record").keys() {
        assert!(!used.contains(field), "{field} would appear twice in a record");
    }
    let levels: BTreeSet<_> = documented().into_values().map(|(level, _)| level).collect();
    let rows = table_of(LOGS, "## Levels", "| level | what");
    assert_eq!(rows.into_iter().map(|row| row[0].clone()).collect::<BTreeSet<_>>(), levels);
}

/// The source files of the server, the probe and their socket, or of the client and the load
/// generator.
fn sources(of_client: bool) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders: &[&str] =
        if of_client { &["client/bin", "client/src"] } else { &["bin", "src", "zmtp/src"] };
    let mut files = Vec::new();
    folders.iter().for_each(|folder| add_sources_under(&root.join(folder), &mut files));
    assert!(!files.is_empty());
    files
}

/// Adds the source files in a folder and its subfolders, if it is a folder.
fn add_sources_under(path: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten() {
        let path = entry.unwrap().path();
        add_sources_under(&path, files);
        files.extend([path].into_iter().filter(|path| path.extension() == Some("rs".as_ref())));
    }
}

/// The folders of the libraries.
const LIBRARIES: [(&str, &str); 3] =
    [("src", "zmq_echo"), ("zmtp/src", "zmtp"), ("client/src", "zmq_echo_client")];

/// The module path of a file, which is the target of its records.
fn target(file: &Path) -> String {
    let path = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().with_extension("");
    let of_library = LIBRARIES
        .iter()
        .find_map(|(folder, library)| Some((*library, path.strip_prefix(folder).ok()?)));
    let (library, path) =
        of_library.unwrap_or_else(|| panic!("{}: a binary logs nothing", file.display()));
    let parts = path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod");
    std::iter::once(library).chain(parts).collect::<Vec<_>>().join("::")
}

/// Each use of a logging macro: its level and its arguments.
fn invocations(source: &str) -> Vec<(&'static str, &str)> {
    let mut found = Vec::new();
    for level in ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"] {
        let call = format!("{}!(", level.to_lowercase());
        for (at, _) in source.match_indices(&call) {
            let line = source[..at].rsplit('\n').next().unwrap();
            if !line.trim_start().starts_with("//") && !line.ends_with(char::is_alphanumeric) {
                let arguments = &source[at + call.len()..];
                let end = ends(arguments, ')').next().expect("the macro's closing parenthesis");
                found.push((level, &arguments[..end]));
            }
        }
    }
    found
}

/// The position of `mark` in `code` outside strings and inner brackets.
fn ends(code: &str, mark: char) -> impl Iterator<Item = usize> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    code.char_indices().filter_map(move |(at, c)| {
        let found = !in_string && depth == 0 && c == mark;
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            '(' | '[' | '{' if !in_string => depth += 1,
            ')' | ']' | '}' if !in_string => depth -= 1,
            _ => {}
        }
        found.then_some(at)
    })
}

/// Message and field names of a logging macro's arguments.
fn record(arguments: &str) -> (String, BTreeSet<String>) {
    let mut parts = Vec::new();
    let mut from = 0;
    for end in ends(arguments, ',').chain([arguments.len()]) {
        parts.push(arguments[from..end].trim());
        from = end + 1;
    }
    // The last comma may be a trailing one.
    parts.retain(|part| !part.is_empty());
    let message = parts.pop().expect("a message").trim_matches('"');
    assert!(!message.contains('{'), "`{message}` is not a constant");
    let names = parts.into_iter().map(|part| {
        let name = part.split('=').next().unwrap().trim().trim_start_matches(['%', '?']);
        assert!(name.chars().all(|c| c.is_alphanumeric() || c == '_'), "`{part}` is not a field");
        name.to_owned()
    });
    (message.to_owned(), names.collect())
}

#[test]
fn every_record_of_a_servers_life_is_documented() {
    // Too few open files for the peer limit.
    let mut shell = command("sh");
    shell.args(["-c", "ulimit -n 400; exec \"$0\" \"$@\"", &TEST_SERVER]);
    shell.args(["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]);
    shell.args(["--log-level", EVERY_RECORD, "--drain-quiet", "100ms"]);
    shell.envs(POD.map(|(variable, _, value)| (variable, value)));
    let mut server = Server::spawn(shell);
    let mut untrusted = TcpStream::connect(server.address()).unwrap();
    untrusted.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = untrusted.read_to_end(&mut Vec::new());
    let mut peer = raw::connect(server.address(), b"peer");
    raw::echoes(&mut peer, &raw::frame(b"hello", false));
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    server.wait_for_record("drained");
    let records: Vec<Json> =
        server.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for record in &records {
        assert_documented(record, true);
        for (_, field, value) in POD {
            assert_eq!(record[field], value);
        }
    }
    let messages: BTreeSet<_> =
        records.iter().map(|record| record["message"].as_str().unwrap()).collect();
    let life = [
        "peer limit lowered to fit the limit on open files",
        "listening",
        "handshake failed",
        "peer connected",
        "request",
        "draining",
        "stopped listening; connected peers are still served",
        "drained",
    ];
    for message in life {
        assert!(messages.contains(message), "`{message}` was not logged: {messages:?}");
    }
}
