//! How long a turn may take, without a clock read for each message.
//!
//! An echo takes a tenth of a microsecond and a look at the clock a quarter of that, so the clock
//! is read every 16 messages at most. A service that turns out to be slower is looked at
//! more often, down to each message, and stays so until it is fast again.

use std::time::{Duration, Instant};

/// The most messages between two looks at the clock.
const STRIDE: u32 = 16;

/// Messages are to take about this long between two looks.
const LOOK: Duration = Duration::from_micros(50);

/// Replies that are this old are written, even if their batch goes on.
const FLUSH: Duration = Duration::from_micros(200);

/// A turn ends after this, so that signals, timers and other replies are not kept waiting.
const LIMIT: Duration = Duration::from_millis(1);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing: go on.
    Nothing,
    /// Write the replies.
    Flush,
    /// End the turn.
    End,
}

/// The time of one turn after the other.
#[derive(Debug)]
pub struct TurnClock {
    /// Messages between two looks, and until the next one.
    stride: u32,
    left: u32,
    began: Instant,
    flushed: Instant,
    looked: Instant,
}

impl TurnClock {
    /// Before the first turn.
    pub fn new(now: Instant) -> Self {
        Self { stride: 1, left: 1, began: now, flushed: now, looked: now }
    }

    /// A turn begins.
    pub fn begin(&mut self, now: Instant) {
        (self.began, self.flushed, self.looked) = (now, now, now);
        self.left = self.stride;
    }

    /// A message is through. `clock` is read only now and then.
    #[inline(always)]
    pub fn message(&mut self, clock: impl FnOnce() -> Instant) -> Due {
        self.left -= 1;
        if self.left > 0 { Due::Nothing } else { self.look(clock()) }
    }

    /// How long the turn has taken at the last look.
    pub fn elapsed(&self) -> Duration {
        self.looked - self.began
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self, now: Instant) -> Due {
        let took = now - self.looked;
        self.looked = now;
        self.stride = match self.stride {
            stride if took > 2 * LOOK => (stride / 2).max(1),
            stride if took > LOOK => stride,
            stride => (stride * 2).min(STRIDE),
        };
        if took > STRIDE * LOOK {
            // One message took longer than all of them should.
            self.stride = 1;
        }
        self.left = self.stride;
        if now - self.began >= LIMIT {
            Due::End
        } else if now - self.flushed >= FLUSH {
            self.flushed = now;
            Due::Flush
        } else {
            Due::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the clock is read for messages that each take this long, until `Due::End` or
    /// for 10,000 messages; and how many messages and flushes that were.
    fn turn(clock: &mut TurnClock, now: &mut Instant, each: Duration) -> (u32, u32, u32) {
        let (mut looks, mut messages, mut flushes) = (0, 0, 0);
        clock.begin(*now);
        loop {
            *now += each;
            messages += 1;
            let due = clock.message(|| {
                looks += 1;
                *now
            });
            match due {
                Due::End => return (looks, messages, flushes),
                Due::Flush => flushes += 1,
                Due::Nothing => {}
            }
        }
    }

    #[test]
    fn fast_messages_share_a_look_at_the_clock() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        let (looks, messages, flushes) = turn(&mut clock, &mut now, Duration::from_nanos(100));
        assert!(messages >= 10_000, "{messages} fit into the limit");
        assert!(looks <= messages / 16 + 8, "{looks} looks for {messages} messages");
        assert!((3..=5).contains(&flushes), "{flushes} flushes in a turn of 1 ms");
    }

    #[test]
    fn slow_messages_get_a_turn_each() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        turn(&mut clock, &mut now, Duration::from_nanos(100));
        // The first slow turn may take as many as are between two looks.
        let (_, first, _) = turn(&mut clock, &mut now, Duration::from_millis(50));
        assert!(first <= 16, "{first}");
        for _ in 0..3 {
            assert_eq!(turn(&mut clock, &mut now, Duration::from_millis(50)).1, 1);
        }
        // And when they are fast again, so are the looks.
        for _ in 0..3 {
            turn(&mut clock, &mut now, Duration::from_nanos(100));
        }
        let (looks, messages, _) = turn(&mut clock, &mut now, Duration::from_nanos(100));
        assert!(looks <= messages / 16 + 1, "{looks} looks for {messages} messages");
    }
}
