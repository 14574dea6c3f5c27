//! Keeps an engine alive: starts, feeds and replaces it, and waits where starting another would not help.

use std::{
    path::Path,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};

use super::{EngineEvent, EngineHandle, frames, inner, locate, process::EngineProcess, watch::FileWatch};
use crate::{
    chat::Prompter,
    config,
    telemetry::metrics::Metrics,
    wire::engine::{Adapter, Hello, Load, Log, from_engine, to_engine},
};

/// Between the end of an engine and the start of the next: doubled each time, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An engine that was ready for this long starts the back-off anew.
const STEADY: Duration = Duration::from_secs(60);
/// Engines that may end while they load before the supervisor waits for a change.
const LOAD_ATTEMPTS: u32 = 3;
/// An engine says hello as soon as it runs.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// What the supervisor works with.
#[derive(Debug)]
pub struct Supervisor {
    /// The model and its settings.
    pub config: config::Engine,
    /// Reaches the engine that lives.
    pub handle: EngineHandle,
    /// To the dispatcher.
    pub events: mpsc::Sender<EngineEvent>,
    /// Notified by SIGHUP.
    pub reload: Arc<Notify>,
    /// Counts restarts.
    pub metrics: Arc<Metrics>,
}

/// How one engine came to its end.
enum End {
    /// It refused the model, or cannot be started at all: another one would do the same.
    Unusable(String),
    /// It ended; `ready_for` is how long it had been ready.
    Ended { reason: String, ready_for: Option<Duration> },
    /// Nobody listens any more.
    Shutdown,
}

impl Supervisor {
    /// Runs until the dispatcher is gone. Dropping the future ends the engine.
    pub async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        let mut failed_loads = 0;
        loop {
            match self.one_engine().await {
                End::Shutdown => return,
                End::Unusable(reason) => {
                    if !self.wait_for_change(reason).await {
                        return;
                    }
                    (backoff, failed_loads) = (BACKOFF_MIN, 0);
                }
                End::Ended { reason, ready_for } => {
                    failed_loads = if ready_for.is_some() { 0 } else { failed_loads + 1 };
                    if failed_loads >= LOAD_ATTEMPTS {
                        let reason = format!("{reason}; {failed_loads} engines ended while they loaded the model");
                        if !self.wait_for_change(reason).await {
                            return;
                        }
                        (backoff, failed_loads) = (BACKOFF_MIN, 0);
                        continue;
                    }
                    if ready_for.is_some_and(|time| time >= STEADY) {
                        backoff = BACKOFF_MIN;
                    }
                    log::error!(target: "temperd::engine", next_in_s = backoff.as_secs_f64(); "{reason}");
                    if self.events.send(EngineEvent::Ended { reason }).await.is_err() {
                        return;
                    }
                    self.metrics.engine_restarted();
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Tells that there is no engine, and waits for SIGHUP or another model file. `false`: nobody listens any more.
    async fn wait_for_change(&self, reason: String) -> bool {
        let watch = FileWatch::new(&self.config.model);
        log::error!(target: "temperd::engine", model:% = self.config.model.display();
            "{reason}; tried again on SIGHUP or when the file changes");
        if self.events.send(EngineEvent::Failed { reason }).await.is_err() {
            return false;
        }
        tokio::select! {
            () = self.reload.notified() => log::info!(target: "temperd::engine", "SIGHUP: trying the model again"),
            () = watch.changed() => log::info!(target: "temperd::engine", "the model file has changed: trying it again"),
            () = self.events.closed() => return false,
        }
        true
    }

    async fn one_engine(&self) -> End {
        let model = self.config.model.clone();
        // A look at the header says more exactly what is wrong than an engine's failure does.
        let looked = tokio::task::spawn_blocking(move || crate::gguf::inspect(&model)).await;
        if let Ok(Err(error)) = looked {
            return End::Unusable(error.to_string());
        }
        let binary = match locate::locate(self.config.path.as_deref()) {
            Ok(binary) => binary,
            Err(error) => return End::Unusable(error.to_string()),
        };
        if self.events.send(EngineEvent::Loading).await.is_err() {
            return End::Shutdown;
        }
        let hello = Hello { protocol: frames::PROTOCOL, build: frames::BUILD.into(), flavour: String::new() };
        let outgoing = self.handle.attach([to_engine::Frame::Hello(hello), to_engine::Frame::Load(load(&self.config))]);
        let end = match EngineProcess::spawn(&binary, &environment(&self.config), outgoing) {
            Ok(process) => self.follow(process, &binary).await,
            Err(error) => End::Unusable(format!("engine {} does not start: {error}", binary.display())),
        };
        self.handle.detach();
        end
    }

    /// From hello to the end of one process.
    async fn follow(&self, mut process: EngineProcess, binary: &Path) -> End {
        let theirs = match tokio::time::timeout(HELLO_WITHIN, process.next()).await {
            Ok(Ok(Some(frame))) => inner(frame),
            Ok(_) => return self.ended(process, None).await,
            Err(_) => return End::Unusable(format!("{} is no temperd-engine: it says nothing", binary.display())),
        };
        match theirs {
            Some(from_engine::Frame::Hello(theirs))
                if theirs.protocol == frames::PROTOCOL && theirs.build == frames::BUILD => {}
            Some(from_engine::Frame::Hello(theirs)) => {
                return End::Unusable(format!(
                    "engine {} is of build {} (protocol {}), the daemon of {} ({}): install both from one package",
                    binary.display(),
                    theirs.build,
                    theirs.protocol,
                    frames::BUILD,
                    frames::PROTOCOL
                ));
            }
            _ => return End::Unusable(format!("{} is no temperd-engine", binary.display())),
        }
        self.frames(process).await
    }

    async fn frames(&self, mut process: EngineProcess) -> End {
        let mut ready_since = None;
        loop {
            let frame = tokio::select! {
                frame = process.next() => frame,
                () = self.events.closed() => return End::Shutdown,
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => return self.ended(process, ready_since).await,
                Err(error) => {
                    let _killed = process.end().await;
                    return ended(format!("the engine sent a frame that cannot be read: {error}"), ready_since);
                }
            };
            let event = match inner(frame) {
                Some(from_engine::Frame::Vocabulary(vocabulary)) => match Prompter::new(&vocabulary) {
                    Ok(prompter) => EngineEvent::Vocabulary(Arc::new(prompter)),
                    Err(error) => return End::Unusable(error.to_string()),
                },
                Some(from_engine::Frame::Ready(ready)) => {
                    ready_since = Some(Instant::now());
                    EngineEvent::Ready(ready)
                }
                Some(from_engine::Frame::LoadFailed(failed)) => {
                    let _killed = process.end().await;
                    return End::Unusable(failed.message);
                }
                Some(from_engine::Frame::Resized(resized)) => EngineEvent::Resized(resized),
                Some(from_engine::Frame::Step(step)) => EngineEvent::Step(step),
                Some(from_engine::Frame::Embedded(embedded)) => EngineEvent::Embedded(embedded),
                Some(from_engine::Frame::Tokenised(answer)) => {
                    self.handle.tokenised(answer);
                    continue;
                }
                Some(from_engine::Frame::Log(line)) => {
                    forward(&line);
                    continue;
                }
                Some(
                    from_engine::Frame::Hello(_)
                    | from_engine::Frame::Loading(_)
                    | from_engine::Frame::Heartbeat(_)
                    | from_engine::Frame::Saved(_),
                )
                | None => continue,
            };
            if self.events.send(event).await.is_err() {
                return End::Shutdown;
            }
        }
    }

    async fn ended(&self, mut process: EngineProcess, ready_since: Option<Instant>) -> End {
        let reason = match process.status().await {
            Ok(status) => how(status),
            Err(error) => format!("the engine ended: {error}"),
        };
        ended(reason, ready_since)
    }
}

fn ended(reason: String, ready_since: Option<Instant>) -> End {
    End::Ended { reason, ready_for: ready_since.map(|since| since.elapsed()) }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("the engine was ended by signal {signal}"),
        None => format!("the engine ended with exit code {}", status.code().unwrap_or_default()),
    }
}

fn load(config: &config::Engine) -> Load {
    let (kv_type_k, kv_type_v) = config.kv_type.parts();
    Load {
        model: config.model.to_string_lossy().into_owned(),
        context: config.context,
        parallel: config.parallel,
        gpu_layers: config.gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX)),
        kv_type_k: kv_type_k.into(),
        kv_type_v: kv_type_v.into(),
        threads: config.threads.unwrap_or(0),
        threads_batch: config.threads_batch.unwrap_or(0),
        n_batch: config.n_batch,
        n_ubatch: config.n_ubatch,
        load_mode: config.load_mode.as_str().into(),
        flash_attention: config.flash_attention.as_str().into(),
        batch_invariant: config.batch_invariant,
        lookup: config.lookup,
        lookup_always: false,
        first_context: 0,
        restore: false,
        step_target_ms: config.step_target_ms.unwrap_or(0),
        adapters: config.adapters.iter().map(adapter).collect(),
    }
}

