//! An attack on one server: a pod whose programs make the server hold as much memory as it allows,
//! at every limit of the memory formula in `docs/sizing.md` at the same time.

use serde_json::json;

use crate::api::{Cluster, apply_in, kubectl};
use crate::other_namespace::{NAME, OtherNamespace, pod, restricted};
use crate::wait_for;

/// The kinds of attacking peers, and how many there are of each. Together they are more than the
/// server allows, and there are more scrapes than its side port has room for.
const PEERS: [(&str, u32); 5] =
    [("readers", 400), ("halves", 300), ("frames", 100), ("silent", 500), ("idle", 500)];
const SCRAPES: (&str, u32) = ("scrapes", 300);

/// A running attack, which ends when this is dropped.
pub struct Attack {
    _other: OtherNamespace,
}

impl Attack {
    /// Starts an attack that lasts this many `seconds`. It comes from a namespace with all labels
    /// that the network policies let in.
    #[track_caller]
    pub fn start(cluster: &Cluster, ip: &str, seconds: u32) -> Self {
        let image = cluster.attacker_image.as_deref();
        let image =
            image.expect("this needs an image of the attacker: name one with --attacker-image");
        let other = OtherNamespace::create();
        other.label("zmq-echo/clients=true");
        other.label("zmq-echo/monitoring=true");
        let container = |(kind, count): (&str, u32), port: u16| {
            let mut container = restricted(kind);
            container["image"] = json!(image);
            let address = format!("{ip}:{port}");
            container["args"] = json!([kind, count.to_string(), seconds.to_string(), address]);
            // Limited, so that the server, its probe and its clients get CPU time on the node as
            // well.
            container["resources"] = json!({"limits": {"cpu": "150m"}, "requests": {"cpu": "20m"}});
            container
        };
        let mut containers: Vec<_> = PEERS.map(|peers| container(peers, 5555)).into();
        containers.push(container(SCRAPES, 8080));
        let attackers = pod("attacker", NAME, &[("zmq-echo/client", "true")], containers);
        apply_in(NAME, &[attackers]);
        Self { _other: other }
    }

    /// Waits until the attack is over, and prints what each kind of attacker has done.
    #[track_caller]
    pub fn wait(&self, cluster: &Cluster) {
        let path = format!("/api/v1/namespaces/{NAME}/pods/attacker");
        wait_for("the attack is over", || {
            let phase = &cluster.get(&path)["status"]["phase"];
            assert_ne!(phase, "Failed", "the attackers failed");
            (phase == "Succeeded").then_some(())
        });
        let logs = ["logs", "attacker", "--namespace", NAME, "--all-containers"];
        kubectl(&logs).lines().for_each(|line| println!("  {line}"));
    }
}
