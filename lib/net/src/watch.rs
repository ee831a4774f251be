//! Watching files for new content: by directory events, and every 60 s whatever the events say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// The content is compared at least this often, because events get lost on some file systems.
pub const COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// Writers replace several files one after the other: wait for them to finish.
pub const SETTLE: Duration = Duration::from_millis(200);

/// Calls `changed` after something happened in the directories of `paths`, and every 60 s. The
/// callee compares content: a call does not promise a change. Runs until dropped.
///
/// Directories are watched, not files: Kubernetes swaps a symbolic link, editors rename.
pub async fn watch(paths: &[PathBuf], mut changed: impl FnMut() + Send) {
    let happened = Arc::new(Notify::new());
    let _watcher = start(paths, happened.clone());
    loop {
        if tokio::time::timeout(COMPARE_INTERVAL, happened.notified())
            .await
            .is_ok()
        {
            tokio::time::sleep(SETTLE).await;
        }
        changed();
    }
}

fn start(paths: &[PathBuf], happened: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let notice = move |event: notify::Result<notify::Event>| {
        // Our own reading must not wake us again.
        if !event.is_ok_and(|e| e.kind.is_access()) {
            happened.notify_one();
        }
    };
    let mut watcher = match notify::recommended_watcher(notice) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "file events are not available: files are compared every 60 s");
            return None;
        }
    };
    let mut directories: Vec<&Path> = paths.iter().filter_map(|path| path.parent()).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "directory cannot be watched: compared every 60 s");
        }
    }
    Some(watcher)
}
