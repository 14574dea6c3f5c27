//! GPU layers that come and go while answers are written, through the whole daemon: it is installed beside the engine for
//! the CPU and `temperd-engine-vulkan`, which `TEMPERD_TEST_VULKAN` names, on Mesa's software device.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::daemon::{Daemon, PATIENCE, install, model, until};
use temperd::{
    cli::client,
    gguf,
    wire::v1::{
        self, TokenLogprob, chat_event::Event, control_client::ControlClient, inference_client::InferenceClient,
    },
};
use tonic::{Streaming, transport::Channel};

/// Of the small model, the output layer among them.
const LAYERS: u32 = 31;
/// Long enough for all changes. The device decodes some tokens a second.
const TOKENS: i32 = 64;
/// Between the log probabilities of the two likeliest tokens: kernels of another device round otherwise.
const NEAR: f32 = 0.5;
/// Mesa's device says that it is a CPU, which llama.cpp takes only where it is told to.
const DEVICE: (&str, &str) = ("GGML_VK_VISIBLE_DEVICES", "0");
/// Small steps: the device takes half a minute to measure large ones. The sizes of ggml's buffers are in the log at debug.
const SETTINGS: &str = "parallel = 2\ncontext = 1024\nn_batch = 32\nn_ubatch = 32\nlookup = false\n\
    [governor]\ninterval_ms = 100\n[log]\nlevel = \"debug\"\n";

