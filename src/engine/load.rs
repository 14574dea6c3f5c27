//! What an engine is told and given when it starts, and what its refusal to load means.

use super::plan::Plan;
use crate::{
    config,
    wire::engine::{Adapter, Load},
};

/// The frame that loads the model.
pub(super) fn load(config: &config::Engine, plan: Plan, restore: bool) -> Load {
    let (kv_type_k, kv_type_v) = config.kv_type.parts();
    Load {
        model: config.model.to_string_lossy().into_owned(),
        context: plan.context,
        parallel: config.parallel,
        gpu_layers: plan.gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX)),
        kv_type_k: kv_type_k.into(),
        kv_type_v: kv_type_v.into(),
        threads: config.threads.unwrap_or(0),
        threads_batch: config.threads_batch.unwrap_or(0),
        n_batch: config.n_batch,
        n_ubatch: config.n_ubatch,
        load_mode: config.load_mode.as_str().into(),
        flash_attention: config.flash_attention.as_str().into(),
        batch_invariant: config.batch_invariant,
        lookup: config.lookup,
        lookup_always: false,
        first_context: 0,
        restore,
        step_target_ms: config.step_target_ms.unwrap_or(0),
        adapters: config.adapters.iter().map(adapter).collect(),
    }
}

fn adapter(adapter: &config::Adapter) -> Adapter {
    let path = adapter.path.to_string_lossy().into_owned();
    Adapter { name: adapter.name.clone(), path, scale: adapter.scale }
}

/// How often a thread of the engine looks whether the others have come to the barrier, before it sleeps. Threads wait for
/// each other a thousand times in a step, a few microseconds each; by OpenMP's default they look some hundred thousand
/// times, and where another program has one of the cores, the thread that is waited for cannot run on it meanwhile.
///
/// 1000 looks keep the speed of one stream alone and are the fewest that do (docs/bench.md, "Threads that wait"). On ARM a
/// look takes about a tenth of that time; that number is reckoned, not measured.
const SPINS: &str = if cfg!(target_arch = "x86_64") { "1000" } else { "10000" };

/// What the engine's libraries read from the environment, once and before the first frame comes: how threads wait for each
/// other, unless the operator has said so, and on x86 another kernel for matrices of eight and more rows, which adds up
/// in another order.
pub(super) fn environment(config: &config::Engine) -> Vec<(&'static str, &'static str)> {
    let said = |name| std::env::var_os(name).is_some();
    let mut environment = Vec::new();
    if !said("GOMP_SPINCOUNT") && !said("OMP_WAIT_POLICY") {
        environment.push(("GOMP_SPINCOUNT", SPINS));
    }
    if config.batch_invariant {
        environment.push(("GGML_CPU_TILED_MM", "0"));
    }
    environment
}

/// Whether a refusal to load is one that less might not meet: llama.cpp's own words for memory that cannot be had, of
/// its backends (CPU, CUDA, Vulkan).
pub(super) fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["allocate", "out of memory", "outofdevicememory", "outofhostmemory"].iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_from_what_is_broken() {
        for short in [
            "model m.gguf: failed to allocate buffer for kv cache",
            "unable to allocate CUDA0 buffer",
            "ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory",
            "CUDA error: out of memory",
        ] {
            assert!(is_out_of_memory(short), "{short}");
        }
        for broken in ["unknown model architecture: 'x'", "tensor 'a' data is not within the file bounds"] {
            assert!(!is_out_of_memory(broken), "{broken}");
        }
    }
}
