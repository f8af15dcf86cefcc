//! Work that blocks: counts names in an SQLite database, on four threads with one connection each.
//!
//!     COUNTER_DB=/tmp/counter.db cargo run --example counter
//!     python3 examples/client.py tcp://127.0.0.1:5555 apples
//!
//! To copy it into `bin/`, move `rusqlite` in `Cargo.toml` from the development dependencies to the
//! dependencies.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rusqlite::Connection;
use zmq_echo::server;
use zmq_echo::service::{Blocking, Call, Rejection};
use zmtp::Message;

/// How long a writer waits for another one before it fails.
const BUSY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    server::main(|| {
        let path = PathBuf::from(std::env::var_os("COUNTER_DB").unwrap_or("counter.db".into()));
        Ok(Blocking::new(4, move || open(&path).map_err(io::Error::other), count)?)
    })
}

/// Creates the state of a thread: a connection to the database.
fn open(path: &PathBuf) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(BUSY)?;
    database.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
         CREATE TABLE IF NOT EXISTS counter (name BLOB PRIMARY KEY, count INTEGER NOT NULL);",
    )?;
    Ok(database)
}

/// Increments the count of the name in the request, and replies with it.
fn count(database: &mut Connection, call: &Call) -> Result<Message, Rejection> {
    let no_name = || Rejection::new("invalid_argument", "expected a name");
    let name = call.payload.frames().front().ok_or_else(no_name)?;
    let mut add = database
        .prepare(
            "INSERT INTO counter VALUES (?1, 1)
             ON CONFLICT (name) DO UPDATE SET count = count + 1 RETURNING count",
        )
        .map_err(failed)?;
    let count: i64 = add.query_row([&name[..]], |row| row.get(0)).map_err(failed)?;
    Ok([count.to_string().into()].into())
}

/// The client may retry, because a busy database may be free later.
fn failed(error: rusqlite::Error) -> Rejection {
    Rejection::failed(error.to_string()).retryable()
}
