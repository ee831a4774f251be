//! End-to-end tests: the real binaries in network namespaces (hub, a private site that can only
//! dial out, clients), with servers and clients from the distribution.
//!
//! They need root and the packages of `perf/packages.txt`; without them each prints `SKIP` and,
//! where `CULVERT_REQUIRE=all` says that nothing may be missing, fails. The binaries are those of
//! `CULVERT_BIN_DIR`, else of the target directory this test was built into.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "figures are part of what a test shows")]

mod audit;
mod certified;
mod client;
mod config;
mod control;
mod drain;
mod etcd;
mod flood;
mod go;
mod heads;
mod heavy;
mod hostile;
mod hub;
mod kills;
mod load;
mod local;
mod mtls;
mod observe;
mod oidc;
mod pair;
mod pattern;
mod people;
mod proxy;
mod quickstart;
mod races;
mod radar;
mod routed;
mod silence;
mod sse;
mod store;
mod tokens;
mod upgrade;
mod upstream;
mod watched;
