//! The Unix socket of a real daemon with the real model: OpenAI's HTTP, status, errors, access, cancel by disconnect.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::os::unix::fs::PermissionsExt;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, until},
    http,
};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";

/// Which the small model answers by far most likely in one way; to "What is the capital of France?" it nearly chooses French.
fn question(extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Complete the sentence: The capital of France is"}]});
    merge(&mut body, extra);
    body
}

fn merge(body: &mut Value, extra: &Value) {
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
}

/// A request that runs until somebody ends it: the small model's first 17 tokens, which hold all that end an answer, are
/// out of the question.
fn endless(extra: &Value) -> Value {
    let never: serde_json::Map<String, Value> = (0..17).map(|token| (token.to_string(), json!(-100))).collect();
    let mut body = json!({"model": MODEL, "prompt": "Count: one, two,", "max_tokens": 4000, "temperature": 0,
        "stream": true, "logit_bias": never});
    merge(&mut body, extra);
    body
}

#[tokio::test]
async fn answers_plain_and_streaming_with_usage() {
    let daemon = Daemon::ready("").await;
    let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &question(&json!({}))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );

    let body = question(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let response = http::send(&daemon.socket, Method::POST, "/v1/chat/completions", body.to_string()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let events: Vec<&str> =
        std::str::from_utf8(&bytes).unwrap().lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text, "greedy answers are the same both ways");
    let streamed = &chunks.last().unwrap()["usage"];
    assert_eq!(streamed["total_tokens"], usage["total_tokens"]);
    // The second time, all of the prompt but its last token is there already.
    let cached = |usage: &Value| usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!((cached(usage), cached(streamed)), (Some(0), usage["prompt_tokens"].as_u64().map(|tokens| tokens - 1)));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_raw_prompt_is_parsed_for_control_tokens() {
    let daemon = Daemon::ready("").await;
    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let body = json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 24, "stop": ["<|im_end|>"]});
    let (status, raw) = http::post(&daemon.socket, "/v1/completions", &body).await;
    assert_eq!(status, StatusCode::OK, "{raw}");
    let text = raw["choices"][0]["text"].as_str().unwrap();
    assert!(text.contains("Paris") && !text.contains("<|im_end|>"), "{text}");
    // user \n What … ? are far fewer tokens than the characters of the control tokens would be.
    assert_eq!(raw["usage"]["prompt_tokens"], 16, "{raw}");
}

