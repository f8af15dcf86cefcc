//! Servers that do what no good one would, in this process.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};
use zmq_echo::metrics::PROBE_IDENTITY;

use crate::support::{raw, until};

/// A ROUTER whose answers the test decides. It is gone when this is dropped.
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
    /// Sends, for each request, the messages that `answers` makes of it.
    pub async fn start(
        mut answers: impl FnMut(ZmqMessage) -> Vec<ZmqMessage> + Send + 'static,
    ) -> Self {
        let mut router = RouterSocket::new();
        let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
        let task = tokio::spawn(async move {
            loop {
                let request = router.recv().await.expect("a router receives for ever");
                for answer in answers(request) {
                    // Where it has gone there is nobody to miss it.
                    let _ = router.send(answer).await;
                }
            }
        });
        Self { endpoint, task }
    }

    /// One that connects, shakes hands, reads and never answers anything.
    pub async fn silent() -> Self {
        Self::start(|_| Vec::new()).await
    }
}

/// One that accepts and says nothing, not even a greeting.
pub fn deaf() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// One that does `behaviour` to each connection, one after another.
pub fn by_hand(behaviour: impl FnMut(TcpStream) + Send + 'static) -> String {
    let (listener, endpoint) = deaf();
    std::thread::spawn(move || listener.incoming().map(Result::unwrap).for_each(behaviour));
    endpoint
}

/// The payload of a request: its last frame.
pub fn payload(request: &ZmqMessage) -> &[u8] {
    request.get(request.len() - 1).expect("a payload")
}

/// Whether a request is a check of the endpoint, and no caller's.
pub fn is_check(request: &ZmqMessage) -> bool {
    request.get(0).expect("an identity").starts_with(PROBE_IDENTITY.as_bytes())
}

/// What becomes of a request at a server by hand.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It comes back after this time.
    Echoed(Duration),
    Lost,
    /// The connection is closed at once, with all that is outstanding.
    HungUp,
}

/// A ROUTER by hand that does to each request what `fate` says of its payload. Checks are
/// answered at once.
pub fn fateful(fate: impl Fn(&[u8]) -> Fate + Send + Sync + 'static) -> String {
    let fate = Arc::new(fate);
    by_hand(move |mut stream| {
        let fate = Arc::clone(&fate);
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
                let after = match fate(frames.last().expect("a frame")) {
                    _ if is_check => Duration::ZERO,
                    Fate::Echoed(after) => after,
                    Fate::Lost => continue,
                    Fate::HungUp => return stream.shutdown(Shutdown::Both),
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

/// A ROUTER that takes one connection and reads its first request. When it is told to, it
/// hangs up with everything else unread, and is gone.
pub struct Stuck {
    pub endpoint: String,
    has_read: mpsc::Receiver<()>,
    leave: mpsc::Sender<()>,
    connection: thread::JoinHandle<TcpStream>,
}

impl Stuck {
    pub fn start() -> Self {
        let (listener, endpoint) = deaf();
        // Full soon.
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

    /// Once its first request has been read.
    pub async fn wait_until_read(&self) {
        until("the first is read", || self.has_read.try_recv().is_ok()).await;
    }

    /// Takes no new connection. The one that there was breaks when it is dropped.
    pub fn stop(self) -> TcpStream {
        self.leave.send(()).unwrap();
        self.connection.join().unwrap()
    }
}
