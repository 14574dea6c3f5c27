//! What a restart must not forget, joined: the records ([`Seen`]) and their file ([`Journal`]). Without a file there is
//! nothing that outlives the daemon, and nothing to wait for.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::journal::{Journal, OpenError, Opened, Receipt};
use crate::request::{
    dedupe::{Fingerprint, Key},
    seen::{Bounds, Record, Run, Seen, Trace},
};

/// As long and as many as the daemon itself remembers.
const BOUNDS: Bounds =
    Bounds { entries: super::session::REMEMBERED.entries, age: super::session::REMEMBERED.age.as_secs() };
/// Records beyond twice what is known after which the file is written anew.
const SLACK: usize = 4096;
/// Between two tries to write to a disk that failed.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The requests of this daemon and of those before it.
#[derive(Debug, Default)]
pub struct Trail {
    book: Option<Book>,
}

#[derive(Debug)]
struct Book {
    seen: Seen,
    journal: Journal,
    /// Records in the file.
    written: usize,
    /// When the whole file was sent last.
    whole_at: Instant,
}

impl Trail {
    /// Takes up what an earlier daemon left in its state directory. Where nothing can be kept it says so in the log.
    pub async fn open(folder: Option<PathBuf>) -> Self {
        let Some(folder) = folder else {
            log::warn!(target: "temperd::mqtt", "there is no state directory (STATE_DIRECTORY, XDG_STATE_HOME or HOME): \
                requests are remembered in memory only, and a restart may answer some twice");
            return Self::default();
        };
        match tokio::task::spawn_blocking(move || Book::open(&folder)).await {
            Ok(Ok(book)) => Self { book: Some(book) },
            Ok(Err(error)) => {
                log::error!(target: "temperd::mqtt", "{error}; requests are remembered in memory only, and a restart \
                    may answer some twice");
                Self::default()
            }
            // The runtime is going down.
            Err(_) => Self::default(),
        }
    }

    /// Whether anything is written, and a request must wait for that.
    pub fn is_kept(&self) -> bool {
        self.book.is_some()
    }

    /// What earlier daemons left of a request.
    pub fn trace(&mut self, key: &Key, payload: &Fingerprint) -> Trace {
        self.book.as_mut().map_or(Trace::Unknown, |book| book.seen.trace(key, payload, unix_time()))
    }

    /// A request is about to run; it may once the receipt is here.
    pub fn begin(&mut self, run: &Run, now: Instant) -> Receipt {
        let Some(book) = &mut self.book else { return Receipt::at_once() };
        let record = book.seen.begin(run, unix_time());
        book.append(record, now);
        book.journal.sync()
    }

    /// A request has its outcome. Worth a word, not a wait.
    pub fn end(&mut self, run: &Run, now: Instant) {
        if let Some(book) = &mut self.book
            && let Some(record) = book.seen.end(run, unix_time())
        {
            book.append(record, now);
        }
    }

    /// The broker has the final of a request; the request may be acknowledged once the receipt is here.
    pub fn finish(&mut self, run: &Run, now: Instant) -> Receipt {
        let Some(book) = &mut self.book else { return Receipt::at_once() };
        let record = book.seen.finish(run, unix_time());
        book.append(record, now);
        book.journal.sync()
    }

    /// Comes once all that was written so far is safe.
    pub fn settled(&self) -> Receipt {
        self.book.as_ref().map_or_else(Receipt::at_once, |book| book.journal.sync())
    }
}

impl Book {
    fn open(folder: &Path) -> Result<Self, OpenError> {
        let Opened { journal, key, records, damaged } = Journal::open(folder)?;
        if damaged > 0 {
            log::warn!(target: "temperd::mqtt", file:% = folder.join("seen").display(), damaged, whole = records.len();
                "damaged records of earlier requests are dropped; those requests may be answered once more");
        }
        let seen = Seen::restore(key, BOUNDS, records, unix_time());
        log::info!(target: "temperd::mqtt", folder:% = folder.display(), requests = seen.len();
            "requests are remembered over a restart");
        let mut book = Self { seen, journal, written: 0, whole_at: Instant::now() };
        // Begins with a whole file: what was torn or is too old is gone.
        book.write_whole(Instant::now());
        Ok(book)
    }

    /// While the file lags behind, the thread drops what comes, until it has a whole one to go on from.
    fn append(&mut self, record: Record, now: Instant) {
        let full = self.written > self.seen.len() * 2 + SLACK;
        let try_again = self.journal.is_failing() && now.saturating_duration_since(self.whole_at) >= TRY_AGAIN;
        if full || try_again {
            self.write_whole(now);
        } else {
            self.written += 1;
            self.journal.append(record);
        }
    }

    fn write_whole(&mut self, now: Instant) {
        let records = self.seen.records();
        self.written = records.len();
        self.whole_at = now;
        self.journal.whole(records);
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Client, dedupe::Mark, seen::record::BYTES};

    fn run(number: usize) -> Run {
        let mark = number.to_le_bytes();
        let key = Key::new("chat", &Client::mqtt(Some("pump")), "t", Mark::Correlation(&mark));
        Run { key, payload: Fingerprint::of("", &mark), seed: 7, dead: 0 }
    }

    async fn open(folder: &Path) -> Trail {
        let trail = Trail::open(Some(folder.into())).await;
        assert!(trail.is_kept());
        trail
    }

    fn known(trail: &mut Trail, number: usize) -> Trace {
        let run = run(number);
        trail.trace(&run.key, &run.payload)
    }

    #[tokio::test]
    async fn the_file_stays_bounded_and_the_latest_are_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut trail = open(folder.path()).await;
        let (now, many) = (Instant::now(), 4 * BOUNDS.entries);
        for number in 0..many {
            drop(trail.begin(&run(number), now));
            trail.end(&run(number), now);
            let finished = trail.finish(&run(number), now);
            if number % 500 == 0 {
                finished.wait().await;
            }
        }
        trail.settled().wait().await;
        let bytes = std::fs::metadata(folder.path().join("seen")).unwrap().len();
        assert!(bytes <= ((2 * BOUNDS.entries + SLACK + 8) * BYTES) as u64, "{bytes}");
        drop(trail);
        let mut trail = open(folder.path()).await;
        assert_eq!(known(&mut trail, 0), Trace::Unknown);
        assert_eq!(known(&mut trail, many - BOUNDS.entries), Trace::Finished);
        assert_eq!(known(&mut trail, many - 1), Trace::Finished);
    }

    #[tokio::test]
    async fn what_came_while_the_disk_was_full_is_written_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("seen.new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        let mut trail = open(folder.path()).await;
        let now = Instant::now();
        trail.begin(&run(1), now).wait().await;
        trail.finish(&run(1), now).wait().await;
        std::fs::remove_file(&new).unwrap();
        // Not at every request: a disk that is full is left in peace for a while.
        trail.begin(&run(2), now).wait().await;
        assert!(!folder.path().join("seen").exists());
        trail.begin(&run(3), now + TRY_AGAIN + Duration::from_secs(1)).wait().await;
        drop(trail);
        let mut trail = open(folder.path()).await;
        assert_eq!(known(&mut trail, 1), Trace::Finished);
        assert_eq!([2, 3].map(|number| known(&mut trail, number)), [Trace::Started { seed: 7, dead: 1 }; 2]);
    }
}
