//! `temperd status`: what the daemon is doing, for a person or as JSON.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind, Write as _},
    path::PathBuf,
    time::Duration,
};

use tokio::time;

use super::{CliError, client};
use crate::wire::{
    self,
    v1::{self, control_client::ControlClient},
};

/// The daemon answers this at once, whatever else it does.
const PATIENCE: Duration = Duration::from_secs(5);

/// The arguments of `temperd status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Socket of the daemon; by default looked for in /run/temperd and $XDG_RUNTIME_DIR.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Not available yet.
    #[arg(long)]
    watch: bool,
}

/// Asks and prints.
///
/// # Errors
/// Where nobody is there or the call fails; a daemon that is not ready is none.
pub async fn run(args: StatusArgs) -> Result<(), CliError> {
    if args.watch {
        return Err(CliError::later("--watch"));
    }
    let channel = client::connect(args.socket).await?;
    let mut client = ControlClient::new(channel);
    let reply = time::timeout(PATIENCE, client.status(v1::StatusRequest {})).await;
    let reply = reply.map_err(|_| CliError::Failed(format!("no answer within {} s", PATIENCE.as_secs())))?;
    let status = reply.map_err(|status| client::failure(&status))?.into_inner();
    let mut text =
        if args.json { String::from_utf8_lossy(&wire::to_json(&status)).into_owned() } else { page(&status) };
    if args.json {
        text.push('\n');
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot write the status: {error}")))
        }
        _ => Ok(()),
    }
}

/// The page for a person: one line per part, parts that the daemon does not tell of left out.
fn page(status: &v1::Status) -> String {
    let mut page = String::new();
    let mut line = |name: &str, text: String| {
        // A String takes everything.
        let _ = writeln!(page, "{name:<10} {text}");
    };
    line("temperd", format!("{} on {}", status.version, status.node));
    let reasons: Vec<_> = status.reasons.iter().map(|reason| in_words(reason)).collect();
    line("state", if status.ready { "ready".into() } else { format!("not ready: {}", reasons.join(", ")) });
    if let Some(model) = &status.model {
        let error = model.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let name = if model.name.is_empty() { "none" } else { &model.name };
        line("model", format!("{name}, {}{error}", model.state));
    }
    if let Some(point) = &status.operating_point {
        let pinned = if status.pinned { ", pinned" } else { "" };
        line(
            "operating",
            format!(
                "context {} ({} allocated), GPU layers {}, parallel {}, pace {:.0} %, {}{pinned}",
                point.context,
                status.allocated_context,
                point.gpu_layers,
                point.parallel,
                point.pace * 100.0,
                point.admit
            ),
        );
    }
    if let Some(reason) = &status.reason {
        line("because", because(reason));
    }
    if let Some(queue) = &status.queue {
        let running = status.running.unwrap_or(0);
        line("requests", format!("{running} running, {} of {} waiting", queue.depth, queue.limit));
    }
    if let Some(mqtt) = &status.mqtt {
        let outbox = if mqtt.outbox > 0 { format!(", {} to be sent", mqtt.outbox) } else { String::new() };
        line("mqtt", format!("{}{outbox}", mqtt.state));
    }
    if let Some(engine) = &status.engine {
        let degraded = if engine.degraded { ", degraded" } else { "" };
        let flavour = if engine.flavour.is_empty() { "none" } else { &engine.flavour };
        line("engine", format!("{flavour}, {} restarts{degraded}", engine.restarts));
    }
    if let Some(set) = &status.settings {
        line(
            "settings",
            format!(
                "threads {} (prompts {}), n_batch {}, n_ubatch {}, KV {}, load mode {}, flash attention {}",
                set.threads,
                set.threads_batch,
                set.n_batch,
                set.n_ubatch,
                set.kv_type,
                set.load_mode,
                set.flash_attention
            ),
        );
    }
    if let Some(pause) = &status.pause {
        let why = match pause.reason.as_str() {
            "gpu_layers" => "the model is loaded with another number of GPU layers",
            "context" => "the model is loaded with more context",
            "leak" => "the engine took too much memory, and another takes its place",
            "crashed" => "the engine has crashed, and another takes its place",
            "loading" => "the model is being loaded again",
            other => other,
        };
        line("pause", format!("{why}; no request is lost"));
    }
    page
}

