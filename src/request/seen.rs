//! What outlives the daemon of its requests: which have run, and of which the broker has the final. Pure; time comes in.
//!
//! ```text
//!             begin                     finish
//!   (none) ────────▶ started, dead n+1 ────────▶ finished
//!                     │    ▲
//!        it has its   ▼    │  begin, in the next daemon: from the same seed
//!          outcome   started, dead n
//! ```
//! [`Seen`] is what the records on disk say. Each change makes a record and takes it in by the same function that reads
//! the file at the start, so a daemon that comes back knows what the dead one wrote. [`decide`] joins that with what this
//! daemon itself remembers ([`super::dedupe`]) to what is to be done about a delivery.
//!
//! A request that has run but has no final is run again, from the same seed. Each daemon that writes a beginning counts
//! itself as dead of it, and takes that back when the request has its outcome; so one that was running in
//! [`POISON`] daemons that died is known, and ends there. Requests that only wait leave no record, until they end so: the
//! next daemon has to know that there may be a final of them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::dedupe::{Fingerprint, Key, Verdict};

pub mod record;
#[cfg(test)]
mod tests;

pub use record::{BoxKey, Name, Print, Record, State};

/// Daemons that died while a request ran, after which it is not run again.
pub const POISON: u8 = 2;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Requests that are finished, and as many that earlier daemons left.
    pub entries: usize,
    /// Seconds.
    pub age: u64,
}

/// A request that runs or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Which one.
    pub key: Key,
    /// What is asked.
    pub payload: Fingerprint,
    /// From which its tokens are drawn.
    pub seed: u32,
    /// Daemons that died of it before.
    pub dead: u8,
}

/// What earlier daemons left of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    Unknown,
    /// Its key stands for another payload.
    Conflict,
    /// It has run without an end that the broker knows.
    Started {
        /// The seed it had.
        seed: u32,
        /// Daemons that died while it ran.
        dead: u8,
    },
    /// The broker has its final.
    Finished {
        /// Packet id of the delivery that it answered; 0 where there was none.
        packet: u16,
    },
}

/// What is to be done about a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Course<'a, A> {
    /// Run it.
    Run,
    /// Run it once more, from the seed that it had; its final says so.
    RunAgain {
        /// The seed it had.
        seed: u32,
        /// Daemons that died of it before.
        dead: u8,
    },
    /// It is running as this job: its final answers this delivery too.
    Join(u64),
    /// Send the kept final once more.
    Resend(&'a A),
    /// The broker has its final: acknowledge, without a word.
    Acknowledge,
    /// Its sender asks once more, but its final is no longer kept.
    AlreadyAnswered,
    /// The key stands for another payload.
    Conflict,
    /// Daemons died of it, so many: it fails.
    Poison(u8),
}

/// Decides about a delivery. `marked`: its sender has given it a name of its own; `again`: the broker says that it has
/// delivered it before. One that is neither is a new question, whatever was asked before.
#[must_use]
pub fn decide<'a, A>(marked: bool, again: bool, here: Verdict<'a, A>, before: Trace) -> Course<'a, A> {
    if !marked && !again {
        return Course::Run;
    }
    match here {
        Verdict::Running(job) => Course::Join(job),
        Verdict::Conflict => Course::Conflict,
        Verdict::Answered(Some(kept)) if marked => Course::Resend(kept),
        Verdict::Answered(_) => finished(marked, again),
        Verdict::New => match before {
            Trace::Unknown => Course::Run,
            Trace::Conflict => Course::Conflict,
            Trace::Finished { .. } => finished(marked, again),
            Trace::Started { dead, .. } if dead >= POISON => Course::Poison(dead),
            Trace::Started { seed, dead } => Course::RunAgain { seed, dead },
        },
    }
}

/// Of one whose final is not kept. What the broker delivers again is its own doing; a sender who asks again is told.
fn finished<'a, A>(marked: bool, again: bool) -> Course<'a, A> {
    if marked && !again { Course::AlreadyAnswered } else { Course::Acknowledge }
}

/// What is to be put on record of a request that has its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It ran, and this daemon lives. Worth a word, not a wait.
    Ran(Record),
    /// It never ran, so that no later daemon would know of its outcome: to be safe before anybody else does.
    Waited(Record),
    /// An earlier daemon began it, and that says enough.
    Known,
}

/// What the records say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seen {
    key: BoxKey,
    bounds: Bounds,
    entries: BTreeMap<Name, Entry>,
    finished: Past,
    /// Those that earlier daemons began and this one does not run.
    left: Past,
    /// The latest time that was written. Times never go back, so that a clock which does makes nothing look old.
    latest: u64,
    next: u64,
}

