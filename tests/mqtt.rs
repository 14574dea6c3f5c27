//! MQTT with everything real: daemon, engine, model, mosquitto, and mosquitto's own command-line clients.

mod support;

use std::{collections::HashMap, process::Stdio, time::Duration};

use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use support::{
    daemon::{self, Daemon, PATIENCE},
    http,
    mosquitto::{Device, Mosquitto, binary},
};
use tokio::process::Command;

const SYSTEM: &str = "You are a helpful assistant.";

fn toml(broker: &Mosquitto, extra: &str) -> String {
    format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n{extra}\n[telemetry]\ninterval_s = 1\n[limits]\nmax_tokens = 48\n",
        broker.port()
    )
}

fn question(id: &str, extra: &Value) -> String {
    let mut body = json!({"id": id, "temperature": 0, "max_tokens": 24, "messages": [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Complete the sentence: The capital of France is"}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body.to_string()
}

/// Runs one of mosquitto's clients and gives what it printed.
async fn tool(name: &str, port: u16, arguments: &[&str]) -> String {
    let output = Command::new(binary(name))
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").expect("it runs");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn mosquitto_rr_asks_over_mqtt_5_in_json_and_in_text() {
    let broker = Mosquitto::start();
    let mut daemon = Daemon::ready(&toml(&broker, "")).await;
    let reply = "temperd/v1/clients/me/reply";
    let ask = |payload: String| async move {
        let arguments = ["-V", "5", "-t", "temperd/v1/test/request/chat", "-e", reply, "-m", &payload, "-W", "60"];
        tool("mosquitto_rr", broker.port(), &arguments).await
    };
    let answer: Value = serde_json::from_str(&ask(question("7", &json!({}))).await).expect("JSON");
    assert_eq!((answer["id"].as_str(), answer["outcome"].as_str()), (Some("7"), Some("completed")), "{answer}");
    assert!(answer["message"]["content"].as_str().expect("a text").contains("Paris"), "{answer}");
    assert_eq!(answer["node"], "test");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn a_device_of_mqtt_3_1_1_publishes_text_and_reads_the_answer() {
    let broker = Mosquitto::start();
    let _daemon = Daemon::ready(&toml(&broker, "")).await;
    let port = broker.port();
    let mut device = Device::connect(port, "watcher", None).await;
    device.subscribe("temperd/v1/test/response/chat/#").await;
    let topic = "temperd/v1/test/request/chat";
    tool("mosquitto_pub", port, &["-V", "311", "-t", topic, "-q", "1", "-m", "Is the pump ok?"]).await;
    let answer = device.next().await;
    assert_eq!(answer.topic, "temperd/v1/test/response/chat");
    assert!(!answer.payload.is_empty());

    let named = format!("{topic}/pump");
    tool("mosquitto_pub", port, &["-V", "311", "-t", &named, "-q", "1", "-m", &question("a1", &json!({}))]).await;
    let answer = device.next().await;
    assert_eq!(answer.topic, "temperd/v1/test/response/chat/pump");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!((answer["id"].as_str(), answer["outcome"].as_str()), (Some("a1"), Some("completed")), "{answer}");
}

#[tokio::test]
async fn a_stream_comes_in_pieces_that_make_the_final() {
    let broker = Mosquitto::start();
    let _daemon = Daemon::ready(&toml(&broker, "")).await;
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/response/#").await;
    let payload = question("s", &json!({"stream": true}));
    device.publish("temperd/v1/test/request/chat", payload, Default::default()).await;
    let mut pieces = HashMap::new();
    let last = loop {
        let message: Value = serde_json::from_slice(&device.next().await.payload).expect("JSON");
        if message.get("outcome").is_some() {
            break message;
        }
        pieces.insert(message["seq"].as_u64().unwrap_or(0), message["delta"].as_str().unwrap_or_default().to_owned());
    };
    let mut seqs: Vec<_> = pieces.keys().copied().collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>());
    let text: String = seqs.iter().map(|seq| pieces[seq].as_str()).collect();
    assert_eq!(last["message"]["content"], text);
    assert!(seqs.len() > 3, "{pieces:?}");
}

#[tokio::test]
async fn cancel_ends_what_runs() {
    let broker = Mosquitto::start();
    let daemon = Daemon::ready(&toml(&broker, "raw_prompt = true")).await;
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/response/#").await;
    let never: serde_json::Map<String, Value> = (0..17).map(|token| (token.to_string(), json!(-100))).collect();
    let endless = json!({"id": "long", "prompt": "Count: one, two,", "max_tokens": 4000, "stream": true,
        "temperature": 0, "logit_bias": never});
    device.publish("temperd/v1/test/request/complete", endless.to_string(), Default::default()).await;
    // The first piece: it runs.
    device.next().await;
    device.publish("temperd/v1/test/request/cancel", json!({"id": "long"}).to_string(), Default::default()).await;
    let reply = device.next_on("temperd/v1/test/response/cancel").await;
    let reply: Value = serde_json::from_slice(&reply.payload).expect("JSON");
    assert_eq!(reply, json!({"id": "long", "result": "cancelled"}));
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("temperd_jobs_total{way_in=\"mqtt\",outcome=\"cancelled\"} 1"), "{metrics}");
}

/// The daemon comes to this broker, answers there and publishes telemetry.
async fn is_served(broker: &Mosquitto) -> Device {
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/#").await;
    device.wait_for("temperd/v1/test/availability", "online").await;
    device.publish("temperd/v1/test/request/chat", question("q", &json!({})), Default::default()).await;
    let answer = device.next_on("temperd/v1/test/response/chat").await;
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(answer["outcome"], "completed", "{answer}");
    let telemetry = device.next_on("temperd/v1/test/telemetry").await;
    let telemetry: Value = serde_json::from_slice(&telemetry.payload).expect("JSON");
    assert_eq!(telemetry["model"]["state"], "ready", "{telemetry}");
    device
}

#[tokio::test]
async fn the_daemon_starts_before_its_broker_and_survives_its_restart() {
    let mut broker = Mosquitto::prepared(|_| vec!["allow_anonymous true".into()]);
    let mut daemon = Daemon::ready(&toml(&broker, "")).await;
    broker.run();
    drop(is_served(&broker).await);
    broker.stop();
    broker.run();
    let mut device = is_served(&broker).await;
    daemon.signal(rustix::process::Signal::TERM);
    device.wait_for("temperd/v1/test/availability", "stopped").await;
    assert!(daemon.ended().await.success());
}

async fn of_pool(broker: &Mosquitto, node: &str) -> Daemon {
    let daemon = Daemon::ready(&toml(broker, &format!("node = \"{node}\"\npool = \"plant\""))).await;
    let connected = async {
        loop {
            let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
            if metrics.as_str().expect("text").contains("temperd_mqtt_connections_total 2") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("it is connected for itself and for the pool");
    daemon
}

/// What it had is lost with it, as mosquitto does it: whoever asks again is answered by the other.
#[tokio::test]
async fn of_two_boxes_in_a_pool_one_is_killed_and_all_who_ask_again_are_answered() {
    let broker = Mosquitto::start();
    let (mut dying, _living) = tokio::join!(of_pool(&broker, "dying"), of_pool(&broker, "living"));
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe("temperd/v1/clients/pump/answers").await;
    let ask = async |device: &mut Device, mark: &str| {
        let properties = PublishProperties {
            message_expiry_interval: Some(120),
            response_topic: Some("temperd/v1/clients/pump/answers".into()),
            correlation_data: Some(mark.to_owned().into()),
            ..PublishProperties::default()
        };
        let payload = question(mark, &json!({"max_tokens": 200, "logit_bias": {"2": -100, "0": -100}}));
        device.publish("temperd/v1/pool/plant/request/chat/pump", payload, properties).await;
    };
    let mut open = vec!["1", "2", "3", "4"];
    for mark in &open {
        ask(&mut device, mark).await;
    }
    daemon::until(&dying, "running", |status| status["running"].as_u64() > Some(0)).await;
    dying.kill().await;
    let all = async {
        while !open.is_empty() {
            let Ok(message) = tokio::time::timeout(Duration::from_secs(2), device.next()).await else {
                for mark in &open {
                    ask(&mut device, mark).await;
                }
                continue;
            };
            let answer: Value = serde_json::from_slice(&message.payload).expect("JSON");
            assert_eq!((answer["outcome"].as_str(), answer["node"].as_str()), (Some("completed"), Some("living")));
            let mark = message.properties.and_then(|properties| properties.correlation_data).expect("a mark");
            open.retain(|open| open.as_bytes() != mark);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("each is answered");
}
