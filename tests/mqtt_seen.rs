//! What the next daemon knows of the requests of one that died: the MQTT way in against a real broker, a real state
//! directory, and a dispatcher that the test plays.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;

use std::{fs, path::Path};

use bytes::Bytes;
use mosquitto::{Device, Mosquitto, within};
use node::{NODE, Node, answer, settings};
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use temperd::{
    dispatch::Event,
    request::{
        Input,
        seen::{BoxKey, Record, State, record},
    },
    serve::mqtt::Mqtt,
    wire::{self, v1},
};
use tempfile::TempDir;

const REPLY: &str = "temperd/v1/clients/pump/answers";

fn request_topic() -> String {
    format!("temperd/v1/{NODE}/request/chat/pump")
}

fn marked(mark: &str) -> PublishProperties {
    PublishProperties {
        response_topic: Some(REPLY.into()),
        correlation_data: Some(Bytes::copy_from_slice(mark.as_bytes())),
        ..PublishProperties::default()
    }
}

fn json(text: &str) -> Vec<u8> {
    let message = v1::Message { role: "user".into(), content: text.into(), ..v1::Message::default() };
    wire::to_json(&v1::ChatRequest { messages: vec![message], stream: Some(true), ..v1::ChatRequest::default() })
}

fn read(message: &Publish) -> v1::Final {
    wire::from_json(&message.payload).expect("a final in JSON")
}

fn code(last: &v1::Final) -> &str {
    last.error.as_ref().map_or("", |error| &error.code)
}

fn mark(message: &Publish) -> &str {
    std::str::from_utf8(message.properties.as_ref().unwrap().correlation_data.as_deref().unwrap()).unwrap()
}

fn is_redecoded(message: &Publish) -> bool {
    let properties = &message.properties.as_ref().unwrap().user_properties;
    properties.iter().any(|(name, value)| name == "redecoded" && value == "true")
}

fn asks(asked: &node::Submitted) -> String {
    match &asked.request.input {
        Input::Chat(turns) => turns[0].content.clone(),
        _ => panic!("not a conversation"),
    }
}

fn kept_in(state: &TempDir, broker: &Mosquitto) -> Mqtt {
    Mqtt { state_directory: Some(state.path().join("state")), ..settings(broker.port()) }
}

fn records(state: &TempDir) -> Vec<Record> {
    let folder = state.path().join("state");
    let secret = fs::read(folder.join("seen.key")).unwrap();
    record::read(&BoxKey::new(secret.try_into().unwrap()), &fs::read(folder.join("seen")).unwrap()).0
}

/// Waits until so many requests are on record as finished.
async fn finished(state: &TempDir, count: usize) {
    let is_finished = |record: &Record| matches!(record.state, State::Finished { .. });
    within("record", async {
        while records(state).iter().filter(|record| is_finished(record)).count() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn pump(broker: &Mosquitto) -> Device {
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device
}

#[tokio::test]
async fn a_finished_request_is_not_answered_twice_by_the_next_daemon() {
    let (broker, state) = (Mosquitto::start(), tempfile::tempdir().unwrap());
    let mut device = pump(&broker).await;
    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("ok?"), marked("m")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(read(&device.next().await), answer("", "Yes."));
    finished(&state, 1).await;
    node.crash().await;

    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("ok?"), marked("m")).await;
    assert_eq!(code(&read(&device.next().await)), "already_answered");
    device.publish(&request_topic(), json("something else?"), marked("m")).await;
    assert_eq!(code(&read(&device.next().await)), "id_conflict");
    device.publish(&request_topic(), json("ok?"), marked("n")).await;
    node.next().await.answer("Yes again.").await;
    assert_eq!(read(&device.next().await), answer("", "Yes again."));
}

/// Requests are acknowledged in order: behind one that runs, the broker has a final and still keeps its request.
#[tokio::test]
async fn between_its_final_and_its_acknowledgement_a_request_is_neither_lost_nor_run_again() {
    let (broker, state) = (Mosquitto::start(), tempfile::tempdir().unwrap());
    let mut device = pump(&broker).await;
    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("long"), marked("long")).await;
    let long = node.next().await;
    let seed = long.request.sampling.seed.expect("drawn before it runs");
    let _running = long.run().await;
    device.publish(&request_topic(), json("short"), marked("short")).await;
    node.next().await.answer("Short.").await;
    assert_eq!(mark(&device.next().await), "short");
    device.publish(&request_topic(), json("waiting"), marked("waiting")).await;
    let _waiting = node.next().await;
    finished(&state, 1).await;
    node.crash().await;

    let mut node = Node::up(kept_in(&state, &broker)).await;
    let again = node.next().await;
    assert_eq!((asks(&again), again.request.sampling.seed), ("long".into(), Some(seed)));
    again.answer("Long.").await;
    // One that had not run is no repeat, and starts from a seed of its own.
    let waiting = node.next().await;
    assert_eq!(asks(&waiting), "waiting");
    let got = device.next().await;
    assert_eq!(read(&got), v1::Final { redecoded: Some(true), ..answer("", "Long.") });
    assert!(is_redecoded(&got));
    waiting.answer("At last.").await;
    let got = device.next().await;
    assert_eq!((read(&got), is_redecoded(&got)), (answer("", "At last."), false));
    assert_eq!(node.counts.repeats.get(), 1);
    // Nobody is answered twice.
    finished(&state, 3).await;
    device.publish(&request_topic(), json("last"), marked("last")).await;
    node.next().await.answer("Last.").await;
    assert_eq!(read(&device.next().await), answer("", "Last."));
    assert!(device.pending().is_empty());
}

#[tokio::test]
async fn one_that_was_running_in_two_daemons_that_died_fails_alone() {
    let (broker, state) = (Mosquitto::start(), tempfile::tempdir().unwrap());
    let mut device = pump(&broker).await;
    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("deadly"), marked("deadly")).await;
    device.publish(&request_topic(), json("harmless"), marked("harmless")).await;
    for _ in 0..2 {
        let deadly = node.next().await;
        assert_eq!(asks(&deadly), "deadly");
        let _running = deadly.run().await;
        let _waiting = node.next().await;
        node.crash().await;
        node = Node::up(kept_in(&state, &broker)).await;
    }
    let harmless = node.next().await;
    assert_eq!(asks(&harmless), "harmless");
    let poison = device.next().await;
    let last = read(&poison);
    assert_eq!((mark(&poison), last.outcome.as_str(), code(&last)), ("deadly", "failed", "poison"));
    harmless.answer("Fine.").await;
    assert_eq!(read(&device.next().await), answer("", "Fine."));
    // It is answered, so the next daemon does not hear of it again.
    finished(&state, 2).await;
    device.publish(&request_topic(), json("deadly"), marked("deadly")).await;
    assert_eq!(read(&device.next().await), last);
}

