//! Work that blocks: counts in an SQLite database, on four threads with a connection each.
//!
//!     COUNTER_DB=/tmp/counter.db cargo run --example counter
//!     python3 examples/client.py tcp://127.0.0.1:5555 apples

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rusqlite::Connection;
use zmq_echo::server;
use zmq_echo::service::{Blocking, Call, Rejection};
use zmtp::Message;

/// Writers wait for each other this long.
const BUSY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    server::main(|| {
        let path = PathBuf::from(std::env::var_os("COUNTER_DB").unwrap_or("counter.db".into()));
        Ok(Blocking::new(4, move || open(&path).map_err(io::Error::other), count)?)
    })
}

/// The state of a thread.
fn open(path: &PathBuf) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(BUSY)?;
    database.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
         CREATE TABLE IF NOT EXISTS counter (name BLOB PRIMARY KEY, count INTEGER NOT NULL);",
    )?;
    Ok(database)
}

/// Counts the name in the request, and replies with how often it has come.
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

/// A database that is busy now may not be later.
fn failed(error: rusqlite::Error) -> Rejection {
    Rejection::failed(error.to_string()).retryable()
}
