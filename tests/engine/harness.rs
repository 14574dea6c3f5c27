//! An engine process at the other end of a socket pair, and the frames to drive it.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    collections::HashMap,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use temperd::{
    engine::{frames, kernel},
    wire::engine::{
        Embedded, FromEngine, Heartbeat, Hello, Load, LoadFailed, Log, Measured, Operate, Ready, Sampling, Saved,
        Segment, SequenceOutput, Start, Stop, ToEngine, TokenInfo, Tokenise, Tokenised, Vocabulary, from_engine,
        to_engine,
    },
};

/// Ends a test that waits for a frame that never comes; far above any real wait.
const STUCK: Duration = Duration::from_secs(120);

pub const CONTEXT: u32 = 2048;
pub const PARALLEL: u32 = 8;

/// An engine process, killed when dropped.
pub struct Engine {
    pub process: Child,
    pub socket: UnixStream,
    pub outputs: Vec<SequenceOutput>,
    pub logs: Vec<Log>,
    pub tokenised: HashMap<u64, Tokenised>,
    started: usize,
    ended: usize,
    pub embedded: Vec<Embedded>,
    /// Cells of the KV cache, and how often their number has changed.
    pub allocated: u32,
    pub resized: usize,
    pub beats: Vec<Heartbeat>,
    pub saved: Option<Saved>,
    pub measured: Option<Measured>,
}

/// What came of a sequence.
#[derive(Debug, Default)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub pieces: Vec<String>,
    pub logprobs: Vec<TokenInfo>,
    pub reason: String,
    pub error: Option<String>,
    pub digests: Vec<u64>,
    pub cached: Option<u32>,
    pub drafted: u32,
    pub accepted: u32,
}

impl Answer {
    /// The same tokens as another answer that has the log probabilities of the two likeliest tokens, up to a place where
    /// these were within `near` of each other: sums in another order may decide such a place otherwise.
    pub fn assert_like(&self, alone: &Self, near: f32, what: &str) {
        let Some(at) = self.tokens.iter().zip(&alone.tokens).position(|(a, b)| a != b) else { return };
        let top = &alone.logprobs[at].top;
        let gap = top[0].logprob - top[1].logprob;
        assert!(gap < near, "{what}: another token at {at}, though {gap} was between the likeliest two");
    }

    pub fn text(&self) -> String {
        self.pieces.concat()
    }
}

impl Engine {
    /// An engine that has greeted and has been greeted.
    pub fn new() -> Self {
        Self::with_environment(&[])
    }

    pub fn with_environment(environment: &[(&str, &str)]) -> Self {
        let mut engine = Self::silent(environment);
        engine.send(hello(frames::PROTOCOL));
        engine
    }

