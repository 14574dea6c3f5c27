//! Repeats: which requests are the same as one that is running or was answered. Pure; time comes in.
//!
//! A wire that delivers at least once delivers twice at times. A request has a key: operation, client, response topic
//! and the mark by which its sender knows it. The same key with the same payload is answered once more from the kept
//! answer, or joins the request that is running; with another payload it is a conflict. Keys and payloads are kept as
//! hashes only.
//!
//! A request without any mark cannot be told from another with the same words, so a repeat by its sender runs again.
//! What the broker itself sends again is different: it says so (the DUP flag). Such a request has a key made of its
//! payload ([`Mark::Payload`]), which is looked up only where that flag is set.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::Client;

/// Which request this is, as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) [u8; 32]);

/// What was asked, as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub(super) [u8; 32]);

impl Fingerprint {
    /// Of a payload and how it is to be read.
    #[must_use]
    pub fn of(content_type: &str, payload: &[u8]) -> Self {
        Self(hash(&[content_type.as_bytes(), payload]))
    }
}

/// By what its sender knows a request.
#[derive(Debug, Clone, Copy)]
pub enum Mark<'a> {
    /// MQTT 5 correlation data.
    Correlation(&'a [u8]),
    /// The request's own id.
    Id(&'a str),
    /// Neither: what it says.
    Payload(Fingerprint),
}

impl Key {
    /// The key of a request.
    #[must_use]
    pub fn new(operation: &str, client: &Client, response_topic: &str, mark: Mark<'_>) -> Self {
        let client = client.to_string();
        let (kind, bytes): (&[u8], &[u8]) = match &mark {
            Mark::Correlation(data) => (b"correlation", data),
            Mark::Id(id) => (b"id", id.as_bytes()),
            Mark::Payload(Fingerprint(hash)) => (b"payload", hash),
        };
        Self(hash(&[operation.as_bytes(), client.as_bytes(), response_topic.as_bytes(), kind, bytes]))
    }
}

/// Every part goes in with its length, so that no two lists of parts give one text.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Bounds of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Finished requests that are remembered.
    pub entries: usize,
    /// Bytes of the answers that are kept with them.
    pub bytes: usize,
    /// How long a finished request is remembered.
    pub age: Duration,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a, A> {
    /// Nothing: run it.
    New,
    /// It is running as this job: join it.
    Running(u64),
    /// It was answered; `None` where the answer is no longer kept.
    Answered(Option<&'a A>),
    /// The key stands for another payload.
    Conflict,
}

/// The memory. `A` is a kept answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dedupe<A> {
    bounds: Bounds,
    entries: BTreeMap<Key, Entry<A>>,
    /// Finished requests in the order in which they finished.
    finished: VecDeque<Finished>,
    /// Those whose answers are kept, in the same order.
    kept: VecDeque<(Key, u64)>,
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry<A> {
    fingerprint: Fingerprint,
    job: u64,
    state: State<A>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State<A> {
    Running,
    Answered(Option<(A, usize)>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Finished {
    at: Instant,
    key: Key,
    job: u64,
}

impl<A> Dedupe<A> {
    /// An empty memory.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, entries: BTreeMap::new(), finished: VecDeque::new(), kept: VecDeque::new(), bytes: 0 }
    }

    /// What is known of a request.
    pub fn look(&mut self, key: &Key, fingerprint: Fingerprint, now: Instant) -> Verdict<'_, A> {
        self.forget_old(now);
        match self.entries.get(key) {
            None => Verdict::New,
            Some(entry) if entry.fingerprint != fingerprint => Verdict::Conflict,
            Some(Entry { state: State::Running, job, .. }) => Verdict::Running(*job),
            Some(Entry { state: State::Answered(answer), .. }) => {
                Verdict::Answered(answer.as_ref().map(|(answer, _)| answer))
            }
        }
    }

    /// A request runs now, as `job`, a number that is never used again. What the key stood for before is forgotten:
    /// that happens only to keys made of payloads. Entries of running requests are not bounded here but by the caller,
    /// who runs them.
    pub fn start(&mut self, key: Key, fingerprint: Fingerprint, job: u64) {
        self.drop_answer(&key);
        self.entries.insert(key, Entry { fingerprint, job, state: State::Running });
    }

    /// A request is answered, and its answer, of `size` bytes, is kept for a repeat. `false` where its key stands for
    /// another by now.
    pub fn finish(&mut self, key: Key, job: u64, answer: A, size: usize, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.job == job) else { return false };
        entry.state = State::Answered(Some((answer, size)));
        self.bytes += size;
        self.finished.push_back(Finished { at: now, key, job });
        self.kept.push_back((key, job));
        while self.bytes > self.bounds.bytes
            && let Some((key, job)) = self.kept.pop_front()
        {
            if self.entries.get(&key).is_some_and(|entry| entry.job == job) {
                self.drop_answer(&key);
            }
        }
        self.forget_old(now);
        true
    }

    /// A request was refused after all: a repeat of it is a new try.
    pub fn forget(&mut self, key: &Key, job: u64) {
        if self.entries.get(key).is_some_and(|entry| entry.job == job) {
            self.drop_answer(key);
            self.entries.remove(key);
        }
    }

    /// Bytes of kept answers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Requests that are remembered, running ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn drop_answer(&mut self, key: &Key) {
        if let Some(Entry { state: State::Answered(answer), .. }) = self.entries.get_mut(key)
            && let Some((_, size)) = answer.take()
        {
            self.bytes -= size;
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(first) = self.finished.front() {
            let old = now.saturating_duration_since(first.at) > self.bounds.age;
            if !old && self.finished.len() <= self.bounds.entries {
                break;
            }
            let Some(Finished { key, job, .. }) = self.finished.pop_front() else { break };
            self.forget(&key, job);
        }
        // Every kept answer belongs to a finished entry, so this list is no longer than that one.
        while let Some((key, job)) = self.kept.front() {
            if self.entries.get(key).is_some_and(|entry| entry.job == *job) {
                break;
            }
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { entries: 4, bytes: 100, age: Duration::from_secs(60) };

    fn key(id: &str) -> Key {
        Key::new("chat", &Client::mqtt(Some("a")), "t", Mark::Id(id))
    }

    fn print(text: &str) -> Fingerprint {
        Fingerprint::of("text/plain", text.as_bytes())
    }

    #[test]
    fn a_repeat_joins_then_gets_the_kept_answer_and_another_payload_conflicts() {
        let now = Instant::now();
        let mut seen = Dedupe::new(BOUNDS);
        assert_eq!(seen.look(&key("1"), print("q"), now), Verdict::New);
        seen.start(key("1"), print("q"), 7);
        assert_eq!(seen.look(&key("1"), print("q"), now), Verdict::Running(7));
        assert_eq!(seen.look(&key("1"), print("other"), now), Verdict::Conflict);
        seen.finish(key("1"), 7, "answer", 6, now);
        assert_eq!(seen.look(&key("1"), print("q"), now), Verdict::Answered(Some(&"answer")));
        assert_eq!(seen.look(&key("1"), print("other"), now), Verdict::Conflict);
        assert_eq!(seen.look(&key("2"), print("q"), now), Verdict::New);
    }

    #[test]
    fn no_part_of_a_key_can_stand_for_another() {
        let a = Client::mqtt(Some("a"));
        let keys = [
            Key::new("chat", &a, "t", Mark::Id("1")),
            Key::new("chat", &a, "t", Mark::Correlation(b"1")),
            Key::new("chat", &a, "t1", Mark::Id("")),
            Key::new("complete", &a, "t", Mark::Id("1")),
            Key::new("chat", &Client::mqtt(Some("b")), "t", Mark::Id("1")),
            Key::new("chat", &Client::mqtt(None), "t", Mark::Id("1")),
        ];
        for (i, one) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|other| one != other));
        }
    }

    #[test]
    fn an_answer_that_is_too_old_to_be_kept_leaves_its_key_behind() {
        let now = Instant::now();
        let mut seen = Dedupe::new(BOUNDS);
        for job in 0..3 {
            let key = key(&job.to_string());
            seen.start(key, print("q"), job);
            seen.finish(key, job, job, 40, now);
        }
        assert_eq!(seen.look(&key("0"), print("q"), now), Verdict::Answered(None));
        assert_eq!(seen.look(&key("2"), print("q"), now), Verdict::Answered(Some(&2)));
        let later = now + BOUNDS.age + Duration::from_secs(1);
        assert_eq!(seen.look(&key("2"), print("q"), later), Verdict::New);
        assert_eq!((seen.len(), seen.bytes()), (0, 0));
    }

    #[test]
    fn a_refused_request_may_come_again() {
        let now = Instant::now();
        let mut seen: Dedupe<()> = Dedupe::new(BOUNDS);
        seen.start(key("1"), print("q"), 1);
        seen.forget(&key("1"), 1);
        assert_eq!(seen.look(&key("1"), print("q"), now), Verdict::New);
        seen.start(key("1"), print("q"), 2);
        seen.forget(&key("1"), 1);
        assert_eq!(seen.look(&key("1"), print("q"), now), Verdict::Running(2));
    }

    proptest! {
        #[test]
        fn memory_stays_within_its_bounds(steps in prop::collection::vec((0u8..12, 0u8..3, 0usize..60, 0u64..30), 1..200)) {
            let mut now = Instant::now();
            let mut seen = Dedupe::new(BOUNDS);
            let mut running: Vec<(Key, u64)> = Vec::new();
            for (job, (id, what, size, seconds)) in (0u64..).zip(steps) {
                now += Duration::from_secs(seconds);
                let key = key(&id.to_string());
                match what {
                    0 => {
                        running.retain(|(other, _)| *other != key);
                        seen.start(key, print("q"), job);
                        running.push((key, job));
                    }
                    1 => if let Some((key, job)) = running.pop() {
                        seen.finish(key, job, job, size, now);
                        let known = matches!(seen.look(&key, print("q"), now), Verdict::Answered(_));
                        prop_assert!(known);
                    },
                    _ => if let Some((key, job)) = running.pop() {
                        seen.forget(&key, job);
                    },
                }
                prop_assert!(seen.bytes() <= BOUNDS.bytes);
                prop_assert!(seen.len() <= BOUNDS.entries + running.len());
                prop_assert!(seen.kept.len() <= seen.finished.len());
                for (key, job) in &running {
                    let verdict = seen.look(key, print("q"), now);
                    prop_assert_eq!(verdict, Verdict::Running(*job));
                }
            }
            let sum: usize = seen.entries.values().filter_map(|entry| match &entry.state {
                State::Answered(Some((_, size))) => Some(size),
                _ => None,
            }).sum();
            prop_assert_eq!(sum, seen.bytes());
        }
    }
}
