//! The rzmq crate's ROUTER: receive a message, send it back.
//!
//! Its documentation does not say which tokio runtime is fastest on one CPU. One thread is used:
//! more workers, longer queues and larger batches made no clear difference. A task of its own for
//! the replies, as in rzmq's own benchmark, takes less CPU with large messages and more with small
//! ones.

use anyhow::{Context as _, Result};
use rzmq::socket::{ADAPTIVE_THROTTLE, AUTO_DELIMITER, LAST_ENDPOINT};
use rzmq::{Context, SocketType};

use super::{ANY_PORT, announce};

pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let context = Context::new()?;
        let router = context.socket(SocketType::Router)?;
        // By default it removes an empty frame from a request and inserts one into a reply,
        // which suits its own DEALER. Its README says to turn that off for other peers.
        router.set_option(AUTO_DELIMITER, false).await?;
        // It yields to other connections now and then. Its documentation and its own
        // benchmark turn that off if reads and writes are balanced, as in an echo.
        router.set_option(ADAPTIVE_THROTTLE, 0).await?;
        router.bind(&format!("tcp://{ANY_PORT}")).await?;
        let endpoint = String::from_utf8(router.get_option(LAST_ENDPOINT).await?)?;
        let address =
            endpoint.strip_prefix("tcp://").context("the endpoint does not start with tcp://")?;
        announce(address.parse()?);
        loop {
            let frames = router.recv_multipart().await?;
            // An error means that the peer has disconnected. If a reply were lost for another
            // reason, the generator would notice.
            let _ = router.send_multipart(frames).await;
        }
    })
}
