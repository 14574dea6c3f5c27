//! Measures at load what a step costs, for [`Curve`], and by how many threads it is done best.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use llama_cpp_2::{
    LlamaStateSeqFlags,
    context::{LlamaContext, params::LlamaContextParams},
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::LlamaModel,
    token::LlamaToken,
};

use crate::{curve::Curve, threads};

/// No new size is begun after this long: a large model on a small machine takes seconds for one step of many rows,
/// which its first prompts measure as well.
const ENOUGH: Duration = Duration::from_millis(400);
/// Rows of the step by which the cost of outputs is measured.
const OUTPUTS: usize = 4;
/// Counts of threads are tried for so long, from the end of the first step on, which reads the weights from disk. A model
/// whose single step takes longer is bound by its size, and gets a thread for each strong core.
const THREADS: Duration = Duration::from_millis(200);
/// Steps by which one count of threads is measured, and how long at most.
const STEPS: u32 = 12;
const ONE_COUNT: Duration = Duration::from_millis(60);
/// The least of so many steps of a size counts: whatever disturbs makes it longer.
const TRIES: usize = 2;

/// Cells that rows look at where the cost of a cell is measured, and rows of those steps.
const DEEP: usize = 1024;
const DEEP_ROWS: [usize; 2] = [1, MANY];
/// Rows of a step of many.
pub const MANY: usize = 8;

/// What steps of one context take, by its measurements.
pub struct Trial<'a, 'model> {
    context: &'a mut LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    token: LlamaToken,
    /// Rows and seconds in an empty cache.
    shallow: Vec<(usize, f64)>,
    per_output: f64,
    /// Tokens that were read, and cells that copies of them fill.
    filled: (usize, usize),
    /// Rows and seconds over so many cells.
    deep: Vec<(usize, f64)>,
}

impl<'a, 'model> Trial<'a, 'model> {
    /// Measures steps of up to `most` rows in the empty cache of `context`, which nobody uses yet.
    ///
    /// # Errors
    /// A step that fails.
    pub fn shallow(context: &'a mut LlamaContext<'model>, model: &LlamaModel, most: usize) -> Result<Self, String> {
        let began = Instant::now();
        let most = most.min(context.n_ubatch() as usize).min(context.n_ctx() as usize / 2).max(1);
        let (batch, token) = (LlamaBatch::new(most, 1), first_token(model));
        let (shallow, deep) = (Vec::new(), Vec::new());
        let mut trial = Self { context, batch, token, shallow, per_output: 0.0, filled: (0, 0), deep };
        let mut rows = 1;
        while rows <= most && began.elapsed() < ENOUGH {
            let seconds = trial.best(rows, 1, TRIES)?;
            if rows == OUTPUTS {
                let all = trial.best(rows, OUTPUTS, TRIES)?;
                trial.per_output = (all - seconds).max(0.0) / (OUTPUTS - 1) as f64;
            }
            trial.shallow.push((rows, seconds));
            rows *= 2;
        }
        Ok(trial)
    }

    /// Seconds of a step of one row in an empty cache.
    pub fn one(&self) -> f64 {
        self.shallow.first().map_or(f64::INFINITY, |point| point.1)
    }

    /// Fills [`DEEP`] cells with copies of a few: reading as many tokens would take long.
    ///
    /// # Errors
    /// A step or copy that fails.
    pub fn deepen(&mut self) -> Result<(), String> {
        let read = self.shallow.last().map_or(1, |point| point.0);
        let most = DEEP.min(self.context.n_ctx() as usize / 2);
        fill(&mut self.batch, (self.token, 0), read, 1)?;
        self.context.decode(&mut self.batch).map_err(|error| error.to_string())?;
        let state = self.context.state_seq_get(0, LlamaStateSeqFlags::empty()).map_err(|error| error.to_string())?;
        let mut filled = read;
        while filled + read <= most {
            // Through another sequence, since a state takes the place of all that its sequence holds.
            self.context.state_seq_set(&state, 1).map_err(|error| error.to_string())?;
            self.context.kv_cache_seq_cp(1, 0, None, None).map_err(|error| error.to_string())?;
            self.context.kv_cache_seq_rm(1, None, None).map_err(|error| error.to_string())?;
            filled += read;
        }
        self.filled = (read, filled);
        Ok(())
    }

    /// Measures steps of [`DEEP_ROWS`] rows over those cells, once more where they have been: the least counts.
    ///
    /// # Errors
    /// A step that fails.
    pub fn deep(&mut self) -> Result<(), String> {
        for rows in DEEP_ROWS {
            let Some(&(_, alone)) = self.shallow.iter().find(|point| point.0 == rows) else { break };
            if Duration::from_secs_f64(alone) >= ENOUGH {
                break;
            }
            let seconds = self.best(rows, 1, 1)?;
            match self.deep.iter_mut().find(|point| point.0 == rows) {
                Some(point) => point.1 = point.1.min(seconds),
                None => self.deep.push((rows, seconds)),
            }
        }
        Ok(())
    }

