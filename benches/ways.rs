//! What the daemon adds to a bare llama.cpp loop, and MQTT to HTTP: ratios and differences within one run, since the
//! machine's own speed varies. Run by `scripts/bench`, which brings model and broker.
//!
//! The bare loop is one token per `llama_decode`, greedy, with the daemon's threads, KV type, flash attention and
//! n_ubatch. Rounds alternate, so that what else the machine does hits both sides.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    num::NonZeroU32,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use llama_cpp_2::{
    context::{LlamaContext, params::LlamaContextParams},
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    token::LlamaToken,
};
use rumqttc::v5::{
    AsyncClient, Event, EventLoop, MqttOptions,
    mqttbytes::{
        QoS,
        v5::{Packet, PublishProperties},
    },
};
use temperd::{config::Config, request::seen::record};

/// Rounds of the decode comparison, and tokens of each.
const ROUNDS: usize = 7;
const TOKENS: usize = 256;
/// Requests of each latency comparison.
const REQUESTS: usize = 200;
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(30);

/// The small model's tokens that end an answer are among its first ones.
const END_TOKENS: u32 = 17;

const PROMPT: &str = "The history of the lighthouse begins with";

fn main() -> Result<()> {
    // `cargo test --benches` runs this too; it is not a test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let model = PathBuf::from(std::env::var("TEMPERD_TEST_MODEL").context("TEMPERD_TEST_MODEL names the model")?);
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    let daemon = Daemon::start(&model)?;
    let mut bare = Bare::load(&model)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut mqtt = Mqtt::connect(daemon.port)?;
    runtime.block_on(mqtt.subscribe())?;

    let mut report = Vec::new();
    decode(&daemon, &mut bare, &mut report)?;
    first_byte(&daemon, &mut bare, &mut report)?;
    mqtt_against_http(&daemon, &mut mqtt, &runtime, &mut report)?;
    runtime.block_on(mqtt.close());
    idle(&daemon, &mut report)?;

    let table = report.join("\n") + "\n";
    println!("\n| figure | measured | must be |\n|---|---|---|\n{table}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("ways.md"), format!("| figure | measured | must be |\n|---|---|---|\n{table}"))?;
    Ok(())
}

/// Tokens per second between first and last token of one stream.
fn decode(daemon: &Daemon, bare: &mut Bare, report: &mut Vec<String>) -> Result<()> {
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let bare_rate = bare.decode(PROMPT, TOKENS)?;
        let daemon_rate = daemon.stream(PROMPT, TOKENS)?;
        // The first round warms both up.
        if round > 0 {
            theirs.push(bare_rate);
            ours.push(daemon_rate);
            ratios.push(daemon_rate / bare_rate);
        }
        eprintln!("decode round {round}: bare {bare_rate:.1}, daemon {daemon_rate:.1} tokens/s");
    }
    report.push(format!(
        "| decode of one stream over socket and SSE / bare loop ({ROUNDS} rounds of {TOKENS} tokens, median ratio) | \
         {:.3} ({:.1} / {:.1} tokens/s) | >= 0.95 |",
        median(&mut ratios),
        median(&mut ours),
        median(&mut theirs)
    ));
    Ok(())
}

/// Time from the request to the first byte of an answer to a prompt of one token.
fn first_byte(daemon: &Daemon, bare: &mut Bare, report: &mut Vec<String>) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        theirs.push(bare.first_token("Hello")?.as_secs_f64() * 1e3);
        ours.push(daemon.first_byte("Hello")?.as_secs_f64() * 1e3);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    report.push(format!(
        "| first byte after a 1-token prompt, daemon - bare loop (p50 of {REQUESTS}) | {:.2} ms ({ours:.2} - \
         {theirs:.2}) | <= 2 ms |",
        ours - theirs
    ));
    Ok(())
}

/// The same question for one token, by both ways in.
fn mqtt_against_http(
    daemon: &Daemon,
    mqtt: &mut Mqtt,
    runtime: &tokio::runtime::Runtime,
    report: &mut Vec<String>,
) -> Result<()> {
    let (mut over_mqtt, mut over_http) = (Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        over_http.push(daemon.ask_once()?.as_secs_f64() * 1e3);
        over_mqtt.push(runtime.block_on(mqtt.ask_once())?.as_secs_f64() * 1e3);
    }
    let (over_mqtt, over_http) = (median(&mut over_mqtt), median(&mut over_http));
    report.push(format!(
        "| a one-token answer, MQTT - HTTP (p50 of {REQUESTS}) | {:.2} ms ({over_mqtt:.2} - {over_http:.2}) | <= 5 ms |",
        over_mqtt - over_http
    ));
    let sync = sync_ms(daemon.folder.path())?;
    report.push(format!(
        "| of this, one sync of the disk below the state directory (p50 of {REQUESTS}) | {sync:.2} ms | |"
    ));
    Ok(())
}

