//! Names to addresses: a seam, so that a test can change its answer.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

/// Addresses looked at for one name; further ones are ignored.
pub const ADDRESSES_MAX: usize = 16;

/// What a lookup resolves to.
pub type Lookup<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// Turns a host into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// Looks `host` up. The caller checks each address and dials only those.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Lookup<'a>;
}

/// The operating system's resolver.
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Lookup<'a> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, port)).await?;
            Ok(found.take(ADDRESSES_MAX).collect())
        })
    }
}
