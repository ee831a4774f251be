//! The runtime of one thread: tokio-uring's where the kernel allows io_uring,
//! else plain tokio. The only file that names tokio-uring.
//!
//! Tokio's sockets, timers and tasks run in both unchanged. What differs is
//! file I/O: through the ring, or on a blocking thread. tokio-uring's streams
//! are not used; they measured 1.2 to 2.6 times slower (performance.md, 2.1).

#[cfg(any(feature = "hub", test))]
use std::fs::{File, Permissions};
use std::future::Future;
use std::io;
#[cfg(any(feature = "hub", test))]
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
#[cfg(any(feature = "hub", test))]
use std::path::{Path, PathBuf};

use culvert_engine::{Backend, IoEngine};

/// Entries of the ring; it only carries file operations.
const RING_ENTRIES: u32 = 16;
/// Mode of what is written: the copy of the state holds the keys of sessions, audit records names.
#[cfg(any(feature = "hub", test))]
pub const OWNERS_ALONE: u32 = 0o600;

/// Tries what `engine` asks for.
///
/// # Errors
/// When io_uring is required and the kernel refuses it.
pub fn probe(engine: IoEngine) -> io::Result<Backend> {
    engine.choose(|| Runtime::uring().map(drop))
}

/// The runtime of the thread that made it.
pub enum Runtime {
    /// io_uring for files, epoll for sockets, as tokio-uring arranges it.
    Uring(tokio_uring::Runtime),
    /// Plain tokio.
    Plain(tokio::runtime::Runtime, tokio::task::LocalSet),
}

impl Runtime {
    /// A runtime for this thread.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(backend: Backend) -> io::Result<Self> {
        if backend.uring {
            return Self::uring();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self::Plain(runtime, tokio::task::LocalSet::new()))
    }

    fn uring() -> io::Result<Self> {
        let mut builder = tokio_uring::builder();
        builder.entries(RING_ENTRIES);
        tokio_uring::Runtime::new(&builder).map(Self::Uring)
    }

    /// Runs `future` and everything it spawns, until `future` ends.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime) => runtime.block_on(future),
            Self::Plain(runtime, local) => runtime.block_on(local.run_until(future)),
        }
    }
}

/// Writes `content` to a new file at `path`, its owner's alone, and makes it durable. A failed
/// fsync is final for that file: the caller starts again with a new one.
///
/// Runs on a thread of `backend`; not `Send`, as ring operations are not.
///
/// # Errors
/// The operating system's.
#[cfg(any(feature = "hub", test))]
pub async fn write_durable(backend: Backend, path: &Path, content: Vec<u8>) -> io::Result<()> {
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(OWNERS_ALONE)
        .open(path)?;
    // One that was left behind keeps its mode.
    file.set_permissions(Permissions::from_mode(OWNERS_ALONE))?;
    if backend.uring {
        let file = tokio_uring::fs::File::from_std(file);
        let (wrote, _) = file.write_all_at(content, 0).await;
        let synced = match wrote {
            Ok(()) => file.sync_all().await,
            failed => failed,
        };
        let closed = file.close().await;
        return synced.and(closed);
    }
    blocking(move || {
        use std::io::Write as _;
        let mut file = file;
        file.write_all(&content)?;
        file.sync_all()
    })
    .await
}

/// Puts `content` at `offset` of the file at `path`, in place of whatever is behind it, and makes it
/// durable.
///
/// # Errors
/// The operating system's.
#[cfg(any(feature = "hub", test))]
pub async fn append_durable(
    backend: Backend,
    path: &Path,
    content: Vec<u8>,
    offset: u64,
) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(offset)?;
    DurableFile::new(backend, file)
        .append(content, offset)
        .await
}

/// A file that grows, each append durable before the next.
#[cfg(any(feature = "hub", test))]
pub enum DurableFile {
    /// Through the ring.
    Uring(tokio_uring::fs::File),
    /// On blocking threads.
    Plain(std::sync::Arc<File>),
}

