//! From a Load frame to weights and a context.

use std::{fs::File, io::Read, num::NonZeroU32, path::Path, sync::Arc, time::Instant};

use llama_cpp_2::{
    context::{
        LlamaContext,
        params::{KvCacheType, LlamaContextParams},
    },
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
};
use temperd::{
    gguf::Summary,
    wire::engine::{Load, Loading, from_engine::Frame},
};

use crate::{
    able, contexts::Contexts, elastic, gpu, invariance, link::Link, log::Errors, measure, threads, work::AT_WORK,
};

/// Most sequences of one context (llama.cpp's `LLAMA_MAX_SEQ`).
const MAX_SEQUENCES: u32 = 256;

/// Largest context tried. llama.cpp fills its table of cells (about 50 bytes each) before it finds that the cells
/// themselves do not fit.
const MAX_CONTEXT: u32 = 1 << 24;

/// Looks at the file before llama.cpp does, whose words for the common mistakes help nobody.
///
/// # Errors
/// What is wrong, without the file's name.
pub fn check(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic).map_err(|error| error.to_string())?;
    if magic == b"GGUF" { Ok(()) } else { Err("it is not a GGUF file".to_owned()) }
}

/// Reads the weights, and tells the daemon how far it is.
///
/// # Errors
/// Why not, without the file's name.
pub fn weights(backend: &LlamaBackend, errors: &Errors, link: Arc<Link>, load: &Load) -> Result<LlamaModel, String> {
    let mut params = gpu::place(LlamaModelParams::default(), load.gpu_layers)?;
    // llama.cpp's automatic mode is lost as soon as any setter is touched.
    params = match load.load_mode.as_str() {
        "auto" | "" => params,
        "mmap" => params.with_use_mmap(true),
        "read" => params.with_use_mmap(false),
        other => return Err(format!("load_mode {other:?} is none of auto, mmap, read")),
    };
    let (mut told, mut when) = (0.0, Instant::now());
    let params = params.with_progress_callback(move |progress| {
        // Of a load that does not get on nothing is heard, which is how the daemon knows it.
        if progress > told && (progress - told >= 0.1 || when.elapsed() >= AT_WORK) {
            (told, when) = (progress, Instant::now());
            link.send(Frame::Loading(Loading { progress }));
        }
        true
    });
    LlamaModel::load_from_file(backend, &load.model, &params).map_err(|error| errors.reason(&error.to_string()))
}

/// How the batch loop works.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Most sequences that run at once.
    pub parallel: usize,
    /// llama.cpp's sequence ids, for those and for ended ones whose cells are kept.
    pub slots: i32,
    /// Whether cells can be shared, kept and removed one by one. A recurrent model has one state per sequence instead,
    /// which only whole sequences can use.
    pub keeps_cells: bool,
    /// Tokens that layers with a sliding window see; they lose older cells, so that not every prefix of a sequence can
    /// be shared.
    pub window: Option<usize>,
    /// Whether tokens are drafted from what a sequence has read and written.
    pub lookup: bool,
    /// Whether that is done without asking whether it pays.
    pub lookup_always: bool,
    /// Whether results must not depend on what else runs.
    pub batch_invariant: bool,
    /// How long running answers may wait for a step in which prompts are read too, in seconds; where it is not said, it
    /// follows from the machine.
    pub step_target_s: Option<f64>,
    /// Whether every row looks at all cells in use, not at those of its sequence alone: without flash attention.
    pub looks_at_all: bool,
    /// Tokens of the KV cache at most.
    pub context: usize,
    /// Tokens of a step at most.
    pub n_batch: usize,
    /// Whether the cache is allocated as it is needed, since all of it can be moved.
    pub elastic: bool,
    /// Whether ended sequences are parked outside the cache where their cells would slow down others.
    pub parks: bool,
    /// Whether flash attention has a kernel that goes tile by tile.
    pub tiles: bool,
}

/// Ended sequences that are kept, by sequences that run.
const KEPT: u32 = 3;

