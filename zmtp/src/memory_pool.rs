//! A bound on memory that several connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// So many bytes, for all that share the pool. Cloning shares it.
#[derive(Debug, Clone)]
pub struct MemoryPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: AtomicUsize,
    size: usize,
}

impl MemoryPool {
    /// A pool of `size` bytes.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Pool { free: AtomicUsize::new(size), size }))
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> usize {
        self.0.size - self.0.free.load(Relaxed)
    }

    /// An empty share of the pool.
    pub fn share(&self) -> Share {
        Share { pool: self.clone(), taken: 0 }
    }

    /// Takes `bytes`, or nothing if they are not free.
    pub fn take(&self, bytes: usize) -> Option<Share> {
        let mut share = self.share();
        share.resize(bytes).then_some(share)
    }
}

/// What one holder has taken of a pool. It is free again when this is dropped.
#[derive(Debug)]
pub struct Share {
    pool: MemoryPool,
    taken: usize,
}

impl Share {
    /// Makes the share `bytes` large. It stays as it was, and the result is false, if they are
    /// not free.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let free = &self.pool.0.free;
        if bytes == self.taken {
            return true;
        }
        if bytes > self.taken {
            let more = bytes - self.taken;
            if free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(more)).is_err() {
                return false;
            }
        } else {
            free.fetch_add(self.taken - bytes, Relaxed);
        }
        self.taken = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_their_pool_and_give_back_what_they_took() {
        let pool = MemoryPool::new(100);
        let mut one = pool.take(60).unwrap();
        assert!(pool.take(41).is_none());
        let other = pool.take(40).unwrap();
        assert!(!one.resize(61));
        assert_eq!(pool.taken(), 100);
        drop(other);
        assert!(one.resize(100) && one.resize(7));
        assert_eq!(pool.taken(), 7);
        drop(one);
        assert_eq!(pool.taken(), 0);
    }
}
