//! `zmq-echo-server` beside libzmq, the zeromq crate's ROUTER, rzmq's and raw TCP.
//!
//! The modules, in reading order:
//!
//! 1. [`cases`]: what is measured, and the floors that the server is held to.
//! 2. [`sides`]: the servers that are compared, and how each is started.
//! 3. [`serve`]: the servers that are part of this package.
//! 4. [`run`]: all sides in turns, then the tables.
//! 5. [`measure`]: a server under load, a server with idle connections, and a client.
//! 6. [`generator`]: the load itself, which verifies every reply.
//! 7. [`wire`]: just enough ZMTP for the generator.
//! 8. [`dealer`]: DEALERs as clients, each in its own process.
//! 9. [`process`]: a process, its CPU time and its memory.
//! 10. [`pin`]: one CPU for the server, another for the generator.
//! 11. [`awake`]: keeps a CPU from sleeping.
//! 12. [`results`]: medians, ratios, floors, Markdown.
//! 13. [`machine`]: the machine, date and versions that the numbers belong to.

pub mod awake;
pub mod cases;
pub mod dealer;
pub mod generator;
pub mod machine;
pub mod measure;
pub mod pin;
pub mod process;
pub mod results;
pub mod run;
pub mod serve;
pub mod sides;
pub mod wire;