#[tokio::test]
async fn every_bad_input_gets_its_error() {
    let daemon = Daemon::ready("[engine]\ncontext = 512\n").await;
    let long = "word ".repeat(600);
    let chat = "/v1/chat/completions";
    let cases = [
        (chat, question(&json!({"model": "gpt-4"})), 404, "unknown_model", "model"),
        (chat, question(&json!({"messages": []})), 400, "invalid_request", "messages"),
        (chat, question(&json!({"messages": [{"role": "wizard", "content": "x"}]})), 400, "invalid_request", "role"),
        (chat, question(&json!({"messages": [{"role": "user", "content": ""}]})), 400, "invalid_request", "content"),
        (chat, question(&json!({"max_tokens": 0})), 400, "invalid_request", "max_tokens"),
        (chat, question(&json!({"max_tokens": -3})), 400, "invalid_request", "max_tokens"),
        (chat, question(&json!({"max_tokens": 1_000_000_000_000_u64})), 400, "invalid_request", "max_tokens"),
        (chat, question(&json!({"temperature": "hot"})), 400, "invalid_request", "temperature"),
        (chat, question(&json!({"temperature": 1e39})), 400, "invalid_request", "temperature"),
        (chat, question(&json!({"colour": "red"})), 400, "invalid_request", "colour"),
        (chat, question(&json!({"n": 2})), 400, "invalid_request", "n"),
        (chat, question(&json!({"tools": [{"type": "function"}]})), 400, "invalid_request", "tools"),
        (chat, question(&json!({"response_format": {"type": "yaml"}})), 400, "invalid_request", "response_format"),
        (chat, question(&json!({"messages": [{"role": "user", "content": long}]})), 400, "context_length_exceeded", ""),
        ("/v1/completions", json!({"model": MODEL, "prompt": ""}), 400, "invalid_request", "prompt"),
    ];
    for (path, body, status, code, param) in cases {
        let (got, answer) = http::post(&daemon.socket, path, &body).await;
        assert_eq!((got.as_u16(), answer["error"]["code"].as_str()), (status, Some(code)), "{answer}");
        let named = answer["error"]["param"].as_str().unwrap_or_default();
        assert!(named.contains(param), "{answer}");
    }
    for (body, status) in [("{\"model\":", 400), ("[1, 2", 400), ("\u{0}", 400)] {
        let (got, answer) = http::json(&daemon.socket, Method::POST, chat, body).await;
        assert_eq!((got.as_u16(), answer["error"]["code"].as_str()), (status, Some("invalid_request")), "{answer}");
    }
    let (got, answer) = http::json(&daemon.socket, Method::POST, chat, vec![b'"', 0xff, b'"']).await;
    assert_eq!((got.as_u16(), answer["error"]["code"].as_str()), (400, Some("invalid_request")), "{answer}");
    let (got, answer) = http::json(&daemon.socket, Method::POST, chat, vec![b' '; 300_000]).await;
    assert_eq!((got.as_u16(), answer["error"]["code"].as_str()), (413, Some("payload_too_large")), "{answer}");
    let (got, _) = http::get(&daemon.socket, "/v2/nothing").await;
    assert_eq!(got, StatusCode::NOT_FOUND);
    let (got, _) = http::get(&daemon.socket, chat).await;
    assert_eq!(got, StatusCode::METHOD_NOT_ALLOWED);

    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    let metrics = metrics.as_str().expect("a text");
    for code in ["invalid_request", "context_length_exceeded", "payload_too_large", "unknown_model"] {
        let counted = format!("temperd_refused_total{{way_in=\"http\",code=\"{code}\"}}");
        assert!(metrics.contains(&counted), "{counted} in\n{metrics}");
    }
    assert!(!daemon.log_text().contains("word word"), "no prompt text in the log");
    // Nothing above has hurt it.
    let (status, _) = http::post(&daemon.socket, chat, &question(&json!({}))).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn both_numbers_of_a_prompt_that_is_too_long_are_told() {
    let daemon = Daemon::ready("[engine]\ncontext = 512\n").await;
    let body = json!({"model": MODEL, "prompt": "word ".repeat(600), "max_tokens": 1});
    let (_, answer) = http::post(&daemon.socket, "/v1/completions", &body).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("512") && message.contains("60"), "{message}");
}

#[tokio::test]
async fn closing_the_connection_frees_the_slot() {
    let daemon = Daemon::ready("[engine]\nparallel = 1\n").await;
    for stream in [true, false] {
        let first = tokio::spawn({
            let socket = daemon.socket.clone();
            let body = endless(&json!({"stream": stream})).to_string();
            async move {
                let response = http::send(&socket, Method::POST, "/v1/completions", body).await;
                let _held = response.into_body().collect().await;
            }
        });
        until(&daemon, "running", |status| status["running"] == 1).await;
        first.abort();
        until(&daemon, "free again", |status| status["running"] == 0).await;
    }
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    assert!(metrics.as_str().unwrap().contains("temperd_jobs_total{way_in=\"http\",outcome=\"cancelled\"} 2"));
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_hint() {
    let daemon = Daemon::ready("[engine]\nparallel = 1\n[limits]\nqueue = 1\nshare = 100\n").await;
    let mut held = Vec::new();
    for expected in [(1, 0), (1, 1)] {
        let socket = daemon.socket.clone();
        held.push(tokio::spawn(async move {
            let response = http::send(&socket, Method::POST, "/v1/completions", endless(&json!({})).to_string()).await;
            let _held = response.into_body().collect().await;
        }));
        until(&daemon, "admitted", |status| {
            (&status["running"], &status["queue"]["depth"]) == (&json!(expected.0), &json!(expected.1))
        })
        .await;
    }
    let response =
        http::send(&daemon.socket, Method::POST, "/v1/chat/completions", question(&json!({})).to_string()).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u32 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds >= 1);
    for task in held {
        task.abort();
    }
}

#[tokio::test]
async fn a_deadline_ends_what_runs() {
    let daemon = Daemon::ready("").await;
    let body = endless(&json!({"stream": false, "deadline_ms": 300}));
    let (status, answer) = http::post(&daemon.socket, "/v1/completions", &body).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (504, Some("expired")), "{answer}");
    until(&daemon, "free again", |status| status["running"] == 0).await;
}

