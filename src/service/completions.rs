//! The way from an adapter's threads to the loop.

use tokio::sync::mpsc;

use super::interface::Completion;

/// Replies that may wait for the loop. A sender that has one more waits itself.
const WAITING: usize = 1024;

/// The replies of an adapter, as [`Service`](super::Service) hands them to the loop.
#[derive(Debug)]
pub(super) struct Completions(mpsc::Receiver<Completion>);

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
