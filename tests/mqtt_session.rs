//! The MQTT way in, request by request, against a real broker; the dispatcher is played by the test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;

use std::time::Duration;

use bytes::Bytes;
use mosquitto::{Device, Mosquitto};
use node::{NODE, Node, answer, settings};
use prost::Message as _;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use temperd::{
    dispatch::Event,
    request::{Client, ErrorCode, Input, RequestError},
    serve::Phase,
    wire::{self, v1},
};

const REPLY: &str = "temperd/v1/clients/pump/answers";

fn topic(rest: &str) -> String {
    format!("temperd/v1/{NODE}/{rest}")
}

fn marked(mark: &'static str) -> PublishProperties {
    PublishProperties {
        response_topic: Some(REPLY.into()),
        correlation_data: Some(Bytes::from_static(mark.as_bytes())),
        ..PublishProperties::default()
    }
}

fn json(id: &str, text: &str) -> Vec<u8> {
    let message = v1::Message { role: "user".into(), content: text.into(), ..v1::Message::default() };
    wire::to_json(&v1::ChatRequest { id: id.into(), messages: vec![message], ..v1::ChatRequest::default() })
}

fn read(message: &Publish) -> v1::Final {
    wire::from_json(&message.payload).expect("a final in JSON")
}

fn mark(message: &Publish) -> Option<&[u8]> {
    message.properties.as_ref()?.correlation_data.as_deref()
}

fn property<'a>(message: &'a Publish, name: &str) -> Option<&'a str> {
    let properties = &message.properties.as_ref()?.user_properties;
    properties.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn an_mqtt_5_device_is_answered_on_its_topic_with_its_mark() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.publish(&topic("request/chat/pump"), json("7", "Is the pump ok?"), marked("\0\u{1}mark")).await;
    let asked = node.next().await;
    assert_eq!(asked.request.client, Client::mqtt(Some("pump")));
    assert!(matches!(&asked.request.input, Input::Chat(turns) if turns[0].content == "Is the pump ok?"));
    asked.answer("Yes.").await;
    let got = device.next().await;
    assert_eq!(read(&got), answer("7", "Yes."));
    assert_eq!(mark(&got), Some(&b"\0\x01mark"[..]));
    assert_eq!((property(&got, "outcome"), property(&got, "id")), (Some("completed"), Some("7")));
    let properties = got.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.payload_format_indicator, Some(1));
}

#[tokio::test]
async fn a_device_of_mqtt_3_gets_text_for_text_and_its_id_for_its_id() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let (client, mut events) = {
        let options = rumqttc::MqttOptions::new("old", "127.0.0.1", broker.port());
        rumqttc::AsyncClient::new(options, 10)
    };
    client.subscribe(topic("response/chat/old"), rumqttc::QoS::AtLeastOnce).await.unwrap();
    client.subscribe(topic("response/chat"), rumqttc::QoS::AtLeastOnce).await.unwrap();
    let mut subscribed = 0;
    let next = async |events: &mut rumqttc::EventLoop, subscribed: &mut u32| loop {
        match events.poll().await.expect("the broker is there") {
            rumqttc::Event::Incoming(rumqttc::Packet::Publish(message)) => return message,
            rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_)) => {
                *subscribed += 1;
                if *subscribed == 2 {
                    client.publish(topic("request/chat"), rumqttc::QoS::AtMostOnce, false, "Is it ok?").await.unwrap();
                    let with_id = json("17", "And now?");
                    client.publish(topic("request/chat/old"), rumqttc::QoS::AtLeastOnce, false, with_id).await.unwrap();
                }
            }
            _ => {}
        }
    };
    let answering = async {
        for _ in 0..2 {
            node.next().await.answer("Yes.").await;
        }
    };
    let reading = mosquitto::within("answers", async {
        [next(&mut events, &mut subscribed).await, next(&mut events, &mut subscribed).await]
    });
    let ((), mut got) = tokio::join!(answering, reading);
    got.sort_by_key(|message| message.topic.len());
    assert_eq!((got[0].topic.as_str(), &got[0].payload[..]), (topic("response/chat").as_str(), &b"Yes."[..]));
    assert_eq!(got[1].topic, topic("response/chat/old"));
    assert_eq!(wire::from_json::<v1::Final>(&got[1].payload).unwrap().id, "17");
}