/// Oldest first; one whose number is not its entry's is out of date.
type Past = VecDeque<(Name, u64)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    record: Record,
    number: u64,
    /// This daemon runs it.
    live: bool,
}

impl Seen {
    /// From the records of a file, in their order.
    #[must_use]
    pub fn restore(key: BoxKey, bounds: Bounds, records: Vec<Record>, now: u64) -> Self {
        let latest = records.iter().map(|record| record.at).max().unwrap_or(0);
        let mut seen =
            Self { key, bounds, entries: BTreeMap::new(), finished: Past::new(), left: Past::new(), latest, next: 0 };
        // Only the last word on each request counts, and only that shall count against the bound.
        let last: HashMap<Name, usize> = records.iter().enumerate().map(|(at, record)| (record.name, at)).collect();
        for (at, record) in records.into_iter().enumerate() {
            if last.get(&record.name) == Some(&at) {
                seen.note(record, false);
            }
        }
        seen.forget_old(now);
        seen
    }

    /// What earlier daemons left of a request.
    pub fn trace(&mut self, key: &Key, payload: &Fingerprint, now: u64) -> Trace {
        self.forget_old(now);
        let name = self.key.name(key);
        match self.entries.get(&name) {
            None => Trace::Unknown,
            Some(entry) if entry.record.print != self.key.print(&name, payload) => Trace::Conflict,
            Some(Entry { record: Record { state: State::Finished { packet }, .. }, .. }) => {
                Trace::Finished { packet: *packet }
            }
            Some(Entry { record: Record { state: State::Started { seed, dead }, .. }, .. }) => {
                Trace::Started { seed: *seed, dead: *dead }
            }
        }
    }

    /// It is about to run. Its record must be safe before it does.
    pub fn begin(&mut self, run: &Run, now: u64) -> Record {
        self.change(run, State::Started { seed: run.seed, dead: run.dead.saturating_add(1) }, true, now)
    }

    /// It has its outcome.
    pub fn end(&mut self, run: &Run, now: u64) -> Ended {
        let name = self.key.name(&run.key);
        let known = self.entries.get(&name).filter(|entry| entry.record.print == self.key.print(&name, &run.payload));
        let (ran, begun) = (
            known.is_some_and(|entry| entry.live),
            known.is_some_and(|entry| matches!(entry.record.state, State::Started { .. })),
        );
        if begun && !ran {
            return Ended::Known;
        }
        let record = self.change(run, State::Started { seed: run.seed, dead: run.dead }, true, now);
        if ran { Ended::Ran(record) } else { Ended::Waited(record) }
    }

    /// The broker has its final, which answers what came as this packet. Its record must be safe before the request is
    /// acknowledged.
    pub fn finish(&mut self, run: &Run, packet: Option<u16>, now: u64) -> Record {
        let record = self.change(run, State::Finished { packet: packet.unwrap_or(0) }, false, now);
        self.forget_old(now);
        record
    }

    /// The clock that gives the times was set by so many seconds. What it showed before is moved along: a board that learns
    /// the time long after its start would otherwise forget everything, and one whose clock goes back nothing any more.
    pub fn clock_was_set(&mut self, by: i64) {
        self.latest = self.latest.saturating_add_signed(by);
        for entry in self.entries.values_mut() {
            entry.record.at = entry.record.at.saturating_add_signed(by);
        }
    }

    /// The latest time that is known.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// All that is worth keeping, in the order in which [`Self::restore`] wants it.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_unstable_by_key(|entry| entry.number);
        entries.into_iter().map(|entry| entry.record).collect()
    }

    /// Requests that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn change(&mut self, run: &Run, state: State, live: bool, now: u64) -> Record {
        self.latest = self.latest.max(now);
        let name = self.key.name(&run.key);
        let record = Record { name, print: self.key.print(&name, &run.payload), state, at: self.latest };
        self.note(record, live);
        record
    }

    fn note(&mut self, record: Record, live: bool) {
        let number = self.next;
        self.next += 1;
        match record.state {
            State::Finished { .. } => self.finished.push_back((record.name, number)),
            State::Started { .. } if !live => self.left.push_back((record.name, number)),
            State::Started { .. } => {}
        }
        self.entries.insert(record.name, Entry { record, number, live });
    }

    fn forget_old(&mut self, now: u64) {
        let now = self.latest.max(now);
        for past in [&mut self.finished, &mut self.left] {
            while let Some((name, number)) = past.front() {
                let entry = self.entries.get(name).filter(|entry| entry.number == *number);
                let young = entry.is_some_and(|entry| now.saturating_sub(entry.record.at) <= self.bounds.age);
                if young && past.len() <= self.bounds.entries {
                    break;
                }
                if entry.is_some() {
                    self.entries.remove(name);
                }
                past.pop_front();
            }
        }
    }
}
