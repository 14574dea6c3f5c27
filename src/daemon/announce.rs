//! The one line on standard output that says that the daemon can answer, or why it cannot.

use std::{io::Write, path::PathBuf, time::Duration};

use tokio::sync::watch;

use crate::wire::v1;

/// How long the line waits for the first connection to the broker, so that it can say `mqtt=connected`.
const BROKER_WITHIN: Duration = Duration::from_secs(3);

/// Waits for the first load to succeed or fail, or to be held back, prints the line, and once more where a model is ready
/// later.
pub(super) async fn announce(mut status: watch::Receiver<v1::Status>, socket: PathBuf) {
    loop {
        let decided = |status: &v1::Status| model_state(status) == "ready" || why_not(status).is_some();
        let why_not_now = match status.wait_for(decided).await {
            Ok(status) => why_not(&status),
            Err(_) => return,
        };
        match why_not_now {
            Some(reason) => {
                print(&format!("temperd not ready reason={reason:?}"));
                if status.wait_for(|status| why_not(status).is_none()).await.is_err() {
                    return;
                }
            }
            None => {
                let connecting = |status: &v1::Status| mqtt(status) == "connecting";
                drop(tokio::time::timeout(BROKER_WITHIN, status.wait_for(|status| !connecting(status))).await);
                print(&ready_line(&status.borrow(), &socket.display().to_string()));
                return;
            }
        }
    }
}

/// Why there is no model, where none is on its way, or the last engine has not lived to load it.
fn why_not(status: &v1::Status) -> Option<String> {
    let model = status.model.as_ref()?;
    match model.state.as_str() {
        "failed" => Some(model.error.clone().unwrap_or_default()),
        "loading" => model.error.clone(),
        "unloaded" if !status.ready => Some(status.reasons.join(", ")),
        _ => None,
    }
}

fn model_state(status: &v1::Status) -> &str {
    status.model.as_ref().map_or("none", |model| model.state.as_str())
}

fn mqtt(status: &v1::Status) -> &str {
    status.mqtt.as_ref().map_or("off", |mqtt| mqtt.state.as_str())
}

fn ready_line(status: &v1::Status, socket: &str) -> String {
    let point = status.operating_point.clone().unwrap_or_default();
    let model = status.model.as_ref().map_or("", |model| model.name.as_str());
    format!(
        "temperd ready socket={socket} model={model} context={} gpu_layers={} mqtt={}",
        point.context,
        point.gpu_layers,
        mqtt(status)
    )
}

/// A closed standard output is nobody's fault.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}
