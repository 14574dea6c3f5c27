//! How attention is computed on a CPU, where the configuration leaves it open: flash attention looks at a sequence's own
//! cells, row by row in small steps; without it, all cells in use are multiplied at once. Which is faster depends on the
//! processor, by factors (docs/bench.md), so both are tried.

use llama_cpp_2::{llama_backend::LlamaBackend, llama_batch::LlamaBatch, model::LlamaModel};
use temperd::wire::engine::Load;

use crate::{able, load, log::Errors, measure};

/// Flash attention is left where a step without takes at most this share of its time: cells of other sequences cost too.
const WORTH: f64 = 0.8;
/// Rows of the steps by which it is decided, and cells that they look at.
const ROWS: usize = 8;
const CELLS: u32 = 1024;
/// How often each is measured; the least counts.
const TURNS: usize = 3;
/// A model whose step of one row takes longer, in seconds, is bound by its weights, and attention does not matter.
const LARGE: f64 = 0.1;
/// Bytes that the products of queries and keys may take in a context without flash attention, and the fewest rows of a
/// step with which that is still fast.
const PRODUCTS: usize = 32 << 20;
const FEWEST: u32 = 32;

/// The load with its kind of attention.
///
/// # Errors
/// A trial that fails.
pub fn decide(backend: &LlamaBackend, errors: &Errors, model: &LlamaModel, load: Load) -> Result<Load, String> {
    let rows = rows(model.n_head(), load.context).min(load.n_ubatch);
    let open = matches!(load.flash_attention.as_str(), "auto" | "");
    let cpu = load.gpu_layers == 0 || !backend.supports_gpu_offload();
    let whole = model.is_recurrent() || model.is_hybrid() || able::window(model).is_some();
    let plain = load.kv_type_k == "f16" && load.kv_type_v == "f16" && !load.batch_invariant;
    if whole || !(open && cpu && plain && rows >= FEWEST) {
        return Ok(load);
    }
    let token = measure::first_token(model);
    let mut batch = LlamaBatch::new(ROWS, 1);
    let context = |flash_attention: &str| {
        let (flash_attention, context) = (flash_attention.into(), 2 * CELLS);
        let load = Load { flash_attention, context, n_batch: FEWEST, n_ubatch: FEWEST, ..load.clone() };
        let mut context = model.new_context(backend, load::params(&load, 2)?).map_err(|error| error.to_string())?;
        load::warm_up(model, &mut context)?;
        Ok::<_, String>(context)
    };
    errors.clear();
    let mut with = context("on")?;
    if measure::step(&mut with, &mut batch, (token, 0), 1, 1)? > LARGE {
        return Ok(Load { flash_attention: "on".into(), ..load });
    }
    let mut without = context("off")?;
    for context in [&mut with, &mut without] {
        measure::deepen(context, &mut batch, token, ROWS, CELLS as usize)?;
    }
    let mut least = [f64::INFINITY; 2];
    for _ in 0..TURNS {
        // Taking turns, so that what disturbs the machine meets both.
        for (context, least) in [&mut with, &mut without].into_iter().zip(&mut least) {
            *least = least.min(measure::step(context, &mut batch, (token, ROWS), ROWS, 1)?);
        }
    }
    let [on, off] = least;
    tracing::info!("{ROWS} rows over {CELLS} cells: {on:.4} s with flash attention, {off:.4} s without");
    if off > on * WORTH {
        return Ok(Load { flash_attention: "on".into(), ..load });
    }
    Ok(Load { flash_attention: "off".into(), n_ubatch: rows, ..load })
}

/// Rows of a step whose products of queries and keys (float32, by head, cell and row) fit [`PRODUCTS`], in whole tiles of
/// 16, as matrices are multiplied.
fn rows(heads: u32, context: u32) -> u32 {
    let row = heads as usize * context as usize * size_of::<f32>();
    let rows = PRODUCTS / row.max(1) / 16 * 16;
    u32::try_from(rows).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_large_models_and_contexts_do_not_fit() {
        assert_eq!(rows(9, 16384), 48);
        assert_eq!(rows(32, 8192), 32);
        assert!(rows(32, 16384) < FEWEST);
    }
}
