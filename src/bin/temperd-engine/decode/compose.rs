//! What goes into the next step: cells taken over, drafts, and prompt rows beside the rows of running answers.

use super::Decoder;
use crate::{
    batch::{self, Due, Wish},
    curve::{Size, TILE},
    lookup,
    prefix::Source,
    sequence::Sequence,
};

/// Longest step that may follow from the machine's curve, in seconds: what comes in meanwhile waits for its end.
const LONGEST: f64 = 1.2;
/// While nothing is being answered a step is as short as this share of the best speed allows.
const ALONE: f64 = 0.97;
/// A step may take so many times as long where that saves the next one, which would be a short and a dear one.
const LAST: f64 = 1.5;
/// Running answers cost prompts no more than this share leaves of that speed: a step that lasts so long reads a long prompt
/// almost as fast as if nobody else were there, and is the gap that the others see.
const BESIDE: f64 = 0.88;
/// Cells from which on it is worth a step to see what tiles cost.
const DEEP: f64 = 256.0;
/// Where it is said how long a step may last, it is still this many times a step without prompts: they shall get on.
const AT_LEAST: f64 = 2.0;
/// Another's cells are waited for where they save at least this many more tokens than those there are.
pub(super) const WORTH_WAITING: usize = 16;

impl Decoder<'_> {
    /// Those that have not begun take over what others have read of their prompt. Where another is about to read more
    /// of it, they wait: what several begin with is read once.
    pub(super) fn begin(&mut self) {
        for index in 0..self.sequences.len() {
            let Some(new) = self.sequences.get(index).filter(|sequence| !sequence.begun && !sequence.waits) else {
                continue;
            };
            let wanted = new.wanted();
            let mut best = self.kept.best(&wanted, |slot, count| self.cells.reach(slot, count));
            let mut promised = 0;
            for (at, other) in self.sequences.iter().enumerate().filter(|(at, _)| self.plan.keeps_cells && *at != index)
            {
                let count = wanted.shared_with(&other.held());
                if count > 0 && !self.cells.reach(other.slot, count) {
                    continue;
                }
                let more = |best: Source| count > best.count || (count == best.count && best.parked);
                if count > 0 && best.is_none_or(more) {
                    best = Some(Source { slot: other.slot, count, parked: false });
                }
                // Only those in front, so that two never wait for each other.
                if at < index && !other.waits && !other.answering() && other.priority >= new.priority {
                    promised = promised.max(wanted.shared_with(&other.promised()));
                }
            }
            if promised >= best.map_or(0, |best| best.count) + WORTH_WAITING {
                continue;
            }
            let Some(new) = self.sequences.get_mut(index) else { continue };
            new.begun = true;
            if let Some(Source { slot, count, parked }) = best {
                let taken = if parked {
                    self.cells.unpark(slot, new.slot, count)
                } else {
                    self.cells.share(slot, new.slot, count)
                };
                match taken {
                    Ok(()) => new.take_over(count),
                    // It reads them itself.
                    Err(error) => tracing::warn!("cells of slot {slot} could not be taken over: {error}"),
                }
                self.kept.used(slot);
            }
        }
    }

    /// Drafts what may follow, where that pays. While prompts are being read it does not: their rows are sure.
    pub(super) fn draft(&mut self) {
        if !self.plan.lookup {
            return;
        }
        let group = self.group;
        let here = |sequence: &Sequence| sequence.adapter == group && !sequence.waits;
        let reading = self.sequences.iter().any(|sequence| here(sequence) && !sequence.answering());
        let context = self.plan.context;
        let drafts: Vec<Option<lookup::Draft>> = (self.sequences.iter_mut())
            .map(|sequence| {
                let most = (sequence.answer.left() - 1).min(context.saturating_sub(sequence.tokens().len()));
                (!reading && here(sequence)).then(|| sequence.look_up(most)).flatten()
            })
            .collect();
        let running = self.sequences.iter().filter(|sequence| here(sequence)).count();
        let room = (self.cells.context().n_ubatch() as usize).saturating_sub(running);
        let lengths = if self.plan.lookup_always {
            lookup::all(&drafts, room)
        } else {
            let depth = self.depth(Sequence::answering, Sequence::cells);
            lookup::lengths(&drafts, running, &self.curve, depth, room)
        };
        for ((sequence, draft), length) in self.sequences.iter_mut().zip(drafts).zip(lengths) {
            sequence.expect(draft, length);
        }
    }

    /// Gives out the rows, and fills the batch with them. Where answers have just waited for more cells, they do not wait for
    /// prompts as well.
    pub(super) fn compose(&mut self, waited: bool) {
        self.wishes.clear();
        let group = self.group;
        self.wishes.extend(self.sequences.iter().map(|sequence| {
            let wish = sequence.wish();
            // The others pause: they have another adapter.
            if sequence.adapter == group { wish } else { Wish { due: Due::Nothing, ..wish } }
        }));
        let answers = self.wishes.iter().any(|wish| matches!(wish.due, Due::Token { .. }));
        let room = if waited && answers { 0 } else { self.room() };
        batch::plan(&self.wishes, room, &mut self.parts);
        self.batch.clear();
        self.rows.clear();
        for part in &self.parts {
            let Some(sequence) = self.sequences.get(part.index) else { continue };
            let mut outputs = 0;
            for (token, position, logits) in sequence.next(part.count) {
                let added = self.batch.add(token, position, &[sequence.slot], logits);
                added.expect("the plan's room is the batch's size");
                outputs += usize::from(logits);
            }
            if outputs > 0 {
                let first = self.batch.n_tokens() - i32::try_from(outputs).unwrap_or_default();
                self.rows.push((part.index, first, outputs));
            }
        }
    }

    /// Prompt rows of the next step, at least one.
    fn room(&self) -> usize {
        let rows_of = |wish: &Wish| if let Due::Token { drafted } = wish.due { 1 + drafted } else { 0 };
        let answers: usize = self.wishes.iter().map(rows_of).sum();
        let all = self.cells.context().n_ubatch() as usize;
        let most = all.saturating_sub(answers).max(1);
        if !self.wishes.iter().any(|wish| matches!(wish.due, Due::Prompt(_))) {
            return most;
        }
        let reading = |sequence: &Sequence| sequence.begun && !sequence.answering();
        let (curve, depth) = (&self.curve, self.depth(reading, Sequence::cells));
        let unknown = self.plan.tiles && depth >= DEEP && !curve.knows_tiles() && all >= TILE;
        let room = match self.plan.step_target_s {
            Some(target) if answers > 0 => {
                let alone = curve.seconds(Size { rows: answers, outputs: answers, depth });
                curve.rows_within(target.max(AT_LEAST * alone), answers, depth, all).saturating_sub(answers)
            }
            _ if unknown => TILE.saturating_sub(answers),
            _ if answers == 0 => {
                let rest = self.sequences.iter().filter(|sequence| reading(sequence));
                let rest = rest.map(|sequence| sequence.to_read().saturating_sub(sequence.cells())).sum();
                let at_once = curve.seconds(Size { rows: rest, outputs: 1, depth }) <= LAST * LONGEST;
                if at_once { rest } else { curve.efficient_rows(0, ALONE, LONGEST, depth, most) }
            }
            _ => {
                // As long as the prompt's last step, its deepest, has to be: those before it may have more rows, and no
                // answer waits longer for them.
                let last = self.depth(reading, Sequence::to_read);
                let rows = answers + curve.efficient_rows(answers, BESIDE, LONGEST, last, all);
                let seconds = curve.seconds(Size { rows, outputs: answers, depth: last });
                curve.rows_within(seconds, answers, depth, all).saturating_sub(answers)
            }
        };
        room.clamp(1, most)
    }

    /// How many cells a row looks at once those sequences have `cells` of them: the most of any of those, or all that are
    /// in use then.
    fn depth(&self, of: impl Fn(&Sequence) -> bool, cells: impl Fn(&Sequence) -> usize) -> f64 {
        let theirs = self.sequences.iter().filter(|sequence| of(sequence));
        if self.plan.looks_at_all {
            let more: usize = theirs.map(|sequence| cells(sequence).saturating_sub(sequence.cells())).sum();
            return (self.cells.used() + more) as f64;
        }
        theirs.map(cells).max().unwrap_or(0) as f64
    }
}
