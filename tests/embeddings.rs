//! Embeddings of a real daemon with the real model, over the socket and over MQTT.

mod support;

use std::time::Duration;

use hyper::Method;
use prost::Message as _;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, PATIENCE},
    http,
    mosquitto::{Device, Mosquitto},
};
use temperd::wire::v1;

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";
const PATH: &str = "/v1/embeddings";

fn ask(input: &Value) -> Value {
    json!({"model": MODEL, "input": input})
}

/// So much text that it is read for as long as a test needs.
fn endless() -> Vec<String> {
    let text: String = (0..90).map(|n| format!("Line {n}: the pump ran for {} minutes. ", n * 7 % 60)).collect();
    vec![text; 50]
}

async fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Value) -> bool) {
    let waits = async {
        loop {
            let (_, status) = http::get(&daemon.socket, "/v1/status").await;
            if holds(&status) {
                return;
            }
            // The status has no push form over HTTP.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waits).await.is_ok(), "never {what}\n{}", daemon.log_text());
}

async fn metric(daemon: &Daemon, line: &str) -> bool {
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    metrics.as_str().expect("text").lines().any(|found| found == line)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

#[tokio::test]
async fn over_http_it_is_a_request_like_every_other() {
    let daemon = Daemon::ready("[engine]\ncontext = 2048\n").await;
    let (status, answer) = http::post(&daemon.socket, PATH, &ask(&json!(["A pump moves water.", "Good night."]))).await;
    assert_eq!(status, 200, "{answer}");
    let vectors: Vec<_> = (0..2).map(|nth| numbers(&answer["data"][nth]["embedding"])).collect();
    for vector in &vectors {
        assert_eq!(vector.len(), 576);
        assert!((vector.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    assert!(answer["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 5), "{}", answer["usage"]);
    assert!(metric(&daemon, "temperd_jobs_total{way_in=\"http\",outcome=\"completed\"} 1").await);

    let long = "word ".repeat(3000);
    let cases = [
        (json!([]), "invalid_request", "input"),
        (json!(["x", ""]), "invalid_request", "input[1]"),
        (json!(vec!["x"; 257]), "invalid_request", "input"),
        (json!([[1, 2]]), "invalid_request", "input"),
        (json!(["x", long]), "context_length_exceeded", "input[1]"),
    ];
    for (input, code, param) in cases {
        let (status, answer) = http::post(&daemon.socket, PATH, &ask(&input)).await;
        let found = (status.as_u16(), answer["error"]["code"].as_str(), answer["error"]["param"].as_str());
        assert_eq!(found, (400, Some(code), Some(param)), "{answer}");
    }

    let mut late = ask(&json!(endless()));
    late["deadline_ms"] = json!(1);
    let (status, answer) = http::post(&daemon.socket, PATH, &late).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (504, Some("expired")), "{answer}");

    // The engine confirms its end after the client has been told.
    until(&daemon, "ends", |status| status["running"] == 0).await;

    // A client that goes away ends it.
    let body = ask(&json!(endless())).to_string();
    let socket = daemon.socket.clone();
    let asking = tokio::spawn(async move { http::send(&socket, Method::POST, PATH, body).await });
    until(&daemon, "runs", |status| status["running"] == 1).await;
    asking.abort();
    until(&daemon, "ends", |status| status["running"] == 0).await;
    assert!(metric(&daemon, "temperd_jobs_total{way_in=\"http\",outcome=\"cancelled\"} 1").await);
    let (status, _) = http::post(&daemon.socket, PATH, &ask(&json!("Still there?"))).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn an_answer_beside_it_is_the_same() {
    let daemon = Daemon::ready("").await;
    let question = json!({"model": MODEL, "temperature": 0, "max_tokens": 12,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]});
    let (_, alone) = http::post(&daemon.socket, "/v1/chat/completions", &question).await;
    let (socket, body) = (daemon.socket.clone(), ask(&json!(endless())).to_string());
    let asking = tokio::spawn(async move { http::send(&socket, Method::POST, PATH, body).await });
    until(&daemon, "runs", |status| status["running"] == 1).await;
    let (_, beside) = http::post(&daemon.socket, "/v1/chat/completions", &question).await;
    assert_eq!(alone["choices"], beside["choices"]);
    assert!(!asking.is_finished(), "the answer waited for the embeddings");
    asking.abort();
}

#[tokio::test]
async fn over_mqtt_in_three_forms_with_repeats_and_cancel() {
    let broker = Mosquitto::start();
    let url = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port());
    let daemon = Daemon::ready(&url).await;
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/response/#").await;
    let (topic, response) = ("temperd/v1/test/request/embed/pump", "temperd/v1/test/response/embed/pump");
    let plain = PublishProperties::default;

    let request = json!({"id": "e1", "input": ["A pump moves water.", "Good night."]}).to_string();
    device.publish(topic, request.clone(), plain()).await;
    let first = device.next_on(response).await;
    let answer: Value = serde_json::from_slice(&first.payload).expect("JSON");
    assert_eq!((answer["id"].as_str(), answer["outcome"].as_str()), (Some("e1"), Some("completed")), "{answer}");
    assert_eq!(answer["embeddings"].as_array().expect("a list").len(), 2);
    let vector = numbers(&answer["embeddings"][0]["values"]);
    assert_eq!(vector.len(), 576);

    // A repeat is answered from what is kept.
    device.publish(topic, request, plain()).await;
    assert_eq!(device.next_on(response).await.payload, first.payload);
    assert!(metric(&daemon, "temperd_jobs_total{way_in=\"mqtt\",outcome=\"completed\"} 1").await);

    device.publish(topic, "A pump moves water.", plain()).await;
    let text = device.next_on(response).await.payload;
    assert!(!text.contains(&b'\n'));
    let answer: Value = serde_json::from_slice(&text).expect("JSON");
    let near: f64 = numbers(&answer["embeddings"][0]["values"]).iter().zip(&vector).map(|(a, b)| a * b).sum();
    assert!(near > 0.999, "{near}");

    let request = v1::EmbedRequest { id: "p".into(), input: vec!["Good night.".into()], ..v1::EmbedRequest::default() };
    let protobuf = PublishProperties { content_type: Some("application/x-protobuf".into()), ..plain() };
    device.publish(topic, request.encode_to_vec(), protobuf).await;
    let reply = v1::EmbedReply::decode(device.next_on(response).await.payload).expect("protobuf");
    assert_eq!((reply.outcome.as_str(), reply.embeddings.len()), ("completed", 1));

    device.publish(topic, json!({"id": "bad", "input": [""]}).to_string(), plain()).await;
    let answer: Value = serde_json::from_slice(&device.next_on(response).await.payload).expect("JSON");
    assert_eq!(
        (answer["outcome"].as_str(), answer["error"]["code"].as_str()),
        (Some("refused"), Some("invalid_request"))
    );
    assert!(answer["embeddings"].as_array().expect("a list").is_empty());

    device.publish(topic, json!({"id": "long", "input": endless()}).to_string(), plain()).await;
    until(&daemon, "runs", |status| status["running"] == 1).await;
    let cancel = "temperd/v1/test/request/cancel/pump";
    device.publish(cancel, json!({"id": "long"}).to_string(), plain()).await;
    let answer: Value = serde_json::from_slice(&device.next_on(response).await.payload).expect("JSON");
    assert_eq!((answer["id"].as_str(), answer["outcome"].as_str()), (Some("long"), Some("cancelled")), "{answer}");
    until(&daemon, "ends", |status| status["running"] == 0).await;
}
