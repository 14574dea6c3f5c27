//! The one thread that owns model and context: loads when told to, then runs the batch loop.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use llama_cpp_2::{context::LlamaContext, llama_backend::LlamaBackend, model::LlamaModel};
use temperd::{
    gguf,
    wire::engine::{Heartbeat, Load, LoadFailed, Ready, Saved, SequenceOutput, Step, from_engine::Frame},
};

use crate::{
    able,
    answer::finished,
    attention,
    cells::Cells,
    constraint::{self, Constraints},
    contexts::Contexts,
    decode::Decoder,
    embed::{self, Embedder},
    gpu::{self, placed::Placed},
    handover::{Handover, Identity, Leaving},
    heap,
    link::{Command, Link},
    load::{self, Plan},
    log::Heard,
    lora::Adapters,
    vocabulary::{self, Job},
    work::{IDLE, Work},
};

/// As much as the main thread has.
const VOCABULARY_STACK: usize = 8 << 20;

/// What the owner works with.
pub struct Surroundings {
    /// Proof that llama.cpp is initialised.
    pub backend: LlamaBackend,
    /// To the daemon.
    pub link: Arc<Link>,
    /// llama.cpp's last error lines, and the sizes of its buffers.
    pub heard: Arc<Heard>,
    /// To the tokeniser.
    pub jobs: SyncSender<Job>,
    /// What engines before and after this one are left.
    pub handover: Handover,
}

/// Serves until the reader is gone.
pub fn run(around: &Surroundings, commands: &Receiver<Command>) {
    let mut wanted = None;
    while let Some(load) = wanted.take().or_else(|| wait(&around.link, commands)) {
        match serve(around, &load, commands) {
            Ok(next) => wanted = next,
            Err(reason) => {
                let message = format!("model {}: {reason}", load.model);
                let no_device = gpu::lacking(&around.backend, &load);
                around.link.send(Frame::LoadFailed(LoadFailed { message, no_device }));
            }
        }
    }
}