fn in_words(reason: &str) -> &str {
    match reason {
        "model_none" => "there is no model",
        "model_loading" => "the model is being loaded",
        "engine_crashed" => "the last engine ended by itself",
        "model_failed" => "the model could not be loaded",
        "model_unloaded" => "the model is unloaded",
        "hold" => "nothing new starts",
        "draining" => "it is shutting down",
        other => other,
    }
}

/// A reason of the governor's, in a sentence.
fn because(reason: &v1::Reason) -> String {
    let value = |unit: &str| reason.value.map_or_else(|| "?".to_owned(), |value| format!("{value}{unit}"));
    let limit = |unit: &str| reason.limit.map_or_else(|| "?".to_owned(), |limit| format!("{limit}{unit}"));
    let source = reason.source.as_deref().unwrap_or("the hottest zone");
    match reason.code.as_str() {
        "memory_critical" => format!("{} are available, less than {} is critical", value(" MiB"), limit(" MiB")),
        "memory_low" => format!("{} are available, {} are to be kept", value(" MiB"), limit(" MiB")),
        "memory_recovering" => {
            format!("{} are available again; more is taken a step at a time, above {}", value(" MiB"), limit(" MiB"))
        }
        "heat_unreadable" => "tj, the hottest sensor, cannot be read: assumed hot".into(),
        "throttled" => match &reason.source {
            Some(alerts) => format!("the kernel slows the board down ({alerts})"),
            None => "the kernel slows the board down".into(),
        },
        "hot" => format!("{source} is at {}, pauses keep it near {}", value(" C"), limit(" C")),
        "too_hot" => format!("{source} is at {}, and the least pace is too much for {}", value(" C"), limit(" C")),
        "cooling_down" => format!("{source} was too hot, is at {}; more is tried a step at a time", value(" C")),
        "over_current" => "the board drew more current than it may".into(),
        "load_failed" => format!("the model could not be loaded with {} {}", reason.reading, value("")),
        "crashed" => format!("the engine kept dying with {} {}", reason.reading, value("")),
        "pinned" => "an operator has pinned it".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lowers_the_operating_point_is_said_in_words() {
        let reason = |code: &str, value, limit| v1::Reason {
            code: code.into(),
            reading: "hottest_c".into(),
            value,
            limit,
            since: 0.0,
            source: Some("tj-thermal".into()),
        };
        let point = v1::OperatingPoint { context: 8192, parallel: 8, pace: 0.4, admit: "run".into(), gpu_layers: 0 };
        let status = v1::Status {
            operating_point: Some(point),
            pinned: true,
            reason: Some(reason("hot", Some(88.5), Some(87.0))),
            pause: Some(v1::Pause { reason: "crashed".into(), expected_end: 0.0 }),
            ..v1::Status::default()
        };
        let page = page(&status);
        for line in [
            "operating  context 8192 (0 allocated), GPU layers 0, parallel 8, pace 40 %, run, pinned",
            "because    tj-thermal is at 88.5 C, pauses keep it near 87 C",
            "pause      the engine has crashed, and another takes its place; no request is lost",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
        assert!(because(&reason("memory_critical", Some(300.0), Some(819.2))).starts_with("300 MiB are available"));
        assert_eq!(because(&reason("pinned", None, None)), "an operator has pinned it");
        assert_eq!(in_words("hold"), "nothing new starts");
    }

    #[test]
    fn the_page_of_a_daemon_that_is_not_ready_says_why() {
        let status = v1::Status {
            reasons: vec!["model_failed".into()],
            node: "box".into(),
            version: "0.1.0".into(),
            model: Some(v1::Model {
                name: "m.gguf".into(),
                state: "failed".into(),
                error: Some("m.gguf: not a GGUF file".into()),
            }),
            operating_point: Some(v1::OperatingPoint {
                context: 8192,
                gpu_layers: 0,
                parallel: 8,
                pace: 1.0,
                admit: "run".into(),
            }),
            queue: Some(v1::Queue { depth: 2, limit: 64 }),
            running: Some(1),
            ..v1::Status::default()
        };
        assert_eq!(
            page(&status),
            "temperd    0.1.0 on box\n\
             state      not ready: the model could not be loaded\n\
             model      m.gguf, failed: m.gguf: not a GGUF file\n\
             operating  context 8192 (0 allocated), GPU layers 0, parallel 8, pace 100 %, run\n\
             requests   1 running, 2 of 64 waiting\n"
        );
    }
}
