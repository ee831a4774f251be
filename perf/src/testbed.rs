//! Network namespaces joined by veth, real processes in them, and injectors of faults.
//!
//! ```text
//!   client 10.77.1.2 ── 10.77.1.1 ┐
//!   site   10.77.2.2 ── 10.77.2.1 ┤ hub        site and site2: nothing can dial in
//!   site2  10.77.4.2 ── 10.77.4.1 ┤            site: with `proxied`, nothing but the proxy is
//!   proxy  10.77.3.2 ── 10.77.3.1 ┘            reached from it, at 10.77.5.1
//! ```
//! Names begin with `cv-<pid>-`; what an earlier, killed run left behind is removed at the start
//! of the next one, by namespace and by process id.

mod cgroup;
mod inject;
mod namespace;
mod need;
mod process;
mod sweep;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use cgroup::Cgroup;
pub use inject::{BlackHole, Way};
pub use namespace::{Namespace, NamespaceRuntime};
pub use need::{Need, met};
pub use process::{Process, Spawn, memory_kib};

/// Address of the hub as the client sees it.
pub const HUB_FOR_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1));
/// Address of the hub as the private site sees it.
pub const HUB_FOR_SITE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 1));
/// Address of the hub as the second private site sees it.
pub const HUB_FOR_SITE2: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 4, 1));
/// Address of the hub as the proxy sees it.
pub const HUB_FOR_PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 3, 1));
/// Address of the private site (nothing can dial it).
pub const SITE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 2));
/// Address of the proxy as the private site sees it.
pub const PROXY_FOR_SITE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 5, 1));

/// Which hosts beside hub, client and site a test wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// A second private site.
    pub second_site: bool,
    /// A proxy host, and a site that reaches nothing else.
    pub proxied: bool,
}

/// The namespaces of one test and a directory for its files. All of it is removed on drop.
pub struct Testbed {
    /// Where control and data plane run.
    pub hub: Namespace,
    /// Where the users of the hub are.
    pub client: Namespace,
    /// The private site: it can only dial out.
    pub site: Namespace,
    /// With [`Layout::second_site`].
    pub site2: Option<Namespace>,
    /// With [`Layout::proxied`].
    pub proxy: Option<Namespace>,
    directory: tempfile::TempDir,
}

impl Testbed {
    /// Makes the namespaces, joins them, closes the private sites and proves that they are closed.
    ///
    /// # Errors
    /// No root, no `ip` or `nft`, or the closed site can be dialled nevertheless.
    pub fn new(layout: Layout) -> Result<Testbed> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep::abandoned()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("cv-{}-{number}", std::process::id());
        let make = |host: &str| Namespace::new(&format!("{prefix}-{host}"));
        let bed = Testbed {
            hub: make("hub")?,
            client: make("client")?,
            site: make("site")?,
            site2: layout.second_site.then(|| make("site2")).transpose()?,
            proxy: layout.proxied.then(|| make("proxy")).transpose()?,
            directory: tempfile::Builder::new().prefix("culvert-bed-").tempdir()?,
        };
        bed.join().context("joining the namespaces")?;
        bed.close_sites().context("closing the private sites")?;
        Ok(bed)
    }

    /// A directory for logs, keys and state, removed with the testbed.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in [`Testbed::directory`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn join(&self) -> Result<()> {
        self.client.join(&self.hub, 1)?;
        self.site.join(&self.hub, 2)?;
        if let Some(site2) = &self.site2 {
            site2.join(&self.hub, 4)?;
        }
        if let Some(proxy) = &self.proxy {
            proxy.join(&self.hub, 3)?;
            self.site.join(proxy, 5)?;
        }
        Ok(())
    }

    fn close_sites(&self) -> Result<()> {
        for site in [Some(&self.site), self.site2.as_ref()]
            .into_iter()
            .flatten()
        {
            site.nft(
                "table inet private {
                   chain in { type filter hook input priority 0; policy drop;
                     iifname lo accept
                     ct state established,related accept
                     counter drop; }; }",
            )?;
        }
        if self.proxy.is_some() {
            self.site.nft(
                "table inet onlyproxy {
                   chain out { type filter hook output priority 0; policy accept;
                     ip daddr 10.77.2.1 reject with icmp type admin-prohibited; }; }",
            )?;
        }
        // The wall must bite: a listener on the private site answers nobody outside of it.
        let listener = self.site.run(|| std::net::TcpListener::bind((SITE, 0)))?;
        let target = listener.local_addr()?;
        let inside = self.site.probe(target);
        let outside = self.hub.probe(target);
        if !inside || outside {
            bail!("private site {target}: dialled from inside {inside}, from the hub {outside}");
        }
        Ok(())
    }
}

/// One namespace of its own, with loopback only.
///
/// # Errors
/// No root, or no `ip`.
pub fn solitary(name: &str) -> Result<Namespace> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    sweep::abandoned()?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Namespace::new(&format!("cv-{}-{name}{number}", std::process::id()))
}

/// Waits until `condition` gives a value, looking every 10 ms.
///
/// # Errors
/// After `limit`, with `what` in the text.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_dial_out_and_are_not_dialled() {
        if !met(
            "sites_dial_out_and_are_not_dialled",
            &[Need::Root, Need::Namespaces],
        ) {
            return;
        }
        let bed = Testbed::new(Layout {
            second_site: true,
            proxied: true,
        })
        .unwrap();
        let listener = bed
            .hub
            .run(|| std::net::TcpListener::bind(("0.0.0.0", 0)))
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(bed.client.probe((HUB_FOR_CLIENT, port).into()));
        assert!(
            bed.site2
                .as_ref()
                .unwrap()
                .probe((HUB_FOR_SITE2, port).into())
        );
        assert!(
            bed.proxy
                .as_ref()
                .unwrap()
                .probe((HUB_FOR_PROXY, port).into())
        );
        assert!(
            !bed.site.probe((HUB_FOR_SITE, port).into()),
            "only the proxy may be reached"
        );
    }

    #[test]
    fn a_black_hole_bites_and_heals() {
        if !met(
            "a_black_hole_bites_and_heals",
            &[Need::Root, Need::Namespaces],
        ) {
            return;
        }
        let bed = Testbed::new(Layout::default()).unwrap();
        let listener = bed
            .hub
            .run(|| std::net::TcpListener::bind(("0.0.0.0", 0)))
            .unwrap();
        let address = (HUB_FOR_SITE, listener.local_addr().unwrap().port()).into();
        for way in [Way::In, Way::Out, Way::Both] {
            let hole = BlackHole::dig(&bed.hub, &bed.site, way, address).unwrap();
            assert!(!bed.site.probe(address));
            drop(hole);
            assert!(bed.site.probe(address), "healed after {way:?}");
        }
    }

    #[test]
    fn a_process_ends_with_its_guard() {
        if !met(
            "a_process_ends_with_its_guard",
            &[Need::Root, Need::Namespaces],
        ) {
            return;
        }
        let bed = Testbed::new(Layout::default()).unwrap();
        let sleeper = Spawn::new("sleep")
            .args(["600"])
            .start(&bed, &bed.hub, "sleeper")
            .unwrap();
        let pid = sleeper.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(sleeper);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
