//! The ACL that is shipped in `examples/mosquitto`, in force in a real broker: whose answers a device can read.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;

use std::{fs, path::Path, process::Command, time::Duration};

use mosquitto::{Device, Mosquitto};
use node::{NODE, Node, settings};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use temperd::{config, request::Client, serve::mqtt::Mqtt};

fn topic(rest: &str) -> String {
    format!("temperd/v1/{NODE}/{rest}")
}

fn answer_to(topic: &str) -> PublishProperties {
    PublishProperties {
        response_topic: Some(topic.into()),
        correlation_data: Some("m".into()),
        ..PublishProperties::default()
    }
}

/// A broker with the shipped ACL; everyone's password is their name.
fn broker() -> Mosquitto {
    Mosquitto::with(|folder| {
        let passwords = folder.join("passwords");
        fs::write(&passwords, "").unwrap();
        for user in ["temperd", "monitor", "a", "b"] {
            let made = Command::new(mosquitto::binary("mosquitto_passwd"))
                .arg("-b")
                .arg(&passwords)
                .args([user, user])
                .status();
            assert!(made.unwrap().success());
        }
        let acl = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mosquitto/acl");
        vec![
            "allow_anonymous false".into(),
            format!("password_file {}", passwords.display()),
            format!("acl_file {}", acl.display()),
        ]
    })
}

fn node_settings(broker: &Mosquitto) -> Mqtt {
    let password = broker.folder().join("password");
    fs::write(&password, "temperd\n").unwrap();
    let mut mqtt = settings(broker.port());
    mqtt.config.user = Some("temperd".into());
    mqtt.config.password_file = Some(password);
    mqtt
}

#[tokio::test]
async fn a_device_reads_its_own_answers_and_nobody_elses() {
    let broker = broker();
    let mut node = Node::up(node_settings(&broker)).await;
    let mut a = Device::connect(broker.port(), "a", Some(("a", "a"))).await;
    let mut b = Device::connect(broker.port(), "b", Some(("b", "b"))).await;
    for device in [&mut a, &mut b] {
        device.subscribe("#").await;
        device.subscribe(&topic("response/chat/+")).await;
        device.subscribe("temperd/v1/clients/#").await;
    }
    let own = "temperd/v1/clients/a/answers";
    // A's answers, on both kinds of topic, and a repeat of one.
    a.publish(&topic("request/chat/a"), "first", PublishProperties::default()).await;
    node.next().await.answer("to A").await;
    assert_eq!(a.next_on(&topic("response/chat/a")).await.payload, "to A");
    a.publish(&topic("request/chat/a"), "second", answer_to(own)).await;
    node.next().await.answer("to A again").await;
    assert_eq!(a.next_on(own).await.payload, "to A again");
    a.publish(&topic("request/chat/a"), "second", answer_to(own)).await;
    a.wait_for(own, "to A again").await;
    // B repeats A's request under its own name: that is another request, with its own answer.
    b.publish(&topic("request/chat/b"), "second", answer_to("temperd/v1/clients/b/answers")).await;
    let asked = node.next().await;
    assert_eq!(asked.request.client, Client::mqtt(Some("b")));
    asked.answer("to B").await;
    // B asks under A's name, and for an answer in A's place: the broker drops the first, we refuse the second.
    b.publish(&topic("request/chat/a"), "second", answer_to(own)).await;
    b.publish(&topic("request/chat/b"), "third", answer_to(own)).await;
    let mut to_b = Vec::new();
    loop {
        let message = b.next().await;
        if message.payload.starts_with(b"error: topic_not_allowed") {
            assert_eq!(message.topic, topic("response/chat/b").as_str());
            break;
        }
        to_b.push(message);
    }
    assert!(to_b.iter().any(|message| message.payload == "to B"));
    assert!(to_b.iter().all(|message| message.payload == "to B"), "{to_b:?}");
    assert!(a.pending().iter().all(|message| message.payload.starts_with(b"to A")));
    assert!(node.submitted.try_recv().is_err(), "nothing else was asked");
}

#[tokio::test]
async fn a_pool_is_asked_under_ones_own_name_only() {
    let broker = broker();
    let mqtt = node_settings(&broker);
    let config = config::Mqtt { pool: Some("plant".into()), ..mqtt.config };
    let mut node = Node::up(Mqtt { config, ..mqtt }).await;
    mosquitto::within("connection for the pool", async {
        while node.counts.connections.get() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut a = Device::connect(broker.port(), "a", Some(("a", "a"))).await;
    let own = "temperd/v1/clients/a/answers";
    a.subscribe(own).await;
    let wanted = || PublishProperties { message_expiry_interval: Some(60), ..answer_to(own) };
    a.publish("temperd/v1/pool/plant/request/chat/b", "as another", wanted()).await;
    a.publish("temperd/v1/pool/plant/request/chat", "as nobody", wanted()).await;
    a.publish("temperd/v1/pool/plant/request/chat/a", "as myself", wanted()).await;
    let asked = node.next().await;
    assert_eq!(asked.request.client, Client::mqtt(Some("a")));
    asked.answer("to A").await;
    assert_eq!(a.next_on(own).await.payload, "to A");
    assert!(node.submitted.try_recv().is_err(), "the others got through");
}

#[tokio::test]
async fn a_monitor_sees_the_node_and_no_text() {
    let broker = broker();
    let mut node = Node::up(node_settings(&broker)).await;
    let mut monitor = Device::connect(broker.port(), "monitor", Some(("monitor", "monitor"))).await;
    monitor.subscribe("#").await;
    monitor.wait_for(&topic("availability"), "online").await;
    let mut a = Device::connect(broker.port(), "a", Some(("a", "a"))).await;
    a.subscribe(&topic("response/chat/a")).await;
    a.publish(&topic("request/chat/a"), "question", PublishProperties::default()).await;
    node.next().await.answer("answer").await;
    a.next().await;
    node.board.update(|status| status.ready = false);
    let seen = monitor.next_on(&topic("state")).await;
    assert!(!seen.payload.is_empty());
    let texts = monitor.pending();
    assert!(texts.iter().all(|message| message.payload != "question" && message.payload != "answer"));
}
