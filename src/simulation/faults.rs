//! Faults that can be changed while the server runs.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;

use super::share::Share;
use crate::units::parse_duration;

/// The longest delay. It is longer than any client waits, and short enough for a demonstration to
/// set a longer deadline for the drain.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Maximum number of panics that can be ordered at once. Each logs a record with a backtrace.
const MOST_PANICS: u32 = 100;

/// The faults to simulate. As text, `delay=200ms errors=10% silence=0% panics=1`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// The time that is added to each request.
    pub delay: Duration,
    /// The share of requests that are answered with an error, which is marked as retryable.
    pub errors: Share,
    /// The share of requests that are not answered at all.
    pub silence: Share,
    /// How many of the next requests end in a panic.
    pub panics: u32,
}

/// How a request ends after the work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its echo.
    Echo,
    /// An error reply.
    Error,
    /// No reply.
    Silence,
    /// A panic.
    Panic,
}

/// The faults in force, shared by the threads that work on requests and the side port, which
/// sets them.
#[derive(Debug, Clone, Default)]
pub struct Switches(Arc<Mutex<Faults>>);

impl Switches {
    /// The faults in force.
    pub fn get(&self) -> Faults {
        *self.lock()
    }

    /// Replaces all faults.
    pub fn set(&self, faults: Faults) {
        *self.lock() = faults;
    }

    /// Draws how much longer a request takes, and how it ends.
    pub fn draw(&self, rng: &mut Rng) -> (Duration, Outcome) {
        let mut faults = self.lock();
        let drawn = rng.f64();
        let outcome = match faults.errors.fraction() {
            _ if faults.panics > 0 => {
                faults.panics -= 1;
                Outcome::Panic
            }
            errors if drawn < errors => Outcome::Error,
            errors if drawn < errors + faults.silence.fraction() => Outcome::Silence,
            _ => Outcome::Echo,
        };
        (faults.delay, outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Faults> {
        // No code that may panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromStr for Faults {
    type Err = String;

    /// Parses pairs such as `errors=10%`, separated by `&` or white space. Faults that are not
    /// named are off.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut faults = Self::default();
        let mut named = Vec::new();
        let pairs = text.split(|c: char| c == '&' || c.is_ascii_whitespace());
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |right: &dyn fmt::Display| format!("{name}: {right}");
            match name {
                "delay" => faults.delay = delay(value).map_err(|right| wrong(&right))?,
                "errors" => faults.errors = value.parse().map_err(|right| wrong(&right))?,
                "silence" => faults.silence = value.parse().map_err(|right| wrong(&right))?,
                "panics" => {
                    let number = value.parse().ok().filter(|number| *number <= MOST_PANICS);
                    let right = format!("expected 0 to {MOST_PANICS}, such as 1");
                    faults.panics = number.ok_or_else(|| wrong(&right))?;
                }
                _ => return Err("expected delay, errors, silence or panics".to_owned()),
            }
            if named.contains(&name) {
                return Err(wrong(&"given twice"));
            }
            named.push(name);
        }
        if faults.errors.fraction() + faults.silence.fraction() > 1.0 {
            return Err("errors and silence together: expected at most 100%".to_owned());
        }
        Ok(faults)
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = parse_duration(text)?;
    if delay > LONGEST_DELAY {
        return Err(format!("expected {} at most", humantime::format_duration(LONGEST_DELAY)));
    }
    Ok(delay)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the space in the delay, because `1s 500ms` would be parsed as two pairs.
        let delay = humantime::format_duration(self.delay).to_string().replace(' ', "");
        let Self { errors, silence, panics, .. } = self;
        write!(f, "delay={delay} errors={errors} silence={silence} panics={panics}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_shown_as_they_are_parsed_and_those_not_named_are_off() {
        assert_eq!("".parse(), Ok(Faults::default()));
        for text in [
            "delay=0s errors=0% silence=0% panics=0",
            "delay=1s500ms errors=12.5% silence=87.5% panics=3",
        ] {
            assert_eq!(text.parse::<Faults>().unwrap().to_string(), text);
        }
        let joined = "errors=10%&panics=1\n".parse::<Faults>().unwrap();
        assert_eq!(joined.to_string(), "delay=0s errors=10% silence=0% panics=1");
    }

    #[test]
    fn a_wrong_fault_is_rejected_with_what_was_expected() {
        for (text, right) in [
            ("delay=5", "delay: "),
            ("delay=2m", "delay: expected 1m at most"),
            ("errors=0.1", "errors: expected 0% to 100%"),
            ("silence", "silence: expected 0% to 100%"),
            ("panics=101", "panics: expected 0 to 100"),
            ("panics=-1", "panics: expected 0 to 100"),
            ("errors=60% silence=41%", "together: expected at most 100%"),
            ("errors=1% errors=2%", "errors: given twice"),
            ("slowness=1", "expected delay, errors, silence or panics"),
        ] {
            let error = text.parse::<Faults>().unwrap_err();
            assert!(error.contains(right), "{text}: {error}");
        }
    }

    #[test]
    fn faults_hit_their_share_of_requests_and_each_panic_hits_one() {
        let switches = Switches::default();
        let mut rng = Rng::with_seed(1);
        assert_eq!(switches.draw(&mut rng), (Duration::ZERO, Outcome::Echo));
        switches.set("delay=1s errors=20% silence=30% panics=2".parse().unwrap());
        let drawn: Vec<_> = (0..10_002).map(|_| switches.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|(delay, _)| *delay == Duration::from_secs(1)));
        let count = |outcome| drawn.iter().filter(|(_, drawn)| *drawn == outcome).count();
        assert_eq!(count(Outcome::Panic), 2);
        assert!(drawn[..2].iter().all(|(_, outcome)| *outcome == Outcome::Panic));
        assert!((1_900..2_100).contains(&count(Outcome::Error)));
        assert!((2_850..3_150).contains(&count(Outcome::Silence)));
        assert_eq!(switches.get().panics, 0);
    }
}