    pub fn silent(environment: &[(&str, &str)]) -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_temperd-engine")), "cpu", environment)
    }

    /// An engine of another build, which has not been greeted.
    pub fn of(binary: &Path, flavour: &str, environment: &[(&str, &str)]) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        socket.set_read_timeout(Some(STUCK)).expect("a time-out");
        let process = Command::new(binary)
            .envs(environment.iter().copied())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("the engine starts");
        let mut engine = Self {
            process,
            socket,
            outputs: Vec::new(),
            logs: Vec::new(),
            tokenised: HashMap::new(),
            started: 0,
            ended: 0,
            embedded: Vec::new(),
            allocated: 0,
            resized: 0,
            beats: Vec::new(),
            saved: None,
            measured: None,
        };
        match engine.next() {
            from_engine::Frame::Hello(hello) => {
                assert_eq!((hello.protocol, hello.build.as_str()), (frames::PROTOCOL, frames::BUILD));
                assert_eq!(hello.flavour, flavour);
            }
            other => panic!("the first frame is {other:?}"),
        }
        engine
    }

    /// An engine with the model loaded, the vocabulary and what came to be.
    pub fn loaded() -> (Self, Vocabulary, Ready) {
        Self::loaded_with(load(&model()))
    }

    pub fn loaded_with(load: Load) -> (Self, Vocabulary, Ready) {
        Self::loaded_in(load, &[])
    }

    /// The same, with variables of the environment.
    pub fn loaded_in(load: Load, environment: &[(&str, &str)]) -> (Self, Vocabulary, Ready) {
        let invariant: &[(&str, &str)] = if load.batch_invariant { &[("GGML_CPU_TILED_MM", "0")] } else { &[] };
        let mut engine = Self::with_environment(&[environment, invariant].concat());
        engine.send(to_engine::Frame::Load(load));
        let vocabulary = loop {
            match engine.next_but_logs() {
                from_engine::Frame::Vocabulary(vocabulary) => break vocabulary,
                from_engine::Frame::Loading(_) => {}
                other => panic!("before Vocabulary came {other:?}"),
            }
        };
        let ready = loop {
            match engine.next_but_logs() {
                from_engine::Frame::Ready(ready) => break ready,
                from_engine::Frame::Loading(loading) => assert!((0.0..=1.0).contains(&loading.progress)),
                other => panic!("before Ready came {other:?}"),
            }
        };
        engine.allocated = ready.allocated_context;
        (engine, vocabulary, ready)
    }

    pub fn send(&mut self, frame: to_engine::Frame) {
        frames::write(&mut self.socket, &ToEngine { frame: Some(frame) }).expect("the engine reads");
    }

    /// The next frame, but for a word ahead of a long step: how long one is, depends on the machine.
    pub fn next(&mut self) -> from_engine::Frame {
        loop {
            let frame: Option<FromEngine> = frames::read(&mut self.socket).expect("a frame within the time-out");
            match frame.expect("the engine lives").frame.expect("a known frame") {
                from_engine::Frame::Busy(_) => {}
                frame => return frame,
            }
        }
    }

    pub fn next_but_logs(&mut self) -> from_engine::Frame {
        loop {
            match self.next() {
                from_engine::Frame::Log(log) => self.logs.push(log),
                from_engine::Frame::Heartbeat(beat) => self.beats.push(beat),
                other => return other,
            }
        }
    }

    /// Reads one frame of a loaded engine and keeps what it brings.
    pub fn read(&mut self) {
        let frame = self.next_but_logs();
        self.take(frame);
    }

    fn take(&mut self, frame: from_engine::Frame) {
        match frame {
            from_engine::Frame::Step(step) => self.outputs.extend(step.outputs),
            from_engine::Frame::Tokenised(tokenised) => {
                self.tokenised.insert(tokenised.id, tokenised);
            }
            from_engine::Frame::Embedded(embedded) => self.embedded.push(embedded),
            from_engine::Frame::Resized(resized) => {
                self.resized += usize::from(self.allocated != resized.allocated_context);
                self.allocated = resized.allocated_context;
            }
            from_engine::Frame::Saved(saved) => self.saved = Some(saved),
            from_engine::Frame::Measured(measured) => self.measured = Some(measured),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Reads until it is measured by how many threads steps of one row are made.
    pub fn until_measured(&mut self) -> u32 {
        while self.measured.is_none() {
            self.read();
        }
        self.measured.map_or(0, |measured| measured.threads)
    }

    /// Reads until the log says so.
    pub fn until_log(&mut self, words: &str) {
        while !self.logs.iter().any(|log| log.message.contains(words)) {
            match self.next() {
                from_engine::Frame::Log(log) => self.logs.push(log),
                from_engine::Frame::Heartbeat(beat) => self.beats.push(beat),
                other => self.take(other),
            }
        }
    }

    /// Reads until a heartbeat is as wanted.
    pub fn beat(&mut self, wanted: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        loop {
            match self.next() {
                from_engine::Frame::Heartbeat(beat) => {
                    self.beats.push(beat);
                    if wanted(&beat) {
                        return beat;
                    }
                }
                from_engine::Frame::Log(log) => self.logs.push(log),
                other => self.take(other),
            }
        }
    }

    pub fn operate(&mut self, context: u32, grow_to: u32, cache: &str) {
        self.send(to_engine::Frame::Operate(Operate { context, grow_to, pace: 1.0, cache: cache.to_owned() }));
    }

    /// All that was loaded, at this pace.
    pub fn pace(&mut self, pace: f32) {
        let (context, grow_to) = (u32::MAX, u32::MAX);
        self.send(to_engine::Frame::Operate(Operate { context, grow_to, pace, cache: "keep".to_owned() }));
    }

    pub fn stop(&mut self, sequence: u64) {
        self.send(to_engine::Frame::Stop(Stop { sequence }));
    }

    /// Anonymous memory of the engine, in bytes.
    pub fn anonymous(&self) -> u64 {
        kernel::anonymous(self.process.id()).expect("it lives").0
    }

    pub fn tokenise(&mut self, text: &str, special: bool) -> Vec<u32> {
        let segments = vec![Segment { text: text.to_owned(), special }];
        self.tokenise_all(segments, false)
    }

    pub fn tokenise_all(&mut self, segments: Vec<Segment>, add_bos: bool) -> Vec<u32> {
        let id = 1_000_000 + self.tokenised.len() as u64;
        self.send(to_engine::Frame::Tokenise(Tokenise { id, segments, add_bos, ..Tokenise::default() }));
        while !self.tokenised.contains_key(&id) {
            self.read();
        }
        let tokenised = &self.tokenised[&id];
        assert_eq!(tokenised.error, None);
        tokenised.tokens.clone()
    }

    /// A prompt in the model's chat form.
    pub fn chat(&mut self, question: &str) -> Vec<u32> {
        let text = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        self.tokenise(&text, true)
    }

    pub fn start(&mut self, start: Start) {
        self.started += 1;
        self.send(to_engine::Frame::Start(start));
    }

    /// Reads until the sequence has finished.
    pub fn finish(&mut self, sequence: u64) -> Answer {
        let done = |outputs: &[SequenceOutput]| {
            outputs.iter().any(|output| output.sequence == sequence && output.finished.is_some())
        };
        while !done(&self.outputs) {
            self.read();
        }
        let mut answer = Answer::default();
        self.ended += 1;
        for output in self.outputs.extract_if(.., |output| output.sequence == sequence) {
            assert_eq!(answer.reason, "", "output after the end");
            answer.tokens.extend(output.tokens);
            answer.pieces.push(output.text);
            answer.logprobs.extend(output.logprobs);
            answer.digests.extend(output.digests);
            answer.cached = answer.cached.or(output.cached_tokens);
            if let Some(finished) = output.finished {
                answer.reason = finished.reason;
                answer.error = finished.error;
                (answer.drafted, answer.accepted) = (finished.drafted, finished.accepted);
            }
        }
        answer
    }

    /// Sequences that were started and have not finished yet.
    pub fn running(&self) -> usize {
        let ended = self.outputs.iter().filter(|output| output.finished.is_some()).count() + self.ended;
        self.started - ended
    }

    /// Whether nothing is to be expected.
    pub fn quiet(&self) -> bool {
        self.running() == 0
    }

    pub fn answer(&mut self, start: Start) -> Answer {
        let sequence = start.sequence;
        self.start(start);
        self.finish(sequence)
    }

    pub fn load_failure(&mut self, path: &Path) -> String {
        self.try_load(load(path)).expect_err("the model cannot be loaded").message
    }

    /// What comes of this Load.
    pub fn try_load(&mut self, load: Load) -> Result<Ready, LoadFailed> {
        self.send(to_engine::Frame::Load(load));
        loop {
            match self.next_but_logs() {
                from_engine::Frame::Ready(ready) => return Ok(ready),
                from_engine::Frame::LoadFailed(failed) => return Err(failed),
                from_engine::Frame::Vocabulary(_) | from_engine::Frame::Loading(_) => {}
                other => panic!("while it loads came {other:?}"),
            }
        }
    }

    /// Reads until the engine closes its end, and waits for its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        while let Ok(Some(_)) = frames::read::<FromEngine>(&mut self.socket) {}
        self.process.wait().expect("a child of ours").code()
    }
}

