//! The sources of endpoints, each against a real server made for it.

mod dns;
mod fixed;
mod kubernetes;

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Once};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zmq_echo::client::discovery::{Discovery, EndpointState, Endpoints};

use crate::support::{DEADLINE, until};

/// A source that is followed, and what it says.
struct Followed {
    endpoints: watch::Receiver<Endpoints>,
    task: JoinHandle<()>,
}

impl Followed {
    fn start(source: impl Discovery) -> Self {
        let (sender, endpoints) = watch::channel(Endpoints::new());
        Self { endpoints, task: tokio::spawn(Box::new(source).follow(sender)) }
    }

    /// Waits until the source has said exactly this.
    #[track_caller]
    fn says(&mut self, expected: &[(&str, EndpointState)]) -> impl Future<Output = ()> {
        let expected = set(expected);
        async move { self.says_what(|said| *said == expected).await }
    }

    async fn says_what(&mut self, holds: impl Fn(&Endpoints) -> bool) {
        // What the channel began with was said by nobody.
        if self.endpoints.has_changed().is_ok_and(|changed| !changed) {
            let unsaid = self.endpoints.borrow().is_empty();
            if unsaid {
                self.change().await;
            }
        }
        while !holds(&self.endpoints.borrow_and_update()) {
            self.change().await;
        }
    }

    async fn change(&mut self) {
        let changed = timeout(DEADLINE, self.endpoints.changed()).await;
        let known = || format!("{:?}", self.endpoints.borrow());
        changed.unwrap_or_else(|_| panic!("still {}", known())).expect("it is followed");
    }

    /// What was seen last is what the source says still, and it has said nothing since.
    #[track_caller]
    fn has_said_nothing_new(&self) {
        assert!(!self.endpoints.has_changed().unwrap(), "{:?}", self.endpoints.borrow());
    }

    /// It ends once nobody listens.
    async fn ends(self) {
        drop(self.endpoints);
        timeout(DEADLINE, self.task).await.expect("it ends").unwrap();
    }
}

fn set(endpoints: &[(&str, EndpointState)]) -> Endpoints {
    endpoints.iter().map(|(text, state)| (text.parse().unwrap(), *state)).collect()
}

/// What is logged on this thread at info and above.
///
/// The subscriber is the process's, as interest in a callsite is remembered for all
/// threads at once: one of a thread alone misses what another thread came by first.
struct Log(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static LOG: RefCell<Arc<Mutex<Vec<u8>>>> = RefCell::default();
}

impl Log {
    fn capture() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_env_filter("info")
                .with_writer(|| Writer(LOG.with_borrow(Arc::clone)))
                .finish();
            tracing::subscriber::set_global_default(subscriber).expect("nobody else sets one");
        });
        let text = Arc::default();
        LOG.set(Arc::clone(&text));
        Self(text)
    }

    /// How many records there are, and how many with this in them.
    fn count(&self, part: &str) -> (usize, usize) {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        (text.lines().count(), text.lines().filter(|line| line.contains(part)).count())
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
