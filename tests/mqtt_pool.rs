//! Several boxes that share the requests of a pool, against a real broker; the dispatchers are played by the test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use mosquitto::{Device, Mosquitto, within};
use node::{Node, Submitted, answer, settings};
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use temperd::{
    config,
    dispatch::Event,
    request::{Client, ErrorCode, RequestError},
    serve::{Phase, mqtt::Mqtt},
    wire::{self, v1},
};

const POOL: &str = "plant";
const ASK: &str = "temperd/v1/pool/plant/request/chat/pump";
const REPLY: &str = "temperd/v1/clients/pump/answers";

/// A request that says how long it is worth an answer, and where that is wanted.
fn marked(mark: &str) -> PublishProperties {
    PublishProperties {
        message_expiry_interval: Some(60),
        response_topic: Some(REPLY.into()),
        correlation_data: Some(Bytes::copy_from_slice(mark.as_bytes())),
        ..PublishProperties::default()
    }
}

fn of_pool(port: u16, name: &str) -> Mqtt {
    let mqtt = settings(port);
    let response_topics = vec!["temperd/v1/clients/+/#".into(), format!("temperd/v1/{name}/response/#")];
    let config = config::Mqtt { pool: Some(POOL.into()), response_topics, ..mqtt.config };
    Mqtt { node: name.into(), config, ..mqtt }
}

/// A box of the pool that is connected twice: as itself and for the pool.
async fn up(broker: &Mosquitto, name: &str) -> Node {
    let node = Node::up(of_pool(broker.port(), name)).await;
    wait_until("connection for the pool", || node.counts.connections.get() == 2).await;
    node
}

/// Waits for what nobody announces.
async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn pump(broker: &Mosquitto) -> Device {
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.subscribe("temperd/v1/+/response/#").await;
    device
}

fn read(message: &Publish) -> v1::Final {
    wire::from_json(&message.payload).expect("a final in JSON")
}

fn question(text: &str) -> Vec<u8> {
    let message = v1::Message { role: "user".into(), content: text.into(), ..v1::Message::default() };
    wire::to_json(&v1::ChatRequest { messages: vec![message], ..v1::ChatRequest::default() })
}

fn by(node: &str, text: &str) -> v1::Final {
    v1::Final { node: node.into(), ..answer("", text) }
}

/// Answers in the name of a box.
async fn answers(asked: Submitted, node: &str, text: &str) {
    asked.accept().send(Event::Final(Box::new(by(node, text)))).await.unwrap();
}

#[tokio::test]
async fn each_request_goes_to_one_box_which_names_itself() {
    let broker = Mosquitto::start();
    let (mut a, mut b) = (up(&broker, "box-a").await, up(&broker, "box-b").await);
    let mut device = pump(&broker).await;
    let mut by_node = HashMap::<String, usize>::new();
    for mark in ["1", "2", "3", "4"] {
        device.publish(ASK, question("ok?"), marked(mark)).await;
        tokio::select! {
            asked = a.next() => answers(asked, "box-a", "Yes.").await,
            asked = b.next() => {
                assert_eq!(asked.request.client, Client::mqtt(Some("pump")));
                assert!(asked.request.deadline.is_some(), "the expiry is the deadline");
                answers(asked, "box-b", "Yes.").await;
            }
        }
        let last = read(&device.next().await);
        assert_eq!(last, by(&last.node, "Yes."));
        *by_node.entry(last.node).or_default() += 1;
    }
    // mosquitto hands them out in turn.
    assert_eq!(by_node, HashMap::from([("box-a".into(), 2), ("box-b".into(), 2)]));
    assert!(a.submitted.try_recv().is_err() && b.submitted.try_recv().is_err());
    // Each still has its own.
    device.publish("temperd/v1/box-b/request/chat/pump", question("you?"), marked("own")).await;
    answers(b.next().await, "box-b", "Me.").await;
    assert_eq!(read(&device.next().await), by("box-b", "Me."));
}

#[tokio::test]
async fn a_full_box_says_when_to_come_again_and_the_next_try_goes_to_another() {
    let broker = Mosquitto::start();
    let (mut full, mut idle) = (up(&broker, "full").await, up(&broker, "idle").await);
    let mut device = pump(&broker).await;
    let mut refusals = 0;
    loop {
        device.publish(ASK, question("ok?"), marked("m")).await;
        tokio::select! {
            asked = full.next() => asked.refuse(RequestError::new(ErrorCode::QueueFull, "the queue is full").retry_after(250)),
            asked = idle.next() => answers(asked, "idle", "Yes.").await,
        }
        let last = read(&device.next().await);
        if last.outcome == "completed" {
            assert_eq!(last, by("idle", "Yes."));
            break;
        }
        assert_eq!((last.node.as_str(), last.outcome.as_str(), last.retry_after_ms), ("full", "refused", Some(250)));
        refusals += 1;
        assert!(refusals < 2, "mosquitto takes turns");
    }
}

