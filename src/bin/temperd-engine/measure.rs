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
const OUTPUTS: usize = 8;
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
const DEEP_ROWS: [usize; 2] = [1, 8];

/// Fills and empties the KV cache of `context`, which nobody uses yet. The cost of cells is measured where they can be
/// copied (`keeps_cells`).
///
/// # Errors
/// A step that fails.
pub fn measure(context: &mut LlamaContext<'_>, token: LlamaToken, keeps_cells: bool) -> Result<Curve, String> {
    let began = Instant::now();
    let most = (context.n_ubatch() as usize).min(context.n_ctx() as usize / 2).max(1);
    let mut batch = LlamaBatch::new(most, 1);
    let mut points = Vec::new();
    let mut rows = 1;
    let mut per_output = 0.0;
    while rows <= most && began.elapsed() < ENOUGH {
        let seconds = best(context, &mut batch, (token, 0), rows, 1)?;
        if rows == OUTPUTS {
            let all = best(context, &mut batch, (token, 0), rows, OUTPUTS)?;
            per_output = (all - seconds).max(0.0) / (OUTPUTS - 1) as f64;
        }
        points.push((rows, seconds));
        rows *= 2;
    }
    let cells = if keeps_cells { cells(context, &mut batch, token, &points) } else { Ok(Vec::new()) };
    let cells = cells.unwrap_or_else(|error| {
        // Steps will show it; no reason not to load.
        tracing::warn!("what cells cost could not be measured: {error}");
        Vec::new()
    });
    context.clear_kv_cache();
    let alone = points.into_iter().map(|(rows, seconds)| (rows, (seconds - per_output).max(seconds / 10.0))).collect();
    Ok(Curve::new(alone, cells, per_output))
}

/// Rows, and seconds that one cell more in the way of each of them adds to their step. `shallow` is what steps take in an
/// empty cache. Cells are filled by copies: reading as many tokens would take long.
fn cells(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    token: LlamaToken,
    shallow: &[(usize, f64)],
) -> Result<Vec<(usize, f64)>, String> {
    let began = Instant::now();
    let read = shallow.last().map_or(1, |point| point.0);
    let filled = deepen(context, batch, token, read, DEEP.min(context.n_ctx() as usize / 2))?;
    let mut found = Vec::new();
    for rows in DEEP_ROWS {
        let Some(&(_, alone)) = shallow.iter().find(|point| point.0 == rows) else { break };
        if began.elapsed() + Duration::from_secs_f64(alone) >= ENOUGH {
            break;
        }
        let seconds = best(context, batch, (token, read), rows, 1)?;
        found.push((rows, (seconds - alone).max(0.0) / filled as f64));
    }
    Ok(found)
}

/// Reads `read` tokens and fills up to `most` cells with copies of theirs: reading as many would take long. Returns how many
/// are filled.
///
/// # Errors
/// A step or a copy that fails.
fn deepen(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    token: LlamaToken,
    read: usize,
    most: usize,
) -> Result<usize, String> {
    fill(batch, (token, 0), read, 1)?;
    context.decode(batch).map_err(|error| error.to_string())?;
    let state = context.state_seq_get(0, LlamaStateSeqFlags::empty()).map_err(|error| error.to_string())?;
    let mut filled = read;
    while filled + read <= most {
        // Through another sequence, since a state takes the place of all that its sequence holds.
        context.state_seq_set(&state, 1).map_err(|error| error.to_string())?;
        context.kv_cache_seq_cp(1, 0, None, None).map_err(|error| error.to_string())?;
        context.kv_cache_seq_rm(1, None, None).map_err(|error| error.to_string())?;
        filled += read;
    }
    Ok(filled)
}

/// The least of some tries of [`step`].
fn best(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    (token, from): (LlamaToken, usize),
    rows: usize,
    outputs: usize,
) -> Result<f64, String> {
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        least = least.min(step(context, batch, (token, from), rows, outputs)?);
    }
    Ok(least)
}

/// Threads of a step of one row: the fewest of `counts` that reach the best speed; all of them where other programs had the
/// cores meanwhile. The crate sets the threads of a context when it is made only, so each count has a small one of its own,
/// by `params`.
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
    let mut batch = LlamaBatch::new(1, 1);
    let mut began = None;
    let mut measured = Vec::new();
    for count in counts {
        if began.is_some_and(|began: Instant| began.elapsed() >= THREADS) {
            break;
        }
        let params = params(i32::try_from(*count).unwrap_or(i32::MAX))?;
        let params = params.with_n_ctx(NonZeroU32::new(256)).with_n_batch(1).with_n_ubatch(1);
        let mut context = model.new_context(backend, params).map_err(|error| error.to_string())?;
        // The first one starts the threads.
        step(&mut context, &mut batch, (token, 0), 1, 1)?;
        let from = Instant::now();
        began.get_or_insert(from);
        let mut least = None;
        for _ in 0..STEPS {
            let before = threads::interruptions();
            let seconds = step(&mut context, &mut batch, (token, 0), 1, 1)?;
            if threads::interruptions() == before {
                least = Some(least.map_or(seconds, |least: f64| least.min(seconds)));
            }
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
///
/// # Errors
/// A step that fails.
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
