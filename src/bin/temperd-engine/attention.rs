//! How attention is computed on a CPU, where the configuration leaves it open. Pure.
//!
//! ggml's flash attention goes row by row below 64 rows, and tile by tile from there on. Without it the products of a step
//! are two matrix products, several times faster a cell in steps of 8 to 32 rows, which is what answers beside a prompt and
//! drafts are made of; but every row looks at all cells in use then, and the products take memory (docs/bench.md has the
//! figures). A large model is bound by its weights, and attention is next to nothing of a step.

use temperd::wire::engine::Load;

/// Bytes of a model that a step of one row takes some 0.1 s to read, at the 10 GB/s that two cores of a PC reach.
const LARGE: u64 = 1 << 30;
/// Bytes that the products of queries and keys may take in a context without flash attention, and the fewest rows of a
/// step with which that is still fast.
const PRODUCTS: usize = 32 << 20;
const FEWEST: u32 = 32;

/// What it depends on beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Heads of queries.
    pub heads: u32,
    /// Of all weights.
    pub bytes: u64,
    /// Whether no layer is on a GPU.
    pub cpu: bool,
    /// Whether cells can be moved one by one, and so be parked where they would slow down others.
    pub moves_cells: bool,
}

/// The load with its kind of attention: "off" for small models on a CPU. Whoever names one has it.
///
/// It follows from the file and the settings alone: which is faster could be tried at load, but a trial ends this way one
/// day and that way another, and with it the last bits of every answer.
pub fn decide(load: Load, facts: Facts) -> Load {
    let open = matches!(load.flash_attention.as_str(), "auto" | "");
    let plain = load.kv_type_k == "f16" && load.kv_type_v == "f16" && !load.batch_invariant;
    let small = facts.bytes <= LARGE && rows(facts.heads, load.context, load.n_ubatch) >= FEWEST.min(load.n_ubatch);
    // ggml's kernels for ARM have not been measured.
    let known = cfg!(target_arch = "x86_64");
    if open && known && facts.cpu && plain && small && facts.moves_cells {
        return Load { flash_attention: "off".into(), ..load };
    }
    load
}

/// Rows of a step, at most `most`, whose products of queries and keys (float32, by head, cell and row) fit [`PRODUCTS`], in
/// whole tiles of 16, as matrices are multiplied.
pub fn rows(heads: u32, cells: u32, most: u32) -> u32 {
    let row = heads as usize * cells as usize * size_of::<f32>();
    let rows = PRODUCTS / row.max(1) / 16 * 16;
    u32::try_from(rows).unwrap_or(u32::MAX).clamp(16, most.max(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_large_models_and_contexts_do_not_fit() {
        assert_eq!(rows(9, 16384, 512), 48);
        assert_eq!(rows(9, 2048, 512), 448);
        assert_eq!(rows(32, 8192, 512), 32);
        assert!(rows(32, 16384, 512) < FEWEST);
        assert_eq!((rows(9, 1024, 4), rows(9, 0, 512)), (4, 512));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn only_small_models_on_a_cpu_whose_cache_is_plain_go_without() {
        let load = Load {
            flash_attention: "auto".into(),
            kv_type_k: "f16".into(),
            kv_type_v: "f16".into(),
            context: 8192,
            n_ubatch: 512,
            ..Load::default()
        };
        let facts = Facts { heads: 9, bytes: 100 << 20, cpu: true, moves_cells: true };
        let chosen = |load: &Load, facts| decide(load.clone(), facts).flash_attention;
        assert_eq!(chosen(&load, facts), "off");
        assert_eq!(chosen(&Load { flash_attention: "on".into(), ..load.clone() }, facts), "on");
        assert_eq!(chosen(&Load { kv_type_v: "q8_0".into(), ..load.clone() }, facts), "auto");
        assert_eq!(chosen(&Load { batch_invariant: true, ..load.clone() }, facts), "auto");
        for other in [
            Facts { bytes: 3 << 30, ..facts },
            Facts { cpu: false, ..facts },
            Facts { moves_cells: false, ..facts },
            Facts { heads: 64, ..facts },
        ] {
            assert_eq!(chosen(&load, other), "auto", "{other:?}");
        }
    }
}
