//! Who runs, who waits, and how sequences leave the KV cache and come back; `park` decides.

use super::{Decoder, compose::WORTH_WAITING};
use crate::{
    park::{self, Adds, Member, Room},
    sequence::{Parked, Sequence},
};

impl Decoder<'_> {
    /// Finds anew who runs, where anything has changed: those that do not fit leave the cache, and those for which there is
    /// room come back. Where cells cannot be moved, all run that are there.
    pub fn settle(&mut self) {
        if self.left || !std::mem::take(&mut self.unsettled) {
            return;
        }
        let members = self.members();
        let runs = self.who_runs(&members);
        let order = park::urgency(&members);
        let now = |at: &usize| members.get(*at).is_some_and(|member| member.runs);
        let then = |at: &usize| runs.get(*at).is_some_and(|runs| *runs);
        // The least urgent first: what two have in common is then with the one that comes back sooner.
        for at in order.iter().rev().filter(|at| now(at) && !then(at)) {
            self.park(*at);
        }
        for at in order.iter().filter(|at| !now(at) && then(at)) {
            self.bring_back(*at);
        }
        self.trim_after_end();
    }

    fn members(&self) -> Vec<Member> {
        let member = |sequence: &Sequence| Member { priority: sequence.priority, runs: !sequence.waits };
        self.sequences.iter().map(member).collect()
    }

    fn who_runs(&self, members: &[Member]) -> Vec<bool> {
        let room = self.room_for_all();
        let most: usize = self.sequences.iter().map(|sequence| sequence.most(self.plan.context)).sum();
        if !self.plan.elastic || most <= room.ceiling {
            return vec![true; members.len()];
        }
        park::who_runs(members, room, |chosen, at| self.adds(chosen, at))
    }

    /// Cells that there may be. What is allocated already is within what memory allows.
    pub(super) fn room_for_all(&self) -> Room {
        let context = self.limits.context.min(self.cells.most());
        let ceiling = context.min(self.limits.grow_to.max(self.cells.allocated()));
        Room { context: context as usize, ceiling: ceiling as usize }
    }

    /// What the sequence of this place adds to the cells of those `chosen`. One that has no cells will share those that others
    /// have or are about to fill.
    fn adds(&self, chosen: &[usize], at: usize) -> Adds {
        let Some(new) = self.sequences.get(at) else { return Adds::default() };
        let others = || chosen.iter().filter_map(|at| self.sequences.get(*at));
        let most = new.most(self.plan.context);
        if new.cells() > 0 {
            let before = self.cells.held_by(others().map(|other| other.slot));
            let held = self.cells.held_by(others().map(|other| other.slot).chain([new.slot])) - before;
            return Adds { now: held, most: held + most.saturating_sub(new.cells()) };
        }
        let wanted = new.wanted();
        let shared = others().map(|other| wanted.shared_with(&other.promised())).max().unwrap_or(0);
        // Nobody waits for the last few of them.
        let shared = shared.saturating_sub(WORTH_WAITING);
        Adds { now: new.tokens().len() - shared, most: most - shared }
    }

    /// Cells of all sequences, those that several hold once, and what all of them may still fill.
    pub(super) fn live_tokens(&self) -> usize {
        let mut before = Vec::new();
        let mut sum = 0;
        for at in park::urgency(&self.members()) {
            sum += self.adds(&before, at).most;
            before.push(at);
        }
        sum
    }

    /// Lets the least urgent sequence leave the cache in the midst of a step, where its cells are needed. False where the only
    /// one that runs fills all that was loaded.
    pub(super) fn give_way(&mut self) -> bool {
        let members = self.members();
        let running = members.iter().filter(|member| member.runs).count();
        let least = park::urgency(&members).into_iter().rev();
        let mut least = least.filter(|at| members.get(*at).is_some_and(|member| member.runs));
        let could_grow = (self.room_for_all().context) < self.plan.context;
        match least.next() {
            Some(at) if self.plan.elastic && (running > 1 || could_grow) => {
                self.park(at);
                self.unsettled = true;
                true
            }
            _ => false,
        }
    }

    /// Takes a sequence out of the cache.
    fn park(&mut self, at: usize) {
        let copied: usize = self.sequences.iter().filter_map(|sequence| sequence.copy).map(|copy| copy.own()).sum();
        let Some(sequence) = self.sequences.get_mut(at) else { return };
        let (slot, cells) = (sequence.slot, sequence.cells());
        let copy = Parked { prefix: self.cells.shared_prefix(slot), cells };
        let mut kept = false;
        if park::copies(copy.own(), copied, self.limits.context as usize) {
            match self.cells.park_own(slot, copy.prefix, cells) {
                Ok(()) => kept = true,
                Err(error) => tracing::warn!("no copy of the cells of slot {slot}: {error}"),
            }
        } else {
            self.cells.remove(slot, 0, cells);
        }
        sequence.park(kept.then_some(copy));
        tracing::info!("sequence {} waits for room, {cells} cells, a copy of them: {kept}", sequence.id);
    }

    /// Lets a sequence go on: with its cells, where a copy of them is there, else it begins to read again.
    fn bring_back(&mut self, at: usize) {
        let copy = self.sequences.get(at).and_then(|sequence| sequence.copy);
        let back = copy.filter(|copy| {
            let got = self.give_back(at, *copy);
            got.inspect_err(|error| tracing::info!("cells of a sequence that comes back are read again: {error}"))
                .is_ok()
        });
        if let Some(sequence) = self.sequences.get_mut(at) {
            sequence.unpark(back);
            self.cells.forget(sequence.slot);
        }
    }

    fn give_back(&mut self, at: usize, copy: Parked) -> Result<(), String> {
        while self.cells.spare() < copy.own() {
            match self.make_room(copy.own()) {
                Ok(true) => {}
                Ok(false) => return Err("there is no room for the copy".to_owned()),
                Err(error) => {
                    tracing::error!("{error}");
                    self.fail_all(&error);
                    return Err(error);
                }
            }
        }
        let sequence = self.sequences.get(at).ok_or("it has ended")?;
        let lacking = sequence.lacking(copy);
        let running = self.sequences.iter().find(|other| lacking.shared_with(&other.held()) == copy.prefix);
        let kept = || self.kept.best(&lacking, |slot, count| self.cells.reach(slot, count));
        let kept = || kept().filter(|source| source.count == copy.prefix && !source.parked).map(|source| source.slot);
        let holder = running.map(|other| other.slot).or_else(kept).ok_or("what it shared with others is gone")?;
        self.cells.unpark_own(sequence.slot, holder, copy.prefix, copy.cells)
    }
}
