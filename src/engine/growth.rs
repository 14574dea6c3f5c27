//! Whether an engine leaks: whether it takes more memory than its model and its operating point explain. Pure.
//!
//! What an engine takes is known well: what it had when it was ready, cells for the context, buffers of a step. The bound is
//! generous, since an engine that is ended in vain costs a pause; the governor sees lesser amounts as memory that is missing,
//! and a context that it lowers lowers this bound too. One that leaks leaves its state to the next, so no stream notices but
//! for the pause, and nothing is done of it more than once an hour: were the reckoning wrong on some machine, that is all that
//! it may cost.

use std::{fmt, time::Duration};

use crate::{units::Bytes, wire::engine::Ready};

/// What more is allowed, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Percent over what is explained.
    pub percent: u64,
    /// What goes uncounted: constraints, a tokeniser's stack, what an allocator keeps.
    pub slack: Bytes,
    /// An excess that passes is none: copies are made whenever the cache changes its size.
    pub lasts: Duration,
    /// Between two engines that are ended for it.
    pub rest: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { percent: 25, slack: Bytes::mib(256), lasts: Duration::from_secs(60), rest: Duration::from_secs(3600) }
    }
}

/// An engine has grown beyond all explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaks {
    /// What it has.
    pub has: Bytes,
    /// What it may have.
    pub limit: Bytes,
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine has {} of memory, its model and its operating point explain {}", self.has, self.limit)
    }
}

/// The memory of one engine after the other.
#[derive(Debug, Default)]
pub struct Growth {
    /// What the one that lives had when it was ready.
    first: Option<Bytes>,
    /// For how long it has had too much.
    over: Duration,
    /// Since an engine was ended for it; `None`: none was.
    rested: Option<Duration>,
}

impl Growth {
    /// Another engine lives.
    pub fn begin(&mut self) {
        (self.first, self.over) = (None, Duration::ZERO);
    }

    /// A look at the engine that was `ready`, so long after the one before: it has `anonymous` memory, and its cache may have
    /// `context` cells. The first one of an engine is what it began with.
    pub fn look(
        &mut self,
        elapsed: Duration,
        anonymous: Bytes,
        ready: &Ready,
        context: u32,
        bounds: &Bounds,
    ) -> Option<Leaks> {
        self.rested = self.rested.map(|rested| rested.saturating_add(elapsed));
        let first = *self.first.get_or_insert(anonymous);
        let explained = explained(first, ready, context);
        let limit = explained + explained.percent(bounds.percent) + bounds.slack;
        if anonymous <= limit {
            self.over = Duration::ZERO;
            return None;
        }
        self.over = self.over.saturating_add(elapsed);
        if self.over < bounds.lasts || self.rested.is_some_and(|rested| rested < bounds.rest) {
            return None;
        }
        self.rested = Some(Duration::ZERO);
        Some(Leaks { has: anonymous, limit })
    }
}

/// What it may come to have: what it began with; all cells of its context, in the cache or in one for embeddings; copies of
/// half as many beside them (`park`); and buffers of both contexts, which are there once they are used.
fn explained(first: Bytes, ready: &Ready, context: u32) -> Bytes {
    let cells = Bytes(ready.kv_bytes_per_token).times(context);
    let buffers = Bytes(ready.compute_bytes);
    first + cells + Bytes(cells.0 / 2) + buffers + buffers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ready() -> Ready {
        Ready { kv_bytes_per_token: 1 << 16, compute_bytes: 50 << 20, ..Ready::default() }
    }

    fn look(growth: &mut Growth, mib: u64) -> Option<Leaks> {
        growth.look(SECOND, Bytes::mib(mib), &ready(), 4096, &Bounds::default())
    }

    /// 300 + 256 + 128 + 100 MiB are explained; a quarter more and the slack are allowed.
    const LIMIT: u64 = 784 + 196 + 256;

    #[test]
    fn what_lasts_beyond_all_explanation_is_a_leak() {
        let mut growth = Growth::default();
        assert_eq!(look(&mut growth, 300), None);
        (0..1000).for_each(|_| assert_eq!(look(&mut growth, LIMIT - 1), None));
        // What passes does not count.
        for _ in 0..10 {
            (0..59).for_each(|_| assert_eq!(look(&mut growth, LIMIT + 100), None));
            assert_eq!(look(&mut growth, 400), None);
        }
        let found = (1..100).find_map(|n| Some((n, look(&mut growth, LIMIT + 100)?)));
        let (after, leaks) = found.expect("it lasts");
        assert_eq!((after, leaks.has), (60, Bytes::mib(LIMIT + 100)));
        let text = leaks.to_string();
        assert!(text.contains("1336 MiB") && text.contains("1236 MiB"), "{text}");
    }

    #[test]
    fn a_lower_context_explains_less() {
        let mut growth = Growth::default();
        let with = |growth: &mut Growth, context| {
            let bounds = Bounds { lasts: SECOND, ..Bounds::default() };
            growth.look(SECOND, Bytes::mib(700), &ready(), context, &bounds)
        };
        look(&mut growth, 100);
        assert_eq!(with(&mut growth, 4096), None);
        assert!(with(&mut growth, 256).is_some());
    }

    #[test]
    fn a_reckoning_that_is_wrong_costs_an_engine_an_hour() {
        let mut growth = Growth::default();
        let mut ended = 0;
        look(&mut growth, 300);
        for _ in 0..3 * 3600 {
            if look(&mut growth, 10 * LIMIT).is_some() {
                ended += 1;
                growth.begin();
                look(&mut growth, 300);
            }
        }
        assert_eq!(ended, 3, "in three hours");
    }

    proptest! {
        /// What was explained is never a leak, and no number breaks it.
        #[test]
        fn nobody_is_ended_for_what_is_explained(
            first in any::<u64>(), share in 0.0_f64..1.0, kv in any::<u64>(), compute in any::<u64>(), context in any::<u32>(),
        ) {
            let ready = Ready { kv_bytes_per_token: kv, compute_bytes: compute, ..Ready::default() };
            let bounds = Bounds { lasts: Duration::ZERO, ..Bounds::default() };
            let mut growth = Growth::default();
            prop_assert_eq!(growth.look(SECOND, Bytes(first), &ready, context, &bounds), None);
            let most = explained(Bytes(first), &ready, context);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of what fits")]
            let has = Bytes((most.0 as f64 * share) as u64);
            prop_assert_eq!(growth.look(SECOND, has, &ready, context, &bounds), None);
        }
    }
}
