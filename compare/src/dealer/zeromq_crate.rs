//! The zeromq crate's DEALER, on a runtime with one thread. The crate writes in a separate task,
//! which runs when `recv` has to wait, so requests are sent together.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::runtime::{Builder, Runtime};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend};

use super::{Exchange, PipelineClient};

pub struct Client {
    // Must be dropped before the runtime that its tasks run on.
    dealer: DealerSocket,
    runtime: Runtime,
}

impl Client {
    pub fn connect(endpoint: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut dealer = DealerSocket::new();
        runtime.block_on(dealer.connect(endpoint))?;
        Ok(Self { dealer, runtime })
    }
}

impl PipelineClient for Client {
    fn run(&mut self, exchange: &mut Exchange, length: Duration) -> Result<()> {
        let Self { dealer, runtime } = self;
        runtime.block_on(async {
            let begun = Instant::now();
            while begun.elapsed() < length {
                for _ in 0..exchange.in_flight() {
                    while let Some(request) = exchange.next_request() {
                        dealer.send(request.into()).await?;
                    }
                    let reply = dealer.recv().await?;
                    ensure!(
                        reply.len() == 1,
                        "the reply has {} frames instead of one",
                        reply.len()
                    );
                    exchange.verify(reply.get(0).expect("there is one frame"))?;
                }
            }
            Ok(())
        })
    }
}
