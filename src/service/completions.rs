//! The channel through which an adapter's threads send replies to the loop.

use std::vec;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::interface::Completion;

/// How many sendings may wait for the loop. Once that many are waiting, senders wait too.
const WAITING: usize = 1024;

/// What is sent at once. Replies that are ready together are sent together, because a sending costs
/// about as much as the rest of a reply's way, and may wake the loop.
#[derive(Debug)]
enum Sending {
    One(Completion),
    Several(Vec<Completion>),
}

/// The sending end, of which each thread has its own.
#[derive(Debug, Clone)]
pub(super) struct ReplySender(mpsc::Sender<Sending>);

/// The receiving end, from which an adapter's [`Service`](super::Service) takes replies for the
/// loop.
#[derive(Debug)]
pub(super) struct Completions {
    received: mpsc::Receiver<Sending>,
    /// What is left of those that were sent together.
    rest: vec::IntoIter<Completion>,
}

impl ReplySender {
    /// Sends a reply to the loop, and waits only if too many are waiting already. Trying without
    /// waiting first costs half as much, and there is nearly always room. If the loop has ended,
    /// the reply is dropped.
    pub async fn send(&self, completion: Completion) {
        self.send_now_or_wait(Sending::One(completion)).await;
    }

    /// Like [`send`](Self::send), for replies that are ready together. Leaves `completions` empty.
    pub async fn send_all(&self, completions: &mut Vec<Completion>) {
        match completions.len() {
            0 => {}
            1 => self.send_now_or_wait(Sending::One(completions.remove(0))).await,
            _ => self.send_now_or_wait(Sending::Several(std::mem::take(completions))).await,
        }
    }

    /// Like [`send`](Self::send), for a thread. Returns whether the loop still receives replies.
    pub fn blocking_send(&self, completion: Completion) -> bool {
        match self.0.try_send(Sending::One(completion)) {
            Ok(()) => true,
            Err(TrySendError::Full(sending)) => self.0.blocking_send(sending).is_ok(),
            Err(TrySendError::Closed(_)) => false,
        }
    }

    async fn send_now_or_wait(&self, sending: Sending) {
        if let Err(TrySendError::Full(sending)) = self.0.try_send(sending) {
            let _ = self.0.send(sending).await;
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
        loop {
            if let Some(completion) = self.rest.next() {
                return completion;
            }
            match self.received.recv().await {
                Some(Sending::One(completion)) => return completion,
                Some(Sending::Several(completions)) => self.rest = completions.into_iter(),
                // All senders are gone, so no more replies will come.
                None => std::future::pending().await,
            }
        }
    }

    /// Returns the next reply if one is ready. Never waits.
    pub fn try_next(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.rest.next() {
                return Some(completion);
            }
            match self.received.try_recv().ok()? {
                Sending::One(completion) => return Some(completion),
                Sending::Several(completions) => self.rest = completions.into_iter(),
            }
        }
    }
}
