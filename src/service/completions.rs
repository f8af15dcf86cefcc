//! The way from an adapter's threads to the loop.

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::interface::Completion;

/// Replies that may wait for the loop. A sender that has one more waits itself.
const WAITING: usize = 1024;

/// The replies of an adapter, as [`Service`](super::Service) hands them to the loop.
#[derive(Debug)]
pub(super) struct Completions(mpsc::Receiver<Completion>);

/// Hands a reply to the loop, and waits if too many wait for it already. Nearly always there is
/// room, and to look for that first costs half as much. If the loop has ended, nobody waits for the
/// reply.
pub(super) async fn send(replies: &mpsc::Sender<Completion>, completion: Completion) {
    if let Err(TrySendError::Full(completion)) = replies.try_send(completion) {
        let _ = replies.send(completion).await;
    }
}

/// As [`send`], for a thread. Says whether the loop is still there.
pub(super) fn blocking_send(replies: &mpsc::Sender<Completion>, completion: Completion) -> bool {
    match replies.try_send(completion) {
        Ok(()) => true,
        Err(TrySendError::Full(completion)) => replies.blocking_send(completion).is_ok(),
        Err(TrySendError::Closed(_)) => false,
    }
}

impl Completions {
    /// The replies, and what sends them.
    pub fn channel() -> (mpsc::Sender<Completion>, Self) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (sender, Self(receiver))
    }

    /// Waits for the next one. Cancel-safe, as a channel's `recv` is.
    pub async fn next(&mut self) -> Completion {
        match self.0.recv().await {
            Some(completion) => completion,
            // Every sender is gone: nothing more comes.
            None => std::future::pending().await,
        }
    }

    /// The next one if it is here already.
    pub fn try_next(&mut self) -> Option<Completion> {
        self.0.try_recv().ok()
    }
}
