//! Limits on what a server can make the socket hold in memory.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use zmtp::memory_pool::MemoryPool;

use super::*;

/// The size of one read, in addition to what the socket always holds.
const LITTLE: usize = 80 << 10;

/// 128 TiB, and sizes that do not fit into a signed number.
const HUGE: [u64; 3] = [1 << 47, 1 << 63, u64::MAX];

#[tokio::test]
async fn an_announced_size_beyond_the_limit_ends_the_connection_and_costs_no_memory() {
    let limit = DealerConfig::default().limits.message_bytes as u64;
    let mut headers = Vec::new();
    for size in HUGE.into_iter().chain([limit + 1]) {
        headers.push((raw::announced(0, size), Reason::MessageLimit));
        // The same header after another frame of the same message.
        let second = [raw::frame(b"first", true), raw::announced(0, size)].concat();
        headers.push((second, Reason::MessageLimit));
    }
    for size in HUGE.into_iter().chain([256]) {
        headers.push((raw::announced(4, size), Reason::Command));
    }
    for (header, reason) in headers {
        let sent = header.clone();
        let (address, server) = router(1, move |mut stream| {
            stream.write_all(&sent).unwrap();
            raw::read_until_closed(&mut stream);
        });
        let mut dealer = connected(address).await;
        assert_eq!(next(&mut dealer).await, Err(reason), "{header:?}");
        assert!(
            dealer.held() < LITTLE,
            "{} bytes are held for the header {header:?}",
            dealer.held()
        );
        drop(dealer);
        server.join().unwrap();
    }
}

#[tokio::test]
async fn an_announced_size_within_the_limit_costs_memory_as_bytes_arrive() {
    let limit = DealerConfig::default().limits.message_bytes;
    for sent in [0, 100, 1 << 20] {
        let (address, server) = router(1, move |mut stream| {
            stream.write_all(&raw::announced(0, limit as u64)).unwrap();
            stream.write_all(&vec![1; sent]).unwrap();
            // The end of the stream shows that everything has been read.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            raw::read_until_closed(&mut stream);
        });
        let mut dealer = connected(address).await;
        assert_eq!(next(&mut dealer).await, Err(Reason::Error));
        assert!(
            dealer.held() < LITTLE + 3 * sent,
            "{} bytes are held after {sent} bytes have arrived",
            dealer.held()
        );
        drop(dealer);
        server.join().unwrap();
    }
}

#[tokio::test]
async fn an_announced_size_beyond_the_limit_ends_the_handshake() {
    for size in HUGE.into_iter().chain([(4 << 10) + 1]) {
        for (flags, expected) in [(4, Reason::Metadata), (0, Reason::DataBeforeReady)] {
            let (address, server) = server(move |mut stream| {
                stream.write_all(&raw::greeting(1)).unwrap();
                stream.write_all(&raw::announced(flags, size)).unwrap();
                raw::read_until_closed(&mut stream);
            });
            let error = connect_to(&[address], &config()).await.unwrap_err();
            assert!(
                matches!(error, ConnectError::Handshake { reason, .. } if reason == expected),
                "{error:?} for {size}"
            );
            server.join().unwrap();
        }
    }
}

#[tokio::test]
async fn endless_frames_and_commands_hit_a_limit_and_a_message_at_the_limit_passes() {
    let ping = ping(0, b"");
    for (endless, reason) in [
        (raw::frame(b"", true), Reason::FrameLimit),
        (raw::frame(&[7; 64 << 10], true), Reason::MessageLimit),
        ([raw::frame(b"", true), ping.repeat(1 << 20)].concat(), Reason::MessageLimit),
    ] {
        let (address, server) = router(1, move |mut stream| {
            let mut reader = stream.try_clone().unwrap();
            thread::spawn(move || raw::read_until_closed(&mut reader));
            while stream.write_all(&endless).is_ok() {}
        });
        let mut dealer = connected(address).await;
        assert_eq!(next(&mut dealer).await, Err(reason));
        let most = 2 * DealerConfig::default().limits.message_bytes + (192 << 10);
        assert!(dealer.held() <= most, "{} bytes are held", dealer.held());
        drop(dealer);
        server.join().unwrap();
    }
    let limits = DealerConfig::default().limits;
    let part = vec![b'p'; limits.message_bytes / limits.message_frames];
    let (address, server) = router(1, move |mut stream| {
        stream.write_all(&raw::message(&vec![&part[..]; limits.message_frames])).unwrap();
    });
    let mut dealer = connected(address).await;
    let message = next(&mut dealer).await.unwrap();
    assert_eq!(message.frames().len(), limits.message_frames);
    assert_eq!(message.bytes(), limits.message_bytes);
    server.join().unwrap();
}

