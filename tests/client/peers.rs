//! Servers that do what no good one would, in this process.

use std::net::{TcpListener, TcpStream};

use tokio::task::JoinHandle;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};
use zmq_echo::metrics::PROBE_IDENTITY;

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
