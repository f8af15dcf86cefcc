//! A reply, and the memory that it holds until its caller has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zmtp::endpoint::ConnectEndpoint;
use zmtp::memory_pool::{MemoryPool, Share};

/// A reply, with the endpoint that sent it and the attempts it took.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The service's reply.
    pub payload: Bytes,
    /// The endpoint that answered.
    pub endpoint: Arc<ConnectEndpoint>,
    /// The number of attempts, including the one that was answered.
    pub attempts: u32,
    /// Time from the request to the reply, including all attempts and the pauses between them.
    pub elapsed: Duration,
}

/// Replies up to this many bytes take no memory from the pools. The limit on outstanding requests
/// bounds them already.
pub(super) const SMALL: usize = 4 << 10;

/// The memory that a reply has taken from its connection's pool and the client's pool.
#[derive(Debug)]
pub(super) struct ReplyMemory {
    _shares: Option<Box<[Share; 2]>>,
}

impl ReplyMemory {
    /// Takes memory for a reply of `bytes`. Returns `None` if either pool has too little left.
    pub fn take(bytes: usize, connection: &MemoryPool, client: &MemoryPool) -> Option<Self> {
        if bytes <= SMALL {
            return Some(Self { _shares: None });
        }
        let shares = [connection.take(bytes)?, client.take(bytes)?];
        Some(Self { _shares: Some(Box::new(shares)) })
    }
}
