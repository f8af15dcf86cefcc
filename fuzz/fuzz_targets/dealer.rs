//! A DEALER with a server that sends the input over TCP, in pieces, with pauses and half-closes.
//! The DEALER must receive exactly the model's messages, end for the model's reason or continue,
//! answer the model's PINGs, and stay within its memory limit.
#![no_main]

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use zmq_echo_fuzz::{DEALER_READY, End, frame, greeting, hello_to_dealer, outcome, ready};
use zmtp::Reason;
use zmtp::dealer::{ConnectError, DealerConfig, connect_to};
use zmtp::memory_pool::MemoryPool;
use zmtp::proto::connection::ConnectionLimits;

/// A deadline for every step, generous enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

const LIMITS: ConnectionLimits =
    ConnectionLimits { message_bytes: 64 << 10, message_frames: 16, metadata_bytes: 512 };

/// Maximum bytes that may wait to be written.
const SEND: usize = 32 << 10;

/// Maximum bytes that the DEALER may hold: see `zmtp::dealer`, "Memory". Its messages here are
/// small.
const MOST: usize = SEND + 2 * LIMITS.message_bytes + (192 << 10);

/// Maximum bytes that the server sends, so that each input runs fast.
const STREAM: usize = 512 << 10;

thread_local! {
    static WORLD: RefCell<Option<(Runtime, TcpListener)>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    WORLD.with_borrow_mut(|world| {
        let (runtime, listener) = world.get_or_insert_with(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            // Rust's own start-up code makes a process ignore SIGPIPE, but libFuzzer's does not.
            runtime.block_on(async { drop(signal(SignalKind::pipe()).unwrap()) });
            (runtime, TcpListener::bind("127.0.0.1:0").unwrap())
        });
        runtime.block_on(play(listener, input));
    });
});

/// What the server sends, piece by piece, and how it disconnects.
struct Script {
    pieces: Vec<Vec<u8>>,
    /// Whether the server closes both directions at the end, which may be a reset, or only its own.
    abort: bool,
    /// Whether the server reads what the DEALER sends.
    reads: bool,
}

impl Script {
    fn new(input: &[u8]) -> Option<Self> {
        let (choice, mut rest) = input.split_first()?;
        let mut pieces = vec![match choice & 3 {
            0 => Vec::new(),
            1 => greeting(1).to_vec(),
            2 => [&greeting(0)[..], &ready("ROUTER", b"")].concat(),
            _ => [&greeting(1)[..], &ready("ROUTER", b"me")].concat(),
        }];
        let mut total = 0;
        while let Some((step, behind)) = rest.split_first() {
            rest = behind;
            let size = usize::from(*step >> 3);
            let piece = match step % 8 {
                0..4 => {
                    let (bytes, behind) = rest.split_at(size.min(rest.len()));
                    rest = behind;
                    bytes.to_vec()
                }
                4 | 5 => {
                    let mut message = Vec::new();
                    let size = if size < 16 { size } else { (size - 15) * 5000 };
                    frame(&mut message, step & 1, &vec![*step; size]);
                    message
                }
                6 => {
                    let mut ping = Vec::new();
                    frame(&mut ping, 4, &[b"\x04PING\0\0", &[*step; 16][..size.min(16)]].concat());
                    ping
                }
                _ => {
                    let last = pieces.last().expect("the first");
                    last.repeat((4 << size.min(10)).min((64 << 10) / last.len().max(1)))
                }
            };
            total += piece.len();
            if total > STREAM {
                break;
            }
            pieces.push(piece);
        }
        Some(Self { pieces, abort: choice & 4 != 0, reads: choice & 8 != 0 || choice & 4 == 0 })
    }
}

