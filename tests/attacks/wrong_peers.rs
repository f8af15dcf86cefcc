//! Faulty peers are closed and counted by reason, and nothing is logged.

use std::io::Write;

use super::Attacked;
use super::accepting::connect_from_outside;
use crate::support::raw;

/// Sends `bytes` on a new connection, which the server must close for `reason`.
#[track_caller]
fn refused(attacked: &Attacked, bytes: &[u8], reason: &str) {
    let before = attacked.failures(reason);
    let mut peer = raw::stream(attacked.address());
    // The connection may be closed before everything is written.
    let _ = peer.write_all(bytes);
    raw::read_until_closed(&mut peer);
    attacked.wait_for_failures(reason, before as usize + 1);
}

#[test]
fn each_fault_before_ready_closes_the_connection_for_its_own_reason() {
    let mut attacked = Attacked::start(&[]);
    for greeting in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(),
        // The start of a TLS ClientHello.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        // ZMTP 1.0: a frame with an empty identity.
        b"\x01\x00",
        &[0; 64],
        // The last byte of the signature is wrong.
        b"\xff\0\0\0\0\0\0\0\x01\x7e",
    ] {
        refused(&attacked, greeting, "not_zmtp");
    }
    // ZMTP 2.0: signature, revision, socket type, an empty identity.
    refused(&attacked, b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\0\0", "version");
    refused(&attacked, b"\xff\0\0\0\0\0\0\0\x01\x7f\x02\x00", "version");
    for name in [b"CURVE".as_slice(), b"PLAIN", b"GSSAPI", b"NULLX", b""] {
        refused(&attacked, &raw::mechanism(name), "mechanism");
    }
    for socket_type in ["PUB", "SUB", "PUSH", "PULL", "REP", "PAIR", "XPUB", "XSUB", "", "dealer"] {
        refused(&attacked, &raw::hello(1, socket_type, b""), "socket_type");
    }
    refused(&attacked, &raw::hello(1, "DEALER", &[1; 256]), "identity");
    refused(&attacked, &raw::hello(1, "DEALER", &[1; 3000]), "identity");
    let greeted = |bytes: &[u8]| [&raw::greeting(0), bytes].concat();
    refused(&attacked, &greeted(&raw::frame(b"data", false)), "data_before_ready");
    refused(&attacked, &greeted(&raw::command(b"\x05READY\x0bSocket-Type\0\0\xff")), "metadata");
    for property in ["", "\0", "a b", "é", "Socket-Type", "IDENTITY"] {
        let mut body = raw::ready_body("DEALER", b"me");
        body.push(property.len() as u8);
        body.extend([property.as_bytes(), b"\0\0\0\0"].concat());
        refused(&attacked, &greeted(&raw::command(&body)), "metadata");
    }
    refused(&attacked, &greeted(&raw::command(b"\x05HELLO")), "command");
    refused(&attacked, &greeted(&raw::command(b"\x04PING\0\0")), "command");
    refused(&attacked, &greeted(&raw::command(b"")), "command");
    refused(&attacked, &greeted(&raw::command(b"\x05ERROR\x04nope")), "peer_error");
    for flags in [0x08, 0x10, 0x20, 0x40, 0x80, 0x05] {
        refused(&attacked, &greeted(&[flags]), "reserved_flags");
    }
    assert_eq!(attacked.metric("zmq_echo_buffered_bytes"), 0.0);
    attacked.assert_unharmed();
}

#[test]
fn each_fault_after_ready_closes_the_connection_for_its_own_reason() {
    let mut attacked = Attacked::start(&[]);
    for (bytes, reason) in [
        (vec![0x08], "reserved_flags"),
        (vec![0x80], "reserved_flags"),
        (vec![0x05], "reserved_flags"),
        (raw::command(b"\x09SUBSCRIBE"), "command"),
        (raw::command(b"\x05READY"), "command"),
        (raw::command(b"\x04PING\0"), "command"),
        (raw::command(b"\x04PING\0\0seventeen bytes x"), "command"),
        (raw::command(b"\xffPING"), "command"),
        (raw::announced(4, 256), "command"),
        (raw::command(b"\x05ERROR\x04nope"), "peer_error"),
        (raw::announced(0, (8 << 20) + 1), "message_limit"),
        ([raw::frame(b"a", true), raw::announced(1, 8 << 20)].concat(), "message_limit"),
        (raw::frame(b"", true).repeat(1025), "frame_limit"),
    ] {
        let before = attacked.disconnections(reason);
        let mut peer = raw::dealer(attacked.address(), 1, b"");
        // The valid request before the fault still gets its reply.
        raw::echoes(&mut peer, &raw::frame(b"right", false));
        let _ = peer.write_all(&bytes);
        raw::read_until_closed(&mut peer);
        attacked.wait_for_disconnections(reason, before as usize + 1);
    }
    assert_eq!(attacked.metric("zmq_echo_buffered_bytes"), 0.0);
    attacked.assert_unharmed();
}

#[test]
fn the_probes_identity_is_trusted_only_from_this_host() {
    let attacked = Attacked::start(&[]);
    let source =
        |source| attacked.metric(&format!("zmq_echo_requests_total{{source=\"{source}\"}}"));
    let client = "zmq_echo_requests_total{source=\"client\"}";
    // The echoes at the start: a turn's requests are published at its end, after their replies.
    let before = 300.0;
    attacked.wait_for_metric(client, |count| count == before);
    let mut elsewhere = connect_from_outside(attacked.address());
    raw::shake_hands(&mut elsewhere, &raw::hello(0, "DEALER", b"zmq-echo-probe/x"));
    for _ in 0..10 {
        raw::echoes(&mut elsewhere, &raw::frame(b"load", false));
    }
    attacked.wait_for_metric(client, |count| count == before + 10.0);
    assert_eq!(source("probe"), 0.0);
    // Its announced identity is ignored, because it was given another one.
    let mut here = raw::dealer(attacked.address(), 0, b"zmq-echo-probe/x");
    raw::echoes(&mut here, &raw::frame(b"check", false));
    attacked.wait_for_metric("zmq_echo_requests_total{source=\"probe\"}", |count| count == 1.0);
    assert_eq!(source("client"), before + 10.0);
    let observed = attacked.metric("zmq_echo_request_duration_seconds");
    assert_eq!(observed, before + 10.0, "a client's latency is measured");
}
