//! Whether to look out for the next message awake before the thread sleeps. No I/O,
//! no clock.

use std::time::Duration;

/// After how many vain waits in a row they become no rarer: one in 256 is then spent
/// awake, which costs less than can be measured.
const RAREST: u32 = 8;

/// To sleep and be woken takes longer than an echo, and as much of the CPU as some
/// 10 µs awake. So who asks again at once is waited for awake; where nobody does,
/// that is tried ever more rarely: one wait is left out after the first vain one, three
/// after the next, seven, and so on.
#[derive(Debug)]
pub struct BusyPoll {
    longest: Duration,
    vain: u32,
    left_out: u32,
}

impl BusyPoll {
    /// Waits awake for `longest` at most, or never where that is zero.
    pub fn new(longest: Duration) -> Self {
        Self { longest, vain: 0, left_out: 0 }
    }

    /// For how long to wait awake this time, if at all.
    pub fn begin(&mut self) -> Option<Duration> {
        if self.left_out > 0 {
            self.left_out -= 1;
            return None;
        }
        (!self.longest.is_zero()).then_some(self.longest)
    }

    /// A wait is over: whether a message came while awake.
    pub fn end(&mut self, came: bool) {
        self.vain = if came { 0 } else { (self.vain + 1).min(RAREST) };
        self.left_out = (1 << self.vain) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many waits are spent awake, all with the same end.
    fn awake(poll: &mut BusyPoll, waits: u32, came: bool) -> usize {
        let wait = |_: &u32| poll.begin().inspect(|_| poll.end(came)).is_some();
        (0..waits).filter(wait).count()
    }

    #[test]
    fn what_pays_is_done_again_and_what_does_not_ever_more_rarely() {
        let mut poll = BusyPoll::new(Duration::from_micros(10));
        assert_eq!(awake(&mut poll, 1000, true), 1000);
        // After 0, 2, 6, 14, 30, 62, 126, 254 waits, and then after each 256.
        assert_eq!(awake(&mut poll, 510, false), 8);
        assert_eq!(awake(&mut poll, 2560 + 1, false), 10 + 1);
        // It pays again: that is noticed when it is tried next.
        assert_eq!(awake(&mut poll, 255 + 100, true), 100);
    }

    #[test]
    fn zero_turns_it_off() {
        assert_eq!(awake(&mut BusyPoll::new(Duration::ZERO), 1000, true), 0);
    }
}
