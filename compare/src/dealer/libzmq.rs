//! A DEALER of libzmq. Its `recv` takes what its I/O thread has queued and sleeps only if the queue
//! is empty, so no `zmq_poll` is needed.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Exchange, PipelineClient};

pub struct Client {
    dealer: zmq::Socket,
}

impl Client {
    pub fn connect(endpoint: &str) -> Result<Self> {
        let dealer = zmq::Context::new().socket(zmq::DEALER)?;
        // Requests in flight at the end must not keep the process alive.
        dealer.set_linger(0)?;
        dealer.connect(endpoint)?;
        Ok(Self { dealer })
    }
}

impl PipelineClient for Client {
    fn run(&mut self, exchange: &mut Exchange, length: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < length {
            for _ in 0..exchange.in_flight() {
                while let Some(request) = exchange.next_request() {
                    self.dealer.send(&request[..], 0)?;
                }
                exchange.verify(&self.dealer.recv_msg(0)?)?;
            }
        }
        Ok(())
    }
}
