//! Which messages have been written, and what can still be read once writing fails.

use std::io::ErrorKind;
use std::sync::mpsc;

use super::*;

/// Message sizes for each way of queueing: empty, copied, and not copied.
fn sizes(number: usize) -> usize {
    [0, 100, 5000, 9000, 100_000][number % 5]
}

/// Sends messages until the kernel accepts no more and some are waiting. Returns their number.
async fn fill(dealer: &mut Dealer) -> u64 {
    let mut number = 0;
    let mut still = 0;
    let mut unwritten = 0;
    // The kernel enlarges its buffer over time.
    while still < 20 {
        while dealer.send(message(&vec![1; sizes(number)])).is_ok() {
            number += 1;
        }
        tokio::select! {
            told = dealer.recv() => panic!("unexpected message or end: {told:?}"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        still = if dealer.unwritten() == unwritten { still + 1 } else { 0 };
        unwritten = dealer.unwritten();
    }
    assert!(unwritten > 0 && dealer.written() > 0 && dealer.written() < number as u64);
    number as u64
}

/// Reads until the end, and counts the complete messages.
fn count_messages(stream: &mut TcpStream) -> u64 {
    let mut bytes = Vec::new();
    let result = stream.read_to_end(&mut bytes);
    if let Err(error) = result {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let (mut rest, mut count) = (&bytes[..], 0);
    loop {
        let (header, size) = match *rest {
            [0, size, ..] => (2, usize::from(size)),
            [2, ref rest @ ..] if rest.len() >= 8 => {
                (9, u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize)
            }
            _ => return count,
        };
        let Some((_, behind)) = rest.split_at_checked(header + size) else { return count };
        rest = behind;
        count += 1;
    }
}

#[tokio::test]
async fn written_counts_exactly_the_messages_that_the_kernel_accepted_completely() {
    let (go, may_go) = mpsc::channel();
    let (address, server) = router(1, move |mut stream| {
        may_go.recv().unwrap();
        count_messages(&mut stream)
    });
    let config = DealerConfig { send_bytes: 8 << 20, ..config() };
    let mut dealer = connect_to(&[address], &config).await.unwrap();
    fill(&mut dealer).await;
    let written = dealer.written();
    // What the kernel has accepted still arrives.
    drop(dealer);
    go.send(()).unwrap();
    assert_eq!(server.join().unwrap(), written);
}

#[tokio::test]
async fn after_a_reset_the_server_has_seen_no_unwritten_message() {
    for reads in [0, 1, 1 << 20] {
        let (go, may_go) = mpsc::channel();
        let (address, server) = router(1, move |mut stream| {
            may_go.recv().unwrap();
            let mut part = stream.try_clone().unwrap().take(reads);
            std::io::copy(&mut part, &mut std::io::sink()).unwrap();
            // Closing a connection with unread bytes resets it. Whatever had arrived is seen first.
            stream.set_nonblocking(true).unwrap();
            let mut bytes = vec![0; reads as usize];
            let _ = stream.read(&mut bytes);
        });
        let config = DealerConfig { send_bytes: 8 << 20, ..config() };
        let mut dealer = connect_to(&[address], &config).await.unwrap();
        let sent = fill(&mut dealer).await;
        go.send(()).unwrap();
        assert_eq!(end(&mut dealer).await, Reason::Error);
        server.join().unwrap();
        let written = dealer.written();
        assert!(
            written < sent,
            "{written} of {sent} messages were written, so the buffers were not full"
        );
        // Later calls return the same reason.
        assert_eq!(next(&mut dealer).await, Err(Reason::Error));
        assert_eq!(dealer.written(), written);
    }
}

#[tokio::test]
async fn messages_that_came_before_a_reset_are_received_although_writing_fails() {
    const REPLIES: usize = 300;
    for pings in [0, 1000] {
        let ((go, may_go), (closed, is_closed)) = (mpsc::channel(), mpsc::channel());
        let (address, server) = router(1, move |mut stream| {
            // The request is not read, so closing the connection resets it.
            stream.peek(&mut [0]).unwrap();
            may_go.recv().unwrap();
            stream.write_all(&ping(0, b"").repeat(pings)).unwrap();
            stream.write_all(&raw::frame(b"reply", false).repeat(REPLIES)).unwrap();
            drop(stream);
            closed.send(()).unwrap();
        });
        let mut dealer = connected(address).await;
        dealer.send(message(b"request")).unwrap();
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(dealer.poll_recv(cx)));
        assert!(polled.await.is_pending());
        go.send(()).unwrap();
        // This thread is blocked meanwhile, so its next step is a write.
        is_closed.recv().unwrap();
        dealer.send(message(b"too late")).unwrap();
        for reply in 0..REPLIES {
            let received = next(&mut dealer).await;
            assert!(received.is_ok(), "{received:?} after {reply} replies and {pings} pings");
        }
        assert_eq!(next(&mut dealer).await, Err(Reason::Error));
        assert_eq!(dealer.written(), 1);
        server.join().unwrap();
    }
}

#[tokio::test]
async fn messages_before_a_half_close_are_received_and_a_partial_one_is_an_error() {
    for (last, reason) in [
        (Vec::new(), Reason::Closed),
        // Part of a command is not part of a message.
        (vec![4, 5], Reason::Closed),
        (vec![0, 5], Reason::Error),
        (raw::frame(b"first", true), Reason::Error),
    ] {
        let (address, server) = router(1, move |mut stream| {
            stream.write_all(&raw::frame(b"reply", false).repeat(1000)).unwrap();
            stream.write_all(&last).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            raw::read_until_closed(&mut stream)
        });
        let mut dealer = connected(address).await;
        for _ in 0..1000 {
            assert_eq!(payload(&mut dealer).await, b"reply");
        }
        assert_eq!(next(&mut dealer).await, Err(reason));
        drop(dealer);
        server.join().unwrap();
    }
}
