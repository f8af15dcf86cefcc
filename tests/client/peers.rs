//! Servers that misbehave, inside this process.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};
use zmq_echo::metrics::PROBE_IDENTITY;

use crate::support::{raw, until};

/// A ROUTER whose replies the test controls. It stops when this is dropped.
pub struct Peer {
    pub endpoint: String,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    /// For each request, sends the messages returned by `answers`.
    pub async fn start(
        mut answers: impl FnMut(ZmqMessage) -> Vec<ZmqMessage> + Send + 'static,
    ) -> Self {
        let mut router = RouterSocket::new();
        let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
        let task = tokio::spawn(async move {
            loop {
                let request = router.recv().await.expect("the router can always receive");
                for answer in answers(request) {
                    // If the connection has gone, nothing is waiting for the reply.
                    let _ = router.send(answer).await;
                }
            }
        });
        Self { endpoint, task }
    }

    /// A peer that connects, completes the handshake, reads, and never replies.
    pub async fn silent() -> Self {
        Self::start(|_| Vec::new()).await
    }
}

/// A peer that accepts and sends nothing, not even a greeting.
pub fn deaf() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// A peer that handles each connection with `behaviour`, one after another.
pub fn by_hand(behaviour: impl FnMut(TcpStream) + Send + 'static) -> String {
    let (listener, endpoint) = deaf();
    std::thread::spawn(move || listener.incoming().map(Result::unwrap).for_each(behaviour));
    endpoint
}

/// The payload of a request: its last frame.
pub fn payload(request: &ZmqMessage) -> &[u8] {
    request.get(request.len() - 1).expect("a payload")
}

/// Whether a request is a health check and not from a caller.
pub fn is_check(request: &ZmqMessage) -> bool {
    request.get(0).expect("an identity").starts_with(PROBE_IDENTITY.as_bytes())
}

/// What a hand-written server does with one request.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Echoes it after this time.
    Echo(Duration),
    Ignore,
    /// Closes the connection at once, with all open requests.
    HangUp,
}

/// A hand-written ROUTER that does with each request what `action` returns for its payload. It
/// answers checks at once.
pub fn scripted(action: impl Fn(&[u8]) -> Action + Send + Sync + 'static) -> String {
    let action = Arc::new(action);
    by_hand(move |mut stream| {
        let action = Arc::clone(&action);
        thread::spawn(move || -> io::Result<()> {
            let ready = raw::welcome(&mut stream)?;
            let identity = PROBE_IDENTITY.as_bytes();
            let is_check = ready.windows(identity.len()).any(|part| part == identity);
            let writer = Arc::new(Mutex::new(stream.try_clone()?));
            while stream.peek(&mut [0])? > 0 {
                let (mut frames, mut more) = (Vec::new(), true);
                while more {
                    let (flags, body) = raw::read_frame(&mut stream);
                    more = flags & 1 != 0;
                    frames.push(body);
                }
                let after = match action(frames.last().expect("a frame")) {
                    _ if is_check => Duration::ZERO,
                    Action::Echo(after) => after,
                    Action::Ignore => continue,
                    Action::HangUp => return stream.shutdown(Shutdown::Both),
                };
                let writer = Arc::clone(&writer);
                thread::spawn(move || {
                    thread::sleep(after);
                    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
                    writer.lock().unwrap().write_all(&raw::message(&frames))
                });
            }
            Ok(())
        });
    })
}

/// A ROUTER that accepts one connection and reads its first request. When told to, it closes the
/// connection with everything else unread and stops.
pub struct Stuck {
    pub endpoint: String,
    has_read: mpsc::Receiver<()>,
    leave: mpsc::Sender<()>,
    connection: thread::JoinHandle<TcpStream>,
}

impl Stuck {
    pub fn start() -> Self {
        let (listener, endpoint) = deaf();
        // With small buffers, so that they are soon full.
        socket2::SockRef::from(&listener).set_recv_buffer_size(32 << 10).unwrap();
        let ((read, has_read), (leave, may_leave)) = (mpsc::channel(), mpsc::channel());
        let connection = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            raw::welcome(&mut stream).unwrap();
            raw::read_message(&mut stream);
            read.send(()).unwrap();
            may_leave.recv().unwrap();
            stream
        });
        Self { endpoint, has_read, leave, connection }
    }

    /// Waits until its first request has been read.
    pub async fn wait_until_read(&self) {
        until("the server has read the first request", || self.has_read.try_recv().is_ok()).await;
    }

    /// Stops accepting. The existing connection breaks when this is dropped.
    pub fn stop(self) -> TcpStream {
        self.leave.send(()).unwrap();
        self.connection.join().unwrap()
    }
}