/// The daemon beside both engines; `None` where there is none for Vulkan.
async fn daemon(gpu_layers: &str, environment: &[(&str, &str)]) -> Option<Daemon> {
    let Some(vulkan) = std::env::var_os("TEMPERD_TEST_VULKAN").map(PathBuf::from) else {
        eprintln!("skipped: TEMPERD_TEST_VULKAN names no engine; scripts/build-vulkan builds one");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    install(env!("CARGO_BIN_EXE_temperd").as_ref(), folder.path(), "temperd");
    install(env!("CARGO_BIN_EXE_temperd-engine").as_ref(), folder.path(), "temperd-engine");
    install(&vulkan, folder.path(), "temperd-engine-vulkan");
    let toml = format!("[engine]\ngpu_layers = {gpu_layers}\n{SETTINGS}");
    let mut daemon = Daemon::start_installed(folder, &toml, environment);
    let line = daemon.line().await;
    assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
    Some(daemon)
}

// === the daemon ===

fn has(layers: u32) -> impl Fn(&Value) -> bool {
    let flavour = if layers > 0 { "vulkan" } else { "cpu" };
    move |status| {
        let (engine, point) = (&status["engine"], &status["operating_point"]);
        status["ready"] == true && engine["flavour"] == flavour && point["gpu_layers"] == layers
    }
}

/// A connection of its own for each call: the daemon closes those that have sent nothing for half a minute.
async fn connect(daemon: &Daemon) -> Channel {
    client::connect(Some(daemon.socket.clone())).await.expect("connected")
}

async fn pin(daemon: &Daemon, gpu_layers: Option<u32>, pace: Option<f32>) {
    let operating_point = Some(v1::Pin { gpu_layers, pace, ..v1::Pin::default() });
    let request = v1::SetOperatingPointRequest { operating_point };
    ControlClient::new(connect(daemon).await).set_operating_point(request).await.expect("pinned");
}

/// Waits for an engine with so many layers that has become ready since the log was so long: the status has the operating
/// point that is wanted before another engine is there.
async fn changed(daemon: &Daemon, since: usize, layers: u32) -> Value {
    let ready = || daemon.log_text()[since..].contains("model ready");
    until(daemon, "changed", |status| ready() && has(layers)(status)).await
}

/// Bytes of the device's buffers for weights, by what ggml has said since the log was so long.
fn reported(daemon: &Daemon, since: usize) -> u64 {
    let log = daemon.log_text();
    let lines =
        log[since..].lines().filter_map(|line| line.split_once("Vulkan0 model buffer size =")?.1.split_once("MiB"));
    let mib: f64 = lines.map(|(size, _)| size.trim().parse::<f64>().unwrap()).sum();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size that llama.cpp has printed")]
    let bytes = (mib * f64::from(1 << 20)) as u64;
    bytes
}

/// The buffers of the engine that was started last are as large as the weights of so many layers.
fn confirm(daemon: &Daemon, since: usize, layers: u32) {
    let weights = gguf::inspect(&model()).expect("the small model").weights;
    let expected: u64 = weights.to_gpu().take(layers as usize).sum();
    let reported = reported(daemon, since);
    assert!(reported.abs_diff(expected) <= expected / 100, "{layers} layers take {expected}, ggml says {reported}");
}

// === streams ===

/// A stream that runs until it has all its tokens: what ends an answer is out of the question.
struct Stream {
    events: Streaming<v1::ChatEvent>,
    chunks: u32,
    tokens: Vec<TokenLogprob>,
    text: String,
    last: Option<v1::Final>,
}

impl Stream {
    async fn start(daemon: &Daemon, prompt: &str) -> Self {
        let request = v1::CompleteRequest {
            prompt: prompt.into(),
            max_tokens: Some(TOKENS),
            temperature: Some(0.0),
            stream: Some(true),
            logprobs: Some(true),
            top_logprobs: Some(2),
            logit_bias: (0..17).map(|token| (token, -100.0)).collect(),
            ..v1::CompleteRequest::default()
        };
        let events =
            InferenceClient::new(connect(daemon).await).complete(request).await.expect("accepted").into_inner();
        Self { events, chunks: 0, tokens: Vec::new(), text: String::new(), last: None }
    }

    /// Reads on until `count` more tokens are there, or to the end.
    async fn read(&mut self, count: usize) {
        let enough = self.tokens.len().saturating_add(count);
        while self.tokens.len() < enough {
            let next = tokio::time::timeout(PATIENCE, self.events.message()).await.expect("the stream goes on");
            let Some(event) = next.expect("no error") else { return };
            assert!(self.last.is_none(), "something comes after the final: {event:?}");
            match event.event.expect("an event") {
                Event::Chunk(chunk) => {
                    assert_eq!(chunk.seq, self.chunks, "each chunk once and in order");
                    self.chunks += 1;
                    self.text += &chunk.delta;
                    self.tokens.extend(chunk.logprobs);
                }
                Event::Final(last) => self.last = Some(last),
            }
        }
    }

    /// The whole answer, checked: one final, which says what the chunks have said, each token once.
    async fn rest(mut self) -> Vec<TokenLogprob> {
        self.read(usize::MAX).await;
        let last = self.last.expect("a final");
        let tokens = usize::try_from(TOKENS).unwrap();
        assert_eq!((last.outcome.as_str(), last.finish_reason.as_deref()), ("completed", Some("length")), "{last:?}");
        assert_eq!((last.usage.unwrap().completion_tokens as usize, last.logprobs.len()), (tokens, tokens));
        assert_eq!(last.logprobs, self.tokens);
        assert_eq!(last.message.unwrap().content, self.text);
        self.tokens
    }
}

/// The same tokens, up to one that was as good as the other.
fn assert_like(found: &[TokenLogprob], undisturbed: &[TokenLogprob]) {
    for (index, (found, expected)) in found.iter().zip(undisturbed).enumerate() {
        if found.bytes != expected.bytes {
            let [best, second] = &expected.top_logprobs[..] else { panic!("not two: {expected:?}") };
            let (token, instead) = (&found.token, &expected.token);
            assert!(best.logprob - second.logprob < NEAR, "token {index} is {token:?} instead of {instead:?}");
            return;
        }
    }
}

#[tokio::test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
async fn layers_come_and_go_while_answers_are_written() {
    let Some(daemon) = daemon("30", &[DEVICE]).await else { return };
    let prompts = ["Count: one, two,", "The days of the week are Monday, Tuesday,"];
    until(&daemon, "on the device", has(30)).await;
    confirm(&daemon, 0, 30);

    let since = daemon.log_text().len();
    pin(&daemon, Some(0), None).await;
    changed(&daemon, since, 0).await;
    let mut undisturbed = Vec::new();
    for prompt in prompts {
        undisturbed.push(Stream::start(&daemon, prompt).await.rest().await);
    }

    let since = daemon.log_text().len();
    pin(&daemon, None, None).await;
    changed(&daemon, since, 30).await;
    let mut streams = Vec::new();
    for prompt in prompts {
        streams.push(Stream::start(&daemon, prompt).await);
    }
    for stream in &mut streams {
        stream.read(2).await;
    }
    // The CPU alone would be through with all of it before the next change.
    for (pinned, layers, pace) in [(Some(12), 12, None), (Some(0), 0, Some(0.05)), (None, 30, None)] {
        let since = daemon.log_text().len();
        pin(&daemon, pinned, pace).await;
        let status = changed(&daemon, since, layers).await;
        confirm(&daemon, since, layers);
        assert_eq!(
            (&status["engine"]["degraded"], &status["engine"]["restarts"]),
            (&false.into(), &0.into()),
            "{status}"
        );
        assert_eq!((&status["running"], &status["pause"]), (&2.into(), &Value::Null), "{status}");
        for stream in &mut streams {
            stream.read(2).await;
            assert!(stream.last.is_none(), "it ended before all changes were made");
        }
    }
    let handed_over = daemon.log_text().matches("handed_over=true").count();
    assert!(handed_over > 0, "{}", daemon.log_text());
    for (stream, undisturbed) in streams.into_iter().zip(&undisturbed) {
        assert_like(&stream.rest().await, undisturbed);
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
async fn all_layers_are_meant_by_auto_and_none_without_a_device() {
    let Some(working) = daemon("\"auto\"", &[DEVICE]).await else { return };
    let status = until(&working, "on the device", has(LAYERS)).await;
    assert_eq!(status["engine"]["degraded"], false, "{status}");
    confirm(&working, 0, LAYERS);
    drop(working);
    let without = daemon("\"auto\"", &[("GGML_VK_VISIBLE_DEVICES", "")]).await.expect("it was there before");
    let status = until(&without, "degraded", |status| status["engine"]["degraded"] == true).await;
    assert!(has(0)(&status), "{status}");
    assert!(without.log_text().contains("the vulkan engine finds no device"), "{}", without.log_text());
}

#[tokio::test]
#[ignore = "needs temperd-engine-vulkan: scripts/test builds it on Debian 12 and newer"]
async fn a_device_that_gives_no_memory_ends_on_the_cpu_and_says_why() {
    // ggml's own variable: a device that gives no buffer larger than that. Each matrix alone would fit.
    let Some(daemon) = daemon("30", &[DEVICE, ("GGML_VK_FORCE_MAX_BUFFER_SIZE", "4194304")]).await else { return };
    let status = until(&daemon, "degraded", |status| status["engine"]["degraded"] == true).await;
    assert!(has(0)(&status), "{status}");
    let reason = &status["reason"];
    assert_eq!(
        (reason["code"].as_str(), reason["reading"].as_str()),
        (Some("load_failed"), Some("gpu_layers")),
        "{status}"
    );
    Stream::start(&daemon, "Count: one, two,").await.rest().await;
}
