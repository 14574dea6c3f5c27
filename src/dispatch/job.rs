//! One accepted request: what is known of it, what has been answered, and its final.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::{
    gate::Gate,
    prompt::Prompt,
    slots::Suspect,
    ticket::{Event, Outlet},
    tokens::Tokens,
    turn::Gated,
};
use crate::{
    constrain::Constraint,
    request::{Input, Outcome, Request, RequestError},
    wire::{engine, v1},
};

/// An accepted request, queued, running, or between two engines.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) outlet: Outlet,
    /// `None` while no engine has tokenised it.
    pub(super) prompt: Option<Prompt>,
    /// A task is rendering and tokenising it.
    pub(super) preparing: bool,
    /// What it waits for when its turn has come.
    pub(super) gate: Gate,
    pub(super) arrived: Instant,
    pub(super) deadline: Instant,
    seed: u32,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    prompt_tokens: u32,
    cached_tokens: u32,
    /// Tokens of the answer: another engine goes on behind them.
    written: Tokens,
    /// Most that the answer may have, settled at its first start: whoever goes on with it keeps to the same.
    most: Option<u32>,
    text: String,
    logprobs: Vec<v1::TokenLogprob>,
    /// Engines that crashed while it ran.
    crashes: u32,
    /// Whether vectors are wanted in place of an answer.
    pub(super) embeds: bool,
    pub(super) embeddings: Vec<v1::Embedding>,
    /// What was last said of its place in the queue.
    ahead: Option<u32>,
}

impl Job {
    pub(super) fn new(request: Request, prompt: Option<Prompt>, outlet: Outlet, times: Times, seed: u32) -> Self {
        Self {
            embeds: matches!(request.input, Input::Texts(_)),
            embeddings: Vec::new(),
            request,
            outlet,
            prompt,
            preparing: false,
            gate: Gate::open(),
            arrived: times.arrived,
            deadline: times.deadline,
            seed,
            started: None,
            first_token: None,
            last_token: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            written: Tokens::default(),
            most: None,
            text: String::new(),
            logprobs: Vec::new(),
            crashes: 0,
            ahead: None,
        }
    }

    /// Tokens of the answer at most.
    fn max_tokens(&self, limits: Limits) -> u32 {
        if let Some(most) = self.most {
            return most;
        }
        let prompt = u32::try_from(self.prompt.as_ref().map_or(0, |prompt| prompt.tokens.len())).unwrap_or(u32::MAX);
        self.request.max_tokens.unwrap_or(limits.max_tokens).min(limits.context.saturating_sub(prompt))
    }

    /// Cells of the KV cache that prompt and answer may come to need; `None` while the prompt has no tokens.
    pub(super) fn cells(&self, limits: Limits) -> Option<u32> {
        let prompt = self.prompt.as_ref()?;
        if self.embeds {
            return Some(prompt.embedding_cells(limits.context));
        }
        let prompt = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
        Some(prompt.saturating_add(self.max_tokens(limits)))
    }

    /// What the engine is told; at another start than the first, with what was written so far.
    pub(super) fn start(
        &mut self,
        key: u64,
        stop_tokens: Vec<u32>,
        sharing: Sharing,
        limits: Limits,
        now: Instant,
    ) -> engine::Start {
        let max_tokens = self.begin(limits, now);
        let (prompt, public_prefix) =
            self.prompt.as_ref().map_or((Vec::new(), 0), |prompt| (prompt.tokens.to_vec(), prompt.public_prefix));
        let sampling = &self.request.sampling;
        let (grammar, json_schema) = match &self.request.constraint {
            None => (None, None),
            Some(Constraint::Grammar(grammar)) => (Some(grammar.clone()), None),
            Some(Constraint::Schema(schema)) => (None, Some(schema.clone())),
        };
        engine::Start {
            sequence: key,
            prompt,
            sampling: Some(engine::Sampling {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                repeat_penalty: sampling.repeat_penalty,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                seed: self.seed,
                logit_bias: sampling.logit_bias.iter().copied().collect(),
            }),
            grammar,
            json_schema,
            stop: self.request.stop.clone(),
            stop_tokens,
            max_tokens,
            logprobs: self.request.logprobs.is_some(),
            top_logprobs: self.request.logprobs.unwrap_or(0),
            public_prefix: if sharing.public { public_prefix } else { 0 },
            scope: sharing.scope,
            priority: self.request.priority,
            written: self.written.to_vec(),
            digests: false,
            ..engine::Start::default()
        }
    }

    /// The prompt's text has become tokens: it is overwritten here. The tokens stay until the end, for another engine that
    /// may have to read them. Gives the most that the answer may have.
    pub(super) fn begin(&mut self, limits: Limits, now: Instant) -> u32 {
        let most = self.max_tokens(limits);
        if self.started.is_none() {
            self.started = Some(now);
            self.most = Some(most);
            let prompt = self.prompt.as_ref().map_or(0, |prompt| prompt.tokens.len());
            self.prompt_tokens = u32::try_from(prompt).unwrap_or(u32::MAX);
            self.request.input = Input::Raw(String::new());
            if !self.embeds {
                self.written = Tokens::with_room(most as usize);
            }
        }
        most
    }

    /// Whether it has run, in whichever engine.
    pub(super) fn has_run(&self) -> bool {
        self.started.is_some()
    }

