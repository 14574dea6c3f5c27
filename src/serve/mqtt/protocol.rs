//! What is decided about requests from their delivery to their acknowledgement. Pure: time comes in, and what is to be
//! done about it comes out. The daemon runs this in [`super::session`], and the model checker in `tests/model` runs the same.
//!
//! ```text
//!  arrived ─▶ take ─▶ turn ─▶ outcome ─▶ outbox ─▶ left ─▶ settled ─▶ release
//!              │       │         └ not dead of it             │
//!              │       └ its beginning, synced before it runs └ its end, synced before it is acknowledged
//!              └ a repeat: joins, is sent again, acknowledged, refused
//! ```
//! A job lives from its delivery until the broker has its final. Only then is its key marked as answered, and once that
//! is safe its deliveries are acknowledged. `M` is a message, `R` whatever the caller keeps with a job.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::{
    acks::{Acks, Delivery, Line},
    message::{Allowed, Letter},
    outbox::{End, Gone, Kind, Outbox},
};
use crate::request::{
    dedupe::{Bounds, Dedupe, Fingerprint, Key, Verdict},
    seen::{self, Course, Ended, Record, Run, Seen, Trace},
};

/// Answered deliveries that are known by their packet ids: the broker has no more of them without our PUBACK.
const RECENT: usize = super::MOST_RECEIVED as usize;

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For what ends with the daemon.
    pub at: Instant,
    /// Unix time in seconds, for what outlives it.
    pub unix: u64,
}

/// What is to be put on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Note {
    /// Nothing: whoever waits for it may go on at once.
    Nothing,
    /// This, which nobody waits for.
    Append(Record),
    /// This, if anything; who waits for it may go on once all that was written so far is safe.
    Sync(Option<Record>),
}

/// Deliveries that are answered. Once `note` is safe they are to be given to [`Protocol::settled`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Settlement {
    /// What comes before.
    pub note: Note,
    /// Which.
    pub deliveries: Vec<Delivery>,
}

/// A request by which it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Which one.
    pub key: Key,
    /// What is asked.
    pub payload: Fingerprint,
    /// Its sender has given it a mark of its own.
    pub marked: bool,
    /// The broker says that it has delivered it before.
    pub again: bool,
}

/// Why a request is refused here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was answered, and its final is no longer kept.
    AlreadyAnswered,
    /// Its key stands for another payload.
    Conflict,
}

/// What becomes of a delivery.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Taken<R> {
    /// Run it, as this job.
    Run {
        /// Its number.
        job: u64,
        /// From which its tokens are drawn.
        seed: u32,
    },
    /// It is a repeat; nothing but this is to be done.
    Repeat(Settlement),
    /// It fails, as this job: so many daemons died of it. Its final goes to [`Protocol::answer`].
    Poison {
        /// Its number.
        job: u64,
        /// Daemons.
        dead: u8,
    },
    /// It is refused: [`Protocol::open`] a job and answer it.
    Refused(R, Refusal),
}

/// What follows when a message has left the outbox.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Left<M> {
    /// Nothing.
    Nothing,
    /// A job is over.
    Over(Settlement),
    /// The final of this job does not fit through the broker: a smaller one is to be sent in its place.
    TooLarge {
        /// Its number.
        job: u64,
        /// The final.
        message: M,
        /// Bytes of a packet that the broker takes.
        limit: u32,
    },
}

/// A request between its delivery and the broker's word on its final.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Job<R, M> {
    /// Whatever the caller keeps.
    pub asker: R,
    /// An earlier daemon began it, and the broker may have its final: this one says so.
    pub redecoded: bool,
    /// `None`: its answer is not kept.
    run: Option<Run>,
    /// Its sender has given it a mark of its own.
    marked: bool,
    /// Deliveries that its final answers: repeats join.
    deliveries: Vec<Delivery>,
    /// Whether it was accepted; a refused one may come again.
    accepted: bool,
    /// Whether its final has already given way to a smaller one.
    replaced: bool,
    /// Its final, until it may be sent.
    held: Option<M>,
}

/// The state of it all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Protocol<R, M> {
    /// What is on its way to the broker.
    pub outbox: Outbox<M>,
    /// Deliveries to acknowledge.
    pub acks: Acks,
    /// What outlives the daemon; `None`: nothing does.
    seen: Option<Seen>,
    answered: Dedupe<M>,
    /// What was answered last of requests without a mark, by packet id.
    recent: VecDeque<(u16, Key)>,
    jobs: BTreeMap<u64, Job<R, M>>,
    next_job: u64,
}

