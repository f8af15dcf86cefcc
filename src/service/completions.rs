//! The channel through which an adapter's threads send replies to the loop.

use std::vec;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::interface::Completion;

/// How many batches may wait for the loop. Once that many are waiting, senders wait too.
const WAITING: usize = 1024;

/// Replies that are sent together, because each send may wake the loop. `One` needs no allocation.
#[derive(Debug)]
enum Batch {
    One(Completion),
    Several(Vec<Completion>),
}

/// The sending end. Each thread has its own clone.
#[derive(Debug, Clone)]
pub(super) struct ReplySender(mpsc::Sender<Batch>);

/// The receiving end, from which an adapter's [`Service`](super::Service) takes replies for the
/// loop.
#[derive(Debug)]
pub(super) struct Completions {
    received: mpsc::Receiver<Batch>,
    /// What is left of the last batch.
    rest: vec::IntoIter<Completion>,
}

impl ReplySender {
    /// Sends a reply to the loop, and waits only if too many are waiting already. Trying without
    /// waiting first costs half as much, and there is nearly always room. If the loop has ended,
    /// the reply is dropped.
    pub async fn send(&self, completion: Completion) {
        self.send_batch(Batch::One(completion)).await;
    }

    /// Like [`send`](Self::send), for replies that are ready together. Leaves `completions` empty.
    pub async fn send_all(&self, completions: &mut Vec<Completion>) {
        let batch = match completions.len() {
            0 => return,
            1 => Batch::One(completions.remove(0)),
            _ => Batch::Several(std::mem::take(completions)),
        };
        self.send_batch(batch).await;
    }

    /// Like [`send`](Self::send), for a thread. Returns whether the loop still receives replies.
    pub fn blocking_send(&self, completion: Completion) -> bool {
        match self.0.try_send(Batch::One(completion)) {
            Ok(()) => true,
            Err(TrySendError::Full(batch)) => self.0.blocking_send(batch).is_ok(),
            Err(TrySendError::Closed(_)) => false,
        }
    }

    async fn send_batch(&self, batch: Batch) {
        if let Err(TrySendError::Full(batch)) = self.0.try_send(batch) {
            let _ = self.0.send(batch).await;
        }
    }
}

impl Completions {
    /// Creates the channel.
    pub fn channel() -> (ReplySender, Self) {
        let (sender, received) = mpsc::channel(WAITING);
        (ReplySender(sender), Self { received, rest: Vec::new().into_iter() })
    }

    /// Waits for the next reply. Cancel-safe, because a channel's `recv` is.
    pub async fn next(&mut self) -> Completion {
        if let Some(completion) = self.rest.next() {
            return completion;
        }
        match self.received.recv().await {
            Some(batch) => self.first_of(batch),
            // All senders are gone, so no more replies will come.
            None => std::future::pending().await,
        }
    }

    /// Returns the next reply if one is ready. Never waits.
    pub fn try_next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.rest.next() {
            return Some(completion);
        }
        let batch = self.received.try_recv().ok()?;
        Some(self.first_of(batch))
    }

    /// Returns the first reply of a batch, and keeps the others.
    fn first_of(&mut self, batch: Batch) -> Completion {
        match batch {
            Batch::One(completion) => completion,
            Batch::Several(completions) => {
                self.rest = completions.into_iter();
                self.rest.next().expect("a batch has at least two replies")
            }
        }
    }
}
