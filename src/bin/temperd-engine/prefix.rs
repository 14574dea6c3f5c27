//! Which cells of the KV cache a new sequence may take over from others instead of reading the same tokens again.
//!
//! What a client has written is shared within that client only, else the time to the first token would tell another
//! what it wrote; the operator's text in front of it (system prompts) is shared by all. Pure.

use llama_cpp_2::token::LlamaToken;

/// Tokens and whose they are.
#[derive(Debug, Clone, Copy)]
pub struct Owned<'a> {
    /// The tokens.
    pub tokens: &'a [LlamaToken],
    /// How many of them, from the first, are the operator's.
    pub public: usize,
    /// The client; 0 is nobody, not even itself.
    pub scope: u64,
    /// The adapter under which they were or shall be read; cells of one mean nothing under another.
    pub adapter: u64,
}

impl Owned<'_> {
    /// Tokens at the begin that a sequence of `self` may take over from one of `other`.
    pub fn shared_with(&self, other: &Owned<'_>) -> usize {
        if self.adapter != other.adapter {
            return 0;
        }
        let allowed =
            if self.scope != 0 && self.scope == other.scope { usize::MAX } else { self.public.min(other.public) };
        common(self.tokens, other.tokens).min(allowed)
    }
}

/// Length of the longest common prefix.
fn common(a: &[LlamaToken], b: &[LlamaToken]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A sequence that has ended and whose cells are kept.
#[derive(Debug)]
pub struct Kept {
    /// llama.cpp's sequence id.
    pub slot: i32,
    /// The tokens in its cells.
    pub tokens: Vec<LlamaToken>,
    /// As in [`Owned`].
    pub public: usize,
    /// As in [`Owned`].
    pub scope: u64,
    /// As in [`Owned`].
    pub adapter: u64,
    /// [`Cache`]'s rent when it was last of use.
    pub since: f64,
    /// Whether another sequence has taken over some of it.
    pub used: bool,
}

impl Kept {
    /// Tokens and whose they are.
    pub fn owned(&self) -> Owned<'_> {
        Owned { tokens: &self.tokens, public: self.public, scope: self.scope, adapter: self.adapter }
    }

    /// What of it anyone could ever use: all within its client, else the operator's part.
    pub fn useful(&self) -> usize {
        if self.scope == 0 { self.public.min(self.tokens.len()) } else { self.tokens.len() }
    }

    /// Whether everything that it could give can be had from `other` as well.
    fn covered_by(&self, other: &Kept) -> bool {
        let whose =
            self.scope == other.scope || (self.tokens.len() <= self.public && self.tokens.len() <= other.public);
        whose && self.adapter == other.adapter && other.tokens.starts_with(&self.tokens)
    }
}

/// Share of the record of uses that is left after one more, and what it begins with: uses, and ends with or without.
const KEEP: f64 = 0.9;
const PRIOR: (f64, f64) = (2.0, 4.0);
/// However seldom cells were of use, some are kept, so that it is noticed when that changes.
const LEAST: f64 = 0.05;

/// Ended sequences, the one used longest ago first.
#[derive(Debug)]
pub struct Cache {
    kept: Vec<Kept>,
    /// Seconds that a cell kept from the beginning would have added to steps.
    rent: f64,
    /// How often kept sequences were of use, of how many.
    record: (f64, f64),
}

impl Default for Cache {
    fn default() -> Self {
        Self { kept: Vec::new(), rent: 0.0, record: PRIOR }
    }
}

impl Cache {
    /// Takes an ended sequence in. Returns those that are of no use any more: what this one covers, or itself.
    pub fn insert(&mut self, mut kept: Kept) -> Vec<Kept> {
        if kept.tokens.is_empty() || self.kept.iter().any(|other| kept.covered_by(other)) {
            return vec![kept];
        }
        let (covered, rest) = std::mem::take(&mut self.kept).into_iter().partition(|other| other.covered_by(&kept));
        self.kept = rest;
        kept.since = self.rent;
        self.kept.push(kept);
        covered
    }

    /// The slot that gives `new` the most tokens, and how many; the newest of equals. `can` says whether a slot's cells
    /// are enough for so many.
    pub fn best(&self, new: &Owned<'_>, can: impl Fn(i32, usize) -> bool) -> Option<(i32, usize)> {
        let counted = self.kept.iter().map(|kept| (kept.slot, new.shared_with(&kept.owned())));
        counted.filter(|&(slot, count)| count > 0 && can(slot, count)).max_by_key(|found| found.1)
    }

    /// Notes that this slot's cells were of use.
    pub fn used(&mut self, slot: i32) {
        if let Some(at) = self.kept.iter().position(|kept| kept.slot == slot) {
            let mut kept = self.kept.remove(at);
            (kept.since, kept.used) = (self.rent, true);
            self.kept.push(kept);
            self.learn(true);
        }
    }

    /// Gives up the sequence that was used longest ago.
    pub fn evict(&mut self) -> Option<Kept> {
        let oldest = (!self.kept.is_empty()).then(|| self.kept.remove(0))?;
        if !oldest.used {
            self.learn(false);
        }
        Some(oldest)
    }

    /// Notes that each kept cell has added `seconds` to a step.
    pub fn pay(&mut self, seconds: f64) {
        self.rent += seconds;
    }

