//! Each Deployment has one image, with the tag of the release and without an unverified digest.

use k8s_openapi::api::apps::v1::Deployment;

use crate::build::{NAME, VERSION, build_beside, parse, pods, sources};
use crate::probes::program;

#[test]
fn there_is_one_deployment_of_the_server_in_the_tree() {
    let whole: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "yaml"))
        .flat_map(|(path, text)| {
            parse(&text).into_iter().map(move |document| (path.clone(), document))
        })
        .filter(|(_, document)| document["kind"] == "Deployment")
        // A Deployment without a selector is a patch.
        .filter(|(_, document)| document.pointer("/spec/selector").is_some())
        .filter(|(_, document)| {
            document.pointer("/spec/template/spec/containers/0/image").unwrap() == NAME
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(whole.len(), 1, "expected one Deployment: {whole:?}");
}

#[test]
fn every_container_of_this_project_runs_this_release() {
    for pod in pods() {
        for container in pod.containers() {
            let image = container.image.as_deref().expect("the container has an image");
            let (name, tag) = image.rsplit_once(':').unwrap_or((image, "no tag"));
            assert!(
                tag != "latest" && tag != "no tag",
                "{} does not name a release: {image}",
                pod.origin
            );
            if name == NAME {
                assert_eq!(tag, VERSION, "{}", pod.origin);
            }
        }
    }
}

#[test]
fn no_image_digest_is_committed() {
    for (path, text) in sources() {
        for after in text.split("sha256:").skip(1) {
            assert!(after.starts_with("DIGEST"), "{} has a digest", path.display());
        }
    }
}

#[test]
fn a_digest_reaches_the_deployment_and_no_component_takes_it_off() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let image = format!("registry.example/{NAME}@{digest}");
    // As in the README, together with the load.
    let with_digest = format!(
        "resources: [../production]\n\
         images: [{{name: {NAME}, newName: registry.example/{NAME}, digest: '{digest}'}}]\n"
    );
    build_beside("overlays", "digest", &with_digest);
    let with_load =
        format!("namespace: {NAME}\nresources: [../digest]\ncomponents: [../../components/load]\n");
    let loaded = build_beside("overlays", "digest-and-load", &with_load);
    let deployment: Deployment = loaded.named(NAME);
    let container = &deployment.spec.template.spec.unwrap().containers[0];
    assert_eq!(container.image, Some(image));
}

#[test]
fn every_command_of_this_project_is_a_program_in_the_image() {
    for pod in pods() {
        for container in pod.containers() {
            let [command] = &container.command.clone().unwrap_or_default()[..] else { continue };
            if command.starts_with("/zmq-echo-") {
                program(command);
            }
        }
    }
}