    /// Takes in what a step brought, and says how long the first token took where this was it.
    pub(super) fn absorb(&mut self, output: engine::SequenceOutput, now: Instant) -> Option<Duration> {
        // Another engine found its own work there: what counts is what was found first.
        if let Some(cached) = output.cached_tokens.filter(|_| self.written.is_empty()) {
            self.cached_tokens = cached;
        }
        let mut first = None;
        let wrote = !output.tokens.is_empty();
        self.written.append(output.tokens);
        if wrote {
            self.last_token = Some(now);
            if self.first_token.is_none() {
                self.first_token = Some(now);
                first = Some(now.duration_since(self.arrived));
            }
        }
        self.text.push_str(&output.text);
        let logprobs: Vec<_> = output.logprobs.into_iter().map(logprob).collect();
        if self.request.stream && !(output.text.is_empty() && logprobs.is_empty()) {
            self.outlet.send(v1::Chunk {
                id: self.request.id.clone(),
                delta: output.text,
                logprobs: logprobs.clone(),
                ..v1::Chunk::default()
            });
        }
        self.logprobs.extend(logprobs);
        first
    }

    /// Tells a streaming client how many are before it, where that has changed.
    pub(super) fn tell_ahead(&mut self, ahead: usize) {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        if self.request.stream && self.ahead.replace(ahead) != Some(ahead) {
            self.outlet.send(v1::Chunk { id: self.request.id.clone(), ahead: Some(ahead), ..v1::Chunk::default() });
        }
    }

    /// Time from the engine's start to now; `None` where it never ran.
    pub(super) fn in_engine(&self, now: Instant) -> Option<Duration> {
        self.started.map(|started| now.duration_since(started))
    }

    /// Mean time of a token after the first.
    pub(super) fn per_token(&self) -> Option<Duration> {
        let after_first = self.token_counts().1.checked_sub(1).filter(|tokens| *tokens > 0)?;
        Some(self.last_token?.duration_since(self.first_token?) / after_first)
    }

    /// Prompt tokens and answer tokens.
    pub(super) fn token_counts(&self) -> (u32, u32) {
        (self.prompt_tokens, u32::try_from(self.written.len()).unwrap_or(u32::MAX))
    }

    /// Sends the one outcome.
    pub(super) fn finish(mut self, node: &str, end: End, now: Instant) {
        let (outcome, finish_reason, error) = match end {
            End::Completed { finish_reason } => (Outcome::Completed, Some(finish_reason), None),
            End::Other { outcome, error } => (outcome, None, Some(error)),
        };
        let (prompt_tokens, completion_tokens) = self.token_counts();
        let answered = outcome == Outcome::Completed || !self.text.is_empty();
        let message =
            answered.then(|| v1::Message { role: "assistant".into(), content: self.text, ..v1::Message::default() });
        let started = self.started.unwrap_or(now);
        let embeddings = std::mem::take(&mut self.embeddings);
        let final_ = v1::Final {
            id: self.request.id.clone(),
            node: node.into(),
            outcome: outcome.as_str().into(),
            finish_reason,
            message,
            usage: self.started.map(|_| v1::Usage {
                prompt_tokens,
                completion_tokens,
                cached_tokens: self.cached_tokens,
            }),
            logprobs: self.logprobs,
            timings: Some(v1::Timings {
                queued_ms: millis(started.duration_since(self.arrived)),
                ttft_ms: self.first_token.map(|first| millis(first.duration_since(self.arrived))),
                total_ms: millis(now.duration_since(self.arrived)),
            }),
            retry_after_ms: error.as_ref().and_then(|error| error.retry_after_ms),
            error: error.map(|error| error.to_wire()),
            ..v1::Final::default()
        };
        self.outlet.finish(if self.embeds {
            let embeddings = if outcome == Outcome::Completed { embeddings } else { Vec::new() };
            Event::Embedded(Box::new(v1::EmbedReply { embeddings, ..final_.into() }))
        } else {
            Event::Final(Box::new(final_))
        });
    }
}

impl Suspect for Job {
    fn crashes(&self) -> u32 {
        self.crashes
    }

    fn crashed(&mut self) -> u32 {
        self.crashes += 1;
        self.crashes
    }
}

impl Gated for Job {
    type Leave = BoxFuture<'static, ()>;

    fn may_run(&self) -> bool {
        self.gate.is_open()
    }

    fn knock(&mut self) -> Option<Self::Leave> {
        let leave = self.gate.knock()?;
        Some(Box::pin(leave))
    }
}

/// When a request came and when it is too late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) arrived: Instant,
    pub(super) deadline: Instant,
}

/// The bounds of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) context: u32,
    /// Of a request that names none.
    pub(super) max_tokens: u32,
}

/// With whom a request may share the cells of its prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sharing {
    /// Its client; 0 is nobody.
    pub(super) scope: u64,
    /// Whether the operator's part is everybody's.
    pub(super) public: bool,
}

/// How an accepted request ends.
#[derive(Debug)]
pub(super) enum End {
    Completed { finish_reason: String },
    Other { outcome: Outcome, error: RequestError },
}

impl End {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Completed { .. } => Outcome::Completed,
            Self::Other { outcome, .. } => *outcome,
        }
    }
}

fn logprob(info: engine::TokenInfo) -> v1::TokenLogprob {
    v1::TokenLogprob {
        token: String::from_utf8_lossy(&info.bytes).into_owned(),
        logprob: info.logprob,
        bytes: info.bytes.into(),
        top_logprobs: info
            .top
            .into_iter()
            .map(|top| v1::TopLogprob {
                token: String::from_utf8_lossy(&top.bytes).into_owned(),
                logprob: top.logprob,
                bytes: top.bytes.into(),
            })
            .collect(),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
