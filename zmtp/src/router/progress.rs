//! How fast the bytes that a peer makes the server hold are moving. No I/O and no clock.
//!
//! Progress is a rate: a single byte now and then does not count. Two questions are answered
//! here. [`Window`]: has a partial message grown enough within its window? [`Meter`]: when the
//! pool is full, how long would it take until a peer's memory is free again?

use std::time::{Duration, Instant};

/// The time that each of a meter's counters covers.
const STEP: Duration = Duration::from_secs(2);

/// How many counters are kept. Together they cover a minute, long enough for a reader that works
/// in bursts.
const STEPS: usize = 30;

/// Bytes moved in the last minute, or since the meter was started.
#[derive(Debug, Clone)]
pub struct Meter {
    since: Instant,
    /// The number of the current step, counted from `since`.
    step: u64,
    /// Bytes moved in each step, at index step modulo [`STEPS`].
    moved: [u32; STEPS],
}

impl Meter {
    /// Starts counting at `now`.
    pub fn new(now: Instant) -> Self {
        Self { since: now, step: 0, moved: [0; STEPS] }
    }

    /// When counting started.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Excludes a period in which nothing could move.
    pub fn suspend(&mut self, time: Duration) {
        self.since += time;
    }

    /// Counts `bytes` that moved at `now`.
    pub fn add(&mut self, now: Instant, bytes: usize) {
        let step = self.step_at(now);
        // Clears the counters of skipped steps. After a minute these are all of them.
        for skipped in (self.step + 1..=step).take(STEPS) {
            self.moved[skipped as usize % STEPS] = 0;
        }
        self.step = self.step.max(step);
        let moved = &mut self.moved[self.step as usize % STEPS];
        *moved = moved.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Bytes per second over the last minute, or since the start if that is shorter.
    pub fn rate(&self, now: Instant) -> f64 {
        self.rate_of(now, STEPS)
    }

    /// The rate over the last two to four seconds, or over the minute if that is lower. A fast
    /// start does not hide that nothing moves any more.
    pub fn lowest_rate(&self, now: Instant) -> f64 {
        self.rate(now).min(self.rate_of(now, 2))
    }

    fn rate_of(&self, now: Instant, steps: usize) -> f64 {
        let current = self.step_at(now);
        let first = (current + 1).saturating_sub(steps as u64);
        let known = (self.step + 1).saturating_sub(STEPS as u64);
        let moved: u64 = (first.max(known)..=self.step)
            .map(|step| u64::from(self.moved[step as usize % STEPS]))
            .sum();
        let from = self.since + STEP * u32::try_from(first).unwrap_or(u32::MAX);
        // A meter that is only milliseconds old says nothing yet.
        let elapsed = now.saturating_duration_since(from).max(Duration::from_millis(10));
        moved as f64 / elapsed.as_secs_f64()
    }

    fn step_at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() / STEP.as_secs()
    }
}

/// The window in which a partial message must grow by a minimum number of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// When it began.
    pub since: Instant,
    /// Bytes received by then.
    pub from: u64,
}

impl Window {
    /// Starts a window at `now`. `received` counts the bytes that came before it.
    pub fn new(now: Instant, received: u64) -> Self {
        Self { since: now, from: received }
    }

    /// Whether enough bytes came. `received` is counted as in [`Window::new`], `unread` bytes are
    /// in the kernel, and the message lacks at least `missing` bytes.
    pub fn has_progress(&self, received: u64, unread: usize, missing: usize, least: usize) -> bool {
        let moved = (received - self.from) as usize;
        moved + unread >= least || (missing > 0 && unread >= missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_rate_covers_the_last_minute_or_the_time_since_the_start() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.add(at(start, 0.5), 1000);
        assert_eq!(meter.rate(at(start, 1.0)), 1000.0);
        assert_eq!(meter.rate(at(start, 10.0)), 100.0);
        // After a minute the old bytes are forgotten, and only newer ones count.
        assert_eq!(meter.rate(at(start, 70.0)), 0.0);
        meter.add(at(start, 71.0), 580);
        assert_eq!(meter.rate(at(start, 72.0)), 10.0);
        meter.add(at(start, 10_000.0), 1);
        assert!(meter.rate(at(start, 10_000.0)) < 1.0);
    }

    #[test]
    fn a_fast_start_does_not_hide_a_stall() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.add(start, 8 << 20);
        for second in 1..20 {
            meter.add(at(start, f64::from(second)), 25);
        }
        assert!(meter.rate(at(start, 19.0)) > 400_000.0);
        assert!(meter.lowest_rate(at(start, 19.0)) < 50.0);
    }

    #[test]
    fn paused_time_does_not_count() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.add(at(start, 0.5), 1000);
        meter.suspend(Duration::from_secs(100));
        assert_eq!(meter.rate(at(start, 101.0)), 1000.0);
        assert_eq!(meter.lowest_rate(at(start, 101.0)), 1000.0);
        meter.add(at(start, 101.5), 500);
        assert_eq!(meter.rate(at(start, 101.5)), 1000.0);
    }

    #[test]
    fn a_window_needs_its_minimum_or_the_rest_of_the_message() {
        let window = Window::new(Instant::now(), 1000);
        assert!(!window.has_progress(1099, 0, 1 << 20, 100));
        assert!(window.has_progress(1100, 0, 1 << 20, 100));
        assert!(window.has_progress(1050, 50, 1 << 20, 100));
        assert!(window.has_progress(1000, 3, 3, 100));
        assert!(!window.has_progress(1000, 2, 3, 100));
    }
}
