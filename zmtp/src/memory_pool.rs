//! A memory limit that several connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A budget of bytes that several holders share. Clones share the same budget.
///
/// ```
/// use zmtp::memory_pool::MemoryPool;
///
/// let pool = MemoryPool::new(100);
/// let share = pool.take(60).expect("60 of 100 bytes are free");
/// assert!(pool.take(41).is_none());
/// drop(share);
/// assert_eq!(pool.taken(), 0);
/// ```
#[derive(Debug, Clone)]
pub struct MemoryPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: AtomicUsize,
    size: usize,
}

impl MemoryPool {
    /// Creates a pool of `size` bytes.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Pool { free: AtomicUsize::new(size), size }))
    }

    /// Bytes in use.
    pub fn taken(&self) -> usize {
        self.0.size - self.0.free.load(Relaxed)
    }

    /// Creates an empty share of the pool.
    pub fn share(&self) -> Share {
        Share { pool: self.clone(), taken: 0 }
    }

    /// Takes `bytes` from the pool, or returns `None` if they are not free.
    pub fn take(&self, bytes: usize) -> Option<Share> {
        let mut share = self.share();
        share.resize(bytes).then_some(share)
    }
}

/// One holder's share of a pool. Dropping it returns the bytes.
#[derive(Debug)]
pub struct Share {
    pool: MemoryPool,
    taken: usize,
}

impl Share {
    /// Changes the size of the share to `bytes`. If they are not free, leaves it as it is and
    /// returns `false`.
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
    fn shares_never_exceed_their_pool_and_return_their_bytes() {
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
