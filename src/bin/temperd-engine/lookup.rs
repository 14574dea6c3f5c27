//! Prompt lookup: what followed the last few tokens where they stood before, in prompt or answer, is drafted to follow
//! again (Saxena, "Prompt Lookup Decoding", 2023). Drafts are verified in the step that follows, so they change only the
//! speed; how many are worth their rows follows from acceptance and the cost of a step. Pure.

use std::collections::HashMap;

use llama_cpp_2::token::LlamaToken;

use crate::curve::{Curve, Size};

/// Tokens that must match; fewer match by chance too often.
const GRAM: usize = 3;
/// A match this long is a passage being copied; such drafts have a record of their own. It and [`MOST`] are what brought
/// most in a simulation of the texts of benches/figures/rewrite.txt, at the costs of a step that were measured beside them.
const LONG: usize = 4;
/// Longest draft of one sequence: where a model leaves what it copies, all that is behind it was drafted in vain.
pub const MOST: usize = 12;
/// A draft must promise this much more than going without: the costs are estimates.
const GAIN: f64 = 1.1;
/// Share of the old record that is left after one more draft.
const KEEP: f64 = 0.9;
/// Each token without a draft brings a bad record this much nearer to where it began, so that it is tried again.
const FORGIVE: f64 = 0.01;

/// Where the tokens of one sequence stood before, and how well drafts have done.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The token after the last place of each gram.
    after: HashMap<[i32; GRAM], usize>,
    /// Tokens whose gram and follower are in the map.
    indexed: usize,
    short: Record,
    long: Record,
}

/// How often a drafted token was right, given that those before it were.
#[derive(Debug, Clone, Copy)]
struct Record {
    right: f64,
    tried: f64,
    prior: (f64, f64),
}

impl Record {
    fn new(right: f64, tried: f64) -> Self {
        Self { right, tried, prior: (right, tried) }
    }

    fn acceptance(&self) -> f64 {
        self.right / self.tried
    }

    fn learn(&mut self, drafted: usize, accepted: usize) {
        // The first wrong token ends the trial; those behind it were not tried.
        let tried = if accepted < drafted { accepted + 1 } else { drafted };
        self.right = self.right * KEEP + accepted as f64;
        self.tried = self.tried * KEEP + tried as f64;
    }

    fn forgive(&mut self) {
        self.right += (self.prior.0 - self.right) * FORGIVE;
        self.tried += (self.prior.1 - self.tried) * FORGIVE;
    }
}

/// A possible draft.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The tokens expected to follow, at most [`MOST`].
    pub tokens: Vec<LlamaToken>,
    /// Whether the match was a long one.
    pub long: bool,
    /// Probability of each of them, given those before it.
    pub acceptance: f64,
}

impl Lookup {
    /// Of a sequence that has no token yet.
    pub fn new() -> Self {
        Self { after: HashMap::new(), indexed: 0, short: Record::new(2.0, 4.0), long: Record::new(3.2, 4.0) }
    }

    /// What may follow `tokens`, which only ever grow; at most `most` tokens.
    pub fn draft(&mut self, tokens: &[LlamaToken], most: usize) -> Option<Draft> {
        self.index(tokens);
        let found = *self.after.get(&gram(tokens, tokens.len())?)?;
        let matched = (0..LONG).take_while(|back| {
            let earlier = found.checked_sub(1 + back).and_then(|at| tokens.get(at));
            earlier.is_some() && earlier == tokens.len().checked_sub(1 + back).and_then(|at| tokens.get(at))
        });
        let long = matched.count() == LONG;
        let follow: Vec<_> = tokens.get(found..)?.iter().take(most.min(MOST)).copied().collect();
        let record = if long { &self.long } else { &self.short };
        (!follow.is_empty()).then(|| Draft { tokens: follow, long, acceptance: record.acceptance() })
    }

    /// Notes how a draft did.
    pub fn learn(&mut self, long: bool, drafted: usize, accepted: usize) {
        if long { self.long.learn(drafted, accepted) } else { self.short.learn(drafted, accepted) }
    }

    /// Notes a token that came without a draft.
    pub fn forgive(&mut self) {
        self.short.forgive();
        self.long.forgive();
    }

    /// Enters every gram that has a follower.
    fn index(&mut self, tokens: &[LlamaToken]) {
        for end in self.indexed.max(GRAM)..tokens.len() {
            if let Some(gram) = gram(tokens, end) {
                self.after.insert(gram, end);
            }
        }
        self.indexed = tokens.len();
    }
}

/// The gram that ends before `end`.
fn gram(tokens: &[LlamaToken], end: usize) -> Option<[i32; GRAM]> {
    let slice = tokens.get(end.checked_sub(GRAM)?..end)?;
    slice.iter().map(|token| token.0).collect::<Vec<_>>().try_into().ok()
}

