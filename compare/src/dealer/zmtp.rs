//! The library's own [`Dealer`](zmtp::Dealer), on a runtime with one thread. It writes while it is
//! polled for the next reply, so requests are sent together.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tokio::runtime::{Builder, Runtime};
use zmtp::Message;
use zmtp::dealer::DealerConfig;

use super::{Exchange, PipelineClient};

pub struct Client {
    dealer: zmtp::Dealer,
    runtime: Runtime,
}

impl Client {
    pub fn connect(endpoint: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (endpoint, config) = (endpoint.parse()?, DealerConfig::default());
        let dealer = runtime.block_on(zmtp::Dealer::connect(&endpoint, &config))?;
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
                        dealer.send(Message::from([request]))?;
                    }
                    let reply = match dealer.try_recv().map_err(ended)? {
                        Some(reply) => reply,
                        None => dealer.recv().await.map_err(ended)?,
                    };
                    let frames = reply.frames();
                    ensure!(
                        frames.len() == 1,
                        "the reply has {} frames instead of one",
                        frames.len()
                    );
                    exchange.verify(&frames[0])?;
                }
            }
            Ok(())
        })
    }
}

fn ended(reason: zmtp::Reason) -> anyhow::Error {
    anyhow!("the connection has ended: {}", reason.as_str())
}