#[tokio::test]
async fn a_server_that_sends_pings_is_not_read_from_until_it_reads_its_pongs() {
    let pings = ping(0, &[9; 16]).repeat(1000);
    let pong = raw::command(&[&b"\x04PONG"[..], &[9; 16]].concat());
    let size = pong.len();
    let (read, may_read) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (address, server) = router(1, move |mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                writer.write_all(&pings).unwrap();
                sent += 1000;
            }
            writer.write_all(&raw::frame(b"at last", false)).unwrap();
            sent
        });
        may_read.recv().unwrap();
        let mut pongs = Vec::new();
        stream.read_to_end(&mut pongs).unwrap();
        assert_eq!(pongs.len(), writing.join().unwrap() * size);
        assert!(pongs.chunks(size).all(|one| one == pong));
    });
    let mut dealer = connected(address).await;
    // The kernel accepts megabytes of PONGs first. After that they wait in the socket, and their
    // number does not grow.
    let (mut unwritten, mut still) = (0, 0);
    while unwritten < 200 * size || still < 20 {
        tokio::select! {
            told = dealer.recv() => panic!("unexpected message or end: {told:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        assert!(dealer.unwritten() < 16 << 10, "{} bytes of PONGs are queued", dealer.unwritten());
        assert!(dealer.held() < 192 << 10, "{} bytes are held", dealer.held());
        still = if dealer.unwritten() == unwritten { still + 1 } else { 0 };
        unwritten = dealer.unwritten();
    }
    stop.store(true, Ordering::Relaxed);
    read.send(()).unwrap();
    assert_eq!(payload(&mut dealer).await, b"at last");
    while dealer.unwritten() > 0 {
        let none = timeout(Duration::from_millis(5), dealer.recv()).await;
        assert!(none.is_err(), "unexpected message or end: {none:?}");
    }
    drop(dealer);
    server.join().unwrap();
}

#[tokio::test]
async fn a_message_after_more_pings_than_may_queue_is_received() {
    let (address, server) = router(1, |mut stream| {
        // All in one read.
        stream.write_all(&[ping(0, b"").repeat(1000), raw::frame(b"behind", false)].concat())?;
        stream.read_exact(&mut [0]).map(|()| stream)
    });
    let mut dealer = connected(address).await;
    // By then, the kernel has received everything or most of it.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(payload(&mut dealer).await, b"behind");
    assert!(server.join().unwrap().is_ok());
}

#[tokio::test]
async fn a_timer_beside_recv_fires_during_endless_commands() {
    let (address, server) =
        router(1, |stream| raw::flood(&stream, raw::command(b"\x04PONG").repeat(10_000)));
    let mut dealer = connected(address).await;
    for _ in 0..20 {
        tokio::select! {
            biased;
            told = dealer.recv() => panic!("unexpected message or end: {told:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    drop(dealer);
    server.join().unwrap().join().unwrap();
}

#[tokio::test]
async fn a_message_that_does_not_fit_the_shared_pool_costs_one_connection() {
    const SIZE: usize = 3 << 20;
    let whole = raw::frame(&vec![b'a'; SIZE], false);
    let (first_half, second_half) = (whole[..SIZE / 2].to_vec(), whole[SIZE / 2..].to_vec());
    let (go, may_go) = mpsc::channel();
    let (one, server) = router(1, move |mut stream| {
        stream.write_all(&first_half).unwrap();
        may_go.recv().unwrap();
        stream.write_all(&second_half).unwrap();
        stream
    });
    let (other, other_server) = router(1, |mut stream| {
        stream.write_all(&raw::frame(&vec![b'b'; SIZE], false)).map_err(drop)
    });
    // There is room for one of the two messages.
    let memory = MemoryPool::new(2 * SIZE);
    let config = DealerConfig { memory: Some(memory.clone()), ..config() };
    let mut one = connect_to(&[one], &config).await.unwrap();
    while memory.taken() < SIZE / 3 {
        tokio::select! {
            told = one.recv() => panic!("unexpected message or end: {told:?}"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    // It leaves less room in the pool than the other message needs.
    let rest = memory.take(2 * SIZE - memory.taken() - SIZE / 3).unwrap();
    let mut other = connect_to(&[other], &config).await.unwrap();
    assert_eq!(next(&mut other).await, Err(Reason::PoolFull));
    drop((other, rest));
    let _ = other_server.join().unwrap();
    go.send(()).unwrap();
    let message = next(&mut one).await.unwrap();
    assert_eq!(message.bytes(), SIZE);
    // The message and its memory now belong to the caller, although nothing more is read.
    assert_eq!(memory.taken(), 0);
    assert!(
        one.held() < LITTLE,
        "{} bytes are held for a message that belongs to the caller",
        one.held()
    );
    server.join().unwrap();
}