/// What it takes to have a record on disk, there where the daemon's are.
fn sync_ms(folder: &Path) -> Result<f64> {
    let mut file = fs::File::create(folder.join("sync"))?;
    let mut taken = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        file.write_all(&[0; record::BYTES])?;
        file.sync_data()?;
        taken.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&mut taken))
}

/// Memory and processor time of the daemon's process alone, connected and idle.
fn idle(daemon: &Daemon, report: &mut Vec<String>) -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    let before = daemon.cpu_seconds()?;
    std::thread::sleep(IDLE);
    let share = (daemon.cpu_seconds()? - before) / IDLE.as_secs_f64() * 100.0;
    report.push(format!(
        "| processor time of the idle daemon, MQTT connected ({} s) | {share:.2} % of a core | < 0.5 % |",
        IDLE.as_secs()
    ));
    report.push(format!("| memory of the daemon after these runs (RSS) | {:.1} MB | <= 25 MB |", daemon.rss_mb()?));
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

// --- the bare loop -------------------------------------------------------------------------------------------------

struct Bare {
    // Dropped before the model that it borrows.
    context: LlamaContext<'static>,
    model: &'static LlamaModel,
}

/// Threads of both sides: with those that the engine measures, the loops would not be alike.
fn threads() -> usize {
    sysinfo::System::physical_core_count().unwrap_or(1)
}

impl Bare {
    fn load(path: &Path) -> Result<Self> {
        // They live as long as the process: no second load, no self-reference.
        let backend: &'static LlamaBackend = Box::leak(Box::new(LlamaBackend::init()?));
        let model: &'static LlamaModel =
            Box::leak(Box::new(LlamaModel::load_from_file(backend, path, &LlamaModelParams::default())?));
        let threads = i32::try_from(threads())?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(8192))
            .with_n_batch(512)
            .with_n_ubatch(512)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        Ok(Self { context: model.new_context(backend, params)?, model })
    }

    fn read(&mut self, prompt: &str) -> Result<LlamaToken> {
        self.context.clear_kv_cache();
        let tokens = self.model.vocab().tokenize(prompt.as_bytes(), false, false);
        let mut batch = LlamaBatch::new(512, 1);
        batch.add_sequence(&tokens, 0, false)?;
        self.context.decode(&mut batch)?;
        Ok(self.greedy(batch.n_tokens() - 1))
    }

    fn greedy(&self, row: i32) -> LlamaToken {
        let logits = self.context.get_logits_ith(row);
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index);
        LlamaToken(i32::try_from(best).unwrap_or(0))
    }

    /// Tokens per second from the first token to the last.
    fn decode(&mut self, prompt: &str, tokens: usize) -> Result<f64> {
        let mut token = self.read(prompt)?;
        let first = i32::try_from(self.model.vocab().tokenize(prompt.as_bytes(), false, false).len())?;
        let mut batch = LlamaBatch::new(1, 1);
        let started = Instant::now();
        for position in (first..).take(tokens - 1) {
            batch.clear();
            batch.add(token, position, &[0], true)?;
            self.context.decode(&mut batch)?;
            token = self.greedy(0);
        }
        #[allow(clippy::cast_precision_loss)]
        Ok((tokens - 1) as f64 / started.elapsed().as_secs_f64())
    }

    fn first_token(&mut self, prompt: &str) -> Result<Duration> {
        let started = Instant::now();
        self.read(prompt)?;
        Ok(started.elapsed())
    }
}

// --- the daemon ----------------------------------------------------------------------------------------------------

struct Daemon {
    child: Child,
    broker: Child,
    folder: tempfile::TempDir,
    model: String,
    port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.broker] {
            let _ended_before = child.kill();
            let _ended_before = child.wait();
        }
    }
}

