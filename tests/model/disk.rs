//! What outlives a daemon, and what is on its way there.

use std::collections::{BTreeMap, VecDeque};

use temperd::{
    request::seen::{Record, State},
    serve::mqtt::acks::Delivery,
};

use super::setup::Setup;

/// Who waits for a sync.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Then {
    /// The request of this number may run.
    Run(u64),
    /// The final of this one may be sent.
    Send(u64),
    Acknowledge(Vec<Delivery>),
}

/// Records on their way to the disk, and who waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Journal {
    /// Written, not synced.
    pub written: Vec<Record>,
    /// Each with how many of `written` come before it.
    pub waiting: VecDeque<(usize, Then)>,
    /// Keys whose outcome is on record, with how many of `written` that takes.
    pub ended: BTreeMap<usize, usize>,
}

impl Journal {
    /// Finals that wait.
    pub fn held(&self) -> usize {
        self.waiting.iter().filter(|(_, then)| matches!(then, Then::Send(_))).count()
    }

    /// One sync is done. What lies between two of them is a step of its own, so this is the least that one does.
    pub fn sync(&mut self, disk: &mut Disk) -> Option<Then> {
        let (count, then) = self.waiting.pop_front()?;
        self.written.drain(..count).for_each(|record| disk.append(record));
        self.waiting.iter_mut().for_each(|(before, _)| *before -= count);
        self.ended.values_mut().for_each(|before| *before = before.saturating_sub(count));
        Some(then)
    }
}

/// What is left of a daemon that dies. The last word on a request is all that [`Seen::restore`](temperd::request::seen::Seen::restore) looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Disk(pub Vec<Record>);

impl Disk {
    pub fn append(&mut self, record: Record) {
        self.0.retain(|other| other.name != record.name);
        self.0.push(record);
    }

    pub fn is_finished(&self, setup: &Setup, ask: usize) -> bool {
        let name = setup.name(ask);
        self.0.iter().any(|record| record.name == name && matches!(record.state, State::Finished { .. }))
    }
}
