use super::*;
use crate::request::{
    Client,
    dedupe::{Fingerprint, Key, Mark},
    seen::{Bounds, Run, Seen},
};

const BOUNDS: Bounds = Bounds { entries: 100, age: 1000 };

/// Records of requests that began, one for each number.
fn records(key: &BoxKey, numbers: std::ops::Range<u32>) -> Vec<Record> {
    let mut seen = Seen::restore(key.clone(), BOUNDS, Vec::new(), 0);
    let run = |number: u32| {
        let key = Key::new("chat", &Client::mqtt(None), "t", Mark::Correlation(&number.to_le_bytes()));
        Run { key, payload: Fingerprint::of("", b""), seed: number, dead: 0 }
    };
    numbers.map(|number| seen.begin(&run(number), 1)).collect()
}

fn open(folder: &Path) -> Opened {
    Journal::open(folder).unwrap()
}

#[tokio::test]
async fn what_was_written_is_there_again_and_only_the_owner_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("deep/state");
    let first = open(&folder);
    let all = records(&first.key, 0..5);
    first.journal.whole(all[..2].to_vec());
    all[2..].iter().for_each(|record| first.journal.append(*record));
    first.journal.sync().wait().await;
    assert!(!first.journal.is_failing());
    drop(first.journal);
    let second = open(&folder);
    assert_eq!((&second.records, second.damaged), (&all, 0));
    for (name, mode) in [("", 0o700), ("seen", 0o600), ("seen.key", 0o600)] {
        assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    assert!(!folder.join("seen.new").exists());
}

#[test]
fn two_daemons_do_not_share_a_folder_but_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    drop(first);
    open(folder.path());
}

#[test]
fn a_torn_file_or_a_lost_secret_is_no_reason_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let Opened { journal, key, .. } = open(folder.path());
    let all = records(&key, 0..3);
    journal.whole(all.clone());
    drop(journal);
    let file = folder.path().join("seen");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let torn = open(folder.path());
    assert_eq!((&torn.records[..], torn.damaged), (&all[..2], 1));
    drop(torn);
    fs::write(folder.path().join("seen.key"), "short").unwrap();
    let lost = open(folder.path());
    assert_eq!((lost.records.len(), lost.damaged), (0, 3));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Journal::open(&file.join("state")).unwrap_err().to_string();
    assert!(error.contains("file/state") && error.contains("must be a folder"), "{error}");
}

/// `/dev/full` takes no byte, as a full disk does.
#[tokio::test]
async fn a_full_disk_holds_nobody_up_and_is_made_good_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let (new, full) = (folder.path().join("seen.new"), Path::new("/dev/full"));
    std::os::unix::fs::symlink(full, &new).unwrap();
    let Opened { journal, key, .. } = open(folder.path());
    let all = records(&key, 0..4);
    journal.whole(all[..2].to_vec());
    journal.sync().wait().await;
    assert!(journal.is_failing());
    // Nothing goes behind what is not there.
    journal.append(all[2]);
    journal.sync().wait().await;
    assert!(journal.is_failing() && !folder.path().join("seen").exists());
    fs::remove_file(&new).unwrap();
    journal.whole(all[..3].to_vec());
    journal.append(all[3]);
    journal.sync().wait().await;
    assert!(!journal.is_failing());
    drop(journal);
    assert_eq!(open(folder.path()).records, all);
}

/// A disk that fills up in the middle: whatever the failed write left behind, nothing is appended to it.
#[test]
fn a_disk_that_fills_up_takes_no_more_until_all_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (key, lock) = secret(folder.path()).unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut disk = Disk { folder: folder.path().into(), key: key.clone(), file: Some(full), dirty: false, _lock: lock };
    let failing = AtomicBool::new(false);
    let all = records(&key, 0..2);
    let commit = |disk: &mut Disk, whole: Option<Vec<Record>>, appended: Vec<Record>| {
        let (done, mut receipt) = oneshot::channel();
        disk.commit(Batch { commands: 1, whole, appended, waiting: vec![done] }, &failing);
        assert_eq!(receipt.try_recv(), Ok(()), "nobody waits for a disk that is full");
    };
    commit(&mut disk, None, vec![all[0]]);
    assert!(failing.load(Ordering::Relaxed) && disk.file.is_none());
    commit(&mut disk, None, vec![all[1]]);
    assert!(!folder.path().join("seen").exists());
    commit(&mut disk, Some(all.clone()), Vec::new());
    assert!(!failing.load(Ordering::Relaxed));
    assert_eq!(fs::read(folder.path().join("seen")).unwrap(), encoded(&key, &all));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_never_finishes_is_not_waited_for() {
    let (_never, receiver) = oneshot::channel();
    Receipt(Some(receiver)).wait().await;
}
