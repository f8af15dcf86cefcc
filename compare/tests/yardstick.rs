//! The servers in the comparison are as fast as they can be, and do the same work.

use std::fs;

use crate::support::{client, compared};

#[test]
fn libzmq_is_built_with_eventfd() {
    let server = compared("libzmq");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let eventfds = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy() == "anon_inode:[eventfd]")
        .count();
    assert!(
        eventfds > 0,
        "libzmq's threads wake each other through sockets, which is slower; see .cargo/config.toml"
    );
}

#[test]
fn every_router_echoes_all_frames_and_nothing_else() {
    for kind in ["libzmq", "crate", "rzmq"] {
        let server = compared(kind);
        let context = zmq::Context::new();
        let dealer = client(&context, zmq::DEALER, &server.endpoint(), |_| Ok(()));
        let messages: [&[&str]; 4] =
            [&["one"], &["", "behind a delimiter"], &["", ""], &["two", "", "four"]];
        for frames in messages {
            dealer.send_multipart(frames, 0).unwrap();
            assert_eq!(
                dealer.recv_multipart(0).unwrap(),
                frames.iter().map(|frame| frame.as_bytes().to_vec()).collect::<Vec<_>>(),
                "{kind}"
            );
        }
    }
}
