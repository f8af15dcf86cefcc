//! Which peers need attention. Wakers write this list and the socket reads it, so a turn costs
//! only what its busy peers cost, however many connections are open.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// A peer's slot, or one of the socket's own tokens below.
pub type Token = usize;

/// A listener has a connection, or can be tried again.
pub const LISTENER: Token = usize::MAX;

/// A deadline is due.
pub const CLOCK: Token = usize::MAX - 1;

/// The tokens that were woken, in order and without duplicates.
#[derive(Debug, Default, Clone)]
pub struct ReadyList(Arc<Mutex<Ready>>);

#[derive(Debug, Default)]
struct Ready {
    tokens: Vec<Token>,
    task: Option<Waker>,
}

/// The turns that are due, in order.
///
/// Each peer has at most one entry, however many reasons it has. Otherwise it would get more
/// turns than others. The same goes for the listener token, which several listeners share. A
/// duplicate clock token is harmless.
#[derive(Debug, Default)]
pub struct Turns {
    tokens: VecDeque<Token>,
    /// Which slots are among the tokens.
    due: Vec<bool>,
    /// Whether the listener token is.
    listener: bool,
}

impl Turns {
    /// Appends `token`, unless it is already waiting.
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

    /// Takes the next token.
    pub fn pop(&mut self) -> Option<Token> {
        let token = self.tokens.pop_front()?;
        if token == LISTENER {
            self.listener = false;
        } else if let Some(due) = self.due.get_mut(token) {
            *due = false;
        }
        Some(token)
    }

    /// Whether no turn is due.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

impl Extend<Token> for Turns {
    fn extend<T: IntoIterator<Item = Token>>(&mut self, tokens: T) {
        tokens.into_iter().for_each(|token| self.push(token));
    }
}

/// Puts its token on the list when the runtime wakes it.
///
/// A bell that outlives its peer may wake the next owner of the slot, which costs one unnecessary
/// visit.
#[derive(Debug)]
pub struct Bell {
    token: Token,
    rung: AtomicBool,
    list: ReadyList,
}

impl ReadyList {
    /// Creates a bell for `token`.
    pub fn bell(&self, token: Token) -> Arc<Bell> {
        Arc::new(Bell { token, rung: AtomicBool::new(false), list: self.clone() })
    }

    /// Moves all listed tokens to `tokens`.
    pub fn take(&self, tokens: &mut impl Extend<Token>) {
        tokens.extend(self.lock().tokens.drain(..));
    }

    /// Wakes `task` at the next bell, or at once if one has rung already.
    pub fn wake_next(&self, task: &Waker) {
        let mut ready = self.lock();
        if ready.tokens.is_empty() {
            ready.task = Some(task.clone());
        } else {
            task.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        // No code that holds the lock can leave the list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// Call this before visiting the token. Later events then ring again.
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
    fn a_token_waits_for_at_most_one_turn() {
        let mut turns = Turns::default();
        turns.extend([7, LISTENER, 3, 7, LISTENER, 3]);
        turns.push(7);
        assert_eq!([turns.pop(), turns.pop()], [Some(7), Some(LISTENER)]);
        turns.push(7);
        assert_eq!([turns.pop(), turns.pop(), turns.pop()], [Some(3), Some(7), None]);
        assert!(turns.is_empty());
    }
}