    /// The curve.
    pub fn curve(&self) -> Curve {
        self.curve_with(&self.cells())
    }

    /// The curve of a context that differs in what cells cost.
    pub fn curve_with(&self, cells: &[(usize, f64)]) -> Curve {
        let of_rows = |seconds: f64| (seconds - self.per_output).max(seconds / 10.0);
        let rows = self.shallow.iter().map(|&(rows, seconds)| (rows, of_rows(seconds)));
        Curve::new(rows.collect(), cells.to_vec(), self.per_output)
    }

    /// Rows, and seconds that one cell more in the way of each adds to their step.
    pub fn cells(&self) -> Vec<(usize, f64)> {
        let of_cell = |&(rows, seconds): &(usize, f64)| {
            let (_, alone) = self.shallow.iter().find(|point| point.0 == rows)?;
            Some((rows, (seconds - alone).max(0.0) / self.filled.1.max(1) as f64))
        };
        self.deep.iter().filter_map(of_cell).collect()
    }

    /// Seconds of a step of so many rows, which are taken out again, behind the cells there are.
    fn best(&mut self, rows: usize, outputs: usize, tries: usize) -> Result<f64, String> {
        let mut least = f64::INFINITY;
        for _ in 0..tries {
            let seconds = step(self.context, &mut self.batch, (self.token, self.filled.0), rows, outputs)?;
            least = least.min(seconds);
        }
        Ok(least)
    }
}

/// Measures all that a step costs. The cost of cells is measured where they can be copied (`keeps_cells`).
///
/// # Errors
/// A step that fails.
pub fn measure(context: &mut LlamaContext<'_>, model: &LlamaModel, keeps_cells: bool) -> Result<Curve, String> {
    let mut trial = Trial::shallow(context, model, usize::MAX)?;
    if keeps_cells {
        trial.deepen()?;
        for _ in 0..TRIES {
            trial.deep()?;
        }
    }
    let curve = trial.curve();
    context.clear_kv_cache();
    Ok(curve)
}

/// Threads of a step of one row: the fewest of `counts` that reach the best speed. The crate sets the threads of a context
/// when it is made only, so each count has a small one of its own, by `params`.
///
/// # Errors
/// A context that cannot be made, or a step that fails.
pub fn threads(
    backend: &LlamaBackend,
    model: &LlamaModel,
    counts: &[usize],
    params: impl Fn(i32) -> Result<LlamaContextParams, String>,
) -> Result<Option<usize>, String> {
    let token = first_token(model);
    let mut began = None;
    let mut measured = Vec::new();
    for count in counts {
        if began.is_some_and(|began: Instant| began.elapsed() >= THREADS) {
            break;
        }
        let params = params(i32::try_from(*count).unwrap_or(i32::MAX))?;
        let params = params.with_n_ctx(NonZeroU32::new(256)).with_n_batch(1).with_n_ubatch(1);
        let mut context = model.new_context(backend, params).map_err(|error| error.to_string())?;
        let mut batch = LlamaBatch::new(1, 1);
        // The first one starts the threads.
        step(&mut context, &mut batch, (token, 0), 1, 1)?;
        let from = Instant::now();
        began.get_or_insert(from);
        let mut least = f64::INFINITY;
        for _ in 0..STEPS {
            least = least.min(step(&mut context, &mut batch, (token, 0), 1, 1)?);
            if from.elapsed() >= ONE_COUNT {
                break;
            }
        }
        measured.push((*count, least));
    }
    Ok(threads::choose(&measured))
}

/// A token that every text may begin with.
pub fn first_token(model: &LlamaModel) -> LlamaToken {
    let bos = model.vocab().bos();
    if bos.0 >= 0 { bos } else { LlamaToken(0) }
}

/// Seconds of a step of `rows` rows, which are taken out again, of a token from a position on.
fn step(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    (token, from): (LlamaToken, usize),
    rows: usize,
    outputs: usize,
) -> Result<f64, String> {
    fill(batch, (token, from), rows, outputs)?;
    let began = Instant::now();
    context.decode(batch).map_err(|error| error.to_string())?;
    context.synchronize();
    let seconds = began.elapsed().as_secs_f64();
    if from == 0 {
        context.clear_kv_cache();
    } else {
        let from = u32::try_from(from).map_err(|error| error.to_string())?;
        context.kv_cache_seq_rm(0, Some(from), None).map_err(|error| error.to_string())?;
    }
    Ok(seconds)
}

fn fill(
    batch: &mut LlamaBatch<'_>,
    (token, from): (LlamaToken, usize),
    rows: usize,
    outputs: usize,
) -> Result<(), String> {
    batch.clear();
    for row in 0..rows {
        let position = i32::try_from(from + row).map_err(|error| error.to_string())?;
        batch.add(token, position, &[0], row + outputs >= rows).map_err(|error| error.to_string())?;
    }
    Ok(())
}