/// Waits for a Load frame while there is no model.
fn wait(link: &Link, commands: &Receiver<Command>) -> Option<Load> {
    loop {
        match commands.recv_timeout(IDLE) {
            Ok(Command::Load(load)) => return Some(load),
            Ok(Command::Start(start)) => {
                let finished = Some(finished("error", Some("no model is loaded".to_owned())));
                let output = SequenceOutput { sequence: start.sequence, finished, ..SequenceOutput::default() };
                link.send(Frame::Step(Step { outputs: vec![output] }));
            }
            Ok(Command::Embed(embed)) => embed::refuse(link, embed.sequence, "no model is loaded"),
            Ok(Command::Save) => {
                let error = Some("no model is loaded".to_owned());
                link.send(Frame::Saved(Saved { bytes: 0, error }));
            }
            // There is nothing to stop, and each load begins at full pace with all that it has.
            Ok(Command::Stop(_) | Command::Operate(_) | Command::Prefix(_)) => {}
            Err(RecvTimeoutError::Timeout) => link.send(Frame::Heartbeat(Heartbeat::default())),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Loads and decodes until another model is wanted (returned) or the reader is gone.
fn serve(around: &Surroundings, load: &Load, commands: &Receiver<Command>) -> Result<Option<Load>, String> {
    let began = Instant::now();
    let Surroundings { backend, link, heard, handover, .. } = around;
    let errors = &heard.errors;
    let path = Path::new(&load.model);
    gpu::check(backend, load)?;
    load::check(path)?;

    let summary = gguf::inspect(path).map_err(|error| error.to_string());
    let architecture = summary.as_ref().ok().and_then(|summary| summary.architecture.as_deref());
    able::writes(architecture.unwrap_or_default())?;

    heard.buffers.clear("model");
    errors.clear();
    let (constraints, model) = thread::scope(|scope| {
        // Each takes one core for the most part.
        let vocabulary = thread::Builder::new().name("vocabulary".into()).stack_size(VOCABULARY_STACK);
        let vocabulary = vocabulary.spawn_scoped(scope, || tell_vocabulary(around, path));
        let model = load::weights(backend, errors, Arc::clone(link), load);
        (vocabulary.map_err(|error| error.to_string()).map(ScopedJoinHandle::join), model)
    });
    let constraints = constraints?.map_err(|_| "the vocabulary could not be read".to_owned())??;
    let mut model = model?;
    let adapters = Adapters::load(&mut model, errors, &load.adapters);
    let (load, counts) = load::with_threads(load.clone());
    let load = &attention::decide(load.clone(), attention_facts(backend, &model, &load));
    let plan = load::plan(&model, load)?;
    let contexts = Contexts::new(backend, errors, &model, load, &plan);
    heard.buffers.clear("KV");
    heard.buffers.clear("compute");
    let on_gpu = load.gpu_layers != 0 && backend.supports_gpu_offload();
    let context = load::context(&contexts, load, &plan, summary.as_ref().map_err(Clone::clone), on_gpu)?;
    let weights = summary.map(|summary| summary.weights).unwrap_or_default();
    let placed = gpu::placed(backend, &heard.buffers, &weights, &model, load);
    let ready = vitals(around, &context, &plan, ready(placed, load, &model, &context));
    let mut cells = Cells::new(context, contexts, &plan);
    let identity = Identity::of(load, plan.slots);
    let found = handover.enter(load.restore, &identity, &mut cells);
    heap::trim();
    let embedder = Embedder::new(around, &model, load);
    let mut decoder = Decoder::new(cells, (plan, counts, Identity::of_images(load)), (adapters, constraints), link);
    found.into_iter().for_each(|kept| decoder.keep(kept));
    let (context, allocated_context) = (contexts.most(), decoder.allocated());
    let load_s = began.elapsed().as_secs_f64();
    let adapters_failed = decoder.adapters_failed();
    link.send(Frame::Ready(Ready { context, allocated_context, load_s, adapters_failed, ..ready }));
    Ok(Work::new(decoder, embedder, link, Leaving::new(handover, identity)).run(commands))
}

/// Reads the vocabulary alone and tells daemon and tokeniser of it, well before the weights are there.
fn tell_vocabulary(around: &Surroundings, path: &Path) -> Result<Constraints, String> {
    let vocabulary = vocabulary::load(&around.backend, &around.heard.errors, path)?;
    let description = vocabulary::describe(&vocabulary);
    let constraints = constraint::prepare(&vocabulary)?;
    // The tokeniser has it before the daemon can ask for it.
    around.jobs.send(Job::Vocabulary(vocabulary)).map_err(|_| "the tokeniser has ended".to_owned())?;
    around.link.send(Frame::Vocabulary(description));
    Ok(constraints)
}

fn attention_facts(backend: &LlamaBackend, model: &LlamaModel, load: &Load) -> attention::Facts {
    attention::Facts {
        heads: model.n_head(),
        bytes: model.size(),
        cpu: load.gpu_layers == 0 || !backend.supports_gpu_offload(),
        moves_cells: able::moves_cells(model),
    }
}

fn ready(placed: Placed, load: &Load, model: &LlamaModel, context: &LlamaContext<'_>) -> Ready {
    Ready {
        allocated_context: context.n_ctx(),
        layers: placed.layers,
        gpu_layers: placed.gpu_layers,
        bytes_per_gpu_layer: placed.bytes_per_gpu_layer,
        resident_bytes: placed.resident_bytes,
        gpu_bytes: placed.gpu_bytes,
        gpu_device: placed.device,
        threads: load.threads,
        threads_batch: load.threads_batch,
        n_batch: context.n_batch(),
        n_ubatch: context.n_ubatch(),
        flash_attention: load.flash_attention.clone(),
        description: vocabulary::description(model),
        embedding_length: u32::try_from(model.n_embd_out()).unwrap_or_default(),
        ..Ready::default()
    }
}

/// What the governor has to know of the cache, by llama.cpp's own numbers.
fn vitals(around: &Surroundings, context: &LlamaContext<'_>, plan: &Plan, ready: Ready) -> Ready {
    let buffers = &around.heard.buffers;
    let cells = u64::from(context.n_ctx()).max(1);
    Ready {
        kv_bytes_per_token: if plan.elastic { buffers.bytes("KV", |_| true) / cells } else { 0 },
        compute_bytes: buffers.bytes("compute", |_| true),
        ..ready
    }
}