#[tokio::test]
async fn stopping_lets_what_runs_finish_and_refuses_the_rest() {
    let mut daemon = Daemon::ready("[limits]\ndrain_s = 60\n").await;
    let body = endless(&json!({"max_tokens": 300, "stream": false}));
    let running = tokio::spawn({
        let socket = daemon.socket.clone();
        async move { http::post(&socket, "/v1/completions", &body).await }
    });
    until(&daemon, "running", |status| status["running"] == 1).await;
    daemon.signal(rustix::process::Signal::TERM);
    let (status, answer) = running.await.unwrap();
    assert_eq!((status, answer["usage"]["completion_tokens"].as_u64()), (StatusCode::OK, Some(300)), "{answer}");
    assert!(daemon.ended().await.success());
    assert!(!daemon.socket.exists(), "the socket is removed");
}

#[tokio::test]
async fn stopping_fails_what_does_not_finish_in_time() {
    let mut daemon = Daemon::ready("[limits]\ndrain_s = 1\n").await;
    let running = tokio::spawn({
        let socket = daemon.socket.clone();
        async move { http::post(&socket, "/v1/completions", &endless(&json!({"stream": false}))).await }
    });
    until(&daemon, "running", |status| status["running"] == 1).await;
    daemon.signal(rustix::process::Signal::TERM);
    let (status, answer) = running.await.unwrap();
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (503, Some("draining")), "{answer}");
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn status_health_and_models_say_what_is() {
    let daemon = Daemon::ready("[socket]\nmode = \"0600\"\n").await;
    assert_eq!(http::get(&daemon.socket, "/healthz").await.0, StatusCode::OK);
    assert_eq!(http::get(&daemon.socket, "/readyz").await.0, StatusCode::OK);
    let (_, models) = http::get(&daemon.socket, "/v1/models").await;
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(http::get(&daemon.socket, &format!("/v1/models/{MODEL}")).await.0, StatusCode::OK);
    assert_eq!(http::get(&daemon.socket, "/v1/models/other").await.0, StatusCode::NOT_FOUND);
    let (_, status) = http::get(&daemon.socket, "/v1/status").await;
    assert_eq!(status["model"]["state"], "ready");
    assert_eq!(status["operating_point"]["context"], 8192);
    assert_eq!(status["settings"]["kv_type"], "f16");
    assert_eq!(status["node"], "test");
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_peer_that_is_not_allowed_is_told_so() {
    let daemon = Daemon::ready("[socket]\nallow_uids = [4242]\n").await;
    let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &question(&json!({}))).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (403, Some("forbidden")), "{answer}");
}

/// What decides how soon the first token comes is how many tokens of the prompt are read; that many are compared.
#[tokio::test]
async fn what_another_client_wrote_saves_no_time() {
    let uid = rustix::process::getuid().as_raw();
    let daemon = Daemon::ready(&format!("[socket]\nallow_uids = [{uid}]\ngateways = [{uid}]\n")).await;
    let long = "The pump in hall two is off, and the valve behind it is closed. ".repeat(12);
    let read = async |user: &str, text: &str| {
        let messages = json!([{"role": "system", "content": "You are the voice of a small water works. Be brief."},
            {"role": "user", "content": format!("{long}{text}")}]);
        let body = question(&json!({"user": user, "messages": messages, "max_tokens": 1}));
        let (_, answer) = http::post(&daemon.socket, "/v1/chat/completions", &body).await;
        let usage = &answer["usage"];
        let count = |value: &Value| value.as_u64().expect("a number");
        (count(&usage["prompt_tokens"]), count(&usage["prompt_tokens_details"]["cached_tokens"]))
    };
    let (prompt, first) = read("anna", "Why?").await;
    assert_eq!(first, 0);
    // Her own text is there already, but for the last token.
    assert_eq!(read("anna", "Why?").await, (prompt, prompt - 1));
    // Another has the system prompt from her, and that alone, whether or not she wrote the same.
    let (_, same) = read("bert", "Why?").await;
    let (_, new) = read("carl", "Who?").await;
    assert_eq!(same, new);
    assert!(0 < same && same < 40, "{same} of {prompt}");
}
