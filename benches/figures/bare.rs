//! The bare loop: one token per `llama_decode`, greedy, with the threads, KV type, flash attention and context of the
//! others. Reads "TOKENS PROMPT" lines and answers each with tokens per second.

use std::{io::BufRead, num::NonZeroU32, path::Path, time::Instant};

use anyhow::{Context, Result};
use llama_cpp_2::{
    context::{LlamaContext, params::LlamaContextParams},
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};

/// Runs until its input ends.
pub fn run(path: &Path) -> Result<()> {
    let backend = LlamaBackend::init()?;
    let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default())?;
    let threads: i32 = std::env::var("TEMPERD_BENCH_THREADS").context("TEMPERD_BENCH_THREADS")?.parse()?;
    let attention = std::env::var("TEMPERD_BENCH_FLASH_ATTENTION").context("TEMPERD_BENCH_FLASH_ATTENTION")?;
    let attention = match attention.as_str() {
        "on" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off" => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        _ => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
    };
    let cells = std::env::var("TEMPERD_BENCH_CONTEXT").context("TEMPERD_BENCH_CONTEXT")?.parse()?;
    let params = LlamaContextParams::default()
        .with_flash_attention_policy(attention)
        .with_n_ctx(NonZeroU32::new(cells))
        .with_n_batch(512)
        .with_n_ubatch(512)
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    let mut context = model.new_context(&backend, params)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (tokens, prompt) = line.split_once(' ').context("TOKENS PROMPT")?;
        println!("{}", decode(&model, &mut context, prompt, tokens.parse()?)?);
    }
    Ok(())
}

fn decode(model: &LlamaModel, context: &mut LlamaContext<'_>, prompt: &str, tokens: usize) -> Result<f64> {
    context.clear_kv_cache();
    let mut read = model.vocab().tokenize(prompt.as_bytes(), true, false);
    if read.is_empty() {
        read.push(model.vocab().bos());
    }
    let mut batch = LlamaBatch::new(read.len(), 1);
    batch.add_sequence(&read, 0, false)?;
    context.decode(&mut batch)?;
    let mut token = greedy(context, batch.n_tokens() - 1);
    let began = Instant::now();
    for position in (i32::try_from(read.len())?..).take(tokens - 1) {
        batch.clear();
        batch.add(token, position, &[0], true)?;
        context.decode(&mut batch)?;
        token = greedy(context, 0);
    }
    Ok((tokens - 1) as f64 / began.elapsed().as_secs_f64())
}

fn greedy(context: &LlamaContext<'_>, row: i32) -> LlamaToken {
    let logits = context.get_logits_ith(row);
    // A maximum alone is something the compiler turns into vector instructions.
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in logits.chunks(lanes.len()) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > lane { *value } else { *lane };
        }
    }
    let greatest = lanes.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let best = logits.iter().position(|logit| *logit == greatest);
    LlamaToken(i32::try_from(best.unwrap_or_default()).unwrap_or(0))
}
