//! The zeromq crate's ROUTER: receive a message, send it back.

use std::net::TcpListener;

use anyhow::Result;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend};

use super::{ANY_PORT, announce};

pub fn run() -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut router = RouterSocket::new();
        router.bind_listener(listener).await?;
        announce(address);
        loop {
            let message = router.recv().await?;
            // An error means that the peer has disconnected. If a reply were lost for another
            // reason, the generator would notice.
            let _ = router.send(message).await;
        }
    })
}
