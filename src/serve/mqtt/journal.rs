//! The file of [`crate::request::seen`]: a thread of its own appends records and syncs, many at once where they come
//! faster than the disk. Nobody waits for it but by a [`Receipt`].
//!
//! ```text
//!  records ─▶ bounded channel ─▶ thread ─▶ STATE/seen       appended, synced
//!                                   └────▶ STATE/seen.new   the whole, renamed over it
//! ```
//! What cannot be written (a full disk) is given up with a log line, and the receipts come all the same: requests are then
//! remembered in memory only. Nothing is appended behind what failed; the next whole file that can be written heals it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::FlockOperation;
use tokio::sync::{mpsc, oneshot};

use crate::request::seen::{
    BoxKey, Record,
    record::{self, KEY_BYTES},
};

/// Commands on their way to the thread: a few for each request that the broker may have delivered.
const COMMANDS: usize = 8192;
/// Commands that one sync answers.
const BATCH: usize = 512;
/// How long a sync may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the file that are read, well above what it is allowed to grow to.
const MOST_BYTES: u64 = 8 * 1024 * 1024;

/// Why nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the secret cannot be made or read.
    #[error("state directory: {}: {cause}; it must be a folder that temperd may write", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another daemon has it.
    #[error("state directory: {} is in use by another temperd; give each its own STATE_DIRECTORY", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// No thread.
    #[error("cannot start a thread to write requests down: {0}")]
    Thread(io::Error),
}

/// Comes once what it is for is safe, or is given up. Dropping it is fine.
#[derive(Debug)]
#[must_use]
pub struct Receipt(Option<oneshot::Receiver<()>>);

impl Receipt {
    /// For what needs no writing.
    pub fn at_once() -> Self {
        Self(None)
    }

    /// Whether there is nothing to wait for.
    pub fn is_here(&self) -> bool {
        self.0.is_none()
    }

    /// Waits for it, but not for ever: a dying disk must not take requests with it.
    pub async fn wait(self) {
        if let Some(receiver) = self.0
            && tokio::time::timeout(PATIENCE, receiver).await.is_err()
        {
            log::error!(target: "temperd::mqtt", seconds = PATIENCE.as_secs(); "the disk of the state directory does not \
                finish a sync: it is not waited for, and a restart may answer some requests twice");
        }
    }
}

#[derive(Debug)]
enum Command {
    Append(Record),
    /// The file is to be these.
    Whole(Vec<Record>),
    Sync(oneshot::Sender<()>),
}

/// The way to the thread. Dropping it ends the thread, and waits until all is written.
#[derive(Debug)]
pub struct Journal {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    failing: Arc<AtomicBool>,
}

/// What was found.
#[derive(Debug)]
pub struct Opened {
    /// Takes what is new; it has not been sent the whole yet, and drops records until it is.
    pub journal: Journal,
    /// The box's secret.
    pub key: BoxKey,
    /// What the file holds.
    pub records: Vec<Record>,
    /// Pieces of the file that are no records.
    pub damaged: usize,
}

