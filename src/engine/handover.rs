//! How one engine hands its state to the next: in memory without a name (memfd), never on a disk. The engine that saves
//! seals it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};

/// Where an engine finds the number of the file to save to.
const SAVE: &str = "TEMPERD_SAVE_FD";
/// The same of the file to restore from.
const RESTORE: &str = "TEMPERD_RESTORE_FD";

/// The memory in question. It is given back with the last process that holds it.
#[derive(Debug, Default)]
pub struct Handover {
    save: Option<OwnedFd>,
    restore: Option<OwnedFd>,
}

impl Handover {
    /// Another engine is started: it gets a file of its own to save to. Where there is none, nothing can be saved.
    pub fn begin(&mut self) {
        let made = memfd_create("temperd-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        self.save = made
            .inspect_err(|error| log::warn!(target: "temperd::engine", error:%; "no memory to hand a state over in"))
            .ok();
    }

    /// The engine has saved: the next one restores.
    pub fn saved(&mut self) {
        self.restore = self.save.take();
    }

    /// Whether there is something to restore.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.restore.is_some()
    }

    /// Whether the engine that lives could save.
    #[must_use]
    pub fn can_save(&self) -> bool {
        self.save.is_some()
    }

    /// It was restored, or nobody will.
    pub fn forget(&mut self) {
        self.restore = None;
    }

    /// What an engine inherits, and the names under which it looks for the numbers.
    pub fn inherited(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let files = [(SAVE, &self.save), (RESTORE, &self.restore)];
        files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?.as_fd())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_engine_saved_the_next_one_inherits() {
        let mut handover = Handover::default();
        let names = |handover: &Handover| handover.inherited().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(&handover).is_empty());
        handover.begin();
        assert_eq!(names(&handover), [SAVE]);
        rustix::io::write(handover.save.as_ref().expect("made"), b"state").expect("written");
        handover.saved();
        assert!(handover.holds() && !handover.can_save());
        handover.begin();
        assert_eq!(names(&handover), [SAVE, RESTORE]);
        let kept = rustix::fs::fstat(handover.restore.as_ref().expect("kept")).expect("its size");
        assert_eq!(kept.st_size, 5);
        handover.forget();
        assert_eq!(names(&handover), [SAVE]);
    }
}
