//! A data plane for one test.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use culvert_dataplane::{Addresses, Config, Dataplane};
use culvert_telemetry::lifecycle::Phase;

pub const TOKEN: &str = "dev-token-0123456789abcdef";
pub const OTHER_TOKEN: &str = "other-token-0123456789abcdef";
/// Longest wait for anything that has to happen.
pub const SOON: Duration = Duration::from_secs(20);

pub struct Hub {
    dataplane: Option<Dataplane>,
    pub at: Addresses,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

pub fn clusters() -> String {
    format!(r#"[{{"id":"dev","token":"{TOKEN}"}},{{"id":"other","token":"{OTHER_TOKEN}"}}]"#)
}

impl Hub {
    pub fn start(args: &[&str]) -> Hub {
        Hub::with(&clusters(), args)
    }

    pub fn with(clusters: &str, args: &[&str]) -> Hub {
        Hub::bound("127.0.0.1:0".parse().unwrap(), clusters, args)
    }

    /// On this port for agents.
    pub fn at(public: SocketAddr) -> Hub {
        Hub::bound(public, &clusters(), &[])
    }

    fn bound(public: SocketAddr, clusters: &str, args: &[&str]) -> Hub {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clusters.json");
        write_private(&file, clusters);
        let base = [
            "culvert-dataplane",
            "--addr",
            &public.to_string(),
            "--internal-addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            "--clusters",
            file.to_str().unwrap(),
        ];
        let argv = base.iter().chain(args).map(OsString::from);
        let config = Config::read(argv, &|_| None).unwrap();
        let dataplane = Dataplane::start(config).unwrap();
        Hub {
            at: dataplane.addresses(),
            dataplane: Some(dataplane),
            file,
            _dir: dir,
        }
    }

    pub fn rewrite_clusters(&self, text: &str) {
        let new = self.file.with_extension("new");
        write_private(&new, text);
        std::fs::rename(new, &self.file).unwrap();
    }

    pub fn drain(&self) {
        self.dataplane
            .as_ref()
            .unwrap()
            .shutdown()
            .advance(Phase::Draining);
    }

    /// Waits for the end of all threads.
    pub async fn ended(mut self) {
        let dataplane = self.dataplane.take().unwrap();
        let joined = tokio::task::spawn_blocking(move || dataplane.join());
        soon("the data plane ends", joined).await.unwrap();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(dataplane) = self.dataplane.take() {
            dataplane.shutdown().advance(Phase::Stopped);
            dataplane.join();
        }
    }
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {SOON:?}"),
    }
}

/// Asks until `check` has an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn metric(at: SocketAddr, line: &str) -> Option<f64> {
    let text = crate::client::get(at, "/metrics").await.text();
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    found.map(|value| value.trim().parse().unwrap())
}
