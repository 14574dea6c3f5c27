//! Messages of QoS 1 on their way to the broker. One leaves only when the broker has taken it, has refused it for good,
//! or when its time is over; whatever the library underneath throws away (it does, when a broker loses a session) is
//! sent again on the next connection. Pure; time comes in.
//!
//! ```text
//!            push ──▶ waiting ── offer ──▶ in flight ── taken / never ──▶ gone, with a notice
//!                        ▲                     │
//!                        └── not now, or connection lost
//! ```
//!
//! The window counts from the oldest message without PUBACK, not the number of them: packet ids are given out in a
//! circle, and the library stops for ever when one comes round to a message that is still open.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::message::{Allowed, Letter, Message, Qos, Receipt};

/// Waits before a message that the broker did not take is tried again. One that it forbids is given up after the last:
/// behind it, requests wait for their acknowledgement.
const RETRIES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// Between the tries after those, where the broker has too much to do. Its own expiry ends a message, or this.
const BUSY_RETRY: Duration = Duration::from_secs(30);
const BUSY_PATIENCE: Duration = Duration::from_secs(600);

/// What a message is, for the question what to do when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The answer to a job. Never dropped for want of room: there are no more of them than jobs, which are bounded.
    Answer(u64),
    /// The latest word on its topic: takes the place of one that still waits.
    Latest,
    /// The last word before we leave.
    Farewell,
    /// Dropped, and counted, when there is no room.
    Optional,
}

/// How a message left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The broker has it.
    Taken,
    /// It is on its way to a broker that confirms nothing.
    Unconfirmed,
    /// Its time was over.
    Expired,
    /// The broker refused it, for good or too often; the reason.
    Refused(&'static str),
    /// The broker takes no packet of this size; its limit.
    TooLarge(u32),
}

/// A message that left.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone<M = Message> {
    /// What it was.
    pub kind: Kind,
    /// How it left.
    pub end: End,
    /// The message itself.
    pub message: M,
}

