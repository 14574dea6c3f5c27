//! Embeddings: texts are read by a second context of the same weights, which lives for one job and gives a vector per
//! token; those of a text are pooled here and scaled to length 1.
//!
//! A context that makes embeddings computes outputs for every token, so the one that answers cannot be used. llama.cpp's
//! own pooling sees one micro-batch at a time and keeps the last of them; pooled here, a text of any length has the same
//! vector whatever the size of a batch.
//!
//! Jobs are read one after the other, in slices between the decode steps of the running answers, so these keep flowing.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use llama_cpp_2::{
    context::{LlamaContext, params::LlamaPoolingType},
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::LlamaModel,
    token::LlamaToken,
};
use temperd::wire::engine::{Embed, Embedded, Load, Vector, from_engine::Frame};

use self::{
    plan::{Part, Place, Room, plan},
    pool::{Pool, Pooling},
};
use crate::{answer::finished, link::Link, load, log::Errors, owner::Surroundings, vocabulary};

mod plan;
mod pool;

/// Most tokens of a slice. llama.cpp computes logits for each of them, so a larger one costs memory (tokens times
/// vocabulary, twice) and gains little.
const SLICE: usize = 128;
/// Fewest tokens of a slice of a model that can read in slices.
const LEAST_SLICE: usize = 8;
/// Texts in one slice.
const SEQUENCES: usize = 16;
/// How long a slice may take between two steps of running answers, and where nothing else runs: a Stop waits so long.
const BESIDE: Duration = Duration::from_millis(50);
const ALONE: Duration = Duration::from_secs(1);

/// Reads texts for their vectors.
pub struct Embedder<'a> {
    link: &'a Link,
    backend: &'a LlamaBackend,
    errors: &'a Errors,
    model: &'a LlamaModel,
    load: &'a Load,
    /// Why this model gives no embeddings, if so.
    pooling: Result<Pooling, String>,
    /// A text must be read at once: its tokens look at those after them.
    whole: bool,
    waiting: VecDeque<Embed>,
    running: Option<Running<'a>>,
    /// Tokens per second of the last slice.
    speed: Option<f64>,
}

/// The job that is being read.
struct Running<'a> {
    job: Embed,
    place: Place,
    pool: Pool,
    context: LlamaContext<'a>,
    batch: LlamaBatch<'static>,
    /// Most tokens of a slice.
    size: usize,
}

/// Why a job ends before its time.
struct Failure {
    message: String,
    /// Most tokens of a text, and those of the one at fault.
    numbers: Option<(usize, usize)>,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { message, numbers: None }
    }
}

impl<'a> Embedder<'a> {
    /// An embedder of a loaded model, without any memory of its own yet.
    pub fn new(around: &'a Surroundings, model: &'a LlamaModel, load: &'a Load) -> Self {
        let own = |key| vocabulary::architecture(model, key);
        let whole = own("attention.causal").as_deref() == Some("false")
            // These are so by their architecture, without a word in the file.
            || vocabulary::meta(model, "general.architecture").is_some_and(|name| {
                ["gemma-embedding", "rnd1", "dream", "llada", "llada-moe"].contains(&name.as_str())
            });
        let pooling = Pooling::of(own("pooling_type").as_deref());
        tracing::info!("embeddings of this model: pooling {pooling:?}, texts read at once: {whole}");
        Self {
            link: &around.link,
            backend: &around.backend,
            errors: &around.heard.errors,
            model,
            load,
            pooling,
            whole,
            waiting: VecDeque::new(),
            running: None,
            speed: None,
        }
    }

    /// Whether there is nothing to read.
    pub fn idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// Takes a job in. The daemon bounds how many there are.
    pub fn push(&mut self, job: Embed) {
        self.waiting.push_back(job);
    }

    /// Ends a job as cancelled, if it is one of ours.
    pub fn stop(&mut self, id: u64) {
        let running = self.running.take_if(|running| running.job.sequence == id).is_some();
        let before = self.waiting.len();
        self.waiting.retain(|job| job.sequence != id);
        if running || self.waiting.len() < before {
            self.end(id, Vec::new(), "cancelled", None);
        }
    }

    /// Ends every job with an error.
    pub fn fail_all(&mut self, why: &str) {
        let running = self.running.take().map(|running| running.job);
        for job in running.into_iter().chain(std::mem::take(&mut self.waiting)) {
            refuse(self.link, job.sequence, why);
        }
    }

