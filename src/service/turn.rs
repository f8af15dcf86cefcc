//! Limits the time of a turn without reading the clock for each message.
//!
//! An echo takes a tenth of a microsecond, and reading the clock a quarter of that. So if messages
//! are fast, the clock is read only after every 16 messages. If the service is slower, the clock is
//! read more often, up to once per message, until the service is fast again.
//!
//! However fast the last turn was, the next one looks at the clock after its first message and
//! after four more. So if a service becomes slow, few of its requests run before a turn ends.

use std::time::{Duration, Instant};

/// The maximum number of messages between two looks at the clock.
const STRIDE: u32 = 16;

/// How much longer the next step is at the beginning of a turn, up to the stride.
const RAMP: u32 = 4;

/// The time between two looks that the clock aims for.
const LOOK: Duration = Duration::from_micros(50);

/// After this long, queued replies are flushed even if their batch is not done.
const FLUSH: Duration = Duration::from_micros(200);

/// A turn ends after this long, so that signals, timers and other replies do not wait for it.
const LIMIT: Duration = Duration::from_millis(1);

/// What to do after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Continue with the next message.
    Nothing,
    /// Flush the replies, and continue.
    Flush,
    /// End the turn.
    End,
}

/// Measures the time of turns, one after the other.
#[derive(Debug)]
pub struct TurnClock {
    /// The number of messages between two looks if the turn is long.
    stride: u32,
    /// The same for now: less than the stride at the beginning of a turn.
    step: u32,
    /// The number of messages left until the next look.
    left: u32,
    began: Instant,
    flushed: Instant,
    looked: Instant,
}

impl TurnClock {
    /// A clock before its first turn.
    pub fn new(now: Instant) -> Self {
        Self { stride: 1, step: 1, left: 1, began: now, flushed: now, looked: now }
    }

    /// Begins a turn.
    pub fn begin(&mut self, now: Instant) {
        (self.began, self.flushed, self.looked) = (now, now, now);
        (self.step, self.left) = (1, 1);
    }

    /// Call this after each message. `clock` is called only if it is time for a look.
    #[inline(always)]
    pub fn message(&mut self, clock: impl FnOnce() -> Instant) -> Due {
        self.left -= 1;
        if self.left > 0 { Due::Nothing } else { self.look(clock()) }
    }

    /// The time of the last look.
    pub fn looked(&self) -> Instant {
        self.looked
    }

    /// Whether messages take so long that the clock is read after each of them.
    pub fn is_slow(&self) -> bool {
        self.stride == 1
    }

    /// Ends a turn and returns how long it took. `clock` is called only if there were messages since
    /// the last look.
    pub fn end(&mut self, clock: impl FnOnce() -> Instant) -> Duration {
        if self.left < self.step {
            self.observe(clock());
        }
        self.looked - self.began
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self, now: Instant) -> Due {
        let took = self.observe(now);
        // Only a whole stride tells how fast messages are.
        if self.step == self.stride {
            self.stride = match self.stride {
                stride if took > 2 * LOOK => (stride / 2).max(1),
                stride if took > LOOK => stride,
                stride => (stride * 2).min(STRIDE),
            };
        }
        self.step = (self.step * RAMP).min(self.stride);
        self.left = self.step;
        if now - self.began >= LIMIT {
            Due::End
        } else if now - self.flushed >= FLUSH {
            self.flushed = now;
            Due::Flush
        } else {
            Due::Nothing
        }
    }

    /// Returns the time since the last look.
    fn observe(&mut self, now: Instant) -> Duration {
        let took = now - self.looked;
        self.looked = now;
        if took > STRIDE * LOOK {
            // Some message took longer than all messages between two looks should.
            self.stride = 1;
        }
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a turn of messages that take `each`, until `Due::End`. Returns how often the clock was
    /// read, the number of messages and the number of flushes.
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
    fn the_clock_is_read_about_once_per_16_fast_messages() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        let (looks, messages, flushes) = turn(&mut clock, &mut now, Duration::from_nanos(100));
        assert!(messages >= 10_000, "only {messages} messages fit into a turn");
        assert!(looks <= messages / 16 + 8, "{looks} looks for {messages} messages");
        assert!((3..=5).contains(&flushes), "{flushes} flushes in a turn of 1 ms");
    }

    #[test]
    fn each_slow_message_gets_its_own_turn_whatever_came_before() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        let slow = Duration::from_millis(50);
        turn(&mut clock, &mut now, Duration::from_nanos(100));
        for _ in 0..4 {
            assert_eq!(turn(&mut clock, &mut now, slow).1, 1);
        }
        // When messages are fast again, the looks become rare again.
        for _ in 0..3 {
            turn(&mut clock, &mut now, Duration::from_nanos(100));
        }
        let (looks, messages, _) = turn(&mut clock, &mut now, Duration::from_nanos(100));
        assert!(looks <= messages / 16 + 3, "{looks} looks for {messages} messages");
    }

    /// Ends a turn of one fast message and these slow ones. Returns how many of them fitted.
    fn slow_after_a_fast_one(clock: &mut TurnClock, now: &mut Instant, slow: Duration) -> u32 {
        clock.begin(*now);
        assert_eq!(clock.message(|| *now), Due::Nothing);
        let mut messages = 0;
        loop {
            *now += slow;
            messages += 1;
            if clock.message(|| *now) == Due::End {
                return messages;
            }
        }
    }

    #[test]
    fn slow_messages_after_a_fast_one_end_the_turn_after_four_and_then_sooner() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        turn(&mut clock, &mut now, Duration::from_nanos(100));
        let slow = Duration::from_millis(50);
        assert_eq!(slow_after_a_fast_one(&mut clock, &mut now, slow), 4);
        assert!(slow_after_a_fast_one(&mut clock, &mut now, slow) <= 2);
    }

    #[test]
    fn a_turn_is_measured_to_its_end_and_the_clock_is_read_only_if_necessary() {
        let mut now = Instant::now();
        let mut clock = TurnClock::new(now);
        turn(&mut clock, &mut now, Duration::from_nanos(100));
        let slow = Duration::from_millis(150);
        let not_again = || panic!("the clock was read again");
        clock.begin(now);
        assert_eq!(clock.end(not_again), Duration::ZERO, "a turn without messages");
        clock.begin(now);
        now += slow;
        assert_eq!(clock.message(|| now), Due::End);
        assert_eq!(clock.end(not_again), slow, "the slow message was the first");
        clock.begin(now);
        clock.message(|| now);
        now += slow;
        clock.message(|| now);
        assert_eq!(clock.end(|| now), slow, "the slow message was the second");
    }
}