#[cfg(any(feature = "hub", test))]
impl DurableFile {
    /// For the threads of `backend`; not `Send` there.
    pub fn new(backend: Backend, file: File) -> Self {
        match backend.uring {
            true => Self::Uring(tokio_uring::fs::File::from_std(file)),
            false => Self::Plain(std::sync::Arc::new(file)),
        }
    }

    /// Writes `content` at `offset` and makes it durable. A failed fsync is final for
    /// the file.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn append(&self, content: Vec<u8>, offset: u64) -> io::Result<()> {
        match self {
            Self::Uring(file) => {
                let (wrote, _) = file.write_all_at(content, offset).await;
                wrote?;
                file.sync_data().await
            }
            Self::Plain(file) => {
                let file = file.clone();
                blocking(move || {
                    use std::os::unix::fs::FileExt as _;
                    file.write_all_at(&content, offset)?;
                    file.sync_data()
                })
                .await
            }
        }
    }
}

/// Makes a rename in `dir` durable.
///
/// # Errors
/// The operating system's.
#[cfg(any(feature = "hub", test))]
pub async fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir: PathBuf = dir.to_owned();
    blocking(move || File::open(dir)?.sync_all()).await
}

#[cfg(any(feature = "hub", test))]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Session threads when the configuration names no number: the CPUs this
/// process may run on.
pub fn cpus_allowed() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn backends() -> Vec<Backend> {
        let epoll = probe(IoEngine::Epoll).unwrap();
        let auto = probe(IoEngine::Auto).unwrap();
        if auto.uring {
            vec![epoll, auto]
        } else {
            vec![epoll]
        }
    }

    #[test]
    fn sockets_tasks_and_timers_work_on_both() {
        for backend in backends() {
            let runtime = Runtime::new(backend).unwrap();
            let got = runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                let server = tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    stream.write_all(b"hello").await.unwrap();
                });
                let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
                let mut got = String::new();
                client.read_to_string(&mut got).await.unwrap();
                server.await.unwrap();
                got
            });
            assert_eq!(got, "hello", "{backend:?}");
        }
    }

    #[test]
    fn durable_writes_replace_the_content_on_both() {
        let dir = tempfile::tempdir().unwrap();
        for backend in backends() {
            let path = dir.path().join(backend.name());
            // As somebody else left it.
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            let runtime = Runtime::new(backend).unwrap();
            runtime.block_on(async {
                write_durable(backend, &path, vec![1; 100_000])
                    .await
                    .unwrap();
                write_durable(backend, &path, vec![2; 10]).await.unwrap();
                sync_directory(dir.path()).await.unwrap();
                let nowhere = dir.path().join("no/such/file");
                assert!(write_durable(backend, &nowhere, vec![1]).await.is_err());
            });
            assert_eq!(std::fs::read(&path).unwrap(), vec![2; 10], "{backend:?}");
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, OWNERS_ALONE, "{backend:?}");
            runtime.block_on(async {
                let file = DurableFile::new(backend, File::create(&path).unwrap());
                file.append(vec![3; 4], 0).await.unwrap();
                file.append(vec![4; 4], 4).await.unwrap();
            });
            let whole = [[3; 4], [4; 4]].concat();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{backend:?}");
            runtime.block_on(async {
                let appended = append_durable(backend, &path, vec![5; 2], 3).await;
                appended.unwrap();
                let nowhere = dir.path().join("nothing");
                assert!(append_durable(backend, &nowhere, vec![5], 0).await.is_err());
            });
            assert_eq!(
                std::fs::read(&path).unwrap(),
                [3, 3, 3, 5, 5],
                "{backend:?}"
            );
        }
    }

    #[test]
    fn the_choice_says_why() {
        assert_eq!(probe(IoEngine::Epoll).unwrap().reason, "requested");
        let auto = probe(IoEngine::Auto).unwrap();
        assert_eq!(auto.uring, auto.reason == "available", "{auto:?}");
    }
}
