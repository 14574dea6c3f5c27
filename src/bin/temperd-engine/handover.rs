//! What one engine leaves to the next: the whole state of its KV cache and a table of whose cells these are, in a memfd of the
//! daemon. There is never a file on a disk, and no second copy: llama.cpp writes into the mapping.
//!
//! ```text
//!  "temperd1"   length of table   length of state   digest of both   table (Handed)   state
//!  8 bytes      u64               u64               u64
//! ```
//!
//! What is found there is not trusted: the memfd has to be sealed, the digest right, the table of the same build, model and
//! settings and without contradictions. Else the engine begins with an empty cache.

use std::{
    fs::File,
    os::fd::FromRawFd as _,
    sync::{Mutex, PoisonError},
};

use crate::{cells::Cells, prefix::Kept};

mod identity;
pub mod image;
mod memory;
mod table;

pub use identity::Identity;

/// The memfds of the daemon, by the environment.
pub struct Handover {
    save: Mutex<Option<File>>,
    restore: Mutex<Option<File>>,
}

/// Takes it out.
fn take(file: &Mutex<Option<File>>) -> Option<File> {
    file.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Handover {
    /// The descriptors that the daemon names. To be called first, before any file is opened under the same number.
    pub fn from_environment() -> Self {
        Self { save: Mutex::new(file("TEMPERD_SAVE_FD")), restore: Mutex::new(file("TEMPERD_RESTORE_FD")) }
    }

    /// Fills the empty cells with what an engine before has left, if it fits, and says whose they are. The memfd is closed in
    /// any case: what is in it is memory.
    pub fn enter(&self, wanted: bool, identity: &Identity, cells: &mut Cells<'_>) -> Vec<Kept> {
        let file = take(&self.restore);
        if !wanted {
            return Vec::new();
        }
        let entered = file.ok_or_else(|| "TEMPERD_RESTORE_FD names none".to_owned()).and_then(|file| {
            let memory = memory::Shared::sealed(&file)?;
            let (handed, state) = table::read(memory.bytes(), identity)?;
            let kept = table::kept(&handed, cells.model().vocab().n_tokens())?;
            cells.enter(state, table::names(&handed))?;
            Ok(kept)
        });
        match entered {
            Ok(kept) => {
                tracing::info!("{} sequences of the engine before are in the KV cache", kept.len());
                kept
            }
            Err(error) => {
                tracing::warn!("what the engine before has left is not used: {error}");
                Vec::new()
            }
        }
    }
}

/// What is needed to leave the cache to the next engine.
pub struct Leaving<'a> {
    handover: &'a Handover,
    identity: Identity,
}

impl<'a> Leaving<'a> {
    /// To the memfd of this handover.
    pub fn new(handover: &'a Handover, identity: Identity) -> Self {
        Self { handover, identity }
    }

    /// Writes the cells and whose they are. Returns the bytes written.
    ///
    /// # Errors
    /// Why nothing was written.
    pub fn save(&self, cells: &mut Cells<'_>, owned: &[Kept]) -> Result<u64, String> {
        let file = take(&self.handover.save).ok_or("TEMPERD_SAVE_FD names no memfd")?;
        let sequences = owned.iter().map(|kept| table::sequence(kept, cells.names(kept.slot)));
        let table = table::encode(&self.identity, sequences.collect());
        let state = cells.state_bytes()?;
        let mut memory = memory::Shared::new(&file, table::HEADER + table.len() + state)?;
        let bytes = memory.bytes_mut();
        let written = cells.write_state(bytes.get_mut(table::HEADER + table.len()..).unwrap_or_default())?;
        if written != state {
            return Err(format!("llama.cpp wrote {written} bytes of its state and had announced {state}"));
        }
        table::finish(bytes, &table);
        let length = bytes.len() as u64;
        drop(memory);
        memory::seal(&file)?;
        Ok(length)
    }
}

/// The file of the descriptor that a variable names, if it is open.
fn file(variable: &str) -> Option<File> {
    let number = std::env::var(variable).ok()?.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: it asks whether the number is that of an open descriptor, and changes nothing.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and ours alone: the daemon leaves it to us, and no other file has been opened before.
    open.then(|| unsafe { File::from_raw_fd(number) })
}