impl Journal {
    /// Reads what there is and starts the thread. Blocks.
    ///
    /// # Errors
    /// Where the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Opened, OpenError> {
        let in_folder = |cause| OpenError::File { path: folder.into(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(in_folder)?;
        let (key, lock) = secret(folder)?;
        let path = folder.join("seen");
        let bytes = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|cause| OpenError::File { path, cause })?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(cause) => return Err(OpenError::File { path, cause }),
        };
        let (records, damaged) = record::read(&key, &bytes);
        let failing = Arc::new(AtomicBool::new(false));
        let disk = Disk { folder: folder.into(), key: key.clone(), file: None, dirty: false, _lock: lock };
        let (commands, incoming) = mpsc::channel(COMMANDS);
        let thread = thread::Builder::new()
            .name("seen".into())
            .spawn({
                let failing = failing.clone();
                move || run(incoming, disk, &failing)
            })
            .map_err(OpenError::Thread)?;
        Ok(Opened { journal: Self { commands: Some(commands), thread: Some(thread), failing }, key, records, damaged })
    }

    /// Appends a record, to be synced with whatever is synced next.
    pub fn append(&self, record: Record) {
        self.send(Command::Append(record));
    }

    /// Makes these the whole file.
    pub fn whole(&self, records: Vec<Record>) {
        self.send(Command::Whole(records));
    }

    /// Comes once all that was sent before is safe.
    pub fn sync(&self) -> Receipt {
        let (done, receipt) = oneshot::channel();
        self.send(Command::Sync(done));
        Receipt(Some(receipt))
    }

    /// Whether the file lags behind: only [`Self::whole`] helps.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    fn send(&self, command: Command) {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.try_send(command).is_ok());
        if !sent && !self.failing.swap(true, Ordering::Relaxed) {
            log::error!(target: "temperd::mqtt", limit = COMMANDS; "the disk does not keep up with the requests: \
                they are remembered in memory only until it does");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The box's secret, made where there is none, in a file that is locked as long as it is open.
fn secret(folder: &Path) -> Result<(BoxKey, File), OpenError> {
    let path = folder.join("seen.key");
    let make = || -> io::Result<Option<(BoxKey, File)>> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        let mut secret = zeroize::Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
        (&file).take(KEY_BYTES as u64 + 1).read_to_end(&mut secret)?;
        let known = <[u8; KEY_BYTES]>::try_from(secret.as_slice());
        let secret = match known {
            Ok(secret) => secret,
            Err(_) => {
                let mut secret = [0; KEY_BYTES];
                File::open("/dev/urandom")?.read_exact(&mut secret)?;
                file.set_len(0)?;
                io::Seek::rewind(&mut file)?;
                file.write_all(&secret)?;
                file.sync_all()?;
                File::open(folder)?.sync_all()?;
                secret
            }
        };
        Ok(Some((BoxKey::new(secret), file)))
    };
    match make() {
        Ok(Some(made)) => Ok(made),
        Ok(None) => Err(OpenError::InUse { path: folder.into() }),
        Err(cause) => Err(OpenError::File { path, cause }),
    }
}

fn run(mut commands: mpsc::Receiver<Command>, mut disk: Disk, failing: &AtomicBool) {
    while let Some(first) = commands.blocking_recv() {
        let mut batch = Batch::default();
        batch.add(first);
        while batch.commands < BATCH
            && let Ok(command) = commands.try_recv()
        {
            batch.add(command);
        }
        disk.commit(batch, failing);
    }
    disk.commit(Batch { waiting: vec![oneshot::channel().0], ..Batch::default() }, failing);
}

/// Commands that are carried out together.
#[derive(Debug, Default)]
struct Batch {
    commands: usize,
    /// Holds all that was appended before it.
    whole: Option<Vec<Record>>,
    appended: Vec<Record>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn add(&mut self, command: Command) {
        self.commands += 1;
        match command {
            Command::Append(record) => self.appended.push(record),
            Command::Whole(records) => {
                self.whole = Some(records);
                self.appended.clear();
            }
            Command::Sync(done) => self.waiting.push(done),
        }
    }
}

#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    key: BoxKey,
    /// `None` while it lags behind.
    file: Option<File>,
    /// Something was appended since the last sync.
    dirty: bool,
    _lock: File,
}

impl Disk {
    fn commit(&mut self, batch: Batch, failing: &AtomicBool) {
        let was_failing = failing.load(Ordering::Relaxed);
        let whole = batch.whole.is_some();
        match self.write(&batch) {
            Ok(()) if whole => {
                failing.store(false, Ordering::Relaxed);
                if was_failing {
                    log::info!(target: "temperd::mqtt", "requests are remembered on disk again");
                }
            }
            Ok(()) => {}
            Err(error) => {
                self.file = None;
                if !failing.swap(true, Ordering::Relaxed) {
                    log::error!(target: "temperd::mqtt", folder:% = self.folder.display(); "requests are remembered in \
                        memory only, and a restart may answer some twice: {error}; make room, it is tried again");
                }
            }
        }
        for done in batch.waiting {
            let _nobody_waits = done.send(());
        }
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if let Some(records) = &batch.whole {
            self.file = None;
            self.file = Some(self.replace(records)?);
            self.dirty = false;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if !batch.appended.is_empty() {
            self.dirty = true;
            file.write_all(&encoded(&self.key, &batch.appended))?;
        }
        if self.dirty && !batch.waiting.is_empty() {
            file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Writes the whole beside the file and renames it over it: whoever looks finds the one or the other.
    fn replace(&self, records: &[Record]) -> io::Result<File> {
        let new = self.folder.join("seen.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&encoded(&self.key, records))?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join("seen"))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(file)
    }
}

fn encoded(key: &BoxKey, records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(|record| record.encode(key)).collect()
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
