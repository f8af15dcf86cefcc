//! A TCP relay between a peer and a server that makes loopback behave like a network: it delays,
//! throttles and splits the data that passes.
//!
//! It buffers little, so back-pressure passes through. It passes on a half-close after all the data
//! before it, and a peer's reset as a reset. A reset by the server is passed on as a half-close,
//! because the peer must still get everything that the server's kernel has had acknowledged.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Upper bound on the bytes that one direction buffers, besides the kernel's buffers.
const HELD: usize = 32 << 10;

/// The size of the kernel's buffers of both connections. Smaller ones are very slow on some
/// kernels.
const KERNEL: usize = 64 << 10;

/// One direction of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// How long bytes stay in the relay.
    pub delay: Duration,
    /// Maximum bytes per second.
    pub rate: u64,
    /// Maximum bytes per write.
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
            // The server has closed. The peer's writes must not block: it learns about the end by
            // reading.
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

    /// The peer has disconnected. Both directions end, and the last one to end drops the sockets,
    /// which resets the server's connection.
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
        // The end of the stream is delayed like everything before it.
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
            // Short sleeps take longer than requested, so they are accumulated.
            if free_at > now + Duration::from_millis(2) {
                thread::sleep(free_at - now);
            }
        }
    }
}
