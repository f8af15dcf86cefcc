//! A TCP relay that stands between a peer and a server and makes a network of the
//! loopback: it delays, throttles and cuts into pieces what passes.
//!
//! It holds little, so back-pressure passes through it. It passes a half-close on after
//! everything that came before it, and a peer's reset as a reset. A reset by the server
//! is passed on as a half-close, because the peer shall still get what the server's
//! kernel was told has arrived.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// What one direction holds at most, beside the kernel's buffers.
const HELD: usize = 32 << 10;

/// The kernel's buffers of both connections. Smaller ones crawl on some kernels.
const KERNEL: usize = 64 << 10;

/// One direction of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// How long bytes stay in the relay.
    pub delay: Duration,
    /// The most bytes that pass in a second.
    pub rate: u64,
    /// The most bytes that leave at a time.
    pub piece: usize,
}

impl Path {
    /// As fast as the relay can.
    pub const FAST: Self = Self { delay: Duration::ZERO, rate: u64::MAX, piece: HELD };
}

/// A peer's connection through a relay.
pub struct Relayed {
    /// The peer's end.
    pub stream: TcpStream,
    /// How many of the peer's bytes the kernel has taken for the server.
    pub passed: Arc<AtomicU64>,
}

/// Connects to `server` through a relay of its own, which ends with the connection.
///
/// # Errors
///
/// The server's kernel refuses the connection.
pub fn connect(server: SocketAddr, up: Path, down: Path) -> io::Result<Relayed> {
    let far = TcpStream::connect(server)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (near, _) = listener.accept()?;
    for socket in [&stream, &near, &far] {
        let socket = SockRef::from(socket);
        socket.set_recv_buffer_size(KERNEL)?;
        socket.set_send_buffer_size(KERNEL)?;
        socket.set_tcp_nodelay(true)?;
    }
    let passed = Arc::new(AtomicU64::new(0));
    let ends = Arc::new(Ends { near, far, reset: AtomicBool::new(false) });
    let (upwards, downwards) = (Arc::clone(&ends), ends);
    let count = Arc::clone(&passed);
    thread::spawn(move || upwards.pass_up(up, &count));
    thread::spawn(move || downwards.pass_down(down));
    Ok(Relayed { stream, passed })
}

/// The relay's two sockets, the peer's and the server's.
struct Ends {
    near: TcpStream,
    far: TcpStream,
    reset: AtomicBool,
}

/// Which side of a direction has failed.
enum Broken {
    Source,
    Sink,
}

impl Ends {
    fn pass_up(&self, path: Path, passed: &AtomicU64) {
        match pass(&self.near, &self.far, path, passed) {
            Ok(()) if self.reset.load(Ordering::SeqCst) => {}
            Ok(()) => {
                let _ = self.far.shutdown(Shutdown::Write);
            }
            Err(Broken::Source) => self.reset_server(),
            // The server has closed. The peer shall not hang on its writes: it learns of
            // the end by its reads.
            Err(Broken::Sink) => {
                let _ = io::copy(&mut &self.near, &mut io::sink());
            }
        }
    }

    fn pass_down(&self, path: Path) {
        match pass(&self.far, &self.near, path, &AtomicU64::new(0)) {
            Ok(()) | Err(Broken::Source) => {
                let _ = self.near.shutdown(Shutdown::Write);
            }
            Err(Broken::Sink) => self.reset_server(),
        }
    }

    /// The peer is gone for good. Both directions end, and the last of them to do so
    /// drops the sockets, which resets the server's.
    fn reset_server(&self) {
        self.reset.store(true, Ordering::SeqCst);
        let _ = SockRef::from(&self.far).set_linger(Some(Duration::ZERO));
        let _ = self.far.shutdown(Shutdown::Read);
        let _ = self.near.shutdown(Shutdown::Both);
    }
}

fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    path: Path,
    passed: &AtomicU64,
) -> Result<(), Broken> {
    let mut held = vec![0; HELD];
    let mut free_at = Instant::now();
    loop {
        let count = match from.read(&mut held) {
            Ok(count) => count,
            Err(_) => return Err(Broken::Source),
        };
        // The end takes as long as all else.
        thread::sleep(path.delay);
        if count == 0 {
            return Ok(());
        }
        for piece in held[..count].chunks(path.piece) {
            to.write_all(piece).map_err(|_| Broken::Sink)?;
            passed.fetch_add(piece.len() as u64, Ordering::SeqCst);
            let now = Instant::now();
            let takes = Duration::from_secs_f64(piece.len() as f64 / path.rate as f64);
            free_at = free_at.max(now) + takes;
            // Short sleeps take longer than they are told, so they are saved up.
            if free_at > now + Duration::from_millis(2) {
                thread::sleep(free_at - now);
            }
        }
    }
}