async fn play(listener: &TcpListener, input: &[u8]) {
    let Some(script) = Script::new(input) else { return };
    // The DEALER's share covers the last read or message. The pool is large enough, so it never
    // refuses one.
    let memory = MemoryPool::new(MOST);
    let config = DealerConfig {
        limits: LIMITS,
        connect_timeout: DEADLINE,
        heartbeat_interval: Duration::ZERO,
        send_bytes: SEND,
        memory: Some(memory.clone()),
        ..DealerConfig::default()
    };
    let address = listener.local_addr().unwrap();
    let stream = script.pieces.concat();
    let (abort, reads) = (script.abort, script.reads);
    let server = {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || serve(&listener.accept().unwrap().0, &script))
    };
    let hello = hello_to_dealer(&stream, LIMITS.metadata_bytes);
    let connected = connect_to(&[address], &config).await;
    let mut dealer = match (connected, &hello.result) {
        (Ok(dealer), Ok(_)) => dealer,
        (Err(ConnectError::Handshake { reason, .. }), result) => {
            let expected = match result {
                Err(End::Fault(fault)) => *fault,
                _ => Reason::Error,
            };
            assert!(
                reason == expected || (abort && reason == Reason::Error),
                "ended with {reason:?}, the model with {result:?}"
            );
            let _ = server.join().unwrap();
            return;
        }
        (result, expected) => panic!("connecting gave {result:?}, the model {expected:?}"),
    };
    let announced = hello.result.expect("the DEALER is connected");
    let model =
        outcome(&stream[announced.bytes..], LIMITS.message_bytes, LIMITS.message_frames, false);

    let mut sent = 0u64;
    let mut messages = Vec::new();
    let reason = loop {
        // Sends two frames, at the start and after each received message.
        if dealer.send([Bytes::new(), Bytes::from(vec![7; 100])].into()).is_ok() {
            sent += 1;
        }
        let received =
            timeout(DEADLINE, dealer.recv()).await.expect("a message or the end arrives in time");
        assert!(dealer.held() <= MOST, "{} bytes are held", dealer.held());
        match received {
            Ok(message) => {
                messages
                    .push(message.frames().iter().map(|frame| frame.to_vec()).collect::<Vec<_>>());
            }
            Err(reason) => break reason,
        }
    };
    assert!(dealer.written() <= sent);
    assert_eq!(dealer.recv().await, Err(reason));
    drop(dealer);
    assert_eq!(memory.taken(), 0);
    let got = server.join().unwrap();

    // Only messages that the stream contains, and all of them unless the connection broke.
    assert!(
        model.messages.starts_with(&messages),
        "the stream does not contain these {} messages",
        messages.len()
    );
    let lost = reason == Reason::Error && (abort || !reads);
    let vanished = reason == Reason::Vanished && model.ttl;
    if lost || vanished {
        return;
    }
    assert_eq!(messages.len(), model.messages.len());
    let expected = match model.end {
        End::Whole => Reason::Closed,
        End::Within => {
            // An incomplete command is not an incomplete message, so both reasons are valid.
            assert!(matches!(reason, Reason::Error | Reason::Closed), "{reason:?}");
            reason
        }
        End::Fault(fault) => fault,
    };
    assert_eq!(reason, expected);
    let ours = [&greeting(1)[..], DEALER_READY].concat();
    assert!(got.starts_with(&ours[..ours.len().min(got.len())]));
}

/// Sends the pieces with occasional pauses, and then closes its own direction or both. Returns what
/// it has read.
fn serve(mut stream: &TcpStream, script: &Script) -> Vec<u8> {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let reader = script.reads.then(|| {
        let mut reader = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut got = Vec::new();
            match reader.read_to_end(&mut got) {
                Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
                _ => got,
            }
        })
    });
    // If the server does not read, both sides may block each other. It then gives up soon.
    stream
        .set_write_timeout(Some(Duration::from_millis(if script.reads { 60_000 } else { 50 })))
        .unwrap();
    for (number, piece) in script.pieces.iter().enumerate() {
        if stream.write_all(piece).is_err() {
            break;
        }
        if number % 4 == 1 {
            std::thread::yield_now();
        }
    }
    if script.abort {
        // If there are unread bytes, this is a reset.
        let _ = stream.shutdown(Shutdown::Both);
    } else {
        let _ = stream.shutdown(Shutdown::Write);
    }
    reader.map(|reader| reader.join().unwrap()).unwrap_or_default()
}