fn adapter(adapter: &config::Adapter) -> Adapter {
    let path = adapter.path.to_string_lossy().into_owned();
    Adapter { name: adapter.name.clone(), path, scale: adapter.scale }
}

/// How often a thread of the engine looks whether the others have come to the barrier, before it sleeps. Threads wait for
/// each other a thousand times in a step, a few microseconds each; by OpenMP's default they look some hundred thousand
/// times, and where another program has one of the cores, the thread that is waited for cannot run on it meanwhile.
///
/// 1000 looks keep the speed of one stream alone and are the fewest that do (docs/bench.md, "Threads that wait"). On ARM a
/// look takes about a tenth of that time; that number is reckoned, not measured.
const SPINS: &str = if cfg!(target_arch = "x86_64") { "1000" } else { "10000" };

/// What the engine's libraries read from the environment, once and before the first frame comes: how threads wait for each
/// other, unless the operator has said so, and on x86 another kernel for matrices of eight and more rows, which adds up
/// in another order.
fn environment(config: &config::Engine) -> Vec<(&'static str, &'static str)> {
    let said = |name| std::env::var_os(name).is_some();
    let mut environment = Vec::new();
    if !said("GOMP_SPINCOUNT") && !said("OMP_WAIT_POLICY") {
        environment.push(("GOMP_SPINCOUNT", SPINS));
    }
    if config.batch_invariant {
        environment.push(("GGML_CPU_TILED_MM", "0"));
    }
    environment
}

/// A line of the engine's, in our log at its level.
fn forward(line: &Log) {
    let level = line.level.parse().unwrap_or(log::Level::Info);
    log::log!(target: "temperd::engine", level, "{}", line.message.trim_end());
}
