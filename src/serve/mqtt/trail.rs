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
/// What the clock is off by before it counts as set, in seconds: above what it is steered by.
const STEP: u64 = 60;
/// Between two tries to write to a disk that failed.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The way to the file, where there is one, and the time by which records are dated.
#[derive(Debug)]
pub struct Trail {
    book: Option<Book>,
    clock: Clock,
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
            return (Self::new(None), None);
        };
        match tokio::task::spawn_blocking(move || Book::open(&folder)).await {
            Ok(Ok((book, seen))) => (Self::new(Some(book)), Some(seen)),
            Ok(Err(error)) => {
                log::error!(target: "temperd::mqtt", "{error}; requests are remembered in memory only, and a restart \
                    may answer some twice");
                (Self::new(None), None)
            }
            // The runtime is going down.
            Err(_) => (Self::new(None), None),
        }
    }

    fn new(book: Option<Book>) -> Self {
        Self { book, clock: Clock { now: Instant::now(), time: unix_time() } }
    }

    /// An instant, and the time by the clock as it was looked at last: one that is set meanwhile changes nothing until
    /// [`Self::look_at_clock`] has told by how much.
    #[must_use]
    pub fn stamp(&self, at: Instant) -> Now {
        Now { at, unix: self.clock.at(at) }
    }

    /// By how many seconds the clock was set since it was looked at last; 0: it was not. What is known has to be moved along,
    /// and then the file, by [`Self::rewrite`].
    #[must_use]
    pub fn look_at_clock(&mut self, now: Instant) -> i64 {
        self.clock.set_by(now, unix_time())
    }

    /// Writes the whole file anew.
    pub fn rewrite(&mut self, seen: Option<&Seen>, now: Instant) {
        if let (Some(book), Some(seen)) = (&mut self.book, seen) {
            book.write_whole(seen, now);
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
        let time = unix_time();
        let mut seen = Seen::restore(key, BOUNDS, records, time);
        // A clock that shows less than an earlier daemon saw; it will be set while this one runs.
        let behind = signed(time).saturating_sub(signed(seen.latest()));
        seen.clock_was_set(behind.min(0));
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

/// What the clock showed when, by one that nobody sets.
#[derive(Debug)]
struct Clock {
    now: Instant,
    time: u64,
}

impl Clock {
    fn at(&self, now: Instant) -> u64 {
        self.time.saturating_add(now.saturating_duration_since(self.now).as_secs())
    }

    /// Takes over what it shows. By how many seconds it was set; 0 for what is no more than drift.
    fn set_by(&mut self, now: Instant, time: u64) -> i64 {
        let expected = self.at(now);
        *self = Self { now, time };
        if time.abs_diff(expected) <= STEP { 0 } else { signed(time).saturating_sub(signed(expected)) }
    }
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
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
        seen::{
            BoxKey, Ended, Run, Trace,
            record::{self, BYTES},
        },
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

    #[test]
    fn a_clock_that_is_steered_was_not_set_and_one_that_jumps_was() {
        let start = Instant::now();
        let mut clock = Clock { now: start, time: 1_000_000 };
        for (seconds, shows, by) in [
            (10, 1_000_010, 0),
            (20, 1_000_050, 0),
            (30, 2_000_060, 1_000_000),
            (40, 70, -2_000_000),
            (50, 80, 0),
            (60, 0, -90),
        ] {
            assert_eq!(clock.set_by(start + Duration::from_secs(seconds), shows), by, "{seconds}");
            assert_eq!(clock.at(start + Duration::from_secs(seconds + 1)), shows + 1);
        }
        assert_eq!(clock.set_by(start, u64::MAX), i64::MAX);
    }

    /// A board without a battery starts long ago and learns the time on the way.
    #[tokio::test]
    async fn a_clock_that_is_set_makes_no_daemon_forget() {
        const YEAR: u64 = 365 * 86_400;
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(folder.path()).await;
        kept.finish(&run(1)).wait().await;
        for time in [unix_time() + YEAR, unix_time() - YEAR, unix_time()] {
            let by = kept.trail.clock.set_by(kept.now, time);
            kept.seen.clock_was_set(by);
            kept.trail.rewrite(Some(&kept.seen), kept.now);
            let unix = kept.trail.stamp(kept.now).unix;
            assert!(by != 0 && unix == time);
            let run = run(1);
            assert_eq!(kept.seen.trace(&run.key, &run.payload, unix), Trace::Finished { packet: 0 });
            // And the next one has it from the file.
            kept.trail.write(Note::Sync(None), Some(&kept.seen), kept.now).wait().await;
            let key = BoxKey::new(std::fs::read(folder.path().join("seen.key")).unwrap().try_into().unwrap());
            let (records, _) = record::read(&key, &std::fs::read(folder.path().join("seen")).unwrap());
            assert!(records[0].at.abs_diff(time) <= STEP, "{records:?}");
        }
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