    /// Reads the next slice, a short one where answers run `beside`.
    pub fn step(&mut self, beside: bool) {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => {
                let Some(job) = self.waiting.pop_front() else { return };
                let id = job.sequence;
                match self.begin(job) {
                    Ok(running) => running,
                    Err(failure) => return self.end(id, Vec::new(), "error", Some(failure)),
                }
            }
        };
        let id = running.job.sequence;
        match self.slice(&mut running, beside) {
            Ok(vectors) if running.place.text >= running.job.lengths.len() => self.end(id, vectors, "stop", None),
            Ok(vectors) => {
                if !vectors.is_empty() {
                    self.link.send(Frame::Embedded(Embedded { sequence: id, vectors, ..Embedded::default() }));
                }
                self.running = Some(running);
            }
            Err(error) => {
                tracing::error!("embedding failed: {error}");
                self.end(id, Vec::new(), "error", Some(error.into()));
            }
        }
    }

    fn end(&self, sequence: u64, vectors: Vec<Vector>, reason: &str, failure: Option<Failure>) {
        let (limit, actual) = failure.as_ref().and_then(|failure| failure.numbers).unzip();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.link.send(Frame::Embedded(Embedded {
            sequence,
            vectors,
            finished: Some(finished(reason, failure.map(|failure| failure.message))),
            limit: limit.map(number),
            actual: actual.map(number),
        }));
    }

    /// Checks the job and makes its context.
    fn begin(&self, job: Embed) -> Result<Running<'a>, Failure> {
        let pooling = self.pooling.clone()?;
        let n_vocab = self.model.vocab().n_tokens();
        let lengths = || job.lengths.iter().map(|length| *length as usize);
        let (longest, total) = (lengths().max().unwrap_or(0), lengths().sum::<usize>());
        if total != job.tokens.len() || lengths().any(|length| length == 0) || longest > job.cells as usize {
            return Err("the lengths of the texts do not fit their tokens".to_owned().into());
        }
        if total == 0 {
            return Err("there is no text".to_owned().into());
        }
        if job.tokens.iter().any(|id| i32::try_from(*id).is_ok_and(|id| id >= n_vocab) || i32::try_from(*id).is_err()) {
            return Err(format!("a text holds a token beyond the vocabulary of {n_vocab}").into());
        }
        let limit = self.load.n_batch as usize;
        if self.whole && longest > limit {
            let message = format!(
                "a text has {longest} tokens; this model reads a text at once, and `engine.n_batch` is {limit} tokens"
            );
            return Err(Failure { message, numbers: Some((limit, longest)) });
        }
        let size = if self.whole { longest } else { SLICE.min(self.load.n_ubatch as usize) }.min(total);
        let sequences = SEQUENCES.min(job.lengths.len());
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let params = load::params(self.load, 1)?
            .with_n_ctx(NonZeroU32::new(job.cells))
            .with_n_seq_max(narrow(sequences))
            // Batch and micro-batch are one: a model that reads a text at once wants it in one micro-batch.
            .with_n_batch(narrow(size))
            .with_n_ubatch(narrow(size))
            .with_embeddings(true)
            .with_pooling_type(LlamaPoolingType::None);
        self.errors.clear();
        let context = self.model.new_context(self.backend, params).map_err(|error| {
            format!("a context of {} tokens for embeddings: {}", job.cells, self.errors.reason(&error.to_string()))
        })?;
        let pool = Pool::new(pooling);
        Ok(Running { place: Place::default(), pool, context, batch: LlamaBatch::new(size, 1), size, job })
    }

    fn slice(&mut self, running: &mut Running<'_>, beside: bool) -> Result<Vec<Vector>, String> {
        let room = Room {
            tokens: if self.whole { running.size } else { self.tokens(beside).min(running.size) },
            cells: running.job.cells as usize,
            texts: SEQUENCES.min(running.job.lengths.len()),
            whole: self.whole,
        };
        let parts = plan(&running.job.lengths, running.place, room);
        running.batch.clear();
        for part in &parts {
            running.add(part)?;
        }
        let began = Instant::now();
        running.context.decode(&mut running.batch).map_err(|error| format!("the engine could not decode: {error}"))?;
        let mut vectors = Vec::new();
        let mut row = 0;
        for part in &parts {
            for position in part.from..part.from + part.count {
                let values = running.context.embeddings_ith(row).map_err(|error| error.to_string())?;
                running.pool.add(values, position == 0);
                row += 1;
            }
            if part.last {
                let values = running.pool.take().ok_or("the model gave no finite vector")?;
                vectors.push(Vector { values });
                running
                    .context
                    .kv_cache_seq_rm(sequence(part.text), None, None)
                    .map_err(|error| format!("a text could not be dropped from the cache: {error}"))?;
            }
            running.place = part.end();
        }
        self.speed = Some(f64::from(row) / began.elapsed().as_secs_f64().max(1e-6));
        Ok(vectors)
    }

    /// How many tokens may be read in the time that a slice has.
    fn tokens(&self, beside: bool) -> usize {
        let time = if beside { BESIDE } else { ALONE };
        match self.speed {
            // A number of tokens over the range of usize is cut by the caller all the same.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive and capped")]
            Some(speed) => ((speed * time.as_secs_f64()).min(1e6) as usize).max(LEAST_SLICE),
            None if beside => LEAST_SLICE,
            None => SLICE,
        }
    }
}

impl Running<'_> {
    fn add(&mut self, part: &Part) -> Result<(), String> {
        let first = part.start + part.from;
        let tokens = self.job.tokens.get(first..first + part.count).unwrap_or_default();
        for (token, position) in tokens.iter().zip(part.from..) {
            let token = LlamaToken(i32::try_from(*token).unwrap_or_default());
            let position = i32::try_from(position).unwrap_or(i32::MAX);
            self.batch.add(token, position, &[sequence(part.text)], true).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// llama.cpp's sequence of a text: the texts of one slice follow each other, so theirs differ.
fn sequence(text: usize) -> i32 {
    i32::try_from(text % SEQUENCES).unwrap_or_default()
}

/// Ends a job that never began.
pub fn refuse(link: &Link, sequence: u64, why: &str) {
    let finished = Some(finished("error", Some(why.to_owned())));
    link.send(Frame::Embedded(Embedded { sequence, finished, ..Embedded::default() }));
}
