//! A bare load in a process of its own: what the pause of a change is compared with. It says "loaded" once the first token is
//! decoded, "read" once all prompts are, and "restored" once their state has been put back into the empty cache.

use std::{
    io::{BufRead, BufReader, Lines},
    num::NonZeroU32,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use llama_cpp_2::{
    LlamaStateSeqFlags,
    context::{LlamaContext, params::LlamaContextParams},
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
};

use crate::{CONTEXT, ROWS};

/// What is loaded and read.
#[derive(Debug, Clone, Args)]
pub struct Bare {
    /// Layers on the GPU.
    #[arg(long, default_value_t = 0)]
    pub layers: u32,
    /// Threads of a step.
    #[arg(long, default_value_t = 1)]
    pub threads: i32,
    /// "on", "off" or "auto".
    #[arg(long, default_value = "auto")]
    pub flash_attention: String,
    /// Tokens of each sequence.
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<usize>,
}

/// How long that took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// From the start of the process to the first token.
    pub load: Duration,
    /// Reading what the sequences hold.
    pub read: Duration,
    /// Putting back their state instead.
    pub restore: Duration,
}

/// Runs `program`, this bench itself or its build for Vulkan, as [`run`].
pub fn measure(program: &PathBuf, model: &PathBuf, bare: &Bare, environment: &[(&str, &str)]) -> Result<Took> {
    let tokens: Vec<_> = bare.tokens.iter().map(ToString::to_string).collect();
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(["--bench", "--layers", &bare.layers.to_string(), "--threads", &bare.threads.to_string()])
        .args(["--flash-attention", &bare.flash_attention, "--tokens", &tokens.join(",")])
        .arg("--bare")
        .arg(model)
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let mut until = |what: &str| heard(&mut lines, &mut child, what).map(|()| began.elapsed());
    let (load, read, restore) = (until("loaded")?, until("read")?, until("restored")?);
    child.wait()?;
    Ok(Took { load, read: read - load, restore: restore - read })
}

fn heard(lines: &mut Lines<BufReader<ChildStdout>>, child: &mut Child, what: &str) -> Result<()> {
    match lines.next() {
        Some(Ok(line)) if line == what => Ok(()),
        other => bail!("the bare load says {other:?} instead of {what:?}: {}", child.wait()?),
    }
}

/// Loads, reads and restores.
pub fn run(model: &PathBuf, bare: &Bare) -> Result<()> {
    let backend = LlamaBackend::init()?;
    let params = LlamaModelParams::default().with_n_gpu_layers(bare.layers);
    let params = if bare.layers == 0 { params.with_devices(&[])? } else { params };
    let model = LlamaModel::load_from_file(&backend, model, &params)?;
    let attention = match bare.flash_attention.as_str() {
        "on" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        _ => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
    };
    let sequences = u32::try_from(bare.tokens.len())?.max(1);
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(CONTEXT))
        .with_n_seq_max(sequences)
        .with_kv_unified(true)
        .with_n_batch(ROWS)
        .with_n_ubatch(ROWS)
        .with_flash_attention_policy(attention)
        .with_n_threads(bare.threads)
        .with_n_threads_batch(bare.threads);
    let mut context = model.new_context(&backend, params)?;
    read(&mut context, &model, 0, 1)?;
    context.clear_kv_cache();
    println!("loaded");
    for (sequence, tokens) in (0..).zip(&bare.tokens) {
        read(&mut context, &model, sequence, *tokens)?;
    }
    println!("read");
    let states =
        (0..).zip(&bare.tokens).map(|(sequence, _)| context.state_seq_get(sequence, LlamaStateSeqFlags::empty()));
    let states = states.collect::<Result<Vec<_>, _>>()?;
    context.clear_kv_cache();
    for (sequence, state) in (0..).zip(&states) {
        context.state_seq_set(state, sequence)?;
    }
    println!("restored");
    Ok(())
}

fn read(context: &mut LlamaContext<'_>, model: &LlamaModel, sequence: i32, tokens: usize) -> Result<()> {
    let text = model.vocab().tokenize(b" one two three four five six seven eight nine ten", true, false);
    let tokens: Vec<_> = text.into_iter().cycle().take(tokens).collect();
    let mut batch = LlamaBatch::new(ROWS as usize, 1);
    let mut position = 0;
    for rows in tokens.chunks(ROWS as usize) {
        batch.clear();
        for token in rows {
            let last = position + 1 == i32::try_from(tokens.len())?;
            batch.add(*token, position, &[sequence], last)?;
            position += 1;
        }
        context.decode(&mut batch)?;
    }
    context.synchronize();
    Ok(())
}
