//! `zmq-echo-server` beside libzmq, the zeromq crate's ROUTER, rzmq's and raw TCP.
//!
//! The modules, in the order in which they are best read:
//!
//! 1. [`cases`]: what is measured, and the floors that the server is held to.
//! 2. [`sides`]: the servers that are compared, and how each is started.
//! 3. [`serve`]: those of them that live in this package.
//! 4. [`run`]: all sides in turns, then the tables.
//! 5. [`measure`]: one server under one load; one under idle connections.
//! 6. [`generator`]: the load itself, which verifies every reply.
//! 7. [`wire`]: just enough ZMTP for it.
//! 8. [`dealer`]: DEALERs as clients, each in a process that is measured.
//! 9. [`process`]: a process, its CPU time and its memory.
//! 10. [`pin`]: a CPU for the server, another for the generator.
//! 11. [`awake`]: keeps a CPU from sleeping.
//! 12. [`results`]: medians, ratios, floors, Markdown.
//! 13. [`machine`]: where, when and of what versions the numbers are.

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
