//! Measures at load what a step costs, for [`Curve`], and by how many threads it is done best.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use llama_cpp_2::{
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

/// Fills and empties the KV cache of `context`, which nobody uses yet.
///
/// # Errors
/// A step that fails.
pub fn measure(context: &mut LlamaContext<'_>, token: LlamaToken) -> Result<Curve, String> {
    let began = Instant::now();
    let most = (context.n_ubatch() as usize).min(context.n_ctx() as usize / 2).max(1);
    let mut batch = LlamaBatch::new(most, 1);
    let mut points = Vec::new();
    let mut rows = 1;
    let mut per_output = 0.0;
    while rows <= most && began.elapsed() < ENOUGH {
        let seconds = best(context, &mut batch, token, rows, 1)?;
        if rows == OUTPUTS {
            let all = best(context, &mut batch, token, rows, OUTPUTS)?;
            per_output = (all - seconds).max(0.0) / (OUTPUTS - 1) as f64;
        }
        points.push((rows, seconds));
        rows *= 2;
    }
    let alone = points.into_iter().map(|(rows, seconds)| (rows, (seconds - per_output).max(seconds / 10.0))).collect();
    Ok(Curve::new(alone, per_output))
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
        best(&mut context, &mut batch, token, 1, 1)?;
        let from = Instant::now();
        began.get_or_insert(from);
        let mut least = f64::INFINITY;
        for _ in 0..STEPS {
            least = least.min(best(&mut context, &mut batch, token, 1, 1)?);
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

fn best(
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    token: LlamaToken,
    rows: usize,
    outputs: usize,
) -> Result<f64, String> {
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        batch.clear();
        for row in 0..rows {
            let position = i32::try_from(row).map_err(|error| error.to_string())?;
            batch.add(token, position, &[0], row + outputs >= rows).map_err(|error| error.to_string())?;
        }
        let began = Instant::now();
        context.decode(batch).map_err(|error| error.to_string())?;
        context.synchronize();
        least = least.min(began.elapsed().as_secs_f64());
        context.clear_kv_cache();
    }
    Ok(least)
}
