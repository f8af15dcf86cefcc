//! A ROUTER of libzmq, used as its guide shows: wait, take all available messages, wait again.

use anyhow::{Context, Result};

use super::{ANY_PORT, announce};

pub fn run() -> Result<()> {
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER)?;
    router.bind(&format!("tcp://{ANY_PORT}"))?;
    let endpoint = router.get_last_endpoint()?.ok().context("the endpoint is not valid text")?;
    announce(endpoint.trim_start_matches("tcp://").parse()?);
    loop {
        router.poll(zmq::POLLIN, -1)?;
        while echo(&router)? {}
    }
}

/// Echoes one message, frame by frame and without a copy, if there is one.
fn echo(router: &zmq::Socket) -> zmq::Result<bool> {
    loop {
        // Only the first frame can be missing, because libzmq delivers whole messages.
        let frame = match router.recv_msg(zmq::DONTWAIT) {
            Err(zmq::Error::EAGAIN) => return Ok(false),
            frame => frame?,
        };
        let more = frame.get_more();
        router.send(frame, if more { zmq::SNDMORE } else { 0 })?;
        if !more {
            return Ok(true);
        }
    }
}