/// The plan for this model.
///
/// # Errors
/// A mode that cannot hold here.
pub fn plan(model: &LlamaModel, load: &Load) -> Result<Plan, String> {
    let (keeps_cells, moves_cells) = (able::keeps_cells(model), able::moves_cells(model));
    let window = able::window(model);
    if load.batch_invariant {
        batch_invariant(load, keeps_cells, window)?;
    }
    let spare = u32::from(load.batch_invariant);
    let kept =
        if keeps_cells { (load.parallel * KEPT).min(MAX_SEQUENCES.saturating_sub(load.parallel + spare)) } else { 0 };
    Ok(Plan {
        parallel: load.parallel as usize,
        slots: i32::try_from(load.parallel + kept).unwrap_or(i32::MAX),
        keeps_cells,
        window,
        lookup: load.lookup && keeps_cells,
        lookup_always: load.lookup_always,
        batch_invariant: load.batch_invariant,
        step_target_s: (load.step_target_ms > 0).then(|| f64::from(load.step_target_ms) / 1e3),
        looks_at_all: load.flash_attention == "off",
        context: elastic::rounded(load.context) as usize,
        n_batch: load.n_batch.min(elastic::rounded(load.context)) as usize,
        elastic: moves_cells,
        parks: load.flash_attention == "off" && moves_cells,
        tiles: load.flash_attention != "off" && load.kv_type_k == "f16" && load.kv_type_v == "f16",
    })
}

/// The environment variable that keeps ggml on x86 from another kernel for matrices of eight and more rows. It is read
/// once, so the daemon sets it before the engine starts.
pub const TILED: &str = "GGML_CPU_TILED_MM";

/// What a token's logits depend on beside its own sequence, on a CPU: kernels chosen by the number of rows (of matrix
/// products on x86, of attention where V is f16), and the order of cells.
fn batch_invariant(load: &Load, keeps_cells: bool, window: Option<usize>) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("batch_invariant cannot hold: {why}"));
    if load.gpu_layers != 0 {
        return refuse("it is for the CPU alone; set gpu_layers = 0");
    }
    if load.kv_type_v != "q8_0" {
        return refuse("V of the KV cache must be q8_0; set kv_type = \"f16/q8_0\" or \"q8_0\"");
    }
    if load.flash_attention == "off" {
        return refuse("it needs flash attention; set flash_attention = \"on\"");
    }
    if !keeps_cells {
        return refuse("the model is recurrent");
    }
    if window.is_some_and(|window| window < load.context as usize) {
        return refuse("the model has a sliding window, whose cells are filled again out of order");
    }
    if !load.adapters.is_empty() {
        return refuse("an adapter's matrices are multiplied by another kernel where a step has several rows");
    }
    if cfg!(target_arch = "x86_64") && std::env::var(TILED).as_deref() != Ok("0") {
        return refuse("the engine was started without GGML_CPU_TILED_MM=0");
    }
    Ok(())
}

/// The Load with a thread for each strong core where it names no number, and the counts to choose from for steps of one row,
/// which are measured later: memory bounds those, and fewer threads may do. Steps of many rows are bound by computation.
pub fn with_threads(mut load: Load) -> (Load, Vec<usize>) {
    let (cpus, quota) = threads::cpus();
    let counts = threads::candidates(&cpus, quota);
    let all = u32::try_from(counts.first().copied().unwrap_or(1)).unwrap_or(u32::MAX);
    let named = load.threads > 0;
    load.threads = if named { load.threads } else { all };
    load.threads_batch = if load.threads_batch > 0 { load.threads_batch } else { all };
    (load, if named { Vec::new() } else { counts })
}

