//! Waits for another version of a file, by inotify: nothing is polled.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// A file that is being copied changes many times: it is looked at once nothing has happened for this long.
const QUIET: Duration = Duration::from_secs(1);

/// What tells one version of a file from another; `None` where there is no file.
type Version = Option<(u64, SystemTime)>;

/// A file as it was, and news of its folder.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    before: Version,
    news: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
}

impl FileWatch {
    /// Remembers the file as it is now. Where its folder cannot be watched, a change is never reported: SIGHUP is the
    /// way then, and the log says so.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let (sender, news) = mpsc::channel(1);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let watcher = notify::recommended_watcher(move |_event| {
            // One piece of unread news is enough.
            let _full = sender.try_send(());
        })
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        })
        .inspect_err(|error| {
            log::warn!(target: "temperd::engine", folder:% = folder.display();
                "folder of the model cannot be watched, send SIGHUP after a change: {error}");
        })
        .ok();
        Self { path: path.into(), before: version(path), news, watcher }
    }

    /// Waits until the file is another one than at [`FileWatch::new`], and complete as far as a second's quiet tells.
    pub async fn changed(&mut self) {
        if self.watcher.is_none() {
            return std::future::pending().await;
        }
        loop {
            if self.news.recv().await.is_none() {
                return std::future::pending().await;
            }
            while tokio::time::timeout(QUIET, self.news.recv()).await.is_ok_and(|news| news.is_some()) {}
            let now = version(&self.path);
            if now.is_some() && now != self.before {
                return;
            }
        }
    }
}

fn version(path: &Path) -> Version {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_file_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let mut watch = FileWatch::new(&path);
        fs::write(folder.path().join("other"), "x").expect("written");
        fs::write(&path, "GGUF").expect("written");
        tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect("noticed");
    }
}
