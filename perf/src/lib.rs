//! The testbed (network namespaces, real processes, injectors that prove that they bite) and the
//! load generator (open loop, receiver-counted, CPU by process), shared by the end-to-end tests
//! and by `cargo xtask perf`.
#![deny(unsafe_code)]

pub mod command;
pub mod cpu;
pub mod delay;
pub mod host;
pub mod lab;
pub mod load;
pub mod packages;
pub mod relay;
pub mod report;
pub mod run;
pub mod sample;
pub mod scenario;
pub mod service;
pub mod statistics;
pub mod swarm;
pub mod tcp;
pub mod testbed;
