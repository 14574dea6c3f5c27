//! The one line on standard output that says that the daemon can answer, or why it cannot.

use std::{io::Write, path::PathBuf, time::Duration};

use tokio::sync::watch;

use crate::wire::v1;

/// How long the line waits for the first connection to the broker, so that it can say `mqtt=connected`.
const BROKER_WITHIN: Duration = Duration::from_secs(3);

/// Waits for the first load to succeed or fail, prints the line, and once more where a failed load later succeeds.
pub(super) async fn announce(mut status: watch::Receiver<v1::Status>, socket: PathBuf) {
    loop {
        let loaded = |status: &v1::Status| ["ready", "failed"].contains(&model_state(status));
        let failed = match status.wait_for(loaded).await {
            Ok(status) if model_state(&status) == "failed" => status.model.clone(),
            Ok(_) => None,
            Err(_) => return,
        };
        match failed {
            Some(model) => {
                print(&format!("temperd not ready reason={:?}", model.error.unwrap_or_default()));
                if status.wait_for(|status| model_state(status) != "failed").await.is_err() {
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
