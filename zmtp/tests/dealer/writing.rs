//! What has been written, and what can still be read once writing fails.

use std::io::ErrorKind;
use std::sync::mpsc;

use super::*;

/// Messages of every way in which they are queued: empty, copied, and as they are.
fn sizes(number: usize) -> usize {
    [0, 100, 5000, 9000, 100_000][number % 5]
}

/// Sends until the kernel takes no more and messages wait, and counts them.
async fn fill(dealer: &mut Dealer) -> u64 {
    let mut number = 0;
    let mut still = 0;
    let mut unwritten = 0;
    // The kernel enlarges its buffer as it goes.
    while still < 20 {
        while dealer.send(message(&vec![1; sizes(number)])).is_ok() {
            number += 1;
        }
        tokio::select! {
            told = dealer.recv() => panic!("{told:?}"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        still = if dealer.unwritten() == unwritten { still + 1 } else { 0 };
        unwritten = dealer.unwritten();
    }
    assert!(unwritten > 0 && dealer.written() > 0 && dealer.written() < number as u64);
    number as u64
}

/// Reads until the end; how many messages came whole.
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
async fn written_counts_exactly_the_messages_of_which_the_kernel_took_the_last_byte() {
    let (go, may_go) = mpsc::channel();
    let (address, server) = router(1, move |mut stream| {
        may_go.recv().unwrap();
        count_messages(&mut stream)
    });
    let config = DealerConfig { send_bytes: 8 << 20, ..config() };
    let mut dealer = connect_to(&[address], &config).await.unwrap();
    fill(&mut dealer).await;
    let written = dealer.written();
    // What the kernel has taken still arrives.
    drop(dealer);
    go.send(()).unwrap();
    assert_eq!(server.join().unwrap(), written);
}

#[tokio::test]
async fn after_a_reset_no_message_that_counts_as_unwritten_has_been_seen() {
    for reads in [0, 1, 1 << 20] {
        let (go, may_go) = mpsc::channel();
        let (address, server) = router(1, move |mut stream| {
            may_go.recv().unwrap();
            let mut part = stream.try_clone().unwrap().take(reads);
            std::io::copy(&mut part, &mut std::io::sink()).unwrap();
            // Unread bytes make this a reset; what had come by then is seen.
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
        assert!(written < sent, "{written} of {sent}");
        // And it stays so.
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
            // The request is not read, which makes closing a reset.
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
        // Meanwhile this thread stands still, and then writes first.
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
async fn messages_before_a_half_close_are_received_and_half_a_message_is_an_error() {
    for (last, reason) in [
        (Vec::new(), Reason::Closed),
        // Half a command is no half message.
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
