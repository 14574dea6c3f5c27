//! What a restart must not forget: carries out what [`super::protocol`] wants to have on record, in the file
//! ([`Journal`]). Without a file there is nothing that outlives the daemon, and nothing to wait for.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::{
    journal::{Journal, OpenError, Opened, Receipt},
    protocol::{Note, Now},
};
use crate::request::seen::{Bounds, Record, Seen};

/// As long and as many as the daemon itself remembers.
const BOUNDS: Bounds =
    Bounds { entries: super::session::REMEMBERED.entries, age: super::session::REMEMBERED.age.as_secs() };
/// Records beyond twice what is known after which the file is written anew.
const SLACK: usize = 4096;
/// Between two tries to write to a disk that failed.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The way to the file; none, where nothing is kept.
#[derive(Debug, Default)]
pub struct Trail {
    book: Option<Book>,
}

#[derive(Debug)]
struct Book {
    journal: Journal,
    /// Records in the file.
    written: usize,
    /// When the whole file was sent last.
    whole_at: Instant,
}

impl Trail {
    /// Takes up what an earlier daemon left in its state directory. Where nothing can be kept it says so in the log.
    pub async fn open(folder: Option<PathBuf>) -> (Self, Option<Seen>) {
        let Some(folder) = folder else {
            log::warn!(target: "temperd::mqtt", "there is no state directory (STATE_DIRECTORY, XDG_STATE_HOME or HOME): \
                requests are remembered in memory only, and a restart may answer some twice");
            return Default::default();
        };
        match tokio::task::spawn_blocking(move || Book::open(&folder)).await {
            Ok(Ok((book, seen))) => (Self { book: Some(book) }, Some(seen)),
            Ok(Err(error)) => {
                log::error!(target: "temperd::mqtt", "{error}; requests are remembered in memory only, and a restart \
                    may answer some twice");
                Default::default()
            }
            // The runtime is going down.
            Err(_) => Default::default(),
        }
    }

    /// Puts something on record; comes once whoever waits for it may go on. `seen` has it already.
    pub fn write(&mut self, note: Note, seen: Option<&Seen>, now: Instant) -> Receipt {
        let (Some(book), Some(seen)) = (&mut self.book, seen) else { return Receipt::at_once() };
        match note {
            Note::Nothing => Receipt::at_once(),
            Note::Append(record) => {
                book.append(record, seen, now);
                Receipt::at_once()
            }
            Note::Sync(record) => {
                if let Some(record) = record {
                    book.append(record, seen, now);
                }
                book.journal.sync()
            }
        }
    }
}

impl Book {
    fn open(folder: &Path) -> Result<(Self, Seen), OpenError> {
        let Opened { journal, key, records, damaged } = Journal::open(folder)?;
        if damaged > 0 {
            log::warn!(target: "temperd::mqtt", file:% = folder.join("seen").display(), damaged, whole = records.len();
                "damaged records of earlier requests are dropped; those requests may be answered once more");
        }
        let seen = Seen::restore(key, BOUNDS, records, unix_time());
        log::info!(target: "temperd::mqtt", folder:% = folder.display(), requests = seen.len();
            "requests are remembered over a restart");
        let mut book = Self { journal, written: 0, whole_at: Instant::now() };
        // Begins with a whole file: what was torn or is too old is gone.
        book.write_whole(&seen, Instant::now());
        Ok((book, seen))
    }

    /// While the file lags behind, the thread drops what comes, until it has a whole one to go on from.
    fn append(&mut self, record: Record, seen: &Seen, now: Instant) {
        let full = self.written > seen.len() * 2 + SLACK;
        let try_again = self.journal.is_failing() && now.saturating_duration_since(self.whole_at) >= TRY_AGAIN;
        if full || try_again {
            self.write_whole(seen, now);
        } else {
            self.written += 1;
            self.journal.append(record);
        }
    }

    fn write_whole(&mut self, seen: &Seen, now: Instant) {
        let records = seen.records();
        self.written = records.len();
        self.whole_at = now;
        self.journal.whole(records);
    }
}

/// An instant, and what the other clock shows.
pub fn stamp(at: Instant) -> Now {
    Now { at, unix: unix_time() }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{
        Client,
        dedupe::{Fingerprint, Key, Mark},
        seen::{Ended, Run, Trace, record::BYTES},
    };

    fn run(number: usize) -> Run {
        let mark = number.to_le_bytes();
        let key = Key::new("chat", &Client::mqtt(Some("pump")), "t", Mark::Correlation(&mark));
        Run { key, payload: Fingerprint::of("", &mark), seed: 7, dead: 0 }
    }

    /// Both, as the protocol uses them.
    struct Kept {
        trail: Trail,
        seen: Seen,
        now: Instant,
    }

    impl Kept {
        async fn open(folder: &Path) -> Self {
            let (trail, seen) = Trail::open(Some(folder.into())).await;
            Self { trail, seen: seen.expect("a folder that can be used"), now: Instant::now() }
        }

        fn begin(&mut self, run: &Run) -> Receipt {
            let record = self.seen.begin(run, unix_time());
            self.trail.write(Note::Sync(Some(record)), Some(&self.seen), self.now)
        }

        fn end(&mut self, run: &Run) {
            let Ended::Ran(record) = self.seen.end(run, unix_time()) else { panic!("it was begun") };
            drop(self.trail.write(Note::Append(record), Some(&self.seen), self.now));
        }

        fn finish(&mut self, run: &Run) -> Receipt {
            let record = self.seen.finish(run, None, unix_time());
            self.trail.write(Note::Sync(Some(record)), Some(&self.seen), self.now)
        }

        fn known(&mut self, number: usize) -> Trace {
            let run = run(number);
            self.seen.trace(&run.key, &run.payload, unix_time())
        }
    }

    #[tokio::test]
    async fn the_file_stays_bounded_and_the_latest_are_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(folder.path()).await;
        let many = 4 * BOUNDS.entries;
        for number in 0..many {
            drop(kept.begin(&run(number)));
            kept.end(&run(number));
            let finished = kept.finish(&run(number));
            if number % 500 == 0 {
                finished.wait().await;
            }
        }
        kept.trail.write(Note::Sync(None), Some(&kept.seen), kept.now).wait().await;
        let bytes = std::fs::metadata(folder.path().join("seen")).unwrap().len();
        assert!(bytes <= ((2 * BOUNDS.entries + SLACK + 8) * BYTES) as u64, "{bytes}");
        drop(kept);
        let mut kept = Kept::open(folder.path()).await;
        assert_eq!(kept.known(0), Trace::Unknown);
        assert_eq!(kept.known(many - BOUNDS.entries), Trace::Finished { packet: 0 });
        assert_eq!(kept.known(many - 1), Trace::Finished { packet: 0 });
    }

    #[tokio::test]
    async fn what_came_while_the_disk_was_full_is_written_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("seen.new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        let mut kept = Kept::open(folder.path()).await;
        kept.begin(&run(1)).wait().await;
        kept.finish(&run(1)).wait().await;
        std::fs::remove_file(&new).unwrap();
        // Not at every request: a disk that is full is left in peace for a while.
        kept.begin(&run(2)).wait().await;
        assert!(!folder.path().join("seen").exists());
        kept.now += TRY_AGAIN + Duration::from_secs(1);
        kept.begin(&run(3)).wait().await;
        drop(kept);
        let mut kept = Kept::open(folder.path()).await;
        assert_eq!(kept.known(1), Trace::Finished { packet: 0 });
        assert_eq!([2, 3].map(|number| kept.known(number)), [Trace::Started { seed: 7, dead: 1 }; 2]);
    }
}