#[tokio::test]
async fn protobuf_is_answered_in_protobuf_and_streams_in_numbered_chunks() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let message = v1::Message { role: "user".into(), content: "Count.".into(), ..v1::Message::default() };
    let request = v1::ChatRequest { id: "7".into(), messages: vec![message], stream: Some(true), ..Default::default() };
    let properties = PublishProperties { content_type: Some("application/x-protobuf".into()), ..marked("m") };
    device.publish(&topic("request/chat/pump"), request.encode_to_vec(), properties).await;
    let asked = node.next().await;
    assert!(asked.request.stream);
    let course = asked.accept();
    for (seq, delta) in (0..).zip(["one ", "two"]) {
        let chunk = v1::Chunk { id: "7".into(), seq, delta: delta.into(), ..v1::Chunk::default() };
        course.send(Event::Chunk(chunk)).await.unwrap();
        let got = device.next().await;
        assert_eq!(v1::Chunk::decode(got.payload.clone()).unwrap().delta, delta);
        assert_eq!(property(&got, "seq"), Some(seq.to_string().as_str()));
        assert_eq!(mark(&got), Some(&b"m"[..]));
    }
    course.send(Event::Final(Box::new(answer("7", "one two")))).await.unwrap();
    assert_eq!(v1::Final::decode(device.next().await.payload).unwrap(), answer("7", "one two"));
}

#[tokio::test]
async fn a_repeat_is_answered_without_a_second_run_and_a_reused_mark_is_a_conflict() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let request = topic("request/chat/pump");
    // Twice before the answer, once after it: one run, answered once and once more.
    device.publish(&request, json("7", "ok?"), marked("m")).await;
    let asked = node.next().await;
    device.publish(&request, json("7", "ok?"), marked("m")).await;
    asked.answer("Yes.").await;
    assert_eq!(read(&device.next().await), answer("7", "Yes."));
    device.publish(&request, json("7", "ok?"), marked("m")).await;
    let again = device.next().await;
    assert_eq!((read(&again), mark(&again)), (answer("7", "Yes."), Some(&b"m"[..])));
    device.publish(&request, json("7", "another question"), marked("m")).await;
    let conflict = read(&device.next().await);
    assert_eq!((conflict.outcome.as_str(), conflict.error.unwrap().code.as_str()), ("refused", "id_conflict"));
    // The same mark of another client is another request.
    let other = PublishProperties { response_topic: None, ..marked("m") };
    device.publish(&topic("request/chat/other"), json("7", "ok?"), other).await;
    assert_eq!(node.next().await.request.client, Client::mqtt(Some("other")));
    assert_eq!(node.counts.repeats.get(), 2);
}

#[tokio::test]
async fn a_refused_request_may_come_again() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let request = topic("request/chat/pump");
    device.publish(&request, json("7", "ok?"), marked("m")).await;
    node.next().await.refuse(RequestError::new(ErrorCode::QueueFull, "the queue is full").retry_after(250));
    let refused = read(&device.next().await);
    assert_eq!((refused.id.as_str(), refused.outcome.as_str()), ("7", "refused"));
    assert_eq!(refused.retry_after_ms, Some(250));
    device.publish(&request, json("7", "ok?"), marked("m")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(read(&device.next().await), answer("7", "Yes."));
}

