//! What a smaller file, or a smaller type of KV cache, changes: the distributions of next tokens that two of them give
//! for the same text are compared token by token. Run by `scripts/bench --quality A[@KV] B[@KV] TEXT`.
//!
//! For each token: the Kullback-Leibler divergence from A's distribution to B's in nats, and
//! whether the likeliest token is the same (as llama.cpp's `llama-perplexity --kl-divergence` does it).

use std::{fs, num::NonZeroU32, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use llama_cpp_2::{
    context::{
        LlamaContext,
        params::{KvCacheType, LlamaContextParams},
    },
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};

/// Tokens that are read before a context begins anew, and tokens of one step.
const WINDOW: usize = 512;
const STEP: usize = 64;

/// A file and the types of its K and V.
#[derive(Debug)]
struct Side {
    file: PathBuf,
    k: KvCacheType,
    v: KvCacheType,
}

fn side(argument: &str) -> Result<Side> {
    let (file, kv) = argument.rsplit_once('@').unwrap_or((argument, "f16"));
    let (k, v) = match kv {
        "f16" => (KvCacheType::F16, KvCacheType::F16),
        "q8_0" => (KvCacheType::Q8_0, KvCacheType::Q8_0),
        "f16/q8_0" => (KvCacheType::F16, KvCacheType::Q8_0),
        other => bail!("{argument}: {other:?} is none of f16, q8_0, f16/q8_0"),
    };
    Ok(Side { file: file.into(), k, v })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo test --benches` and `cargo bench` without arguments run this too.
    let [a, b, text] = arguments.as_slice() else {
        ensure!(arguments.is_empty(), "give A.gguf[@KV] B.gguf[@KV] TEXT");
        return Ok(());
    };
    let text = fs::read(text).with_context(|| text.clone())?;
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    let backend = LlamaBackend::init()?;
    let sides = [side(a)?, side(b)?];
    let load = |side: &Side| {
        LlamaModel::load_from_file(&backend, &side.file, &LlamaModelParams::default())
            .with_context(|| side.file.display().to_string())
    };
    let models = [load(&sides[0])?, load(&sides[1])?];
    let tokens = models[0].vocab().tokenize(&text, true, false);
    ensure!(tokens == models[1].vocab().tokenize(&text, true, false), "the two have different vocabularies");
    ensure!(tokens.len() > 1, "the text is empty");
    let threads = i32::try_from(sysinfo::System::physical_core_count().unwrap_or(1))?;
    let context = |model: usize| -> Result<LlamaContext<'_>> {
        let side = &sides[model];
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(u32::try_from(WINDOW)?))
            .with_n_batch(u32::try_from(STEP)?)
            .with_n_ubatch(u32::try_from(STEP)?)
            .with_type_k(side.k)
            .with_type_v(side.v)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        Ok(models[model].new_context(&backend, params)?)
    };
    let found = compare(&mut context(0)?, &mut context(1)?, &tokens)?;
    print!("{}", table(&found, a, b));
    Ok(())
}

/// Of one token: the divergence in nats, and whether the likeliest is the same.
type Compared = (f64, bool);

fn compare(a: &mut LlamaContext<'_>, b: &mut LlamaContext<'_>, tokens: &[LlamaToken]) -> Result<Vec<Compared>> {
    let mut found = Vec::new();
    let mut batch = LlamaBatch::new(STEP, 1);
    for window in tokens.chunks(WINDOW) {
        a.clear_kv_cache();
        b.clear_kv_cache();
        for (nth, step) in window.chunks(STEP).enumerate() {
            batch.clear();
            for (position, token) in (i32::try_from(nth * STEP)?..).zip(step) {
                batch.add(*token, position, &[0], true)?;
            }
            a.decode(&mut batch)?;
            b.decode(&mut batch)?;
            for row in 0..batch.n_tokens() {
                found.push(divergence(a.get_logits_ith(row), b.get_logits_ith(row)));
            }
        }
    }
    Ok(found)
}

fn divergence(a: &[f32], b: &[f32]) -> Compared {
    let best = |logits: &[f32]| logits.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).map(|(at, _)| at);
    let normaliser = |logits: &[f32]| {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(most) + logits.iter().map(|logit| f64::from(logit - most).exp()).sum::<f64>().ln()
    };
    let (of_a, of_b) = (normaliser(a), normaliser(b));
    let terms = a.iter().zip(b).map(|(a, b)| {
        let (a, b) = (f64::from(*a) - of_a, f64::from(*b) - of_b);
        a.exp() * (a - b)
    });
    (terms.sum::<f64>().max(0.0), best(a) == best(b))
}

fn table(found: &[Compared], a: &str, b: &str) -> String {
    let mut divergences: Vec<f64> = found.iter().map(|(divergence, _)| *divergence).collect();
    divergences.sort_by(f64::total_cmp);
    let percent = |of: usize| divergences[(divergences.len() - 1) * of / 100];
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    let same = found.iter().filter(|(_, same)| *same).count() as f64 / found.len() as f64;
    format!(
        "| {a} against {b} | over {} tokens |\n|---|---|\n| KL divergence, mean | {mean:.6} nats |\n\
         | KL divergence, median; 99 %; most | {:.6}; {:.6}; {:.6} nats |\n| likeliest token the same | {:.2} % |\n",
        found.len(),
        percent(50),
        percent(99),
        percent(100),
        same * 100.0,
    )
}
