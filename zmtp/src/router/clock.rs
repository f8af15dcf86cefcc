//! All connections' deadlines, behind a single timer of the runtime.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

use super::ready::{Bell, CLOCK, ReadyList, Token};

/// Alarms in order of time, and the timer for the next one.
///
/// Alarms cannot be cancelled. Code that sets an alarm must remember its time and ignore any other.
#[derive(Debug)]
pub struct Clock {
    alarms: BinaryHeap<Reverse<(Instant, Token)>>,
    sleep: Pin<Box<Sleep>>,
    bell: Arc<Bell>,
    waker: Waker,
}

impl Clock {
    /// Creates a clock without alarms that rings [`CLOCK`] on `list`. Needs a Tokio runtime.
    pub fn new(list: &ReadyList) -> Self {
        let bell = list.bell(CLOCK);
        let waker = Waker::from(Arc::clone(&bell));
        let sleep = Box::pin(sleep_until(Instant::now().into()));
        Self { alarms: BinaryHeap::new(), sleep, bell, waker }
    }

    /// Sets an alarm for `token` at `at`.
    pub fn set(&mut self, at: Instant, token: Token) {
        let first = self.alarms.peek().is_none_or(|Reverse((next, _))| at < *next);
        self.alarms.push(Reverse((at, token)));
        if first {
            self.wait();
        }
    }

    /// Returns an alarm that is due. After the last one, the bell is set to ring for the next.
    pub fn due(&mut self, now: Instant) -> Option<(Instant, Token)> {
        self.bell.answer();
        let Reverse((at, _)) = self.alarms.peek()?;
        if *at > now {
            self.wait();
            return None;
        }
        self.alarms.pop().map(|Reverse(alarm)| alarm)
    }

    /// Number of alarms, including obsolete ones.
    pub fn alarms(&self) -> usize {
        self.alarms.len()
    }

    /// Drops the obsolete alarms.
    pub fn retain(&mut self, wanted: impl Fn(Instant, Token) -> bool) {
        self.alarms.retain(|Reverse((at, token))| wanted(*at, *token));
    }

    fn wait(&mut self) {
        let Some(Reverse((at, _))) = self.alarms.peek() else { return };
        self.sleep.as_mut().reset((*at).into());
        if self.sleep.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            self.waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Waits until the clock's token is on the list.
    async fn rung(list: &ReadyList) {
        let mut tokens = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while tokens.is_empty() {
            assert!(Instant::now() < deadline, "the bell does not ring");
            tokio::time::sleep(Duration::from_millis(1)).await;
            list.take(&mut tokens);
        }
        assert_eq!(tokens, [CLOCK]);
    }

    #[tokio::test]
    async fn it_rings_for_an_alarm_set_after_the_last_one_fired() {
        let list = ReadyList::default();
        let mut clock = Clock::new(&list);
        for token in 0..3 {
            let at = Instant::now() + Duration::from_millis(2);
            clock.set(at, token);
            rung(&list).await;
            assert_eq!(clock.due(Instant::now()), Some((at, token)));
            assert_eq!(clock.due(Instant::now()), None);
        }
    }
}