/// How many tokens of each draft are worth their rows beside `rows` rows that are decoded and sampled from anyway:
/// the lengths that bring the most expected tokens per second, all 0 where none brings [`GAIN`] times as many as going
/// without. `depth` is how many cells each row looks at; `room` bounds their sum.
///
/// The n-th token of a draft arrives with probability acceptance^n, so rows are given away by that value; the best
/// number of them is searched, since the curve may have steps.
pub fn lengths(drafts: &[Option<Draft>], rows: usize, curve: &Curve, depth: f64, room: usize) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        let Some(draft) = draft else { continue };
        let mut chance = 1.0;
        for _ in &draft.tokens {
            chance *= draft.acceptance;
            order.push((chance, index));
        }
    }
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    order.truncate(room);
    let rate = |expected: f64, extra: usize| {
        expected / curve.seconds(Size { rows: rows + extra, outputs: rows + extra, depth })
    };
    let mut expected = rows as f64;
    let mut best = (rate(expected, 0) * GAIN, 0);
    for (extra, (chance, _)) in order.iter().enumerate() {
        expected += chance;
        let found = rate(expected, extra + 1);
        if found > best.0 {
            best = (found, extra + 1);
        }
    }
    let mut lengths = vec![0; drafts.len()];
    for (_, index) in order.iter().take(best.1) {
        lengths[*index] += 1;
    }
    lengths
}

/// All of each draft, in order, as far as `room` goes.
pub fn all(drafts: &[Option<Draft>], mut room: usize) -> Vec<usize> {
    let lengths = drafts.iter().map(|draft| {
        let length = draft.as_ref().map_or(0, |draft| draft.tokens.len()).min(room);
        room -= length;
        length
    });
    lengths.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(ids: &[i32]) -> Vec<LlamaToken> {
        ids.iter().copied().map(LlamaToken).collect()
    }

    fn drafted(ids: &[i32], most: usize) -> Option<Vec<i32>> {
        Lookup::new().draft(&tokens(ids), most).map(|draft| draft.tokens.iter().map(|token| token.0).collect())
    }

    #[test]
    fn what_followed_the_last_place_is_drafted() {
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2, 3], 8), Some(vec![4, 5, 1, 2, 3]));
        assert_eq!(drafted(&[1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3], 1), Some(vec![9]));
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 6], 8), None);
        assert_eq!(drafted(&[1, 2], 8), None);
    }

    #[test]
    fn a_long_match_has_its_own_record() {
        let text: Vec<i32> = (0..12).chain(0..9).collect();
        let mut lookup = Lookup::new();
        let before = lookup.draft(&tokens(&text), 4).expect("a draft");
        assert!(before.long);
        lookup.learn(false, 4, 0);
        assert_eq!(lookup.draft(&tokens(&text), 4), Some(before.clone()));
        lookup.learn(true, 4, 0);
        assert!(lookup.draft(&tokens(&text), 4).expect("a draft").acceptance < before.acceptance);
    }

    fn draft(length: usize, acceptance: f64) -> Option<Draft> {
        Some(Draft { tokens: vec![LlamaToken(1); length], long: true, acceptance })
    }

    #[test]
    fn rows_that_cost_nothing_are_used_and_dear_ones_are_not() {
        let flat = Curve::new(vec![(1, 1.0), (8, 1.01), (9, 9.0)], Vec::new(), 0.0);
        assert_eq!(lengths(&[draft(20, 0.9)], 1, &flat, 0.0, 100), [7]);
        let steep = Curve::new(vec![(1, 1.0), (2, 2.0)], Vec::new(), 0.0);
        assert_eq!(lengths(&[draft(20, 0.9)], 1, &steep, 0.0, 100), [0]);
        assert_eq!(
            lengths(
                &[draft(20, 0.9), None, draft(20, 0.5)],
                3,
                &Curve::new(vec![(1, 1.0), (8, 1.0), (9, 9.0)], Vec::new(), 0.0),
                0.0,
                100
            ),
            [5, 0, 0]
        );
        assert_eq!(lengths(&[draft(20, 0.9)], 1, &flat, 0.0, 3), [3]);
    }

    proptest! {
        #[test]
        fn a_draft_always_stood_behind_the_same_gram(ids in prop::collection::vec(0i32..4, 0..60), most in 1usize..30) {
            let all = tokens(&ids);
            let mut lookup = Lookup::new();
            for end in 0..=all.len() {
                let Some(draft) = lookup.draft(&all[..end], most) else { continue };
                prop_assert!(draft.tokens.len() <= most);
                let pattern = [&all[end - GRAM..end], draft.tokens.as_slice()].concat();
                prop_assert!(all[..end].windows(pattern.len()).any(|window| window == pattern));
            }
        }

        #[test]
        fn lengths_stay_within_drafts_and_room(
            given in prop::collection::vec(prop::option::of((1usize..24, 0.01f64..1.0)), 1..8), room in 0usize..40,
        ) {
            let drafts: Vec<_> = given.iter().map(|given| given.and_then(|(n, p)| draft(n, p))).collect();
            let found = lengths(&drafts, drafts.len(), &Curve::new(vec![(1, 1.0), (64, 1.5)], Vec::new(), 0.0), 0.0, room);
            prop_assert!(found.iter().sum::<usize>() <= room);
            for (length, draft) in found.iter().zip(&drafts) {
                prop_assert!(*length <= draft.as_ref().map_or(0, |draft| draft.tokens.len()));
            }
        }
    }
}
