//! Measures what a step costs, for [`Curve`](crate::curve::Curve), and by how many threads it is done best, while nothing
//! runs. It uses cells and sequence ids that nobody has, behind all that are in use, and gives them back: what is kept stays
//! as it is, and where it lies.

use std::time::Instant;

use llama_cpp_2::{
    LlamaStateSeqFlags, context::LlamaContext, llama_batch::LlamaBatch, model::LlamaModel, token::LlamaToken,
};

pub use self::agenda::Found;
use self::agenda::{Agenda, Piece, Taken};
use crate::{cells::Cells, threads};

mod agenda;

/// Measurements under way.
pub struct Measuring<'a> {
    agenda: Agenda,
    token: LlamaToken,
    batch: LlamaBatch<'static>,
    /// The context in which a count of threads is tried.
    alone: Option<(usize, LlamaContext<'a>)>,
    /// A sequence id, and the tokens that were read into its cells.
    own: Option<(i32, usize)>,
}

impl<'a> Measuring<'a> {
    /// Nothing is known yet. `counts` are those of threads to choose from.
    pub fn new(model: &LlamaModel, counts: Vec<usize>, keeps_cells: bool, n_batch: usize) -> Self {
        Self {
            agenda: Agenda::new(counts, keeps_cells),
            token: first_token(model),
            batch: LlamaBatch::new(n_batch.max(1), 1),
            alone: None,
            own: None,
        }
    }

    /// Does the next piece. Not to be called while anything runs. What was found comes at the end of a phase.
    ///
    /// # Errors
    /// A step that fails; nothing more is to be measured then.
    pub fn piece(&mut self, cells: &mut Cells<'a>) -> Result<Option<Found>, String> {
        let rows = cells.context().n_ubatch().min(cells.context().n_batch()) as usize;
        // Behind what is filled there is room for a step still.
        let most = (cells.allocated() as usize / 2).min(cells.spare().saturating_sub(agenda::LEAST));
        let Some(piece) = self.agenda.next(rows, most) else {
            self.give_back(cells);
            return Ok(Some(Found::Curve(self.agenda.curve())));
        };
        let before = threads::interruptions();
        let (seconds, filled) = match piece {
            Piece::Alone { threads } => (self.alone(cells, threads)?, 0),
            Piece::Step { rows, outputs, .. } => {
                let (slot, held) = self.own(cells)?;
                (step(cells.context_mut(), &mut self.batch, (self.token, held, slot), rows, outputs)?, 0)
            }
            Piece::Fill { read, most } => {
                let (slot, _) = self.own(cells)?;
                let through = cells.slot().ok_or("no second sequence id is free")?;
                let began = Instant::now();
                let filled = fill_cells(cells.context_mut(), &mut self.batch, (self.token, slot, through), read, most);
                self.own = Some((slot, read));
                cells.lend_back(through);
                (began.elapsed().as_secs_f64(), filled?)
            }
        };
        let disturbed = threads::interruptions() != before;
        let found = self.agenda.took(Taken { seconds, disturbed, filled });
        if found.is_some() {
            self.alone = None;
        }
        Ok(found)
    }

    /// Whether there is room for it now.
    pub fn fits(cells: &Cells<'_>) -> bool {
        cells.spare() >= 2 * agenda::LEAST
    }

    /// Leaves cells, sequence ids and memory to others.
    pub fn interrupt(&mut self, cells: &mut Cells<'a>) {
        self.give_back(cells);
        self.agenda.interrupted();
    }

    fn give_back(&mut self, cells: &mut Cells<'a>) {
        self.alone = None;
        if let Some((slot, _)) = self.own.take() {
            cells.lend_back(slot);
        }
    }

    /// A sequence id without cells, at first.
    fn own(&mut self, cells: &mut Cells<'a>) -> Result<(i32, usize), String> {
        if self.own.is_none() {
            self.own = Some((cells.slot().ok_or("no sequence id is free")?, 0));
        }
        self.own.ok_or_else(|| "it was just taken".to_owned())
    }

    /// Sequence ids that the next piece may take.
    pub fn slots(&self) -> usize {
        if self.own.is_some() { 1 } else { 2 }
    }

    /// The crate sets the threads of a context when it is made only, so each count has a small one of its own.
    fn alone(&mut self, cells: &Cells<'a>, threads: usize) -> Result<f64, String> {
        if self.alone.as_ref().is_none_or(|(count, _)| *count != threads) {
            // The one before first: both would take memory.
            self.alone = None;
            self.alone = Some((threads, cells.small_context(threads)?));
        }
        let (_, context) = self.alone.as_mut().ok_or("it was just made")?;
        step(context, &mut self.batch, (self.token, 0, 0), 1, 1)
    }
}

/// Reads `read` tokens and fills up to `most` cells with copies of theirs, through another sequence, since a state takes the
/// place of all that its sequence holds. Returns how many are filled.
fn fill_cells(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    (token, slot, through): (LlamaToken, i32, i32),
    read: usize,
    most: usize,
) -> Result<usize, String> {
    fill(batch, (token, 0, slot), read, 1)?;
    context.decode(batch).map_err(|error| error.to_string())?;
    let state = context.state_seq_get(slot, LlamaStateSeqFlags::empty()).map_err(|error| error.to_string())?;
    let mut filled = read;
    while filled + read <= most {
        context.state_seq_set(&state, through).map_err(|error| error.to_string())?;
        context.kv_cache_seq_cp(through, slot, None, None).map_err(|error| error.to_string())?;
        context.kv_cache_seq_rm(through, None, None).map_err(|error| error.to_string())?;
        filled += read;
    }
    Ok(filled)
}

/// A token that every text may begin with.
pub fn first_token(model: &LlamaModel) -> LlamaToken {
    let bos = model.vocab().bos();
    if bos.0 >= 0 { bos } else { LlamaToken(0) }
}

/// Seconds of a step of `rows` rows, which are taken out again, of a token from a position of a sequence on.
fn step(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    (token, from, slot): (LlamaToken, usize, i32),
    rows: usize,
    outputs: usize,
) -> Result<f64, String> {
    fill(batch, (token, from, slot), rows, outputs)?;
    let began = Instant::now();
    context.decode(batch).map_err(|error| error.to_string())?;
    context.synchronize();
    let seconds = began.elapsed().as_secs_f64();
    // A recurrent state can only be removed as a whole.
    let from = if from == 0 { None } else { Some(u32::try_from(from).map_err(|error| error.to_string())?) };
    context.kv_cache_seq_rm(slot, from, None).map_err(|error| error.to_string())?;
    Ok(seconds)
}

fn fill(
    batch: &mut LlamaBatch<'_>,
    (token, from, slot): (LlamaToken, usize, i32),
    rows: usize,
    outputs: usize,
) -> Result<(), String> {
    batch.clear();
    for row in 0..rows {
        let position = i32::try_from(from + row).map_err(|error| error.to_string())?;
        batch.add(token, position, &[slot], row + outputs >= rows).map_err(|error| error.to_string())?;
    }
    Ok(())
}
