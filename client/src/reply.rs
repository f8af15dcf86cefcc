//! A reply, and the memory that it takes until its caller has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zmtp::endpoint::ConnectEndpoint;
use zmtp::memory_pool::{MemoryPool, Share};

/// A reply, and how it came about.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What the service answered.
    pub payload: Bytes,
    /// Who answered.
    pub endpoint: Arc<ConnectEndpoint>,
    /// How many attempts it took, the answered one included.
    pub attempts: u32,
    /// From the request to the reply, with all attempts and the pauses between them.
    pub elapsed: Duration,
}

/// Replies of up to this many bytes take no memory from the pools: there are at most as many as
/// requests are outstanding.
pub(super) const SMALL: usize = 4 << 10;

/// What a reply has taken of its connection's pool and of the client's.
#[derive(Debug)]
pub(super) struct ReplyMemory {
    _shares: Option<Box<[Share; 2]>>,
}

impl ReplyMemory {
    /// Room for a reply of `bytes`, or `None` if one of the pools has not enough.
    pub fn take(bytes: usize, connection: &MemoryPool, client: &MemoryPool) -> Option<Self> {
        if bytes <= SMALL {
            return Some(Self { _shares: None });
        }
        let shares = [connection.take(bytes)?, client.take(bytes)?];
        Some(Self { _shares: Some(Box::new(shares)) })
    }
}
