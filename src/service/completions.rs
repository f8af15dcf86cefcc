//! The channel through which an adapter's threads send replies to the loop.

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::interface::Completion;

/// How many replies may wait for the loop. Once that many are waiting, senders wait too.
const WAITING: usize = 1024;

/// The receiving end, from which an adapter's [`Service`](super::Service) takes replies for the
/// loop.
#[derive(Debug)]
pub(super) struct Completions(mpsc::Receiver<Completion>);

/// Sends a reply to the loop, and waits only if too many are waiting already. Trying without waiting
/// first costs half as much, and there is nearly always room. If the loop has ended, the reply is
/// dropped.
pub(super) async fn send(replies: &mpsc::Sender<Completion>, completion: Completion) {
    if let Err(TrySendError::Full(completion)) = replies.try_send(completion) {
        let _ = replies.send(completion).await;
    }
}

/// Like [`send`], for a thread. Returns whether the loop still receives replies.
pub(super) fn blocking_send(replies: &mpsc::Sender<Completion>, completion: Completion) -> bool {
    match replies.try_send(completion) {
        Ok(()) => true,
        Err(TrySendError::Full(completion)) => replies.blocking_send(completion).is_ok(),
        Err(TrySendError::Closed(_)) => false,
    }
}

impl Completions {
    /// Creates the channel.
    pub fn channel() -> (mpsc::Sender<Completion>, Self) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (sender, Self(receiver))
    }

    /// Waits for the next reply. Cancel-safe, because a channel's `recv` is.
    pub async fn next(&mut self) -> Completion {
        match self.0.recv().await {
            Some(completion) => completion,
            // All senders are gone, so no more replies will come.
            None => std::future::pending().await,
        }
    }

    /// Returns the next reply if one is ready. Never waits.
    pub fn try_next(&mut self) -> Option<Completion> {
        self.0.try_recv().ok()
    }
}
