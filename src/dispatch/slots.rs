//! Which requests run, and which wait for another engine to go on with them. Pure.
//!
//! ```text
//!   queued ─ start ─▶ running ── finished by the engine ──▶ gone
//!                      │   ▲
//!     the engine ends  ▼   │  another is ready
//!                     paused ── at its third crash ──▶ poison
//! ```
//! What ran in two engines that crashed runs alone in the next, so that a third crash speaks against it and no other.

use std::collections::{BTreeMap, HashMap};

use super::job::Job;
use crate::request::Client;

/// Crashes after which a request is run alone, and no more at all.
const SUSPECT: u32 = 2;
const POISON: u32 = 3;

/// A sequence of the engine. Its cells are taken until the engine confirms the end, which a client does not wait for.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) client: Client,
    pub(super) cells: u32,
    /// `None` once the request has its outcome.
    pub(super) job: Option<Job>,
}

/// A request between two engines.
#[derive(Debug)]
pub(super) struct Paused {
    pub(super) client: Client,
    pub(super) cells: u32,
    pub(super) job: Job,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Slots {
    running: HashMap<u64, Slot>,
    /// By key, which rises with arrival.
    paused: BTreeMap<u64, Paused>,
}

/// What can start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Cells that there are at all, by the operating point.
    pub(super) context: u32,
    cells: u32,
    slots: usize,
}

impl Room {
    /// Whether there is room for a request of so many cells.
    pub(super) fn fits(self, cells: u32) -> bool {
        self.slots > 0 && cells <= self.cells
    }

    /// What such a request leaves free.
    pub(super) fn less(self, cells: u32) -> Self {
        Self { cells: self.cells.saturating_sub(cells), slots: self.slots.saturating_sub(1), ..self }
    }
}

/// Who goes on first.
#[derive(Debug)]
pub(super) enum Resume {
    /// This one.
    Take(u64, Box<Paused>),
    /// The first one has no room yet, and nothing overtakes it.
    Wait,
    /// None that the present context could hold.
    Nobody,
}

/// What the end of an engine leaves.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Clients whose requests had their outcome already.
    pub(super) released: Vec<Client>,
    /// Requests that are not tried again.
    pub(super) poison: Vec<(Client, Job)>,
}

impl Slots {
    /// Running and paused.
    pub(super) fn len(&self) -> usize {
        self.running.len() + self.paused.len()
    }

    /// Those that have no outcome yet.
    pub(super) fn live(&self) -> impl Iterator<Item = (u64, &Job)> {
        let running = self.running.iter().filter_map(|(key, slot)| Some((*key, slot.job.as_ref()?)));
        running.chain(self.paused.iter().map(|(key, paused)| (*key, &paused.job)))
    }

    /// A running one.
    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Slot> {
        self.running.get_mut(&key)
    }

    pub(super) fn insert(&mut self, key: u64, slot: Slot) {
        self.running.insert(key, slot);
    }

    /// The engine has confirmed its end.
    pub(super) fn remove(&mut self, key: u64) -> Option<Slot> {
        self.running.remove(&key)
    }

    /// Takes one out that is not to go on.
    pub(super) fn remove_paused(&mut self, key: u64) -> Option<Paused> {
        self.paused.remove(&key)
    }

    /// Takes all out that wait for an engine.
    pub(super) fn take_paused(&mut self) -> impl Iterator<Item = Paused> + use<> {
        std::mem::take(&mut self.paused).into_values()
    }

    /// What an operating point leaves free. Beside one that runs alone there is nothing.
    pub(super) fn room(&self, context: u32, parallel: u32) -> Room {
        let alone = self.running.values().any(|slot| slot.job.as_ref().is_some_and(is_suspect));
        let used = self.running.values().fold(0_u32, |used, slot| used.saturating_add(slot.cells));
        let slots = if alone { 0 } else { (parallel as usize).saturating_sub(self.running.len()) };
        Room { context, cells: context.saturating_sub(used), slots }
    }

    /// Who goes on first. One that the present context cannot hold at all waits until it is raised.
    pub(super) fn resume(&mut self, room: Room) -> Resume {
        let Some((key, paused)) = self.paused.iter().find(|(_, paused)| paused.cells <= room.context) else {
            return Resume::Nobody;
        };
        if !room.fits(paused.cells) || (is_suspect(&paused.job) && !self.running.is_empty()) {
            return Resume::Wait;
        }
        let key = *key;
        self.paused.remove(&key).map_or(Resume::Nobody, |paused| Resume::Take(key, Box::new(paused)))
    }

    /// The engine is gone: what ran waits for another.
    pub(super) fn interrupt(&mut self, crashed: bool) -> Ended {
        let mut ended = Ended::default();
        for (key, Slot { client, cells, job }) in self.running.drain() {
            let Some(mut job) = job else {
                ended.released.push(client);
                continue;
            };
            if crashed && job.crashed() >= POISON {
                ended.poison.push((client, job));
            } else {
                self.paused.insert(key, Paused { client, cells, job });
            }
        }
        ended
    }
}

fn is_suspect(job: &Job) -> bool {
    job.crashes() >= SUSPECT
}
