//! The one thread that owns model and context: loads when told to, then runs the batch loop.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError},
    },
    time::{Duration, Instant},
};

use llama_cpp_2::{context::LlamaContext, llama_backend::LlamaBackend, model::LlamaModel};
use temperd::wire::engine::{Heartbeat, Load, LoadFailed, Ready, SequenceOutput, Step, from_engine::Frame};

use crate::{
    able, attention,
    cells::Cells,
    constraint,
    contexts::Contexts,
    decode::Decoder,
    embed::{self, Embedder},
    heap,
    link::{Command, Link},
    load,
    log::Errors,
    lora::Adapters,
    sequence::finished,
    vocabulary::{self, Job},
};

const AT_WORK: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
/// Between the end of an answer and the next turn of a conversation mostly lies more than this: until then nothing is tidied.
const PAUSE: Duration = Duration::from_millis(500);

/// What the owner works with.
pub struct Surroundings {
    /// Proof that llama.cpp is initialised.
    pub backend: LlamaBackend,
    /// To the daemon.
    pub link: Arc<Link>,
    /// llama.cpp's last error lines.
    pub errors: Arc<Errors>,
    /// To the tokeniser.
    pub jobs: SyncSender<Job>,
}

/// Serves until the reader is gone.
pub fn run(around: &Surroundings, commands: &Receiver<Command>) {
    let mut wanted = None;
    while let Some(load) = wanted.take().or_else(|| wait(&around.link, commands)) {
        match serve(around, &load, commands) {
            Ok(next) => wanted = next,
            Err(reason) => {
                let message = format!("model {}: {reason}", load.model);
                around.link.send(Frame::LoadFailed(LoadFailed { message }));
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
            Ok(Command::Stop(_)) => {}
            Err(RecvTimeoutError::Timeout) => link.send(Frame::Heartbeat(Heartbeat::default())),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Loads and decodes until another model is wanted (returned) or the reader is gone.
fn serve(around: &Surroundings, load: &Load, commands: &Receiver<Command>) -> Result<Option<Load>, String> {
    let began = Instant::now();
    let Surroundings { backend, link, errors, jobs } = around;
    let path = Path::new(&load.model);
    load::check(path)?;

    let vocabulary = vocabulary::load(backend, errors, path)?;
    able::writes(&vocabulary::meta(&vocabulary, "general.architecture").unwrap_or_default())?;
    let description = vocabulary::describe(&vocabulary);
    let constraints = constraint::prepare(&vocabulary)?;
    // The tokeniser has it before the daemon can ask for it.
    jobs.send(Job::Vocabulary(vocabulary)).map_err(|_| "the tokeniser has ended".to_owned())?;
    link.send(Frame::Vocabulary(description));

    let mut model = load::weights(backend, errors, Arc::clone(link), load)?;
    let adapters = Adapters::load(&mut model, errors, &load.adapters);
    let load = load::with_threads(backend, errors, &model, load.clone())?;
    // Before steps are measured, which it would slow down.
    let constraints = constraints.join();
    let load = &attention::decide(load.clone(), attention_facts(backend, &model, &load));
    let plan = load::plan(&model, load)?;
    let contexts = Contexts::new(backend, errors, &model, load, &plan);
    let (context, curve) = load::context(&contexts, load, &plan)?;
    heap::trim();
    let ready = Ready { context: contexts.most(), ..ready(around, load, &model, &context, began) };
    link.send(Frame::Ready(Ready { adapters_failed: adapters.failed(), ..ready }));
    let embedder = Embedder::new(around, &model, load);
    let cells = Cells::new(context, contexts, &plan);
    Ok(decode(Decoder::new(cells, (plan, curve), (adapters, constraints), link), embedder, link, commands))
}

fn attention_facts(backend: &LlamaBackend, model: &LlamaModel, load: &Load) -> attention::Facts {
    attention::Facts {
        heads: model.n_head(),
        bytes: model.size(),
        cpu: load.gpu_layers == 0 || !backend.supports_gpu_offload(),
        moves_cells: able::moves_cells(model),
    }
}

fn ready(around: &Surroundings, load: &Load, model: &LlamaModel, context: &LlamaContext<'_>, began: Instant) -> Ready {
    // llama.cpp counts the output layer too.
    let all = model.n_layer() + 1;
    Ready {
        allocated_context: context.n_ctx(),
        gpu_layers: match u32::try_from(load.gpu_layers) {
            _ if !around.backend.supports_gpu_offload() => 0,
            Ok(asked) => asked.min(all),
            Err(_) => all,
        },
        threads: load.threads,
        threads_batch: load.threads_batch,
        n_batch: context.n_batch(),
        n_ubatch: context.n_ubatch(),
        flash_attention: load.flash_attention.clone(),
        load_s: began.elapsed().as_secs_f64(),
        description: vocabulary::description(model),
        embedding_length: u32::try_from(model.n_embd_out()).unwrap_or_default(),
        ..Ready::default()
    }
}

/// The batch loop: commands are taken between steps, and waited for where nothing runs.
fn decode(
    mut decoder: Decoder<'_>,
    mut embedder: Embedder<'_>,
    link: &Link,
    commands: &Receiver<Command>,
) -> Option<Load> {
    let mut beat = Instant::now();
    // Whether there may be something to tidy.
    let mut untidy = false;
    loop {
        let idle = decoder.idle() && embedder.idle();
        let command = if idle {
            match commands.recv_timeout(if untidy { PAUSE } else { IDLE }) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    untidy = untidy && decoder.park_at_rest();
                    None
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            match commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return None,
            }
        };
        match command {
            Some(Command::Start(start)) => decoder.start(start),
            Some(Command::Embed(embed)) => embedder.push(embed),
            Some(Command::Stop(id)) => {
                decoder.stop(id);
                embedder.stop(id);
            }
            Some(Command::Load(load)) => {
                decoder.fail_all("another model is being loaded");
                decoder.flush();
                embedder.fail_all("another model is being loaded");
                return Some(load);
            }
            None => {
                if !decoder.idle() {
                    decoder.step();
                    untidy = true;
                }
                embedder.step(!decoder.idle());
            }
        }
        decoder.flush();
        if beat.elapsed() >= if idle { IDLE } else { AT_WORK } {
            if idle {
                decoder.rest();
            }
            link.send(Frame::Heartbeat(decoder.heartbeat()));
            beat = Instant::now();
        }
    }
}