impl Engine {
    /// Reads until this sequence has had an output.
    pub fn until_output(&mut self, id: u64) {
        while !self.outputs.iter().any(|output| output.sequence == id) {
            self.read();
        }
    }

    /// How many tokens have come of a sequence so far.
    pub fn tokens(&self, id: u64) -> usize {
        self.outputs.iter().filter(|output| output.sequence == id).map(|output| output.tokens.len()).sum()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn model() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("TEMPERD_TEST_MODEL").map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(path.exists(), "no model at {}: run scripts/fetch-model or set TEMPERD_TEST_MODEL", path.display());
    path
}

pub fn hello(protocol: u32) -> to_engine::Frame {
    to_engine::Frame::Hello(Hello { protocol, build: frames::BUILD.to_owned(), flavour: String::new() })
}

pub fn load(path: &Path) -> Load {
    Load {
        model: path.to_str().expect("UTF-8").to_owned(),
        context: CONTEXT,
        parallel: PARALLEL,
        gpu_layers: -1,
        kv_type_k: "f16".to_owned(),
        kv_type_v: "f16".to_owned(),
        // One: with more, each step waits for all threads at a barrier, which takes very long where other tests run.
        threads: 1,
        threads_batch: 1,
        n_batch: 512,
        n_ubatch: 512,
        load_mode: "auto".to_owned(),
        // With it, rows that are read at once and rows that come one by one have nearly the same sums on a CPU. The engine's
        // own choice is tested with the daemon, and both kinds in tests/batch_invariance.rs.
        flash_attention: "on".to_owned(),
        batch_invariant: false,
        lookup: true,
        lookup_always: false,
        first_context: 0,
        restore: false,
        step_target_ms: 150,
        adapters: Vec::new(),
    }
}

pub fn greedy() -> Sampling {
    Sampling { top_p: 1.0, repeat_penalty: 1.0, ..Sampling::default() }
}

pub fn start(sequence: u64, prompt: Vec<u32>, max_tokens: u32) -> Start {
    Start { sequence, prompt, max_tokens, sampling: Some(greedy()), ..Start::default() }
}