#[tokio::test]
async fn bad_requests_get_a_clear_error_and_the_next_one_is_answered() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(&topic("response/#")).await;
    let typed =
        |content_type: &str| PublishProperties { content_type: Some(content_type.into()), ..Default::default() };
    let plain = PublishProperties::default;
    let cases: Vec<(&str, Vec<u8>, PublishProperties, &str)> = vec![
        ("chat/pump", b"{\"id\":".to_vec(), plain(), "invalid_request"),
        ("chat/pump", br#"{"id":"1","mood":2}"#.to_vec(), plain(), "invalid_request"),
        ("chat/pump", br#"{"id":"1","messages":[]}"#.to_vec(), plain(), "invalid_request"),
        ("chat/pump", br#"{"id":"1","messages":[{"role":"king","content":"x"}]}"#.to_vec(), plain(), "invalid_request"),
        ("chat/pump", b"\xff\xfe".to_vec(), typed("application/x-protobuf"), "invalid_request"),
        ("chat/pump", b"caf\xe9".to_vec(), typed("text/plain"), "invalid_request"),
        ("chat/pump", b"{}".to_vec(), typed("image/png"), "invalid_request"),
        ("chat/pump", vec![b'x'; 262_145], plain(), "payload_too_large"),
        ("chat/bad name", json("1", "x"), plain(), "invalid_request"),
        ("complete/pump", br#"{"id":"1","prompt":"x"}"#.to_vec(), plain(), "forbidden"),
        ("embed/pump", br#"{"id":"1","input":[]}"#.to_vec(), plain(), "invalid_request"),
    ];
    for (operation, payload, properties, code) in cases {
        device.publish(&topic(&format!("request/{operation}")), payload, properties).await;
        let got = device.next().await;
        assert_eq!(got.topic, topic(&format!("response/{operation}")).as_str());
        assert_eq!(property(&got, "outcome"), Some("refused"));
        assert_eq!(property(&got, "code"), Some(code), "{operation}: {:?}", got.payload);
    }
    device.publish(&topic("request/chat/pump"), "ok?", plain()).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
}

#[tokio::test]
async fn no_answer_leaves_the_allowed_topics() {
    let broker = Mosquitto::start();
    let node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe("#").await;
    let mut seen = Vec::new();
    for (at, wish) in [
        "plant/valve/set",
        "temperd/v1/edge-7/request/chat/pump",
        "temperd/v1/edge-7/state",
        "temperd/v1/clients/other/x",
    ]
    .into_iter()
    .enumerate()
    {
        let properties = PublishProperties { response_topic: Some(wish.into()), ..PublishProperties::default() };
        device.publish(&topic("request/chat/pump"), json(&at.to_string(), "x"), properties).await;
        loop {
            let message = device.next().await;
            if message.topic == topic("response/chat/pump").as_str() {
                let refused = read(&message);
                assert_eq!((refused.id, refused.error.unwrap().code), (at.to_string(), "topic_not_allowed".into()));
                break;
            }
            seen.push(String::from_utf8(message.topic.to_vec()).unwrap());
        }
    }
    let own = ["availability", "info", "state", "request/chat/pump"].map(topic);
    assert!(seen.iter().all(|topic| own.contains(topic)), "{seen:?}");
    drop(node);
}

#[tokio::test]
async fn cancel_and_status_are_answered_beside_a_running_job() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(&topic("response/#")).await;
    device.publish(&topic("request/chat/pump"), json("known", "ok?"), PublishProperties::default()).await;
    let running = node.next().await.accept();
    for (id, result) in [("known", "cancelled"), ("other", "unknown")] {
        device
            .publish(&topic("request/cancel/pump"), format!(r#"{{"id":"{id}"}}"#), PublishProperties::default())
            .await;
        let reply: v1::CancelReply = wire::from_json(&device.next().await.payload).unwrap();
        assert_eq!((reply.id.as_str(), reply.result.as_str()), (id, result));
        assert_eq!(node.cancelled.recv().await.unwrap(), (Client::mqtt(Some("pump")), id.into()));
    }
    device.publish(&topic("request/status"), "{}", PublishProperties::default()).await;
    let status: v1::Status = wire::from_json(&device.next_on(&topic("response/status")).await.payload).unwrap();
    assert_eq!((status.node.as_str(), status.ready), (NODE, true));
    running.send(Event::Final(Box::new(answer("known", "x")))).await.unwrap();
    device.next_on(&topic("response/chat/pump")).await;
}

#[tokio::test]
async fn the_message_expiry_is_the_deadline() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let properties = PublishProperties { message_expiry_interval: Some(60), ..marked("m") };
    device.publish(&topic("request/chat/pump"), json("7", "ok?"), properties).await;
    let asked = node.next().await;
    let deadline = asked.request.deadline.expect("a deadline");
    assert!(deadline <= Duration::from_secs(60) && deadline >= Duration::from_secs(50), "{deadline:?}");
    asked.answer("Yes.").await;
    let left = device.next().await.properties.unwrap().message_expiry_interval.expect("the answer expires too");
    assert!((1..=60).contains(&left), "{left}");
}

#[tokio::test]
async fn max_reply_bytes_cuts_at_a_sentence_and_says_so() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let payload = r#"{"id":"7","messages":[{"role":"user","content":"ok?"}],"max_reply_bytes":300}"#;
    device.publish(&topic("request/chat/pump"), payload, marked("m")).await;
    node.next().await.answer(&"All is well. ".repeat(100)).await;
    let got = device.next().await;
    assert!(got.payload.len() <= 300);
    let last = read(&got);
    assert_eq!(last.finish_reason.as_deref(), Some("reply_bytes"));
    assert!(last.message.unwrap().content.ends_with("well."));
}

#[tokio::test]
async fn retained_requests_are_no_requests() {
    let broker = Mosquitto::start();
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(&topic("response/#")).await;
    // Retained before the node subscribes. Each answer below shows that nothing else ran before it.
    let output = std::process::Command::new(mosquitto::binary("mosquitto_pub"))
        .args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-q", "1", "-r", "-m", "old question"])
        .args(["-t", &topic("request/chat/pump")])
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut node = Node::up(settings(broker.port())).await;
    device.publish(&topic("request/chat/pump"), "new question", PublishProperties::default()).await;
    let asked = node.next().await;
    assert!(matches!(&asked.request.input, Input::Chat(turns) if turns[0].content == "new question"));
}

#[tokio::test]
async fn the_node_announces_itself_drains_and_says_goodbye() {
    let broker = Mosquitto::start();
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe(&topic("+")).await;
    let mut mqtt = settings(broker.port());
    mqtt.telemetry.interval = Duration::from_millis(50);
    let node = Node::up(mqtt).await;
    device.wait_for(&topic("availability"), "online").await;
    let info: v1::Info = wire::from_json(&device.next_on(&topic("info")).await.payload).unwrap();
    assert_eq!(info.operations, ["chat", "embed", "cancel", "status"]);
    let state: v1::Status = wire::from_json(&device.next_on(&topic("state")).await.payload).unwrap();
    assert!(state.ready && state.queue.is_none() && state.running.is_none());
    let telemetry: v1::Telemetry = wire::from_json(&device.next_on(&topic("telemetry")).await.payload).unwrap();
    assert_eq!(telemetry.node, NODE);

    node.board.update(|status| status.ready = false);
    let state: v1::Status = wire::from_json(&device.next_on(&topic("state")).await.payload).unwrap();
    assert!(!state.ready);
    node.phase.send(Phase::Draining).unwrap();
    device.wait_for(&topic("availability"), "draining").await;
    node.phase.send(Phase::Stopping).unwrap();
    device.wait_for(&topic("availability"), "stopped").await;
    node.ended().await;
    // Whoever comes later finds the last word, not the will.
    let mut late = Device::connect(broker.port(), "late", None).await;
    late.subscribe(&topic("availability")).await;
    let last = late.next().await;
    assert_eq!((last.payload, last.retain), (Bytes::from_static(b"stopped"), true));
}

#[tokio::test]
async fn events_are_published_as_they_come_and_are_not_retained() {
    let broker = Mosquitto::start();
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe(&topic("event")).await;
    let node = Node::up(settings(broker.port())).await;
    let reason = v1::Reason { code: "hot".into(), source: Some("tj-thermal".into()), ..v1::Reason::default() };
    let event = v1::Event { node: NODE.into(), time: 1.5, reasons: vec![reason], ..v1::Event::default() };
    node.events.send(event.clone()).unwrap();
    let message = device.next().await;
    assert_eq!((wire::from_json::<v1::Event>(&message.payload).unwrap(), message.retain), (event, false));
}
