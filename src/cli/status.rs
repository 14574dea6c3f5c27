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
        line("because", format!("{} ({})", reason.code, reason.reading));
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
        line("pause", pause.reason.clone());
    }
    page
}

fn in_words(reason: &str) -> &str {
    match reason {
        "model_none" => "there is no model",
        "model_loading" => "the model is being loaded",
        "model_failed" => "the model could not be loaded",
        "draining" => "it is shutting down",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
