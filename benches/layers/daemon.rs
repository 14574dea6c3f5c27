//! The daemon that is measured, installed beside both engines, and streams that note when their tokens come.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use temperd::{
    cli::client,
    wire::v1::{self, chat_event::Event, control_client::ControlClient, inference_client::InferenceClient},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};
use tonic::{Streaming, transport::Channel};

use crate::{CONTEXT, ROWS, patiently};

/// The small model's tokens that end an answer are among its first ones.
const END_TOKENS: u32 = 17;
/// Of each stream: more than are written in one round.
const TOKENS: i32 = 400;
/// What is paid to the pace while all is on the CPU, which would else be through with the answers at once.
const CPU_PACE: f32 = 0.1;
/// Tokens of each stream behind a change, before the next.
const BETWEEN: usize = 3;
const PROMPTS: [&str; 2] = ["Count: one, two,", "The history of the lighthouse begins with"];

pub struct Daemon {
    folder: tempfile::TempDir,
    _child: Child,
}

/// What came of a change.
pub struct Change {
    /// The longest time without a token, of all streams.
    pub pause: Duration,
    /// Tokens that each stream held meanwhile.
    pub tokens: Vec<usize>,
    /// Whether the next engine went on with the cache of the one before.
    pub handed_over: bool,
}

/// An answer that is being written. Dropping it cancels it.
pub struct Stream {
    /// Of the prompt; about as many words.
    prompt: usize,
    /// When each token came.
    times: watch::Receiver<Vec<Instant>>,
    reader: JoinHandle<()>,
}

impl Daemon {
    pub async fn start(model: &Path, engine: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let engines =
            [(Path::new(env!("CARGO_BIN_EXE_temperd-engine")), "temperd-engine"), (engine, "temperd-engine-vulkan")];
        for (from, name) in engines.into_iter().chain([(Path::new(env!("CARGO_BIN_EXE_temperd")), "temperd")]) {
            fs::copy(from, at(name))?;
        }
        let engine = format!("gpu_layers = {}\ncontext = {CONTEXT}\nn_batch = {ROWS}\nn_ubatch = {ROWS}", crate::FIRST);
        let streams = format!("parallel = {}\nlookup = false", PROMPTS.len());
        fs::write(at("config.toml"), format!("[engine]\n{engine}\n{streams}\n[governor]\ninterval_ms = 100\n"))?;
        let mut child = Command::new(at("temperd"))
            .args(["run", "--node", "bench", "--config"])
            .arg(at("config.toml"))
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(at("socket"))
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(at("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let line = patiently("the daemon", lines.next_line()).await??.unwrap_or_default();
        if !line.starts_with("temperd ready") {
            bail!("the daemon is not ready: {line}");
        }
        Ok(Self { folder, _child: child })
    }

    /// A connection of its own for each call: the daemon closes those that have sent nothing for half a minute.
    async fn connect(&self) -> Result<Channel> {
        Ok(client::connect(Some(self.folder.path().join("socket"))).await?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn status(&self) -> Result<v1::Status> {
        Ok(ControlClient::new(self.connect().await?).status(v1::StatusRequest::default()).await?.into_inner())
    }

    /// Threads of a step, and flash attention, of the engine that lives.
    pub async fn settings(&self) -> Result<(i32, String)> {
        let settings = self.status().await?.settings.context("settings")?;
        Ok((settings.threads.try_into()?, settings.flash_attention))
    }

    /// New streams, all of which have begun.
    pub async fn streams(&self) -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for prompt in PROMPTS {
            let request = v1::CompleteRequest {
                prompt: prompt.into(),
                max_tokens: Some(TOKENS),
                temperature: Some(0.0),
                stream: Some(true),
                logprobs: Some(true),
                logit_bias: (0..END_TOKENS).map(|token| (token, -100.0)).collect(),
                ..v1::CompleteRequest::default()
            };
            let events = InferenceClient::new(self.connect().await?).complete(request).await?.into_inner();
            let (sender, times) = watch::channel(Vec::new());
            let reader = tokio::spawn(read(events, sender));
            streams.push(Stream { prompt: prompt.split(' ').count(), times, reader });
        }
        for stream in &mut streams {
            stream.more(BETWEEN).await?;
        }
        Ok(streams)
    }

    /// Takes the streams from one number of layers to another; `full` is what there is without a pin.
    pub async fn change(&self, streams: &mut [Stream], layers: u32, full: u32) -> Result<Change> {
        let (log, began) = (self.log().len(), Instant::now());
        let tokens = streams.iter().map(|stream| stream.prompt + stream.times.borrow().len()).collect();
        let pace = (layers == 0).then_some(CPU_PACE);
        let pin = v1::Pin { gpu_layers: (layers < full).then_some(layers), pace, ..v1::Pin::default() };
        let request = v1::SetOperatingPointRequest { operating_point: Some(pin) };
        ControlClient::new(self.connect().await?).set_operating_point(request).await?;
        // The status has the operating point that is wanted before another engine is there.
        self.until("the change", |status| {
            let there = status.operating_point.as_ref().is_some_and(|point| point.gpu_layers == layers);
            there && status.ready && self.log()[log..].contains("model ready")
        })
        .await?;
        let mut pause = Duration::ZERO;
        for stream in streams {
            stream.more(BETWEEN).await?;
            pause = pause.max(stream.longest(began));
        }
        let log = self.log().split_off(log);
        Ok(Change { pause, tokens, handed_over: log.contains("of the engine before are in the KV cache") })
    }

    /// Ends the streams.
    pub async fn finish(&self, streams: Vec<Stream>) -> Result<()> {
        drop(streams);
        self.until("the end of the streams", |status| status.running == Some(0)).await
    }

    async fn until(&self, what: &str, holds: impl Fn(&v1::Status) -> bool) -> Result<()> {
        let poll = async {
            while !holds(&self.status().await?) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        patiently(what, poll).await?
    }
}

/// Notes when tokens come, until the answer ends.
async fn read(mut events: Streaming<v1::ChatEvent>, times: watch::Sender<Vec<Instant>>) {
    while let Ok(Some(v1::ChatEvent { event: Some(Event::Chunk(chunk)) })) = events.message().await {
        let now = Instant::now();
        times.send_modify(|times| times.extend(chunk.logprobs.iter().map(|_| now)));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Stream {
    /// Waits until so many more tokens are there.
    async fn more(&mut self, tokens: usize) -> Result<()> {
        let enough = self.times.borrow().len() + tokens;
        let more = self.times.wait_for(|times| times.len() >= enough);
        patiently("a token", more).await?.context("the answer ended before all changes were made")?;
        Ok(())
    }

    /// The longest time between two tokens, the second of which came after `began`.
    fn longest(&self, began: Instant) -> Duration {
        let times = self.times.borrow();
        let gaps = times.windows(2).filter(|pair| pair[1] > began).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}
