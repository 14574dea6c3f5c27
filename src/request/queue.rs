//! What waits: one bounded queue for all clients, ordered by priority, then arrival.
//!
//! Waiting counts: each [`AGEING`] is worth one priority, so that a low one is answered in the end however many high ones
//! come. The order of two that wait never changes by that, since both age alike: a request stands where one of the highest
//! priority would stand that came so much later.
//!
//! The order is strict: only the first one may start, and while it does not fit, nothing behind it starts either. So a
//! large request is never starved by small ones that keep slipping past it. While the governor has lowered the context,
//! those that it cannot hold at all are passed over; they are first again as soon as it can. No client holds more than its share of
//! queue and slots together, so one that floods us leaves room for the others.
//!
//! Time comes in as arguments. A bounded queue is short: what is asked for rarely is found by looking through it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Client;

/// A request that has waited so long stands before those of one priority more that come now.
pub const AGEING: Duration = Duration::from_secs(30);

/// The highest priority; `check` lets none above it in.
const HIGHEST: i32 = 1;

/// A waiting request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry<T> {
    /// Unique among all that wait or run, and rising with arrival: it settles the order where two arrive at once.
    pub key: u64,
    /// Whose share it counts against.
    pub client: Client,
    /// The client's name for it.
    pub id: String,
    /// Higher goes first, and one more counts like [`AGEING`] of waiting.
    pub priority: i32,
    /// When it came.
    pub arrived: Instant,
    /// When it is too late to start or go on.
    pub deadline: Instant,
    /// Whatever the owner keeps with it.
    pub payload: T,
}

impl<T> Entry<T> {
    fn place(&self) -> Place {
        let levels = HIGHEST.saturating_sub(self.priority).max(0).unsigned_abs();
        (self.arrived + AGEING * levels, self.key)
    }
}

type Place = (Instant, u64);

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Too many wait.
    #[error("{limit} requests are waiting, which is the limit; try again later")]
    Queue {
        /// Most requests that may wait.
        limit: usize,
    },
    /// This client has too many.
    #[error("this client has {limit} requests waiting or running, which is its share; wait for an answer first")]
    Share {
        /// Most requests of one client, waiting and running.
        limit: usize,
    },
}

/// The waiting requests, and how many of each client run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Queue<T> {
    waiting: BTreeMap<Place, Entry<T>>,
    running: BTreeMap<Client, usize>,
    limit: usize,
    share: usize,
}

impl<T> Queue<T> {
    /// A queue of at most `limit` waiting requests, where one client has at most `share`, waiting and running, but
    /// always one.
    #[must_use]
    pub fn new(limit: usize, share: usize) -> Self {
        Self { waiting: BTreeMap::new(), running: BTreeMap::new(), limit, share: share.max(1) }
    }

    /// Whether a request of this client would be taken now: worth asking before it is rendered and tokenised.
    ///
    /// # Errors
    /// The bound that is met. The client's own comes first, as the one that it can do something about.
    pub fn room(&self, client: &Client) -> Result<(), Full> {
        let waiting = self.waiting.values().filter(|entry| entry.client == *client).count();
        let running = self.running.get(client).copied().unwrap_or(0);
        if waiting + running >= self.share {
            return Err(Full::Share { limit: self.share });
        }
        if self.waiting.len() >= self.limit {
            return Err(Full::Queue { limit: self.limit });
        }
        Ok(())
    }

    /// Takes a request and says how many are before it.
    ///
    /// # Errors
    /// As [`Queue::room`]; the request is dropped then.
    pub fn push(&mut self, entry: Entry<T>) -> Result<usize, Full> {
        self.room(&entry.client)?;
        debug_assert!(self.ahead(entry.key).is_none(), "keys are unique");
        let place = entry.place();
        self.waiting.insert(place, entry);
        Ok(self.waiting.range(..place).count())
    }

    /// Takes out the first one, if it fits; from now on it counts as running, until [`Queue::ended`].
    pub fn pop_ready(&mut self, fits: impl FnOnce(&Entry<T>) -> bool) -> Option<Entry<T>> {
        self.pop_ready_of(|_| true, fits)
    }

