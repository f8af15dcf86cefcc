//! Network namespaces that are deleted at the end of the test, and the cable between two of them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{Process, wait_until};

/// A network namespace with its loopback up. A child process holds it and ends when its stdin
/// closes, so nothing is left behind even if the tests are killed.
pub struct Namespace {
    holder: Process,
}

impl Namespace {
    /// # Panics
    ///
    /// If this process is not allowed to create one.
    pub fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped());
        let mut holder = Process::spawn(&mut command);
        let ours = fs::read_link("/proc/self/ns/net").expect("a kernel with network namespaces");
        let path = link(&holder);
        wait_until("the namespace exists", || {
            assert!(
                holder.is_running(),
                "no network namespace can be created here: run the tests as root, or with \
                 `unshare --map-root-user --net cargo test --test network`"
            );
            fs::read_link(&path).is_ok_and(|theirs| theirs != ours)
        });
        let namespace = Self { holder };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside the namespace. Sockets and processes that it creates belong
    /// to the namespace, even after they are handed out.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let namespace = File::open(link(&self.holder))
                .expect("the process that holds the namespace is running");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("a process that may create a namespace may also enter it");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` with these arguments inside the namespace.
    #[track_caller]
    pub fn ip(&self, args: &str) {
        if let Err(error) = self.try_tool("ip", args) {
            panic!("ip {args}: {error}");
        }
    }

    /// Runs one of iproute2's tools inside the namespace. Returns its error output if it failed.
    pub fn try_tool(&self, tool: &str, args: &str) -> Result<(), String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(tool);
        command.args(args.split(' ')).env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let output = self.run(|| command.output()).unwrap_or_else(|error| {
            panic!("this test needs {tool}, from Debian's package iproute2: {error}");
        });
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

fn link(holder: &Process) -> PathBuf {
    format!("/proc/{}/ns/net", holder.0.id()).into()
}

/// A server's host and a peer's, with a cable between them.
pub struct Network {
    pub server: Namespace,
    pub peer: Namespace,
}

/// The server's host.
pub const SERVER: &str = "10.11.0.1";
/// The peer's host.
pub const PEER: &str = "10.11.0.2";
/// The name of either end of the cable.
pub const CABLE: &str = "cable";

impl Network {
    pub fn new() -> Self {
        let network = Self { server: Namespace::new(), peer: Namespace::new() };
        let peer = network.peer.holder.0.id();
        network.server.ip(&format!("link add {CABLE} type veth peer name {CABLE} netns {peer}"));
        for (namespace, address) in [(&network.server, SERVER), (&network.peer, PEER)] {
            namespace.ip(&format!("address add {address}/24 dev {CABLE}"));
            namespace.ip(&format!("link set {CABLE} up"));
        }
        network
    }

    /// Unplugs the cable from the server's host: packets are dropped, and neither host reports it.
    pub fn cut_server(&self) {
        self.server.ip(&format!("link set {CABLE} down"));
    }

    /// Unplugs the cable from the peer's host: packets are dropped, and neither host reports it.
    pub fn cut(&self) {
        self.peer.ip(&format!("link set {CABLE} down"));
    }
}
