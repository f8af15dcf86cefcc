//! The shell commands of the README and of `docs/`.

use std::fs;
use std::path::{Path, PathBuf};

/// Programs that identify a command between backticks.
const PROGRAMS: [&str; 9] =
    ["cargo", "curl", "docker", "docs/probe-cost", "helm", "kill", "kind", "kubectl", "promtool"];

/// Every document for readers, with its text.
pub fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = documents
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    let at_root = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    files.extend(at_root.map(|name| root.join(name)));
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

/// The blocks of shell commands in a text.
pub fn blocks_of(text: &str) -> Vec<String> {
    let code = text.split("\n```").skip(1).step_by(2);
    code.filter_map(|block| block.strip_prefix("sh\n")).map(str::to_owned).collect()
}

/// The blocks of the section with this heading.
pub fn blocks_under(text: &str, heading: &str) -> Vec<String> {
    let (_, section) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    blocks_of(section.split("\n## ").next().unwrap())
}

/// The commands of a block. A loop, a here-document, and lines that are joined by backslashes each
/// count as one command.
pub fn commands_of(block: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut end = None;
    for line in block.lines() {
        let goes_on = commands.last().is_some_and(|last| last.ends_with('\\'));
        match commands.last_mut() {
            Some(last) if end.is_some() || goes_on => {
                last.push('\n');
                last.push_str(line);
            }
            _ => commands.push(line.to_owned()),
        }
        if end.as_deref() == Some(line) {
            end = None;
        } else if let Some((_, word)) = line.split_once("<<") {
            end = Some(word.trim().to_owned());
        } else if line.starts_with("for ") {
            end = Some("done".to_owned());
        }
    }
    commands
}

/// The commands between backticks in the prose of a text.
pub fn inline(text: &str) -> Vec<String> {
    let prose = text.split("\n```").step_by(2);
    let code = prose.flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let code = code.map(|code| code.split_whitespace().collect::<Vec<_>>());
    let is_command = |words: &Vec<&str>| {
        // Skip text that is only the beginning of another command.
        let begins = words[..] == ["kubectl", "--namespace", "zmq-echo"];
        words.len() > 1 && PROGRAMS.contains(&words[0]) && !begins
    };
    code.filter(is_command).map(|words| words.join(" ")).collect()
}

/// Every command, with the file that it is in.
pub fn commands() -> Vec<(PathBuf, String)> {
    let documents = documents().into_iter();
    let all = documents.flat_map(|(file, text)| {
        let blocks =
            blocks_of(&text).iter().flat_map(|block| commands_of(block)).collect::<Vec<_>>();
        blocks.into_iter().chain(inline(&text)).map(move |command| (file.clone(), command))
    });
    all.collect()
}
