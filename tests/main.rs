//! Integration tests: real sockets, real processes, real signals. Each test is named after the
//! promise that it keeps.

mod attacks;
mod build_plan;
mod busy_poll;
mod client;
mod config;
mod conformance;
mod connections;
mod discovery;
mod drain;
mod echo;
mod examples;
mod load;
mod log_schema;
mod logs;
mod manual;
mod new_project;
mod poll_loop;
mod probe;
mod readme;
mod revision;
mod rollout;
mod services;
mod side_port;
mod simulation;
mod support;
mod time_limits;
