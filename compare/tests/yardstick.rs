//! What the server is measured against is as fast as it can be had.

use std::fs;
use std::process::Command;

use zmq_echo_compare::process::Server;

#[test]
fn libzmq_is_built_with_eventfd() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmq-echo-compare"));
    command.args(["serve", "libzmq"]);
    let server = Server::start(command).unwrap();
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let eventfds = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy() == "anon_inode:[eventfd]")
        .count();
    assert!(eventfds > 0, "its threads wake each other through sockets; see .cargo/config.toml");
}
