//! Goes through the fully qualified names that a name may stand for, until one has records.
//!
//! getaddrinfo waits for each name before it tries the next one. Here, a name that is silent delays
//! the next one only by [`PATIENCE`], and a name that fails does not delay it at all: one dead
//! search domain must not hide the others. If an earlier name answers later, it takes precedence
//! again.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::resolver::AskError;

/// How long a query may stay unanswered before the next name is tried as well: the "Connection
/// Attempt Delay" of RFC 8305, section 5.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// The outcome for one name. `Ok(None)` means that it has no such records.
type Outcome<T> = Result<Option<T>, AskError>;

/// One round over the names, which are identified by index.
pub(super) struct Walk<'a, T> {
    ask: Box<dyn Fn(usize) -> BoxFuture<'a, Outcome<T>> + Send + 'a>,
    names: usize,
    /// The name that had records last time. Another name replaces it only if it reports that it has
    /// none, or if the other comes earlier in the order.
    known: Option<usize>,
    started: Instant,
    begun: usize,
    begun_at: Instant,
    pending: FuturesUnordered<BoxFuture<'a, (usize, Outcome<T>)>>,
    open: BTreeSet<usize>,
    found: Option<usize>,
    known_failed: bool,
    failure: Option<AskError>,
}

impl<'a, T: 'a> Walk<'a, T> {
    /// Starts the first queries. Each query must end by itself.
    pub fn new(
        names: usize,
        known: Option<usize>,
        ask: impl Fn(usize) -> BoxFuture<'a, Outcome<T>> + Send + 'a,
    ) -> Self {
        let now = Instant::now();
        let mut walk = Self {
            ask: Box::new(ask),
            names,
            known,
            started: now,
            begun: 0,
            begun_at: now,
            pending: FuturesUnordered::new(),
            open: BTreeSet::new(),
            found: None,
            known_failed: false,
            failure: None,
        };
        // Names before the known one must not delay it.
        for _ in 0..=known.unwrap_or(0) {
            walk.begin_next();
        }
        walk
    }

    fn begin_next(&mut self) {
        let at = self.begun;
        let asking = (self.ask)(at);
        self.pending.push(Box::pin(async move { (at, asking.await) }));
        self.open.insert(at);
        self.begun += 1;
        self.begun_at = Instant::now();
    }

    fn may_begin(&self) -> bool {
        let waits_for_known =
            self.known_failed || self.known.is_some_and(|known| self.open.contains(&known));
        self.found.is_none() && self.begun < self.names && !waits_for_known
    }

    /// The next name with records that comes before the last one found, or `None` once the round is
    /// over. Once a name is found, earlier names have until `limit` after the start of the round.
    /// Cancel-safe: all state is in `self`.
    pub async fn next(&mut self, limit: Duration) -> Option<(usize, T)> {
        loop {
            while self.may_begin() && !self.open.contains(&(self.begun - 1)) {
                self.begin_next();
            }
            let earlier = |found: usize| self.open.first().is_some_and(|open| *open < found);
            if self.open.is_empty() || self.found.is_some_and(|found| !earlier(found)) {
                return None;
            }
            let (may_begin, found) = (self.may_begin(), self.found.is_some());
            tokio::select! {
                Some((at, outcome)) = self.pending.next() => {
                    self.open.remove(&at);
                    match outcome {
                        Ok(Some(what)) if self.found.is_none_or(|found| at < found) => {
                            self.found = Some(at);
                            return Some((at, what));
                        }
                        Ok(_) => {}
                        Err(error) => {
                            self.known_failed |= self.known == Some(at);
                            self.failure.get_or_insert(error);
                        }
                    }
                }
                () = sleep_until(self.begun_at + PATIENCE), if may_begin => self.begin_next(),
                () = sleep_until(self.started + limit), if found => return None,
            }
        }
    }

    /// The first failure; it matters only if nothing was found.
    pub fn into_failure(self) -> Option<AskError> {
        self.failure
    }
}
