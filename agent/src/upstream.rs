//! The one target: who may be dialled, connections to it, requests on them.

pub mod allow;
pub mod body;
pub mod dial;
pub mod early;
pub mod http;
pub mod kube;
pub mod pool;
pub mod resolve;
