//! Measures at load what a step costs, for [`Curve`].

use std::time::{Duration, Instant};

use llama_cpp_2::{context::LlamaContext, llama_batch::LlamaBatch, token::LlamaToken};

use crate::curve::Curve;

/// No new size is begun after this long: a large model on a small machine takes seconds for one step of many rows,
/// which its first prompts measure as well.
const ENOUGH: Duration = Duration::from_millis(400);
/// Rows of the step by which the cost of outputs is measured.
const OUTPUTS: usize = 4;
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