impl<R, M: Letter + Clone> Protocol<R, M> {
    /// Of a daemon that knows of earlier ones what `seen` says, and remembers answers within `bounds`. `room`: see
    /// [`Outbox::new`].
    #[must_use]
    pub fn new(seen: Option<Seen>, bounds: Bounds, room: usize) -> Self {
        Self {
            outbox: Outbox::new(room),
            acks: Acks::new(Line::Own),
            seen,
            answered: Dedupe::new(bounds),
            recent: VecDeque::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
        }
    }

    /// The clock was set by so many seconds: see [`Seen::clock_was_set`].
    pub fn clock_was_set(&mut self, by: i64) {
        if let Some(seen) = &mut self.seen {
            seen.clock_was_set(by);
        }
    }

    /// Whether anything outlives the daemon: then a request runs only once its beginning is on record.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.seen.is_some()
    }

    /// What outlives it.
    #[must_use]
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// A job that is not over.
    #[must_use]
    pub fn job(&self, job: u64) -> Option<&Job<R, M>> {
        self.jobs.get(&job)
    }

    /// A job that is not over, to change what the caller keeps with it.
    pub fn job_mut(&mut self, job: u64) -> Option<&mut Job<R, M>> {
        self.jobs.get_mut(&job)
    }

    /// Jobs that are not over.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// A connection is up.
    pub fn connected(&mut self, allowed: Allowed) {
        self.outbox.connected(allowed);
    }

    /// The connection is gone: what the broker has not taken is sent again, and what we have not acknowledged comes again.
    pub fn disconnected(&mut self) {
        self.outbox.disconnected();
        self.acks.reset();
    }

    /// Decides about a request that was delivered. `fresh` is the seed where it gets a new one, `renewed` a kept final for
    /// whoever asks now.
    pub fn take(
        &mut self,
        asked: &Asked,
        asker: R,
        delivery: Option<Delivery>,
        fresh: impl FnOnce() -> u32,
        renewed: impl FnOnce(&R, &M) -> M,
        now: Now,
    ) -> Taken<R> {
        let Asked { key, payload, marked, again } = *asked;
        let packet = delivery.and_then(|delivery| self.acks.packet(delivery));
        let mut before = self.seen.as_mut().map_or(Trace::Unknown, |seen| seen.trace(&key, &payload, now.unix));
        let mut here = self.answered.look(&key, payload, now.at);
        if !marked {
            // Words that were answered are a new question, unless it is that very packet which comes again.
            if matches!(here, Verdict::Answered(_))
                && !self.recent.iter().any(|one| packet == Some(one.0) && one.1 == key)
            {
                here = Verdict::New;
            }
            if matches!(before, Trace::Finished { packet: other } if packet != Some(other)) {
                before = Trace::Unknown;
            }
        }
        let (seed, dead, redecoded) = match seen::decide(marked, again, here, before) {
            Course::Run => (fresh(), 0, false),
            Course::RunAgain { seed, dead } => (seed, dead, true),
            Course::Join(job) => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.deliveries.extend(delivery);
                }
                return Taken::Repeat(Settlement { note: Note::Nothing, deliveries: Vec::new() });
            }
            Course::Acknowledge => {
                let deliveries = delivery.into_iter().collect();
                return Taken::Repeat(Settlement { note: self.safe(), deliveries });
            }
            Course::Resend(kept) => {
                let message = renewed(&asker, kept);
                let job = self.open(asker, delivery);
                self.answer(job, message);
                return Taken::Repeat(Settlement { note: Note::Nothing, deliveries: Vec::new() });
            }
            Course::AlreadyAnswered => return Taken::Refused(asker, Refusal::AlreadyAnswered),
            Course::Conflict => return Taken::Refused(asker, Refusal::Conflict),
            Course::Poison(dead) => {
                let run = Run { key, payload, seed: fresh(), dead };
                let job = self.begin(asker, run, marked, delivery);
                if let Some(job) = self.jobs.get_mut(&job) {
                    (job.accepted, job.redecoded) = (true, true);
                }
                return Taken::Poison { job, dead };
            }
        };
        let job = self.begin(asker, Run { key, payload, seed, dead }, marked, delivery);
        if let Some(job) = self.jobs.get_mut(&job) {
            job.redecoded = redecoded;
        }
        Taken::Run { job, seed }
    }

    /// A job whose answer is not kept.
    pub fn open(&mut self, asker: R, delivery: Option<Delivery>) -> u64 {
        self.add(asker, None, delivery)
    }

    /// Its turn to run has come; it may once the note is safe.
    pub fn turn(&mut self, job: u64, now: Now) -> Note {
        let run = self.jobs.get(&job).and_then(|job| job.run);
        match (&mut self.seen, run) {
            (Some(seen), Some(run)) => Note::Sync(Some(seen.begin(&run, now.unix))),
            _ => Note::Nothing,
        }
    }

    /// An accepted request has its outcome: this daemon did not die of it. Its final is sent at once or, where it never
    /// ran, by [`Self::noted`] once the note is safe: else the next daemon would run it as if there were no final of it.
    pub fn outcome(&mut self, job: u64, message: M, now: Now) -> Note {
        let Some(state) = self.jobs.get_mut(&job) else { return Note::Nothing };
        state.accepted = true;
        let note = match (&mut self.seen, state.run) {
            (Some(seen), Some(run)) => match seen.end(&run, now.unix) {
                Ended::Ran(record) => Note::Append(record),
                Ended::Waited(record) => {
                    state.held = Some(message);
                    return Note::Sync(Some(record));
                }
                Ended::Known => Note::Nothing,
            },
            _ => Note::Nothing,
        };
        self.answer(job, message);
        note
    }

    /// What [`Self::outcome`] gave to be synced is safe.
    pub fn noted(&mut self, job: u64) {
        if let Some(message) = self.jobs.get_mut(&job).and_then(|job| job.held.take()) {
            self.answer(job, message);
        }
    }

    /// Sends what a job is answered with.
    pub fn answer(&mut self, job: u64, message: M) {
        // Answers always find room: there are no more of them than jobs.
        let _room = self.outbox.push(Kind::Answer(job), message);
    }

    /// A message has left the outbox. Where it is a final, the broker has it, or never will.
    pub fn left(&mut self, gone: Gone<M>, now: Now) -> Left<M> {
        let Gone { kind: Kind::Answer(number), end, message } = gone else { return Left::Nothing };
        if let End::TooLarge(limit) = end
            && let Some(job) = self.jobs.get_mut(&number).filter(|job| !job.replaced)
        {
            job.replaced = true;
            return Left::TooLarge { job: number, message, limit };
        }
        let Some(job) = self.jobs.remove(&number) else { return Left::Nothing };
        let note = match job.run {
            Some(run) if job.accepted => {
                let bytes = message.bytes();
                let packets: Vec<u16> =
                    job.deliveries.iter().filter_map(|delivery| self.acks.packet(*delivery)).collect();
                if !job.marked {
                    self.recent.extend(packets.iter().map(|packet| (*packet, run.key)));
                    self.recent.drain(..self.recent.len().saturating_sub(RECENT));
                }
                // Not where its key stands for another by now, which happens to keys that are made of payloads.
                let is_last = self.answered.finish(run.key, number, message, bytes, now.at);
                match &mut self.seen {
                    Some(seen) if is_last => Note::Sync(Some(seen.finish(&run, packets.last().copied(), now.unix))),
                    _ => Note::Nothing,
                }
            }
            Some(run) => {
                self.answered.forget(&run.key, number);
                Note::Nothing
            }
            // A final that was sent once more: that of the first may not be on record yet.
            None => self.safe(),
        };
        Left::Over(Settlement { note, deliveries: job.deliveries })
    }

    /// What these deliveries brought is answered, and on record.
    pub fn settled(&mut self, deliveries: Vec<Delivery>) {
        deliveries.into_iter().for_each(|delivery| self.acks.answered(delivery));
    }

    /// Waits until all that was noted so far is safe.
    fn safe(&self) -> Note {
        if self.is_kept() { Note::Sync(None) } else { Note::Nothing }
    }

    fn begin(&mut self, asker: R, run: Run, marked: bool, delivery: Option<Delivery>) -> u64 {
        let job = self.add(asker, Some(run), delivery);
        if let Some(job) = self.jobs.get_mut(&job) {
            job.marked = marked;
        }
        self.answered.start(run.key, run.payload, job);
        job
    }

    fn add(&mut self, asker: R, run: Option<Run>, delivery: Option<Delivery>) -> u64 {
        let number = self.next_job;
        self.next_job += 1;
        let deliveries = delivery.into_iter().collect();
        let job = Job {
            asker,
            redecoded: false,
            run,
            marked: false,
            deliveries,
            accepted: false,
            replaced: false,
            held: None,
        };
        self.jobs.insert(number, job);
        number
    }
}

#[cfg(test)]
#[path = "protocol/tests.rs"]
mod tests;
