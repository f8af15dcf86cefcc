//! The service of `zmq-echo-server`: every message comes back unchanged.
//!
//! If you replace the service, replace these tests. Most others start the tests' own echo server.

use zeromq::{ReqSocket, Socket};

use crate::support::{Server, echo, message};

#[tokio::test]
async fn every_frame_comes_back_unchanged() {
    let server = Server::start_real();
    let mut dealer = server.dealer().await;
    let large = vec![0xa5; 1 << 20];
    let messages: [&[&[u8]]; 6] = [
        &[b""],
        &[b"one"],
        &[b"", b"after a delimiter"],
        &[b"a", b"", b"c", b""],
        &[&large],
        &[&large, b"", &large],
    ];
    for frames in messages {
        assert_eq!(echo(&mut dealer, message(frames)).await, frames);
    }
}

#[tokio::test]
async fn a_req_client_is_answered_request_by_request() {
    let server = Server::start_real();
    let mut req = ReqSocket::new();
    req.connect(&server.endpoint).await.unwrap();
    for number in 0..100 {
        let text = format!("request {number}");
        assert_eq!(echo(&mut req, text.clone().into()).await, [text.as_bytes()]);
    }
}
