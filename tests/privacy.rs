//! No word of a prompt or an answer anywhere it was not asked for.

mod support;

use hyper::Method;
use serde_json::json;
use support::{daemon::Daemon, http};

/// In the prompt, and asked for in the answer.
const CANARY: &str = "zanzibarquokka";

#[tokio::test]
async fn a_canary_is_in_no_log_metric_status_or_command_line() {
    // The most talkative level there is.
    let daemon = Daemon::ready("[log]\nlevel = \"trace\"\n").await;
    let model = "SmolLM2-135M-Instruct.Q4_1";
    let ask = |content: &str, extra: serde_json::Value| {
        let mut body = json!({"model": model, "max_tokens": 24, "temperature": 0,
            "messages": [{"role": "user", "content": content}]});
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body
    };
    let repeat = format!("Repeat after me: {CANARY} {CANARY} {CANARY}");
    let (_, answer) = http::post(&daemon.socket, "/v1/chat/completions", &ask(&repeat, json!({}))).await;
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    // Requests that fail in as many ways as there are places that might quote them.
    for body in [
        ask(&repeat, json!({"max_tokens": 0})),
        ask(&repeat, json!({"temperature": CANARY})),
        ask(&repeat, json!({"stop": {CANARY: 1}})),
        ask(&repeat, json!({"model": CANARY})),
        ask(&format!("{CANARY} ").repeat(9000), json!({})),
        json!({"model": model, "messages": CANARY}),
        json!({"model": model, "messages": [{"role": CANARY, "content": CANARY}]}),
    ] {
        let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &body).await;
        assert!(status.is_client_error(), "{answer}");
    }
    let broken = format!("{{\"model\": \"{CANARY}");
    http::json(&daemon.socket, Method::POST, "/v1/chat/completions", broken).await;

    let mut places = vec![("log", daemon.log_text())];
    for path in ["/metrics", "/v1/status", "/readyz", "/v1/models"] {
        places.push((path, http::get(&daemon.socket, path).await.1.to_string()));
    }
    for pid in [daemon.pid().cast_signed(), daemon.engine_pid()] {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).expect("readable");
            places.push((file, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    for (place, text) in places {
        assert!(!text.contains(CANARY), "{place}: {text}");
    }
}
