//! How attention is computed on a CPU, where the configuration leaves it open: flash attention looks at a sequence's own
//! cells, row by row; without it, all cells in use are multiplied at once. Which is faster depends on the processor, by
//! factors (docs/bench.md), so both are measured.

use llama_cpp_2::{llama_backend::LlamaBackend, model::LlamaModel};
use temperd::wire::engine::Load;

use crate::{
    able,
    curve::{Curve, Size},
    load,
    log::Errors,
    measure::{MANY, Trial},
};

/// Flash attention is left where a step without takes at most this share of its time: cells of other sequences cost too.
const WORTH: f64 = 0.8;
/// By steps of this size, with so many cells of their own, it is decided.
const TYPICAL: Size = Size { rows: MANY, outputs: 1, depth: 1024.0 };
/// Context of the trials: it holds the cells of the deepest step measured and no more.
const CONTEXT: u32 = 2048;
/// How often each is measured.
const TURNS: usize = 3;
/// A model whose step of one row takes longer is bound by its weights, and its prompts are long enough as they are.
const LARGE: f64 = 0.1;
/// Bytes that products of queries and keys may take in a context without flash attention, and the fewest rows of a step
/// with which that is still fast.
const PRODUCTS: usize = 32 << 20;
const ROWS: u32 = 32;

/// The load with its kind of attention, and the cost of steps where it was measured.
///
/// # Errors
/// A trial that fails.
pub fn decide(
    backend: &LlamaBackend,
    errors: &Errors,
    model: &LlamaModel,
    load: Load,
) -> Result<(Load, Option<Curve>), String> {
    let rows = rows(model.n_head(), load.context).min(load.n_ubatch);
    let open = matches!(load.flash_attention.as_str(), "auto" | "");
    let cpu = load.gpu_layers == 0 || !backend.supports_gpu_offload();
    let whole = model.is_recurrent() || model.is_hybrid() || able::window(model).is_some();
    let plain = load.kv_type_k == "f16" && load.kv_type_v == "f16" && !load.batch_invariant;
    if whole || !(open && cpu && plain && rows >= ROWS) {
        return Ok((load, None));
    }
    let context = |flash_attention: &str| {
        let (flash_attention, context) = (flash_attention.into(), CONTEXT);
        let load = Load { flash_attention, context, n_batch: ROWS, n_ubatch: ROWS, ..load.clone() };
        errors.clear();
        let params = load::params(&load, 2)?;
        let mut context = model.new_context(backend, params).map_err(|error| errors.reason(&error.to_string()))?;
        load::warm_up(model, &mut context)?;
        Ok::<_, String>(context)
    };
    let mut with = context("on")?;
    let mut with = Trial::shallow(&mut with, model, usize::MAX)?;
    if with.one() > LARGE {
        return Ok((Load { flash_attention: "on".into(), ..load }, None));
    }
    let mut without = context("off")?;
    let mut without = Trial::shallow(&mut without, model, MANY)?;
    with.deepen()?;
    without.deepen()?;
    // Taking turns, so that what disturbs the machine meets both.
    for _ in 0..TURNS {
        with.deep()?;
        without.deep()?;
    }
    let (with, without) = (with.curve(), with.curve_with(&without.cells()));
    let (on, off) = (with.seconds(TYPICAL), without.seconds(TYPICAL));
    tracing::info!("a step of 8 rows over 1024 cells: {on:.4} s with flash attention, {off:.4} s without");
    if off > on * WORTH {
        return Ok((Load { flash_attention: "on".into(), ..load }, Some(with)));
    }
    Ok((Load { flash_attention: "off".into(), n_ubatch: rows, ..load }, Some(without)))
}

/// Rows of a step whose products of queries and keys (float32, by head, cell and row) fit [`PRODUCTS`], in whole tiles.
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
        assert!(rows(32, 16384) < ROWS);
    }
}