    /// As [`Queue::pop_ready`], of those that `counts`: the others are passed over and keep their places. That is for
    /// requests which cannot start whatever becomes free, since less is there than usual; once it is not, they are first.
    pub fn pop_ready_of(
        &mut self,
        counts: impl Fn(&Entry<T>) -> bool,
        fits: impl FnOnce(&Entry<T>) -> bool,
    ) -> Option<Entry<T>> {
        let place = *self.waiting.iter().find(|(_, entry)| counts(entry)).filter(|(_, entry)| fits(entry))?.0;
        let entry = self.waiting.remove(&place)?;
        *self.running.entry(entry.client.clone()).or_default() += 1;
        Some(entry)
    }

    /// A running request of this client has ended, however it did.
    pub fn ended(&mut self, client: &Client) {
        match self.running.get_mut(client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.running.remove(client)),
        }
    }

    /// Takes out all whose deadline has come, in order.
    pub fn expire(&mut self, now: Instant) -> Vec<Entry<T>> {
        let late: Vec<_> =
            self.waiting.iter().filter(|(_, entry)| entry.deadline <= now).map(|(place, _)| *place).collect();
        late.iter().filter_map(|place| self.waiting.remove(place)).collect()
    }

    /// Takes out one that is not wanted any more.
    pub fn remove(&mut self, key: u64) -> Option<Entry<T>> {
        let place = *self.waiting.iter().find(|(_, entry)| entry.key == key)?.0;
        self.waiting.remove(&place)
    }

    /// The first waiting request of this client and id.
    #[must_use]
    pub fn find(&self, client: &Client, id: &str) -> Option<&Entry<T>> {
        self.waiting.values().find(|entry| entry.client == *client && entry.id == id)
    }

    /// When [`Queue::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|entry| entry.deadline).min()
    }

    /// How many are before this one; `None` where it does not wait.
    #[must_use]
    pub fn ahead(&self, key: u64) -> Option<usize> {
        self.waiting.values().position(|entry| entry.key == key)
    }

    /// All that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.waiting.values()
    }

    /// The payloads of all that wait, in order, to be changed.
    pub fn payloads_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.waiting.values_mut().map(|entry| (entry.key, &mut entry.payload))
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Most requests of one client, from a percentage of all places (queue and slots), rounded down, but always one.
#[must_use]
pub fn share(percent: u32, queue: u32, parallel: u32) -> usize {
    let places = u64::from(queue) + u64::from(parallel);
    usize::try_from(places * u64::from(percent) / 100).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn entry(key: u64, client: u32, priority: i32, epoch: Instant, arrived: u64, deadline: u64) -> Entry<u64> {
        Entry {
            key,
            client: Client::uid(client),
            id: format!("r{key}"),
            priority,
            arrived: epoch + Duration::from_millis(arrived),
            deadline: epoch + Duration::from_millis(deadline),
            payload: key,
        }
    }

    #[test]
    fn higher_priority_first_then_arrival() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 8);
        assert_eq!(queue.push(entry(1, 1, 0, epoch, 10, 99)), Ok(0));
        assert_eq!(queue.push(entry(2, 1, 0, epoch, 10, 99)), Ok(1));
        assert_eq!(queue.push(entry(3, 1, -1, epoch, 5, 99)), Ok(2));
        assert_eq!(queue.push(entry(4, 1, 1, epoch, 20, 99)), Ok(0));
        assert_eq!(queue.ahead(3), Some(3));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_ready(|_| true)).map(|entry| entry.key).collect();
        assert_eq!(order, [4, 1, 2, 3]);
    }

    #[test]
    fn waiting_is_worth_priority() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 8);
        let level = u64::try_from(AGEING.as_millis()).unwrap();
        queue.push(entry(1, 1, -1, epoch, 0, u64::MAX / 2)).unwrap();
        for (key, priority, arrived) in [(2, 0, level - 1), (3, 0, level), (4, 1, 2 * level - 1), (5, 1, 2 * level)] {
            queue.push(entry(key, 1, priority, epoch, arrived, u64::MAX / 2)).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_ready(|_| true)).map(|entry| entry.key).collect();
        assert_eq!(order, [2, 4, 1, 3, 5]);
    }

    #[test]
    fn nothing_slips_past_a_first_one_that_does_not_fit() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 8);
        let large = Entry { payload: 1000, ..entry(1, 1, 0, epoch, 0, 99) };
        queue.push(large).unwrap();
        queue.push(entry(2, 2, 0, epoch, 1, 99)).unwrap();
        assert!(queue.pop_ready(|entry| entry.payload <= 10).is_none());
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.pop_ready(|entry| entry.payload <= 1000).unwrap().key, 1);
    }

    #[test]
    fn those_that_do_not_count_keep_their_places() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 8);
        for (key, cells) in [(1, 1000), (2, 400), (3, 10)] {
            queue.push(Entry { payload: cells, ..entry(key, 1, 0, epoch, key, 99) }).unwrap();
        }
        let mut pop = |context, free| {
            let entry = queue.pop_ready_of(|entry| entry.payload <= context, |entry| entry.payload <= free);
            entry.map(|entry| entry.key)
        };
        assert_eq!(pop(500, 100), None, "nothing slips past the first that counts");
        assert_eq!(pop(500, 500), Some(2));
        assert_eq!(pop(1000, 100), None, "the first counts again");
        assert_eq!(pop(1000, 1000), Some(1));
    }

    #[test]
    fn a_share_counts_what_waits_and_what_runs() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 2);
        queue.push(entry(1, 1, 0, epoch, 0, 99)).unwrap();
        queue.pop_ready(|_| true).unwrap();
        queue.push(entry(2, 1, 0, epoch, 0, 99)).unwrap();
        assert_eq!(queue.push(entry(3, 1, 0, epoch, 0, 99)), Err(Full::Share { limit: 2 }));
        assert_eq!(queue.push(entry(4, 2, 0, epoch, 0, 99)), Ok(1));
        queue.ended(&Client::uid(1));
        assert_eq!(queue.push(entry(5, 1, 0, epoch, 0, 99)), Ok(2));
    }

    #[test]
    fn a_full_queue_says_its_limit() {
        let epoch = Instant::now();
        let mut queue = Queue::new(1, 8);
        queue.push(entry(1, 1, 0, epoch, 0, 99)).unwrap();
        assert_eq!(queue.push(entry(2, 2, 1, epoch, 0, 99)), Err(Full::Queue { limit: 1 }));
    }

    #[test]
    fn a_share_is_a_percentage_of_all_places_but_at_least_one() {
        assert_eq!(share(100, 64, 8), 72);
        assert_eq!(share(50, 64, 8), 36);
        assert_eq!(share(1, 64, 8), 1);
    }

    #[test]
    fn found_and_removed_by_client_and_id() {
        let epoch = Instant::now();
        let mut queue = Queue::new(8, 8);
        queue.push(entry(1, 1, 0, epoch, 0, 99)).unwrap();
        assert!(queue.find(&Client::uid(2), "r1").is_none());
        let key = queue.find(&Client::uid(1), "r1").unwrap().key;
        assert_eq!(queue.remove(key).unwrap().payload, 1);
        assert!(queue.is_empty() && queue.remove(key).is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { client: u32, priority: i32, life: u64 },
        Pop,
        Blocked,
        Remove(u64),
        Ended(u32),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3_u32, -1..=1_i32, 0..40_u64)
                .prop_map(|(client, priority, life)| Step::Push { client, priority, life }),
            2 => Just(Step::Pop),
            1 => Just(Step::Blocked),
            1 => (0..60_u64).prop_map(Step::Remove),
            1 => (0..3_u32).prop_map(Step::Ended),
            1 => (0..20_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a plain list as the model: bounds hold, the order holds, every accepted request comes out exactly
        /// once, by exactly one way.
        #[test]
        fn behaves_like_a_sorted_list(
            limit in 1..6_usize,
            share in 1..5_usize,
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let epoch = Instant::now();
            let mut now = 0;
            let mut queue = Queue::new(limit, share);
            let mut model: Vec<Entry<u64>> = Vec::new();
            let mut running = [0_usize; 3];
            let mut next_key = 0;
            let mut accepted = BTreeSet::new();
            let mut out = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Push { client, priority, life } => {
                        next_key += 1;
                        let new = entry(next_key, client, priority, epoch, now, now + life);
                        let held = model.iter().filter(|other| other.client == new.client).count()
                            + running[client as usize];
                        let expected = if held >= share {
                            Err(Full::Share { limit: share })
                        } else if model.len() >= limit {
                            Err(Full::Queue { limit })
                        } else {
                            Ok(model.iter().filter(|other| other.place() < new.place()).count())
                        };
                        prop_assert_eq!(queue.push(new.clone()), expected);
                        if expected.is_ok() {
                            model.push(new);
                            accepted.insert(next_key);
                        }
                    }
                    Step::Pop => {
                        model.sort_by_key(Entry::place);
                        let popped = queue.pop_ready(|_| true);
                        prop_assert_eq!(popped.as_ref().map(|entry| entry.key), model.first().map(|entry| entry.key));
                        if let Some(entry) = popped {
                            model.remove(0);
                            prop_assert!(out.insert(entry.payload));
                            let client = (0..3).find(|uid| Client::uid(*uid) == entry.client).unwrap();
                            running[client as usize] += 1;
                        }
                    }
                    Step::Blocked => prop_assert!(queue.pop_ready(|_| false).is_none()),
                    Step::Remove(key) => {
                        let known = model.iter().any(|entry| entry.key == key);
                        prop_assert_eq!(queue.ahead(key).is_some(), known);
                        let removed = queue.remove(key);
                        prop_assert_eq!(removed.is_some(), known);
                        if let Some(entry) = removed {
                            model.retain(|other| other.key != key);
                            prop_assert!(out.insert(entry.payload));
                        }
                    }
                    Step::Ended(client) => {
                        if let Some(left) = running[client as usize].checked_sub(1) {
                            running[client as usize] = left;
                            queue.ended(&Client::uid(client));
                        }
                    }
                    Step::Wait(ms) => {
                        now += ms;
                        let late = queue.expire(epoch + Duration::from_millis(now));
                        for entry in &late {
                            prop_assert!(entry.deadline <= epoch + Duration::from_millis(now));
                            prop_assert!(out.insert(entry.payload));
                        }
                        model.retain(|entry| late.iter().all(|gone| gone.key != entry.key));
                        prop_assert!(queue.next_deadline().is_none_or(|at| at > epoch + Duration::from_millis(now)));
                    }
                }
                prop_assert!(queue.len() <= limit);
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_deadline(), model.iter().map(|entry| entry.deadline).min());
                prop_assert!(queue.iter().is_sorted_by_key(Entry::place));
            }
            out.extend(std::iter::from_fn(|| queue.pop_ready(|_| true)).map(|entry| entry.payload));
            prop_assert_eq!(out, accepted);
        }

        /// However fast others come and whatever their priorities: what stands before a request came less than
        /// [`AGEING`] after it for each priority that it has more.
        #[test]
        fn nobody_starves(
            first in -1..=1_i32,
            others in prop::collection::vec((-1..=1_i32, 0..20_000_u64), 1..60),
        ) {
            let epoch = Instant::now();
            let mut queue = Queue::new(usize::MAX, usize::MAX);
            queue.push(entry(0, 1, first, epoch, 0, u64::MAX / 2)).unwrap();
            let mut now = 0;
            for (key, (priority, pause)) in (1..).zip(&others) {
                now += pause;
                queue.push(entry(key, 2, *priority, epoch, now, u64::MAX / 2)).unwrap();
            }
            let before = std::iter::from_fn(|| queue.pop_ready(|_| true)).take_while(|entry| entry.key != 0);
            for entry in before {
                let levels = u32::try_from(entry.priority - first).expect("a higher priority");
                prop_assert!(levels > 0 && entry.arrived < epoch + AGEING * levels);
            }
        }
    }
}
