//! A daemon that is killed while it answers over MQTT, and the one after it; everything real.

mod support;

use std::{fs, path::Path};

use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use serde_json::{Value, json};
use support::{
    daemon::Daemon,
    http,
    mosquitto::{Device, Mosquitto},
};

const ASK: &str = "temperd/v1/test/request/complete/pump";
const REPLY: &str = "temperd/v1/clients/pump/answers";
const AVAILABILITY: &str = "temperd/v1/test/availability";
/// In a prompt, and so near the beginning of an answer.
const CANARY: &str = "zanzibarquokka";

fn toml(broker: &Mosquitto) -> String {
    format!(
        "[engine]\nparallel = 1\nbatch_invariant = true\n[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nraw_prompt = true\n\
         [log]\nlevel = \"trace\"\n",
        broker.port()
    )
}

/// A prompt whose answer has this many tokens, drawn at random.
fn prompt(id: &str, tokens: u32) -> Vec<u8> {
    // No token that ends a text.
    let never: serde_json::Map<String, Value> = (0..17).map(|token| (token.to_string(), json!(-100))).collect();
    json!({"id": id, "prompt": format!("{CANARY} {CANARY} {CANARY}"), "max_tokens": tokens, "stream": true,
        "temperature": 1.0, "logit_bias": never})
    .to_string()
    .into_bytes()
}

async fn ask(device: &mut Device, id: &str, tokens: u32) {
    let properties = PublishProperties { response_topic: Some(REPLY.into()), ..PublishProperties::default() };
    device.publish(ASK, prompt(id, tokens), properties).await;
}

async fn pump(broker: &Mosquitto) -> Device {
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.subscribe(AVAILABILITY).await;
    device
}

fn read(message: &Publish) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

/// The next message that is a final.
async fn next_final(device: &mut Device) -> Value {
    loop {
        let message = read(&device.next_on(REPLY).await);
        if message.get("outcome").is_some() {
            return message;
        }
    }
}

/// What comes of a request up to this many pieces with text.
async fn pieces(device: &mut Device, id: &str, count: usize) -> String {
    let (mut text, mut got) = (String::new(), 0);
    while got < count {
        let message = read(&device.next_on(REPLY).await);
        assert!(message.get("outcome").is_none(), "too early: {message}");
        if message["id"] == id && message["delta"].as_str().is_some_and(|delta| !delta.is_empty()) {
            text += message["delta"].as_str().unwrap_or_default();
            got += 1;
        }
    }
    text
}

/// Kills a daemon and starts the next, once the device has all that the dead one said.
async fn again(mut daemon: Daemon, device: &mut Device) -> Daemon {
    daemon.kill().await;
    device.wait_for(AVAILABILITY, "offline").await;
    let mut daemon = daemon.start_again();
    let line = daemon.line().await;
    assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
    daemon
}

fn holds_canary(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries
        .map(|entry| fs::read(entry.path()).expect("readable"))
        .any(|bytes| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()))
}

#[tokio::test]
async fn a_killed_daemon_is_followed_by_one_that_answers_what_ran_from_its_seed_and_nothing_twice() {
    let broker = Mosquitto::start();
    let mut device = pump(&broker).await;
    let daemon = Daemon::ready(&toml(&broker)).await;
    ask(&mut device, "done", 4).await;
    let done = next_final(&mut device).await;
    assert_eq!((done["id"].as_str(), done["outcome"].as_str()), (Some("done"), Some("completed")), "{done}");
    ask(&mut device, "cut", 400).await;
    ask(&mut device, "waiting", 4).await;
    let before = pieces(&mut device, "cut", 12).await;
    let daemon = again(daemon, &mut device).await;

    let cut = next_final(&mut device).await;
    assert_eq!((cut["id"].as_str(), cut["outcome"].as_str()), (Some("cut"), Some("completed")), "{cut}");
    assert_eq!(cut["redecoded"], true, "{cut}");
    let text = cut["message"]["content"].as_str().expect("a text");
    assert!(text.starts_with(&before), "drawn from another seed: {before:?} {text:?}");
    let waiting = next_final(&mut device).await;
    assert_eq!((waiting["id"].as_str(), waiting["outcome"].as_str()), (Some("waiting"), Some("completed")));
    assert!(waiting.get("redecoded").is_none(), "it had not run: {waiting}");
    // Its final is gone with the first daemon; that it was answered is known.
    ask(&mut device, "done", 4).await;
    let refused = next_final(&mut device).await;
    assert_eq!(refused["error"]["code"], "already_answered", "{refused}");
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("temperd_jobs_total{way_in=\"mqtt\",outcome=\"completed\"} 2"), "{metrics}");
    assert!(!holds_canary(&daemon.folder.path().join("state")) && !daemon.log_text().contains(CANARY));
}

#[tokio::test]
async fn a_request_that_was_running_in_two_dead_daemons_is_poison_and_the_one_behind_it_is_answered() {
    let broker = Mosquitto::start();
    let mut device = pump(&broker).await;
    let mut daemon = Daemon::ready(&toml(&broker)).await;
    ask(&mut device, "deadly", 4000).await;
    ask(&mut device, "behind", 4).await;
    for _ in 0..2 {
        pieces(&mut device, "deadly", 1).await;
        daemon = again(daemon, &mut device).await;
    }
    let mut finals = [next_final(&mut device).await, next_final(&mut device).await];
    finals.sort_by_key(|last| last["id"].to_string());
    assert_eq!((finals[0]["id"].as_str(), finals[0]["outcome"].as_str()), (Some("behind"), Some("completed")));
    assert_eq!((finals[1]["outcome"].as_str(), finals[1]["error"]["code"].as_str()), (Some("failed"), Some("poison")));
    assert!(daemon.log_text().contains("given up"), "{}", daemon.log_text());
}
