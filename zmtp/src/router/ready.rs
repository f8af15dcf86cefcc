//! Who has something to do: the list that wakers write and the socket reads, so
//! that a turn costs what its busy peers cost, however many are open.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// A peer's slot, or one of the socket's own below.
pub type Token = usize;

/// The listener has a connection, or may be tried again.
pub const LISTENER: Token = usize::MAX;

/// A deadline has come.
pub const CLOCK: Token = usize::MAX - 1;

/// The tokens that were woken, each once, in the order in which they were.
#[derive(Debug, Default, Clone)]
pub struct ReadyList(Arc<Mutex<Ready>>);

#[derive(Debug, Default)]
struct Ready {
    tokens: Vec<Token>,
    task: Option<Waker>,
}

/// Whose turns are due, in their order: each peer once, for however many reasons, or it
/// would get more turns than others. So does the listener: several listeners share it.
/// (The clock twice is a look for nothing.)
#[derive(Debug, Default)]
pub struct Turns {
    tokens: VecDeque<Token>,
    /// Which slots are among them.
    due: Vec<bool>,
    /// Whether the listener is.
    listener: bool,
}

impl Turns {
    /// `token` has its turn after all that wait, unless it waits already.
    pub fn push(&mut self, token: Token) {
        if token == LISTENER && std::mem::replace(&mut self.listener, true) {
            return;
        }
        if token < CLOCK {
            if token >= self.due.len() {
                self.due.resize(token + 1, false);
            }
            if std::mem::replace(&mut self.due[token], true) {
                return;
            }
        }
        self.tokens.push_back(token);
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<Token> {
        let token = self.tokens.pop_front()?;
        if token == LISTENER {
            self.listener = false;
        } else if let Some(due) = self.due.get_mut(token) {
            *due = false;
        }
        Some(token)
    }

    /// Whether nobody waits for a turn.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

impl Extend<Token> for Turns {
    fn extend<T: IntoIterator<Item = Token>>(&mut self, tokens: T) {
        tokens.into_iter().for_each(|token| self.push(token));
    }
}

/// What puts its token on the list when the runtime wakes it.
///
/// One that outlives its peer may wake the next owner of the slot: a visit for
/// nothing, and no more.
#[derive(Debug)]
pub struct Bell {
    token: Token,
    rung: AtomicBool,
    list: ReadyList,
}

impl ReadyList {
    /// A bell for `token`.
    pub fn bell(&self, token: Token) -> Arc<Bell> {
        Arc::new(Bell { token, rung: AtomicBool::new(false), list: self.clone() })
    }

    /// Moves what is on the list to `tokens`.
    pub fn take(&self, tokens: &mut impl Extend<Token>) {
        tokens.extend(self.lock().tokens.drain(..));
    }

    /// Has `task` woken by the next bell; at once, where one has rung already.
    pub fn wake_next(&self, task: &Waker) {
        let mut ready = self.lock();
        if ready.tokens.is_empty() {
            ready.task = Some(task.clone());
        } else {
            task.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        // Nothing under the lock can leave the list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// The token is about to be visited: what comes from now on rings again.
    pub fn answer(&self) {
        self.rung.store(false, Ordering::Release);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut ready = self.list.lock();
            ready.tokens.push(self.token);
            ready.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_turn_does_not_wait_for_a_second_one() {
        let mut turns = Turns::default();
        turns.extend([7, LISTENER, 3, 7, LISTENER, 3]);
        turns.push(7);
        assert_eq!([turns.pop(), turns.pop()], [Some(7), Some(LISTENER)]);
        turns.push(7);
        assert_eq!([turns.pop(), turns.pop(), turns.pop()], [Some(3), Some(7), None]);
        assert!(turns.is_empty());
    }
}
