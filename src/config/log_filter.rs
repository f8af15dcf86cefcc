//! The filter for log records.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A filter for log records, as `tracing` understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter, built for a subscriber.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = "expected off, error, warn, info, debug or trace, or directives such as info,zmtp=debug";
        // `EnvFilter` takes an unknown word for the name of a target, so a misspelt level or an
        // empty variable would silence the log.
        let alone = |word: &str| !word.contains(['=', '[', ']']);
        let mut words = text.split(',').map(str::trim).filter(|word| alone(word));
        if words.any(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
            return Err(right.to_owned());
        }
        // The library's own error lists the levels again and does not say which part is wrong.
        EnvFilter::try_new(text).map_err(|_| right)?;
        Ok(Self(text.to_owned()))
    }
}
