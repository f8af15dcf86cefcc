//! The manifests of a project made by `new-project`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::build::{directories, kubectl, root};

/// Kubernetes' limits on the length of a Service's name or a label's value, and of a port's name.
const NAME: usize = 63;
const PORT: usize = 15;

#[test]
fn the_manifests_of_a_project_with_the_longest_name_keep_kubernetes_limits() {
    let folder = std::env::temp_dir().join(format!("new-project-manifests-{}", std::process::id()));
    let name = format!("{}-b", "a".repeat(33));
    let mut script = Command::new(root().join("new-project"));
    for variable in ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"] {
        script.env(variable, "Somebody");
    }
    for variable in ["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"] {
        script.env(variable, "somebody@example.com");
    }
    let output = script.arg(&name).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let overlays = directories(&folder.join("k8s/overlays"));
    let built: Vec<_> = overlays.iter().map(|overlay| render(overlay)).collect();
    fs::remove_dir_all(&folder).unwrap();

    let (mut names, mut labels, mut ports) = (0, 0, 0);
    for document in built.iter().flatten() {
        visit(document, &mut |key, value, parent| {
            let Some(text) = value.as_str() else { return };
            match (parent, key) {
                ("metadata", "name") => {
                    assert!(text.len() <= NAME, "the name is too long: {text}");
                    names += usize::from(text.contains(&name));
                }
                ("labels" | "matchLabels", _) => {
                    assert!(text.len() <= NAME, "the label is too long: {text}");
                    labels += usize::from(text.contains(&name));
                }
                ("ports", "name") => {
                    assert!(text.len() <= PORT, "the name of the port is too long: {text}");
                    ports += 1;
                }
                _ => {}
            }
        });
        // A pod's name consists of its Deployment's name, a hash of ten characters, and an ending
        // of five.
        let longest = document["metadata"]["name"].as_str().unwrap().len() + 1 + 10 + 1 + 5;
        assert!(
            document["kind"] != "Deployment" || longest <= NAME,
            "the longest name of a pod has {longest} characters"
        );
    }
    assert!(
        names > 20 && labels > 50 && ports > 5,
        "only {names} names, {labels} labels and {ports} ports were found"
    );
}

fn render(overlay: &Path) -> Vec<Value> {
    let output = kubectl(&["kustomize", overlay.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// Calls `each` with every key and value at any depth, and the key above it.
fn visit(value: &Value, each: &mut impl FnMut(&str, &Value, &str)) {
    fn walk(value: &Value, parent: &str, each: &mut impl FnMut(&str, &Value, &str)) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                each(key, value, parent);
                walk(value, key, each);
            }),
            Value::Array(items) => items.iter().for_each(|item| walk(item, parent, each)),
            _ => {}
        }
    }
    walk(value, "", each);
}
