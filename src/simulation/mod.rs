//! An echo that takes time and fails on demand, for demonstrations and tests.
//!
//! The plain echo answers so fast that autoscaling, retries, alerts and drains can hardly be
//! shown with it. This one has the flags `--work` and `--faults`. Without them, the programs that
//! call [`main`] serve their own service, and nothing is simulated.
//!
//! 1. [`config`]: the flags of the simulation, added to those of every server.
//! 2. [`work`]: how long a request takes, and whether it sleeps or burns CPU.
//! 3. [`faults`]: what goes wrong. The side port sets it while the server runs.
//! 4. [`share`]: a percentage, for flags and faults.
//! 5. [`echo`]: the service.
//! 6. [`run`]: the `main` of a server with these flags.

pub mod config;
pub mod echo;
pub mod faults;
pub mod run;
pub mod share;
pub mod work;

pub use config::EchoConfig;
pub use echo::SimulatedEcho;
pub use faults::{Faults, Switches};
pub use run::main;
