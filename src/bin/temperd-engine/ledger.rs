//! How many cells of the KV cache are in use, where one cell may be in several sequences. Pure; llama.cpp keeps the same
//! book, and does not show it.

use std::collections::HashMap;

/// Which cells each sequence id holds.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Names of cells, in order of position. They are ours: where llama.cpp keeps a cell does not matter here.
    held: HashMap<i32, Vec<usize>>,
    /// How many sequences hold the cell of each name; 0 is free.
    holders: Vec<u32>,
    free: Vec<usize>,
}

impl Ledger {
    /// Cells in use.
    pub fn used(&self) -> usize {
        self.holders.len() - self.free.len()
    }

    /// Cells that any of these sequences holds.
    pub fn held_by(&self, slots: impl Iterator<Item = i32>) -> usize {
        let mut held = vec![false; self.holders.len()];
        for name in slots.filter_map(|slot| self.held.get(&slot)).flatten() {
            if let Some(held) = held.get_mut(*name) {
                *held = true;
            }
        }
        held.into_iter().filter(|held| *held).count()
    }

    /// How many cells of this sequence, from its first, others hold too.
    pub fn shared_prefix(&self, slot: i32) -> usize {
        let shared = |name: &&usize| self.holders.get(**name).is_some_and(|holders| *holders > 1);
        self.held.get(&slot).map_or(0, |held| held.iter().take_while(shared).count())
    }

    /// The names of this sequence's cells.
    pub fn names(&self, slot: i32) -> &[usize] {
        self.held.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// A ledger of sequences whose cells have these names.
    pub fn of(held: HashMap<i32, Vec<usize>>) -> Self {
        let count = held.values().flatten().max().map_or(0, |name| name + 1);
        let mut holders = vec![0; count];
        for name in held.values().flatten() {
            if let Some(holders) = holders.get_mut(*name) {
                *holders += 1;
            }
        }
        let unused = holders.iter().enumerate().filter(|(_, holders)| **holders == 0);
        let free = unused.map(|(name, _)| name).collect();
        Self { held, holders, free }
    }

    /// The sequence gets `count` cells of its own behind those that it has.
    pub fn grow(&mut self, slot: i32, count: usize) {
        let held = self.held.entry(slot).or_default();
        for _ in 0..count {
            let name = self.free.pop().unwrap_or_else(|| {
                self.holders.push(0);
                self.holders.len() - 1
            });
            if let Some(holders) = self.holders.get_mut(name) {
                *holders = 1;
            }
            held.push(name);
        }
    }

    /// The sequence `to`, which has none, holds the first `count` cells of `from` too.
    pub fn share(&mut self, from: i32, to: i32, count: usize) {
        let shared: Vec<usize> = self.held.get(&from).into_iter().flatten().take(count).copied().collect();
        for name in &shared {
            if let Some(holders) = self.holders.get_mut(*name) {
                *holders += 1;
            }
        }
        self.held.insert(to, shared);
    }

    /// The sequence keeps its first `keep` cells.
    pub fn truncate(&mut self, slot: i32, keep: usize) {
        let Some(held) = self.held.get_mut(&slot) else { return };
        for name in held.drain(keep.min(held.len())..) {
            if let Some(holders) = self.holders.get_mut(name) {
                *holders -= 1;
                if *holders == 0 {
                    self.free.push(name);
                }
            }
        }
    }

    /// Nobody holds any.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shared_cell_counts_once_and_until_the_last_has_left() {
        let mut ledger = Ledger::default();
        ledger.grow(0, 600);
        ledger.share(0, 1, 512);
        ledger.grow(1, 10);
        assert_eq!(ledger.used(), 610);
        assert_eq!((ledger.shared_prefix(0), ledger.shared_prefix(1), ledger.shared_prefix(2)), (512, 512, 0));
        ledger.truncate(0, 0);
        assert_eq!(ledger.used(), 522);
        assert_eq!(ledger.shared_prefix(1), 0);
        ledger.truncate(1, 515);
        assert_eq!(ledger.used(), 515);
        ledger.grow(2, 7);
        assert_eq!(ledger.used(), 522);
        let names = [1, 2].map(|slot| (slot, ledger.names(slot).to_vec()));
        let again = Ledger::of(HashMap::from(names));
        assert_eq!((again.used(), again.held_by([1].into_iter())), (522, 515));
        ledger.clear();
        assert_eq!(ledger.used(), 0);
    }

    proptest! {
        #[test]
        fn it_counts_what_sets_of_cells_would(
            steps in prop::collection::vec((0u8..3, 0i32..5, 0i32..5, 0usize..9), 0..60),
        ) {
            let mut ledger = Ledger::default();
            let mut model: HashMap<i32, Vec<u32>> = HashMap::new();
            let mut next = 0;
            for (what, slot, other, count) in steps {
                match what {
                    0 => {
                        ledger.grow(slot, count);
                        model.entry(slot).or_default().extend((0..count).map(|_| { next += 1; next }));
                    }
                    1 if slot != other => {
                        ledger.truncate(other, 0);
                        ledger.share(slot, other, count);
                        let shared = model.get(&slot).into_iter().flatten().take(count).copied().collect();
                        model.insert(other, shared);
                    }
                    _ => {
                        ledger.truncate(slot, count);
                        model.entry(slot).or_default().truncate(count);
                    }
                }
                let distinct: HashSet<u32> = model.values().flatten().copied().collect();
                prop_assert_eq!(ledger.used(), distinct.len());
                let of_two: HashSet<u32> = [0, 3].iter().filter_map(|slot| model.get(slot)).flatten().copied().collect();
                prop_assert_eq!(ledger.held_by([0, 3].into_iter()), of_two.len());
            }
        }
    }
}