    /// Whether the sequence used longest ago has cost as much since as it may still save: what reading one of its
    /// tokens again takes (`price`, in seconds), as likely as kept sequences have been of use so far.
    ///
    /// Rent paid until it equals the price is the rule that costs at most twice what foresight would (ski rental; Karlin
    /// et al., "Competitive snoopy caching", 1988).
    pub fn stale(&self, price: f64) -> bool {
        let likely = (self.record.0 / self.record.1).max(LEAST);
        self.kept.first().is_some_and(|oldest| self.rent - oldest.since > price * likely)
    }

    fn learn(&mut self, used: bool) {
        self.record = (self.record.0 * KEEP + f64::from(u8::from(used)), self.record.1 * KEEP + 1.0);
    }

    /// How many sequences are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// Tokens of all of them, cells that several hold counted for each.
    pub fn tokens(&self) -> usize {
        self.kept.iter().map(|kept| kept.tokens.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i32]) -> Vec<LlamaToken> {
        ids.iter().copied().map(LlamaToken).collect()
    }

    fn kept(slot: i32, ids: &[i32], public: usize, scope: u64) -> Kept {
        Kept { slot, tokens: tokens(ids), public, scope, adapter: 0, since: 0.0, used: false }
    }

    #[test]
    fn within_a_client_all_is_shared_and_across_clients_the_operators_text() {
        let share = |a: (&[i32], usize, u64), b: (&[i32], usize, u64)| {
            let (a, b) = (kept(0, a.0, a.1, a.2), kept(1, b.0, b.1, b.2));
            assert_eq!(a.owned().shared_with(&b.owned()), b.owned().shared_with(&a.owned()));
            a.owned().shared_with(&b.owned())
        };
        let mine: (&[i32], usize, u64) = (&[1, 2, 3, 4], 2, 7);
        assert_eq!(share(mine, (&[1, 2, 3, 9], 2, 7)), 3);
        assert_eq!(share(mine, (&[1, 2, 3, 4], 2, 8)), 2);
        // What one calls the system's, the other wrote.
        assert_eq!(share(mine, (&[1, 2, 3, 4], 0, 8)), 0);
        assert_eq!(share((&[1, 2, 3], 1, 0), (&[1, 2, 3], 1, 0)), 1);
        assert_eq!(share(mine, (&[5], 1, 7)), 0);
        let other = Kept { adapter: 3, ..kept(0, &[1, 2, 3, 4], 2, 7) };
        assert_eq!(other.owned().shared_with(&kept(1, &[1, 2, 3, 4], 2, 7).owned()), 0);
    }

    fn slots(kept: &[Kept]) -> Vec<i32> {
        kept.iter().map(|kept| kept.slot).collect()
    }

    #[test]
    fn a_longer_conversation_takes_the_place_of_its_begin() {
        let mut cache = Cache::default();
        assert!(cache.insert(kept(0, &[1, 2], 1, 7)).is_empty());
        assert!(cache.insert(kept(1, &[1, 2], 1, 8)).is_empty());
        assert_eq!(slots(&cache.insert(kept(2, &[1, 2, 3], 1, 7))), [0]);
        assert_eq!(slots(&cache.insert(kept(3, &[1, 2], 1, 7))), [3]);
        assert_eq!(slots(&cache.insert(kept(4, &[], 0, 7))), [4]);
        // All public: covered across clients.
        assert_eq!(slots(&cache.insert(kept(5, &[1], 1, 0))), [5]);
        assert_eq!((cache.len(), cache.tokens()), (2, 5));
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::default();
        cache.insert(kept(0, &[1, 2, 3], 0, 7));
        cache.insert(kept(1, &[5, 6], 0, 7));
        let new = kept(9, &[1, 2, 9], 0, 7);
        assert_eq!(cache.best(&new.owned(), |_, _| true), Some((0, 2)));
        assert_eq!(cache.best(&new.owned(), |slot, _| slot != 0), None);
        assert_eq!(cache.best(&kept(9, &[9], 0, 7).owned(), |_, _| true), None);
        cache.used(0);
        let order: Vec<_> = std::iter::from_fn(|| cache.evict()).collect();
        assert_eq!(slots(&order), [1, 0]);
    }

    #[test]
    fn kept_cells_go_when_they_have_cost_what_reading_them_again_would() {
        let mut cache = Cache::default();
        cache.insert(kept(0, &[1, 2], 0, 7));
        cache.pay(0.4);
        assert!(!cache.stale(1.0), "half of the price, and every second one is of use");
        cache.insert(kept(1, &[5, 6], 0, 7));
        cache.pay(0.2);
        assert!(cache.stale(1.0));
        assert_eq!(cache.evict().map(|kept| kept.slot), Some(0));
        assert!(!cache.stale(1.0));
        // Of use again: it begins anew, and the record is better.
        cache.used(1);
        cache.pay(0.5);
        assert!(!cache.stale(1.0));
        assert!(!Cache::default().stale(0.0));
    }

    #[test]
    fn where_nothing_comes_again_little_is_kept_and_where_all_does_much() {
        let lasts = |used: bool| {
            let mut cache = Cache::default();
            for slot in 0..50 {
                cache.insert(kept(slot, &[slot, slot], 0, 7));
                if used {
                    cache.used(slot);
                }
                cache.evict();
            }
            cache.insert(kept(99, &[9], 0, 7));
            (0..)
                .take_while(|_| {
                    cache.pay(0.01);
                    !cache.stale(1.0)
                })
                .count()
        };
        let (never, always) = (lasts(false), lasts(true));
        assert!(never < 10 && always > 90, "{never} and {always} of 100");
    }
}
