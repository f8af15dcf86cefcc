//! Every link in the documents has a target, and the index links to every document.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::shell::documents;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page of the repository: documents for readers, and those next to the code.
fn pages() -> Vec<(PathBuf, String)> {
    let beside = ["client", "compare", "fuzz", "tests/cluster", "zmtp"];
    let beside = beside.map(|folder| root().join(folder).join("README.md"));
    let beside = beside.into_iter().filter(|path| path.exists());
    let beside = beside.map(|path| (path.clone(), fs::read_to_string(path).unwrap()));
    documents().into_iter().chain(beside).collect()
}

/// The text outside of code blocks and backticks.
fn prose(text: &str) -> String {
    let outside_blocks = text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n");
    outside_blocks.split('`').step_by(2).collect()
}

/// The targets of a page's links and images.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| target.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// The anchors that GitHub generates for a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let outside_blocks: Vec<_> = text.split("\n```").step_by(2).collect();
    let lines = outside_blocks.iter().flat_map(|part| part.lines());
    let headings = lines.filter(|line| line.starts_with('#') && line.contains(' '));
    headings
        .map(|heading| {
            let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            let kept = |c: &char| c.is_alphanumeric() || "-_".contains(*c);
            let anchor: String = words.chars().filter(kept).collect();
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
        })
        .collect()
}

/// What is wrong with a link on the page at `path`, if anything.
fn fault(path: &Path, text: &str, link: &str) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = path.parent().unwrap().join(file);
    if !file.is_empty() && !target.exists() {
        return Some(format!("{} links to `{link}`, which does not exist", path.display()));
    }
    let target_text = match file {
        "" => Some(text.to_owned()),
        _ if target.extension().is_some_and(|extension| extension == "md") => {
            Some(fs::read_to_string(&target).unwrap())
        }
        _ => None,
    };
    let leads =
        anchor.is_empty() || target_text.is_some_and(|text| anchors(&text).contains(anchor));
    (!leads).then(|| format!("{} links to `{link}`, which has no such heading", path.display()))
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut count = 0;
    let mut faults = Vec::new();
    for (path, text) in pages() {
        for link in links(&text) {
            faults.extend(fault(&path, &text, &link));
            count += 1;
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 80, "only {count} links were found");
}

#[test]
fn a_broken_link_is_detected() {
    let page = root().join("docs/README.md");
    let text = "# One\n\n```sh\n# no heading\n```\n\n## A `b`, c\n\n## One\n";
    for (link, holds) in [
        ("#one", true),
        ("#one-1", true),
        ("#a-b-c", true),
        ("#no-heading", false),
        ("operations.md#alerts", true),
        ("operations.md#alarms", false),
        ("../README.md", true),
        ("README.txt", false),
        ("https://example.com/", true),
    ] {
        assert_eq!(fault(&page, text, link).is_none(), holds, "`{link}` is judged wrongly");
    }
}

#[test]
fn the_index_leads_to_every_document() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let linked: BTreeSet<_> = links(&index).into_iter().collect();
    for (path, _) in documents() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_document = path.parent() == Some(&root().join("docs")) && name != "README.md";
        assert!(!is_document || linked.contains(name), "{name} is not in docs/README.md");
    }
    assert!(links(super::README).contains(&"docs/README.md".to_owned()));
}

/// Comments, messages and manifests that name documents and their sections.
#[test]
fn every_document_named_in_the_tree_exists() {
    let mut files = Vec::new();
    for folder in
        [".ci", "bin", "client", "compare", "examples", "fuzz", "k8s", "src", "tests", "zmtp"]
    {
        collect(&root().join(folder), &mut files);
    }
    let in_root = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    files.extend(in_root.filter(|path| path.is_file()));
    let mut count = 0;
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for rest in text.split("docs/").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-._/".contains(c));
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            let name = name.trim_end_matches('.');
            if !name.ends_with(".md") {
                continue;
            }
            let document = root().join("docs").join(name);
            assert!(
                document.exists(),
                "{} names docs/{name}, which does not exist",
                file.display()
            );
            let named = after.strip_prefix('#').map(|anchor| {
                let end = anchor.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
                &anchor[..end.unwrap_or(anchor.len())]
            });
            // A format string, or a test, may contain only the start of an anchor.
            if let Some(anchor) = named.filter(|anchor| !anchor.is_empty()) {
                let there = anchors(&fs::read_to_string(&document).unwrap());
                assert!(
                    there.contains(anchor),
                    "{} names docs/{name}#{anchor}, which has no such heading",
                    file.display()
                );
            }
            count += 1;
        }
    }
    assert!(count > 60, "only {count} names of documents were found");
}

/// The files in a folder and its subfolders, without build output.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && name != "corpus" {
            collect(&path, files);
        } else if path.is_file() {
            files.push(path);
        }
    }
}