impl Daemon {
    fn start(model: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let broker_config = folder.path().join("mosquitto.conf");
        fs::write(
            &broker_config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_type error\n"),
        )?;
        let broker = Command::new("mosquitto").arg("-c").arg(&broker_config).spawn().context("mosquitto")?;
        let config = folder.path().join("config.toml");
        // Drafts would make the daemon faster than the loop that it is held against.
        let settings = format!(
            "[engine]\nlookup = false\nthreads = {}\n[mqtt]\nraw_prompt = true\n[log]\nlevel = \"warn\"\n",
            threads()
        );
        fs::write(&config, settings)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_temperd"))
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .args(["run", "--node", "bench", "--config"])
            .arg(&config)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(folder.path().join("temperd.sock"))
            .arg("--mqtt")
            .arg(format!("mqtt://127.0.0.1:{port}"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let daemon = Self { child, broker, folder, model: Config::model_name(model), port };
        if !line.starts_with("temperd ready") || !line.contains("mqtt=connected") {
            bail!("the daemon is not ready: {line}");
        }
        Ok(daemon)
    }

    fn post(&self, body: &serde_json::Value) -> Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(self.folder.path().join("temperd.sock"))?;
        let body = body.to_string();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )?;
        Ok(BufReader::new(stream))
    }

    /// A greedy answer of a fixed length: the end tokens are out of the question.
    fn body(&self, prompt: &str, tokens: usize, stream: bool) -> serde_json::Value {
        let never: serde_json::Map<String, serde_json::Value> =
            (0..END_TOKENS).map(|token| (token.to_string(), (-100).into())).collect();
        serde_json::json!({
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream,
            "logit_bias": never,
        })
    }

    fn stream(&self, prompt: &str, tokens: usize) -> Result<f64> {
        let reader = self.post(&self.body(prompt, tokens, true))?;
        let (mut first, mut last) = (None, None);
        let mut text = String::new();
        for line in reader.lines() {
            let line = line?;
            if line.starts_with("data: {") {
                let now = Instant::now();
                first.get_or_insert(now);
                last = Some(now);
                text = line;
            }
        }
        if !text.contains("length") {
            bail!("the stream did not end for length: {text}");
        }
        let took = last.context("an answer")?.duration_since(first.context("an answer")?);
        #[allow(clippy::cast_precision_loss)]
        Ok((tokens - 1) as f64 / took.as_secs_f64())
    }

    fn first_byte(&self, prompt: &str) -> Result<Duration> {
        let started = Instant::now();
        let reader = self.post(&self.body(prompt, 1, true))?;
        let mut first = None;
        for line in reader.lines() {
            if line?.starts_with("data: {") {
                first.get_or_insert(started.elapsed());
            }
        }
        first.context("an answer")
    }

    fn ask_once(&self) -> Result<Duration> {
        let started = Instant::now();
        for line in self.post(&self.body("Hello", 1, false))?.lines() {
            if line?.contains("finish_reason") {
                return Ok(started.elapsed());
            }
        }
        bail!("no answer over HTTP")
    }

    /// User and system time so far, from /proc.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
        // Fields 14 and 15 of proc(5); the first one here is field 3.
        let ticks: f64 = fields.get(11..13).context("a stat line")?.iter().filter_map(|n| n.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    fn rss_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

// --- MQTT ----------------------------------------------------------------------------------------------------------

const REPLY: &str = "temperd/v1/clients/bench/reply";

struct Mqtt {
    client: AsyncClient,
    events: EventLoop,
}

impl Mqtt {
    fn connect(port: u16) -> Result<Self> {
        let mut options = MqttOptions::new("bench", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(60));
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, events) = AsyncClient::new(options, 16);
        Ok(Self { client, events })
    }

    async fn subscribe(&mut self) -> Result<()> {
        self.client.subscribe(REPLY, QoS::AtLeastOnce).await?;
        loop {
            if let Event::Incoming(Packet::SubAck(_)) = self.events.poll().await? {
                return Ok(());
            }
        }
    }

    async fn ask_once(&mut self) -> Result<Duration> {
        let properties = PublishProperties {
            response_topic: Some(REPLY.into()),
            content_type: Some("application/json".into()),
            ..PublishProperties::default()
        };
        let body = serde_json::json!({"prompt": "Hello", "max_tokens": 1, "temperature": 0}).to_string();
        let started = Instant::now();
        self.client
            .publish_with_properties("temperd/v1/bench/request/complete", QoS::AtLeastOnce, false, body, properties)
            .await?;
        loop {
            if let Event::Incoming(Packet::Publish(answer)) = self.events.poll().await? {
                let took = started.elapsed();
                if !String::from_utf8_lossy(&answer.payload).contains("\"completed\"") {
                    bail!("MQTT: {}", String::from_utf8_lossy(&answer.payload));
                }
                return Ok(took);
            }
        }
    }

    async fn close(&mut self) {
        let _gone = self.client.disconnect().await;
        while self.events.poll().await.is_ok() {}
    }
}