/// Creates the first context. One with layers on a GPU decodes once: whether its buffers are there is known then, and not
/// before. Else nothing is read that nobody has asked for. A cache whose cells cannot be moved has all its cells at once.
/// `summary` is of the model's file, or why there is none.
///
/// # Errors
/// Why not.
pub fn context<'model>(
    contexts: &Contexts<'model>,
    load: &Load,
    plan: &Plan,
    summary: Result<&Summary, String>,
    on_gpu: bool,
) -> Result<LlamaContext<'model>, String> {
    let most = contexts.most();
    if plan.elastic {
        // The first context is smaller than the one that was asked for, and would hide what cannot be.
        params(load, 1)?;
        could_be(load, summary, most)?;
    }
    let first = if load.first_context > 0 { elastic::rounded(load.first_context) } else { elastic::FIRST };
    let mut context = contexts.make(if plan.elastic { first.min(most) } else { most })?;
    if context.n_batch() < load.parallel {
        let (batch, parallel) = (context.n_batch(), load.parallel);
        return Err(format!("n_batch {batch} is less than parallel {parallel}: each sequence needs a row of a step"));
    }
    let model = contexts.model();
    if on_gpu {
        warm_up(model, &mut context).map_err(|error| format!("first decode: {}", contexts.reason(&error)))?;
    }
    if plan.batch_invariant {
        invariance::check(&mut context, model)?;
    }
    context.reset_timings();
    Ok(context)
}

/// A cache that grows must not be promised where it could never be: larger than all memory there is. How much of that is
/// free is another matter, and changes.
fn could_be(load: &Load, summary: Result<&Summary, String>, cells: u32) -> Result<(), String> {
    let quantised = [&load.kv_type_k, &load.kv_type_v].map(|name| name == "q8_0");
    let bytes = summary?.cache_bytes(cells.into(), quantised).unwrap_or(0);
    let memory = rustix::system::sysinfo();
    let all = memory.totalram.saturating_mul(u64::from(memory.mem_unit));
    if bytes > all {
        let (context, needs, all) = (load.context, bytes >> 20, all >> 20);
        return Err(format!(
            "a context of {context} tokens takes {needs} MiB, and the machine has {all} MiB; set engine.context lower"
        ));
    }
    Ok(())
}

/// What every context of this model has in common, for so many sequences.
///
/// # Errors
/// A setting that cannot be.
pub fn params(load: &Load, sequences: u32) -> Result<LlamaContextParams, String> {
    if load.parallel == 0 || load.parallel > MAX_SEQUENCES {
        return Err(format!("parallel {} is not within 1 to {MAX_SEQUENCES}", load.parallel));
    }
    if load.context > MAX_CONTEXT {
        return Err(format!("context {} is above {MAX_CONTEXT}", load.context));
    }
    if load.n_batch == 0 || load.n_ubatch == 0 {
        return Err("n_batch and n_ubatch must be at least 1".to_owned());
    }
    let flash_attention = match load.flash_attention.as_str() {
        "auto" | "" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        other => return Err(format!("flash_attention {other:?} is none of auto, on, off")),
    };
    Ok(LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(load.context))
        .with_n_seq_max(sequences)
        .with_kv_unified(true)
        .with_type_k(kv_type(&load.kv_type_k)?)
        .with_type_v(kv_type(&load.kv_type_v)?)
        .with_n_threads(i32::try_from(load.threads).unwrap_or(i32::MAX))
        .with_n_threads_batch(i32::try_from(load.threads_batch).unwrap_or(i32::MAX))
        .with_n_batch(load.n_batch)
        .with_n_ubatch(load.n_ubatch)
        .with_flash_attention_policy(flash_attention))
}

fn kv_type(name: &str) -> Result<KvCacheType, String> {
    match name {
        "f16" | "" => Ok(KvCacheType::F16),
        "q8_0" => Ok(KvCacheType::Q8_0),
        other => Err(format!("KV type {other:?} is none of f16, q8_0")),
    }
}

/// Decodes once, and empties the cache again.
///
/// # Errors
/// A step that fails.
fn warm_up(model: &LlamaModel, context: &mut LlamaContext<'_>) -> Result<(), String> {
    let mut batch = LlamaBatch::new(1, 1);
    batch.add(measure::first_token(model), 0, &[0], true).map_err(|error| error.to_string())?;
    context.decode(&mut batch).map_err(|error| error.to_string())?;
    context.synchronize();
    context.clear_kv_cache();
    Ok(())
}
