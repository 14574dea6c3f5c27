//! A bare llama.cpp loop that decodes the same tokens alone, one by one, and prompts that are long enough to tell.

use std::{
    hash::{DefaultHasher, Hasher as _},
    num::NonZeroU32,
    path::Path,
    process::Command,
};

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
use temperd::wire::engine::Sampling;

use crate::harness::{Engine, greedy};

/// Tokens that end an answer are out of the question, so that every answer is as long as asked for.
const ENDS: std::ops::Range<u32> = 0..17;
const JOB: &str = "TEMPERD_TEST_BARE_LOOP";

/// Prompts and answers that were given to them.
pub type Jobs = Vec<(Vec<u32>, Vec<u32>)>;

/// Tokens of running text; another `from` gives another text. The first is longer than the 512 rows from which on
/// attention would take another path.
pub fn text(engine: &mut Engine) -> Vec<u32> {
    let words = ["pump", "valve", "tank", "river", "filter", "meter", "pipe", "sluice"];
    let sentences = (0..400).map(|n| format!("The {} {} is {}. ", words[n % 8], n, words[(n * 5 + n / 8) % 8]));
    engine.tokenise(&sentences.collect::<String>(), false)
}

pub fn never_ending() -> Sampling {
    Sampling { logit_bias: ENDS.map(|token| (token, f32::NEG_INFINITY)).collect(), ..greedy() }
}

/// The digests of the rows of each answer, given prompt and answer, from a process of its own: ggml reads
/// `GGML_CPU_TILED_MM` once.
pub fn bare_loop(model: &Path, jobs: &Jobs) -> Vec<Vec<u64>> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jobs.json");
    std::fs::write(&file, serde_json::to_vec(&(model, jobs)).expect("plain")).expect("written");
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "bare::the_bare_loop", "--ignored", "--nocapture"])
        .env(JOB, &file)
        .env("GGML_CPU_TILED_MM", "0")
        // Its two threads run beside those of other tests, where looking for each other would take very long.
        .env("OMP_WAIT_POLICY", "passive")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(file.with_extension("out")).expect("it has written")).expect("digests")
}

#[test]
#[ignore = "the other half of `bare_loop`, which runs it"]
fn the_bare_loop() {
    let file = std::path::PathBuf::from(std::env::var_os(JOB).expect("run by `bare_loop`"));
    let jobs = std::fs::read(&file).expect("jobs");
    let (model, jobs): (std::path::PathBuf, Jobs) = serde_json::from_slice(&jobs).expect("jobs");
    let backend = LlamaBackend::init().expect("llama.cpp");
    let model = LlamaModel::load_from_file(&backend, &model, &LlamaModelParams::default()).expect("the model");
    let mut alone = Alone::new(&backend, &model);
    let digests: Vec<Vec<u64>> = jobs.iter().map(|(prompt, answer)| alone.answer(prompt, answer)).collect();
    std::fs::write(file.with_extension("out"), serde_json::to_vec(&digests).expect("plain")).expect("written");
}

/// A context with one sequence. What two jobs in a row begin with is read once.
struct Alone<'a> {
    context: LlamaContext<'a>,
    tokens: Vec<u32>,
}

impl<'a> Alone<'a> {
    fn new(backend: &LlamaBackend, model: &'a LlamaModel) -> Self {
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(2048))
            .with_n_batch(1024)
            .with_n_ubatch(512)
            .with_type_v(KvCacheType::Q8_0)
            .with_n_threads(2)
            .with_n_threads_batch(2)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED);
        Self { context: model.new_context(backend, params).expect("a context"), tokens: Vec::new() }
    }

    fn answer(&mut self, prompt: &[u32], answer: &[u32]) -> Vec<u64> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let same = same.min(prompt.len() - 1);
        let beyond = Some(u32::try_from(same).expect("few"));
        self.context.kv_cache_seq_rm(0, beyond, None).expect("removed");
        self.tokens = [prompt, answer].concat();
        let mut batch = LlamaBatch::new(1024, 1);
        let mut digests = Vec::new();
        let mut next = same..prompt.len();
        loop {
            batch.clear();
            for at in next.clone() {
                let token = LlamaToken(self.tokens[at].cast_signed());
                batch.add(token, i32::try_from(at).expect("few"), &[0], at + 1 == next.end).expect("room");
            }
            self.context.decode(&mut batch).expect("decoded");
            let mut hasher = DefaultHasher::new();
            for logit in self.context.get_logits_ith(batch.n_tokens() - 1) {
                hasher.write_u32(logit.to_bits());
            }
            digests.push(hasher.finish());
            if next.end == self.tokens.len() {
                return digests;
            }
            next = next.end..next.end + 1;
        }
    }
}
