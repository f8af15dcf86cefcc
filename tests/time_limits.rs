//! Hand-written requests that say how long they are worth working on.

use std::io::Write;
use std::net::TcpStream;

use zmq_echo::service::Rejection;
use zmq_echo::service::rejection::{CHECK, ERROR};
use zmq_echo::service::time_limit::TIME_LIMIT;

use crate::support::{Server, raw};

/// Sends a request, and returns the frames of the reply or the error.
fn asked(client: &mut TcpStream, frames: &[&[u8]]) -> Result<Vec<Vec<u8>>, (String, bool)> {
    client.write_all(&raw::message(frames)).unwrap();
    answer(client)
}

fn answer(client: &mut TcpStream) -> Result<Vec<Vec<u8>>, (String, bool)> {
    let frames = raw::read_message(client);
    let payload_at = frames.iter().position(Vec::is_empty).map_or(0, |at| at + 1);
    match Rejection::of_payload(frames[payload_at..].iter().map(|frame| &frame[..])) {
        Some(rejection) => Err((rejection.code.into_owned(), rejection.retry)),
        None => Ok(frames),
    }
}

fn owned(frames: &[&[u8]]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| frame.to_vec()).collect()
}

#[test]
fn a_time_limit_is_removed_from_the_request_and_an_expired_one_is_an_error() {
    for args in [&["--client-deadlines"][..], &["--client-deadlines", "--work", "1ms"]] {
        let server = Server::start(args);
        let mut client = raw::connect(server.address(), b"");
        for (envelope, payload) in [
            (&[&b"id"[..], b""][..], &[&b"one"[..]][..]),
            (&[b""], &[b"of a", b"REQ"]),
            (&[], &[b"no envelope"]),
        ] {
            let request = |limit: &'static [u8]| [envelope, &[TIME_LIMIT, limit], payload].concat();
            let reply = owned(&[envelope, payload].concat());
            assert_eq!(asked(&mut client, &request(b"60000")), Ok(reply.clone()));
            assert_eq!(asked(&mut client, &[envelope, payload].concat()), Ok(reply));
            let passed = Err(("deadline".to_owned(), true));
            assert_eq!(asked(&mut client, &request(b"0")), passed, "{args:?}");
        }
        for (frames, code) in [
            (&[b"", &TIME_LIMIT[..], b"soon", b"hello"][..], "invalid_deadline"),
            (&[b"", &TIME_LIMIT[..]], "invalid_deadline"),
            (&[b"", &TIME_LIMIT[..], b"1", &ERROR[..]], "reserved"),
            (&[b"", &TIME_LIMIT[..], b"1", &CHECK[..]], "reserved"),
            (&[b"", &TIME_LIMIT[..], b"1", &TIME_LIMIT[..], b"1", b"hello"], "reserved"),
        ] {
            assert_eq!(asked(&mut client, frames), Err((code.to_owned(), false)), "{frames:?}");
        }
    }
}

#[test]
fn by_default_a_request_with_a_time_limit_is_rejected() {
    let server = Server::start(&[]);
    let mut client = raw::connect(server.address(), b"");
    let reply = asked(&mut client, &[b"", TIME_LIMIT, b"60000", b"hello"]);
    assert_eq!(reply, Err(("reserved".to_owned(), false)));
}

#[test]
fn a_request_that_has_waited_past_its_time_limit_is_not_worked_on() {
    let server = Server::start(&["--work", "300ms", "--work-threads", "1", "--client-deadlines"]);
    let mut client = raw::connect(server.address(), b"");
    let requests: [&[&[u8]]; 4] = [
        &[b"1", b"", b"hello"],
        &[b"2", b"", TIME_LIMIT, b"100", b"hello"],
        &[b"3", b"", TIME_LIMIT, b"60000", b"hello"],
        &[b"4", b"", TIME_LIMIT, b"100", b"hello"],
    ];
    let bytes: Vec<u8> = requests.iter().flat_map(|frames| raw::message(frames)).collect();
    client.write_all(&bytes).unwrap();
    let expired = || Err(("deadline".to_owned(), true));
    assert_eq!(answer(&mut client), Ok(owned(&[b"1", b"", b"hello"])));
    assert_eq!(answer(&mut client), expired());
    assert_eq!(answer(&mut client), Ok(owned(&[b"3", b"", b"hello"])));
    assert_eq!(answer(&mut client), expired());
    let worked = format!("zmq_echo_replies_total{{method=\"echo\",outcome=\"{}\"}}", "error");
    server.wait_for_metric(&worked, |replies| replies == 2.0);
}
