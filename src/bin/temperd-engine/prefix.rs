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
#[derive(Debug, Clone)]
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
    /// Whether a copy of its cells is kept instead of the cells.
    pub parked: bool,
    /// Whether it is a system prompt of the configuration, which goes after all others.
    pub named: bool,
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
        let goes = !self.named || other.named;
        goes && whose && self.adapter == other.adapter && other.tokens.starts_with(&self.tokens)
    }
}

/// Ended sequences, the one used longest ago first.
#[derive(Debug, Default)]
pub struct Cache {
    kept: Vec<Kept>,
    /// Seconds that a cell kept from the beginning would have added to steps.
    rent: f64,
}

/// What gives a new sequence the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Whose cells.
    pub slot: i32,
    /// How many, from the first.
    pub count: usize,
    /// Whether they have to be copied back into the cache.
    pub parked: bool,
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

    /// Who gives `new` the most tokens; of equals one that is in the cache, and of those the newest. `can` says whether a
    /// slot's cells are enough for so many.
    pub fn best(&self, new: &Owned<'_>, can: impl Fn(i32, usize) -> bool) -> Option<Source> {
        let sources = self.kept.iter().map(|kept| {
            let count = new.shared_with(&kept.owned());
            Source { slot: kept.slot, count, parked: kept.parked }
        });
        let able = sources.filter(|source| source.count > 0 && (source.parked || can(source.slot, source.count)));
        able.max_by_key(|source| (source.count, !source.parked))
    }

    /// Notes that this slot's cells were of use.
    pub fn used(&mut self, slot: i32) {
        if let Some(at) = self.kept.iter().position(|kept| kept.slot == slot) {
            let mut kept = self.kept.remove(at);
            kept.since = self.rent;
            self.kept.push(kept);
        }
    }

    /// Gives up this slot's sequence.
    pub fn give_up(&mut self, slot: i32) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| kept.slot == slot)?;
        Some(self.kept.remove(at))
    }

    /// Gives up the sequence that was used longest ago.
    pub fn evict(&mut self) -> Option<Kept> {
        self.first(|_| true).map(|at| self.kept.remove(at))
    }

    /// The sequence in the cache that was used longest ago, and how many tokens it has.
    pub fn oldest(&self) -> Option<(i32, usize)> {
        self.oldest_in_cache().map(|oldest| (oldest.slot, oldest.tokens.len()))
    }

    fn oldest_in_cache(&self) -> Option<&Kept> {
        self.first(|kept| !kept.parked).and_then(|at| self.kept.get(at))
    }

    /// The place of the one of these that goes first.
    fn first(&self, of: impl Fn(&Kept) -> bool) -> Option<usize> {
        let first = |named| self.kept.iter().position(|kept| kept.named == named && of(kept));
        first(false).or_else(|| first(true))
    }

    /// Whether these tokens are those of a system prompt here, or begin one.
    pub fn has_named(&self, tokens: &[LlamaToken]) -> bool {
        self.kept.iter().any(|kept| kept.named && kept.tokens.starts_with(tokens))
    }

    /// Tokens of all system prompts.
    pub fn named_tokens(&self) -> usize {
        self.kept.iter().filter(|kept| kept.named).map(|kept| kept.tokens.len()).sum()
    }

    /// Those whose cells are in the cache.
    pub fn in_cache(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter().filter(|kept| !kept.parked)
    }

    /// Notes that a copy of this slot's cells is kept instead of the cells. Returns those that are given up, so that at
    /// most `most` tokens are parked: the ones used longest ago, or itself.
    pub fn park(&mut self, slot: i32, most: usize) -> Vec<Kept> {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.slot == slot) {
            kept.parked = true;
        }
        let mut given_up = Vec::new();
        while self.parked() > most {
            let Some(at) = self.first(|kept| kept.parked) else { break };
            given_up.push(self.kept.remove(at));
        }
        given_up
    }

    /// Tokens that are parked.
    fn parked(&self) -> usize {
        self.kept.iter().filter(|kept| kept.parked).map(|kept| kept.tokens.len()).sum()
    }

    /// Notes that each kept cell has added `seconds` to a step.
    pub fn pay(&mut self, seconds: f64) {
        self.rent += seconds;
    }

    /// Whether the sequence in the cache that was used longest ago has cost as much since as parking it: `price` is what
    /// copying one of its tokens out and back takes, in seconds.
    ///
    /// Rent paid until it equals the price is the rule that costs at most twice what foresight would (ski rental; Karlin
    /// et al., "Competitive snoopy caching", 1988).
    pub fn stale(&self, price: f64) -> bool {
        self.oldest_in_cache().is_some_and(|oldest| self.rent - oldest.since > price)
    }

    /// How many sequences are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// Tokens of those in the cache, cells that several hold counted for each.
    pub fn tokens(&self) -> usize {
        self.in_cache().map(|kept| kept.tokens.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i32]) -> Vec<LlamaToken> {
        ids.iter().copied().map(LlamaToken).collect()
    }

    fn kept(slot: i32, ids: &[i32], public: usize, scope: u64) -> Kept {
        Kept { slot, tokens: tokens(ids), public, scope, adapter: 0, since: 0.0, parked: false, named: false }
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
        let source = Source { slot: 0, count: 2, parked: false };
        assert_eq!(cache.best(&new.owned(), |_, _| true), Some(source));
        assert_eq!(cache.best(&new.owned(), |slot, _| slot != 0), None);
        assert_eq!(cache.best(&kept(9, &[9], 0, 7).owned(), |_, _| true), None);
        cache.used(0);
        let order: Vec<_> = std::iter::from_fn(|| cache.evict()).collect();
        assert_eq!(slots(&order), [1, 0]);
    }

    #[test]
    fn a_system_prompt_goes_after_all_others_and_is_not_covered_by_them() {
        let named = |slot, ids: &[i32]| Kept { named: true, ..kept(slot, ids, ids.len(), 0) };
        let mut cache = Cache::default();
        cache.insert(named(0, &[1, 2]));
        assert!(cache.insert(kept(1, &[1, 2, 3], 2, 7)).is_empty());
        assert!(cache.insert(kept(2, &[5], 0, 7)).is_empty());
        assert!(cache.has_named(&[LlamaToken(1)]) && !cache.has_named(&tokens(&[1, 2, 3])));
        assert_eq!((cache.oldest(), cache.named_tokens()), (Some((1, 3)), 2));
        // What another client left of it is of no use beside it.
        assert_eq!(slots(&cache.insert(kept(3, &[1, 2], 2, 0))), [3]);
        // One that is longer takes its place.
        assert_eq!(slots(&cache.insert(named(4, &[1, 2, 9]))), [0]);
        assert_eq!(slots(&cache.insert(named(5, &[1, 2]))), [5]);
        cache.park(4, 9);
        assert_eq!(slots(&cache.park(1, 3)), [1]);
        let order: Vec<_> = std::iter::from_fn(|| cache.evict()).collect();
        assert_eq!(slots(&order), [2, 4]);
    }

    #[test]
    fn kept_cells_are_parked_when_they_have_cost_what_that_does() {
        let mut cache = Cache::default();
        cache.insert(kept(0, &[1, 2], 0, 7));
        cache.pay(0.8);
        assert!(!cache.stale(1.0));
        cache.insert(kept(1, &[5, 6], 0, 7));
        cache.pay(0.4);
        assert!(cache.stale(1.0));
        assert_eq!(cache.oldest(), Some((0, 2)));
        assert!(cache.park(0, 4).is_empty());
        assert!(!cache.stale(1.0));
        cache.used(1);
        cache.pay(0.9);
        assert!(!cache.stale(1.0), "of use again: it begins anew");
        assert!(!Cache::default().stale(0.0));
    }

    #[test]
    fn what_is_parked_is_bounded_and_given_back() {
        let mut cache = Cache::default();
        for slot in 0..3 {
            cache.insert(kept(slot, &[1, 2, slot + 3], 0, 7));
        }
        assert!(cache.park(0, 6).is_empty());
        assert!(cache.park(1, 6).is_empty());
        assert_eq!(cache.tokens(), 3);
        let new = kept(9, &[1, 2, 9], 0, 7);
        // The one in the cache needs no copy.
        let best = |cache: &Cache, new: &Kept| cache.best(&new.owned(), |_, _| true);
        assert_eq!(best(&cache, &new), Some(Source { slot: 2, count: 2, parked: false }));
        let longer = kept(9, &[1, 2, 3, 9], 0, 7);
        assert_eq!(best(&cache, &longer), Some(Source { slot: 0, count: 3, parked: true }));
        cache.used(0);
        assert_eq!(slots(&cache.park(2, 6)), [1]);
        assert_eq!(slots(&cache.park(0, 2)), [2, 0]);
        assert_eq!(cache.len(), 0);
    }
}