/// The outbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outbox<M = Message> {
    waiting: VecDeque<Entry<M>>,
    flying: VecDeque<Flight<M>>,
    allowed: Option<Allowed>,
    /// Number of the next message that is sent on this connection.
    next: u64,
    /// Messages that may wait when an optional one comes.
    room: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry<M> {
    kind: Kind,
    message: M,
    /// Refusals so far, and the first of them.
    refusals: usize,
    refused_first: Option<Instant>,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flight<M> {
    number: u64,
    packet: Option<u16>,
    since: Instant,
    entry: Entry<M>,
}

impl<M: Letter> Outbox<M> {
    /// An empty outbox that takes optional messages while fewer than `room` wait.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self { waiting: VecDeque::new(), flying: VecDeque::new(), allowed: None, next: 0, room }
    }

    /// Puts a message behind the others; `false` where an optional one found no room.
    #[must_use]
    pub fn push(&mut self, kind: Kind, message: M) -> bool {
        if kind == Kind::Optional && self.waiting.len() >= self.room {
            return false;
        }
        self.drop_superseded(kind, &message);
        self.waiting.push_back(Entry::new(kind, message));
        true
    }

    /// Puts messages before all others, in their order.
    pub fn push_first(&mut self, kind: Kind, messages: impl DoubleEndedIterator<Item = M>) {
        for message in messages.rev() {
            self.drop_superseded(kind, &message);
            self.waiting.push_front(Entry::new(kind, message));
        }
    }

    /// A connection is up, with nothing sent on it yet.
    pub fn connected(&mut self, allowed: Allowed) {
        self.disconnected();
        self.allowed = Some(allowed);
        self.next = 0;
    }

    /// The connection is gone: what was in flight waits again, before the rest and in its order.
    pub fn disconnected(&mut self) {
        self.allowed = None;
        while let Some(flight) = self.flying.pop_back() {
            self.wait_again(flight.entry);
        }
    }

    /// Hands messages to `send` while the window is open and it takes them. Gives back those that can't be sent:
    /// expired, or larger than the broker's limit by the measure of `size`.
    pub fn offer(
        &mut self,
        now: Instant,
        size: impl Fn(&M) -> usize,
        mut send: impl FnMut(&M) -> bool,
    ) -> Vec<Gone<M>> {
        let mut gone = self.expire(now);
        let Some(allowed) = self.allowed else { return gone };
        let mut at = 0;
        while self.window_used() < allowed.window
            && let Some(entry) = self.waiting.get(at)
        {
            if entry.not_before.is_some_and(|earliest| earliest > now) {
                at += 1;
                continue;
            }
            let limit = allowed.packet_bytes.filter(|limit| size(&entry.message) > *limit as usize);
            if limit.is_none() && !send(&entry.message) {
                break;
            }
            let Some(entry) = self.waiting.remove(at) else { break };
            match limit {
                Some(limit) => gone.push(entry.gone(End::TooLarge(limit))),
                None if allowed.qos == Qos::AtMostOnce => gone.push(entry.gone(End::Unconfirmed)),
                None => {
                    self.flying.push_back(Flight { number: self.next, packet: None, since: now, entry });
                    self.next += 1;
                }
            }
        }
        gone
    }

    /// The library gave a packet id to the oldest message that has none: it takes them in the order of [`Self::offer`].
    pub fn sent(&mut self, packet: u16) {
        if let Some(flight) = self.flying.iter_mut().find(|flight| flight.packet.is_none()) {
            flight.packet = Some(packet);
        }
    }

    /// The broker's word on a packet.
    pub fn receipt(&mut self, packet: u16, receipt: Receipt, now: Instant) -> Option<Gone<M>> {
        let at = self.flying.iter().position(|flight| flight.packet == Some(packet))?;
        let mut entry = self.flying.remove(at)?.entry;
        let (reason, again) = match receipt {
            Receipt::Taken => return Some(entry.gone(End::Taken)),
            Receipt::Never(reason) => (reason, None),
            Receipt::Busy(reason) => (reason, entry.again(false, now)),
            Receipt::Forbidden(reason) => (reason, entry.again(true, now)),
        };
        if again.is_none() {
            return Some(entry.gone(End::Refused(reason)));
        }
        entry.not_before = again;
        self.wait_again(entry);
        None
    }

    /// Takes out what is of no use any more. What is in flight stays: it may have arrived.
    fn expire(&mut self, now: Instant) -> Vec<Gone<M>> {
        let over = |entry: &Entry<M>| entry.message.expires().is_some_and(|at| at <= now);
        if !self.waiting.iter().any(over) {
            return Vec::new();
        }
        let (gone, waiting) = std::mem::take(&mut self.waiting).into_iter().partition::<Vec<_>, _>(over);
        self.waiting = waiting.into();
        gone.into_iter().map(|entry| entry.gone(End::Expired)).collect()
    }

    /// When [`Self::offer`] has something to do that nobody else would announce.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let retry = |entry: &Entry<M>| entry.not_before.filter(|_| self.allowed.is_some());
        let instants = self.waiting.iter().flat_map(|entry| [entry.message.expires(), retry(entry)]);
        // An instant in the past has had its turn, and now waits for the window: that opens with an event.
        instants.flatten().filter(|at| *at > now).min()
    }

    /// Since when the oldest message has been without the broker's word.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        self.flying.front().map(|flight| flight.since)
    }

    /// Messages that the broker has not acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    /// Whether the broker has everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    fn window_used(&self) -> u64 {
        self.flying.front().map_or(0, |oldest| self.next - oldest.number)
    }

    /// Back to the front, unless a later word on the same topic already waits.
    fn wait_again(&mut self, entry: Entry<M>) {
        let superseded = entry.kind == Kind::Latest
            && self.waiting.iter().any(|other| other.kind == Kind::Latest && other.message.is_beside(&entry.message));
        if !superseded {
            self.waiting.push_front(entry);
        }
    }

    fn drop_superseded(&mut self, kind: Kind, message: &M) {
        if matches!(kind, Kind::Latest | Kind::Farewell) {
            self.waiting.retain(|other| other.kind != Kind::Latest || !other.message.is_beside(message));
        }
    }
}

impl<M> Entry<M> {
    fn new(kind: Kind, message: M) -> Self {
        Self { kind, message, refusals: 0, refused_first: None, not_before: None }
    }

    /// When to try again, after one more refusal; `None`: never.
    fn again(&mut self, forbidden: bool, now: Instant) -> Option<Instant> {
        let first = *self.refused_first.get_or_insert(now);
        let wait = match RETRIES.get(self.refusals) {
            Some(wait) => *wait,
            None if forbidden || now.saturating_duration_since(first) >= BUSY_PATIENCE => return None,
            None => BUSY_RETRY,
        };
        self.refusals += 1;
        Some(now + wait)
    }

    fn gone(self, end: End) -> Gone<M> {
        Gone { kind: self.kind, end, message: self.message }
    }
}

#[cfg(test)]
#[path = "outbox/tests.rs"]
mod tests;
