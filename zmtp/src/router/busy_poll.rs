//! Decides whether to spin for the next message before sleeping. No I/O and no clock.

use std::time::Duration;

/// After this many unsuccessful spins in a row, the pauses between them stop growing. One wait in
/// 256 then spins, which costs too little to measure.
const RAREST: u32 = 8;

/// Decides when spinning is worth it.
///
/// Sleeping and waking up takes longer than an echo, and costs as much CPU time as about 10 µs of
/// spinning. So if a client sends its next request immediately, the socket spins for it. If no
/// client does, it spins less and less often: after the first unsuccessful spin it skips one
/// wait, then three, then seven, and so on.
#[derive(Debug)]
pub struct BusyPoll {
    longest: Duration,
    vain: u32,
    left_out: u32,
}

impl BusyPoll {
    /// Spins for up to `longest`, or never if that is zero.
    pub fn new(longest: Duration) -> Self {
        Self { longest, vain: 0, left_out: 0 }
    }

    /// How long to spin this time, or `None` to sleep at once.
    pub fn begin(&mut self) -> Option<Duration> {
        if self.left_out > 0 {
            self.left_out -= 1;
            return None;
        }
        (!self.longest.is_zero()).then_some(self.longest)
    }

    /// Call this after a spin. `came` says whether it brought a message.
    pub fn end(&mut self, came: bool) {
        self.vain = if came { 0 } else { (self.vain + 1).min(RAREST) };
        self.left_out = (1 << self.vain) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `waits` waits spin, if all have the same result.
    fn awake(poll: &mut BusyPoll, waits: u32, came: bool) -> usize {
        let wait = |_: &u32| poll.begin().inspect(|_| poll.end(came)).is_some();
        (0..waits).filter(wait).count()
    }

    #[test]
    fn unsuccessful_spins_become_rarer_and_successful_ones_repeat() {
        let mut poll = BusyPoll::new(Duration::from_micros(10));
        assert_eq!(awake(&mut poll, 1000, true), 1000);
        // After 0, 2, 6, 14, 30, 62, 126 and 254 waits, and then after every 256.
        assert_eq!(awake(&mut poll, 510, false), 8);
        assert_eq!(awake(&mut poll, 2560 + 1, false), 10 + 1);
        // When spinning pays off again, the next spin notices.
        assert_eq!(awake(&mut poll, 255 + 100, true), 100);
    }

    #[test]
    fn a_zero_duration_turns_spinning_off() {
        assert_eq!(awake(&mut BusyPoll::new(Duration::ZERO), 1000, true), 0);
    }
}
