//! Which requests run, and which wait for another engine to go on with them. Pure.
//!
//! ```text
//!   queued ─ start ─▶ running ── finished by the engine ──▶ gone
//!                      │   ▲
//!     the engine ends  ▼   │  another is ready
//!                     paused ── at its third crash ──▶ poison
//! ```
//! What ran in two engines that crashed runs alone in the next, so that a third crash speaks against it and no other.

use std::collections::BTreeMap;

use crate::request::Client;

/// Crashes after which a request is run alone, and no more at all.
const SUSPECT: u32 = 2;
const POISON: u32 = 3;

/// A request that crashes are counted against.
pub trait Suspect {
    /// Engines that crashed while it ran.
    fn crashes(&self) -> u32;

    /// An engine crashed while it ran. How many have by now.
    fn crashed(&mut self) -> u32;
}

/// A sequence of the engine. Its cells are taken until the engine confirms the end, which a client does not wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot<J> {
    /// Whose share it counts against.
    pub client: Client,
    /// Cells of the KV cache that are set aside for it.
    pub cells: u32,
    /// `None` once the request has its outcome.
    pub job: Option<J>,
}

/// A request between two engines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Paused<J> {
    /// Whose share it counts against.
    pub client: Client,
    /// Cells of the KV cache that it needs.
    pub cells: u32,
    /// The request.
    pub job: J,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slots<J> {
    running: BTreeMap<u64, Slot<J>>,
    /// By key, which rises with arrival.
    paused: BTreeMap<u64, Paused<J>>,
}

impl<J> Default for Slots<J> {
    fn default() -> Self {
        Self { running: BTreeMap::new(), paused: BTreeMap::new() }
    }
}

/// What can start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Cells that there are at all, by the operating point.
    pub context: u32,
    cells: u32,
    slots: usize,
}

impl Room {
    /// Whether there is room for a request of so many cells.
    #[must_use]
    pub fn fits(self, cells: u32) -> bool {
        self.slots > 0 && cells <= self.cells
    }

    /// What such a request leaves free.
    #[must_use]
    pub fn less(self, cells: u32) -> Self {
        Self { cells: self.cells.saturating_sub(cells), slots: self.slots.saturating_sub(1), ..self }
    }
}

/// Who goes on first.
#[derive(Debug)]
pub enum Resume<J> {
    /// This one.
    Take(u64, Box<Paused<J>>),
    /// The first one has no room yet, and nothing overtakes it.
    Wait,
    /// None that the present context could hold.
    Nobody,
}

/// What the end of an engine leaves.
#[derive(Debug)]
pub struct Ended<J> {
    /// Clients whose requests had their outcome already.
    pub released: Vec<Client>,
    /// Requests that are not tried again.
    pub poison: Vec<(Client, J)>,
}

impl<J: Suspect> Slots<J> {
    /// Running and paused.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len() + self.paused.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that have no outcome yet.
    pub fn live(&self) -> impl Iterator<Item = (u64, &J)> {
        let running = self.running.iter().filter_map(|(key, slot)| Some((*key, slot.job.as_ref()?)));
        running.chain(self.paused.iter().map(|(key, paused)| (*key, &paused.job)))
    }

    /// Sequences of the engine, and whether each is still wanted.
    pub fn running(&self) -> impl Iterator<Item = (u64, bool)> {
        self.running.iter().map(|(key, slot)| (*key, slot.job.is_some()))
    }

    /// A running one.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut Slot<J>> {
        self.running.get_mut(&key)
    }

    /// One starts.
    pub fn insert(&mut self, key: u64, slot: Slot<J>) {
        self.running.insert(key, slot);
    }

    /// The engine has confirmed its end.
    pub fn remove(&mut self, key: u64) -> Option<Slot<J>> {
        self.running.remove(&key)
    }

    /// Takes one out that is not to go on.
    pub fn remove_paused(&mut self, key: u64) -> Option<Paused<J>> {
        self.paused.remove(&key)
    }

    /// Takes all out that wait for an engine.
    pub fn take_paused(&mut self) -> impl Iterator<Item = Paused<J>> + use<J> {
        std::mem::take(&mut self.paused).into_values()
    }

    /// What an operating point leaves free. Beside one that runs alone there is nothing.
    #[must_use]
    pub fn room(&self, context: u32, parallel: u32) -> Room {
        let alone = self.running.values().any(|slot| slot.job.as_ref().is_some_and(is_suspect));
        let used = self.running.values().fold(0_u32, |used, slot| used.saturating_add(slot.cells));
        let slots = if alone { 0 } else { (parallel as usize).saturating_sub(self.running.len()) };
        Room { context, cells: context.saturating_sub(used), slots }
    }

    /// Who goes on first. One that the present context cannot hold at all waits until it is raised.
    pub fn resume(&mut self, room: Room) -> Resume<J> {
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
    pub fn interrupt(&mut self, crashed: bool) -> Ended<J> {
        let mut ended = Ended { released: Vec::new(), poison: Vec::new() };
        for (key, Slot { client, cells, job }) in std::mem::take(&mut self.running) {
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

fn is_suspect<J: Suspect>(job: &J) -> bool {
    job.crashes() >= SUSPECT
}
