//! The servers that ours is compared with. Each prints its address and echoes until it is killed.

mod adapters;
mod libzmq;
mod rzmq;
mod tcp;
mod zeromq_crate;

use std::net::SocketAddr;

use anyhow::Result;
use clap::Subcommand;

/// An echo server to compare with.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Server {
    /// On a ROUTER of libzmq
    Libzmq,
    /// On the zeromq crate's ROUTER
    Crate,
    /// The server's loop with an echo behind the adapter for futures
    Concurrent,
    /// The server's loop with an echo behind the adapter for threads
    Blocking,
    /// On the ROUTER of the rzmq crate
    Rzmq,
    /// On TCP alone
    Tcp,
}

impl Server {
    /// Serves on a port that the kernel chooses, until the process is killed.
    ///
    /// # Errors
    ///
    /// If the server fails.
    pub fn run(self) -> Result<()> {
        match self {
            Server::Libzmq => libzmq::run(),
            Server::Crate => zeromq_crate::run(),
            Server::Concurrent => adapters::concurrent(),
            Server::Blocking => adapters::blocking(),
            Server::Rzmq => rzmq::run(),
            Server::Tcp => tcp::run(),
        }
    }
}

/// On loopback, where everything is measured.
const ANY_PORT: &str = "127.0.0.1:0";

fn announce(address: SocketAddr) {
    println!("listening on tcp://{address}");
}