/// What a daemon lived to answer it did not die of, though the broker never heard the answer.
#[tokio::test]
async fn answers_that_wait_for_the_broker_make_no_poison() {
    let (mut broker, state) = (Mosquitto::start(), tempfile::tempdir().unwrap());
    let mut device = pump(&broker).await;
    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("ok?"), marked("m")).await;
    for _ in 0..3 {
        let asked = node.next().await;
        broker.stop();
        node.wait_for_state("connecting").await;
        let course = asked.run().await;
        course.send(Event::Final(Box::new(answer("", "Yes.")))).await.unwrap();
        // The outcome takes back what the beginning said: nobody died of it.
        within("record of the outcome", async {
            while !matches!(records(&state).last(), Some(Record { state: State::Started { dead: 0, .. }, .. })) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        node.crash().await;
        broker.run();
        node = Node::up(kept_in(&state, &broker)).await;
    }
    let mut device = pump(&broker).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(read(&device.next().await), v1::Final { redecoded: Some(true), ..answer("", "Yes.") });
}

#[tokio::test]
async fn a_request_without_a_mark_is_run_again_after_a_crash_and_its_sender_may_ask_it_twice() {
    let (broker, state) = (Mosquitto::start(), tempfile::tempdir().unwrap());
    let mut device = pump(&broker).await;
    let unmarked = || PublishProperties { response_topic: Some(REPLY.into()), ..PublishProperties::default() };
    let mut node = Node::up(kept_in(&state, &broker)).await;
    device.publish(&request_topic(), json("ok?"), unmarked()).await;
    let _running = node.next().await.run().await;
    node.crash().await;
    let mut node = Node::up(kept_in(&state, &broker)).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(read(&device.next().await), v1::Final { redecoded: Some(true), ..answer("", "Yes.") });
    device.publish(&request_topic(), json("ok?"), unmarked()).await;
    node.next().await.answer("Still.").await;
    assert_eq!(read(&device.next().await), answer("", "Still."));
}

/// No byte can be written below it, and all is answered as without it.
#[tokio::test]
async fn a_state_directory_on_a_full_disk_or_none_at_all_stops_no_answer() {
    let broker = Mosquitto::start();
    let mut device = pump(&broker).await;
    let full = tempfile::tempdir().unwrap();
    fs::create_dir(full.path().join("state")).unwrap();
    std::os::unix::fs::symlink("/dev/full", full.path().join("state/seen.new")).unwrap();
    let nowhere = Path::new("/dev/null/state");
    let of_nobody = Mqtt { state_directory: Some(nowhere.into()), ..settings(broker.port()) };
    for mqtt in [kept_in(&full, &broker), of_nobody] {
        let mut node = Node::up(mqtt).await;
        device.publish(&request_topic(), json("ok?"), marked("m")).await;
        node.next().await.answer("Yes.").await;
        assert_eq!(read(&device.next().await), answer("", "Yes."));
        // As long as it lives, a daemon remembers without a disk.
        device.publish(&request_topic(), json("ok?"), marked("m")).await;
        assert_eq!(read(&device.next().await), answer("", "Yes."));
        node.phase.send(temperd::serve::Phase::Stopping).unwrap();
        node.ended().await;
    }
}