#[tokio::test]
async fn a_request_that_nobody_could_answer_in_time_or_at_all_is_not_taken() {
    let broker = Mosquitto::start();
    let mut node = up(&broker, "strict").await;
    let mut device = pump(&broker).await;
    let endless = PublishProperties { message_expiry_interval: None, ..marked("endless") };
    device.publish(ASK, question("x"), endless).await;
    let refused = read(&device.next_on(REPLY).await);
    let error = refused.error.unwrap();
    assert_eq!((refused.node.as_str(), error.code.as_str()), ("strict", "invalid_request"));
    assert!(error.message.contains("message expiry"), "{}", error.message);
    let elsewhere = PublishProperties { response_topic: Some("plant/valve".into()), ..marked("elsewhere") };
    device.publish(ASK, question("x"), elsewhere).await;
    let refused = read(&device.next_on("temperd/v1/strict/response/chat/pump").await);
    assert_eq!(refused.error.unwrap().code, "topic_not_allowed");
    let others = PublishProperties { response_topic: Some("temperd/v1/clients/valve/x".into()), ..marked("others") };
    device.publish(ASK, question("x"), others).await;
    let refused = read(&device.next_on("temperd/v1/strict/response/chat/pump").await);
    assert_eq!(refused.error.unwrap().code, "topic_not_allowed");
    let nowhere = PublishProperties { response_topic: None, ..marked("nowhere") };
    device.publish(ASK, question("x"), nowhere).await;
    device.publish(ASK, question("y"), marked("good")).await;
    answers(node.next().await, "strict", "Yes.").await;
    assert_eq!(read(&device.next_on(REPLY).await), by("strict", "Yes."));
    assert_eq!(node.counts.ignored_requests.get(), 1);
}

/// The one that has had it and dies, and the one that is asked again.
#[tokio::test]
async fn a_client_that_asks_again_is_answered_though_its_box_died_and_two_answers_name_their_boxes() {
    let broker = Mosquitto::start();
    let mut nodes = HashMap::from([("a", up(&broker, "a").await), ("b", up(&broker, "b").await)]);
    let mut device = pump(&broker).await;
    device.publish(ASK, question("ok?"), marked("m")).await;
    let (first, request) = within("request", async {
        loop {
            let found = nodes.iter_mut().find_map(|(name, node)| Some((*name, node.submitted.try_recv().ok()?)));
            if let Some(found) = found {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let second = if first == "a" { "b" } else { "a" };
    // It has taken too long already: the client asks again, and both have it.
    device.publish(ASK, question("ok?"), marked("m")).await;
    let again = nodes.get_mut(second).unwrap().next().await;
    for (name, request) in [(first, request), (second, again)] {
        answers(request, name, name).await;
        assert_eq!(read(&device.next().await), by(name, name));
    }
    // One more, and its box dies in the middle: nobody else hears of it, unless the client asks again.
    device.publish(ASK, question("more?"), marked("n")).await;
    let dying = nodes.get_mut(first).unwrap().next().await;
    let _running = dying.accept();
    nodes.remove(first).unwrap().crash().await;
    // Until the broker has noticed the death it goes on to hand requests to the dead.
    let survivor = nodes.get_mut(second).unwrap();
    let again = loop {
        device.publish(ASK, question("more?"), marked("n")).await;
        if let Ok(asked) = tokio::time::timeout(Duration::from_millis(500), survivor.submitted.recv()).await {
            break asked.unwrap();
        }
    };
    answers(again, second, "still here").await;
    assert_eq!(read(&device.next_on(REPLY).await), by(second, "still here"));
}

#[tokio::test]
async fn a_box_that_stops_leaves_the_pool_first_and_finishes_what_it_has() {
    let broker = Mosquitto::start();
    let (mut leaving, mut staying) = (up(&broker, "leaving").await, up(&broker, "staying").await);
    let mut device = pump(&broker).await;
    for mark in ["1", "2"] {
        device.publish(ASK, question("ok?"), marked(mark)).await;
    }
    let last_one = leaving.next().await;
    answers(staying.next().await, "staying", "Yes.").await;
    device.next_on(REPLY).await;
    device.subscribe("temperd/v1/leaving/availability").await;
    leaving.phase.send(Phase::Draining).unwrap();
    device.wait_for("temperd/v1/leaving/availability", "draining").await;
    let left = "Received UNSUBSCRIBE from temperd-leaving.pool";
    wait_until("UNSUBSCRIBE", || broker.log().contains(left)).await;
    for mark in ["3", "4", "5"] {
        device.publish(ASK, question("ok?"), marked(mark)).await;
        answers(staying.next().await, "staying", "Yes.").await;
        device.next_on(REPLY).await;
    }
    answers(last_one, "leaving", "Bye.").await;
    assert_eq!(read(&device.next_on(REPLY).await), by("leaving", "Bye."));
    leaving.phase.send(Phase::Stopping).unwrap();
    device.wait_for("temperd/v1/leaving/availability", "stopped").await;
    leaving.ended().await;
}
