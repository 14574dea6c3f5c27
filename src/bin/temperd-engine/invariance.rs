//! Whether the logits of a row depend on how many rows its step has, tried with this model on this processor.
//!
//! ggml has several kernels for most types of matrices and chooses among them by the number of rows (repacked ones in
//! `ggml-cpu/repack.cpp` from four on, tinyBLAS in `ggml-cpu/llamafile/sgemm.cpp` from two on, depending on the type), and
//! some of them add up in another order. No list of types would stay right, so the kernels themselves are asked.

use llama_cpp_2::{context::LlamaContext, llama_batch::LlamaBatch, model::LlamaModel, token::LlamaToken};

/// Rows of the steps that are compared with steps of one row: each number at which one of those files changes its kernel,
/// and one beside it.
const ROWS: [usize; 6] = [2, 3, 4, 5, 8, 9];
/// Any number that has no divisor in common with the size of a vocabulary spreads tokens over it.
const STRIDE: usize = 7919;

/// Reads some tokens one by one, and again in steps of several, and compares all bits of all logits. Leaves the cache
/// empty.
///
/// # Errors
/// Where they differ, with the number of rows; or a step that fails.
pub fn check(context: &mut LlamaContext<'_>, model: &LlamaModel) -> Result<(), String> {
    // More rows than fit a step are several steps.
    let most = context.n_batch().min(context.n_ubatch()) as usize;
    let sizes: Vec<usize> = ROWS.into_iter().filter(|rows| *rows <= most).collect();
    let vocabulary = usize::try_from(model.vocab().n_tokens()).unwrap_or(1).max(1);
    let tokens: Vec<LlamaToken> = (1..=sizes.iter().sum())
        .map(|nth: usize| LlamaToken(i32::try_from(nth * STRIDE % vocabulary).unwrap_or_default()))
        .collect();
    let mut alone = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        alone.extend(decode(context, std::slice::from_ref(token), at)?);
    }
    context.clear_kv_cache();
    let mut from = 0;
    for rows in sizes {
        let together = decode(context, tokens.get(from..from + rows).unwrap_or_default(), from)?;
        if alone.get(from..from + rows) != Some(together.as_slice()) {
            context.clear_kv_cache();
            return Err(format!(
                "batch_invariant cannot hold: for the matrices of this model, this processor has another kernel where a \
                 step has {rows} rows; take a file of another quantisation, for example Q3_K_S or Q4_1"
            ));
        }
        from += rows;
    }
    context.clear_kv_cache();
    Ok(())
}

/// The bits of the logits of each of these tokens.
fn decode(context: &mut LlamaContext<'_>, tokens: &[LlamaToken], from: usize) -> Result<Vec<Vec<u32>>, String> {
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    for (position, token) in (from..).zip(tokens) {
        let position = i32::try_from(position).map_err(|error| error.to_string())?;
        batch.add(*token, position, &[0], true).map_err(|error| error.to_string())?;
    }
    context.decode(&mut batch).map_err(|error| error.to_string())?;
    let bits = |row| context.get_logits_ith(row).iter().map(|logit| logit.to_bits()).collect();
    Ok((0..batch.n_tokens()).map(bits).collect())
}
