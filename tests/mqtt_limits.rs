//! What a broker may say and mosquitto hardly ever does: that it is too busy, that it takes less than it did an hour ago,
//! the same message again. A broker of our own says it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;
#[path = "support/script.rs"]
mod script;

use std::time::Duration;

use bytes::Bytes;
use mosquitto::{Device, Mosquitto, within};
use node::{NODE, Node, answer, settings};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{ConnAckProperties, ConnectReturnCode, PubAckReason, Publish, PublishProperties},
};
use script::{Peer, Script, limits};
use temperd::{config, dispatch::Event, serve::mqtt::Mqtt};

fn topic(rest: &str) -> String {
    format!("temperd/v1/{NODE}/{rest}")
}

fn marked(mark: &str) -> PublishProperties {
    PublishProperties {
        response_topic: Some("temperd/v1/clients/pump/answers".into()),
        correlation_data: Some(Bytes::copy_from_slice(mark.as_bytes())),
        ..PublishProperties::default()
    }
}

/// Without telemetry, which would come between what the tests wait for.
fn quiet(port: u16) -> Mqtt {
    let mqtt = settings(port);
    let telemetry = config::Telemetry { interval: Duration::ZERO, ..mqtt.telemetry };
    Mqtt { telemetry, ..mqtt }
}

/// Delivers a request; its packet id.
async fn ask(peer: &mut Peer, mark: &str) -> u16 {
    peer.deliver(false, &topic("request/chat/pump"), mark, marked(mark)).await
}

fn mark(message: &Publish) -> &[u8] {
    message.properties.as_ref().unwrap().correlation_data.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn an_answer_that_the_broker_has_no_room_for_is_sent_again_and_its_request_kept_until_then() {
    let broker = Script::start().await;
    let mut node = Node::start(quiet(broker.port()));
    let (mut peer, _) = broker.up(false, limits()).await;
    let request = ask(&mut peer, "m").await;
    node.next().await.answer("Yes.").await;
    for reason in [PubAckReason::QuotaExceeded, PubAckReason::ImplementationSpecificError, PubAckReason::Success] {
        let message = peer.publish().await;
        assert_eq!((mark(&message), &message.payload[..]), (&b"m"[..], &b"Yes."[..]));
        peer.answer(&message, reason).await;
    }
    assert_eq!(peer.puback().await, request);
    assert_eq!(node.counts.refused_messages.get(), 0);
}

#[tokio::test]
async fn an_answer_that_the_broker_never_takes_is_given_up_counted_and_kept_for_who_asks_again() {
    let broker = Script::start().await;
    let mut node = Node::start(quiet(broker.port()));
    let (mut peer, _) = broker.up(false, limits()).await;
    let request = ask(&mut peer, "m").await;
    node.next().await.answer("Yes.").await;
    let message = peer.publish().await;
    peer.answer(&message, PubAckReason::PayloadFormatInvalid).await;
    assert_eq!(peer.puback().await, request);
    assert_eq!(node.counts.refused_messages.get(), 1);
    let again = ask(&mut peer, "m").await;
    let message = peer.publish().await;
    assert_eq!(&message.payload[..], b"Yes.");
    peer.taken(&message).await;
    assert_eq!(peer.puback().await, again);
}

/// What is in flight when the limits fall is sent again as the new ones allow.
#[tokio::test]
async fn a_broker_that_comes_back_with_lower_limits_is_kept_to_them() {
    let broker = Script::start().await;
    let mut node = Node::start(quiet(broker.port()));
    let (mut peer, births) = broker.up(false, limits()).await;
    assert!(births.iter().all(|birth| birth.retain && birth.qos == QoS::AtLeastOnce));
    for mark in ["large", "small", "later"] {
        ask(&mut peer, mark).await;
    }
    node.next().await.answer(&"long ".repeat(1000)).await;
    node.next().await.answer("short").await;
    // Both are in flight at once, unacknowledged.
    assert_eq!([peer.publish().await, peer.publish().await].each_ref().map(mark), [&b"large"[..], b"small"]);
    drop(peer);

    let low = ConnAckProperties {
        receive_max: Some(1),
        max_packet_size: Some(2000),
        retain_available: Some(0),
        max_qos: Some(1),
        ..limits()
    };
    let (mut peer, births) = broker.up(true, low).await;
    assert!(births.iter().all(|birth| !birth.retain));
    // One at a time: the births were taken one by one, or the packet ids would not have sufficed.
    let small = peer.publish().await;
    assert_eq!((mark(&small), small.retain), (&b"small"[..], false));
    peer.taken(&small).await;
    let large = peer.publish().await;
    assert!(large.payload.starts_with(b"error: payload_too_large"), "{large:?}");
    assert_eq!(mark(&large), b"large");
    assert!(large.size() <= 2000);
    peer.taken(&large).await;
    // A word that comes with the end of its connection is lost, and the answer would be sent once more.
    let mut status = node.board.watch();
    let empty = status.wait_for(|status| status.mqtt.as_ref().is_some_and(|mqtt| mqtt.outbox == 0));
    drop(within("outbox", empty).await.unwrap());
    assert_eq!((node.counts.oversized_messages.get(), node.counts.refused_messages.get()), (1, 0));
    drop(peer);

    // Not even QoS 1 any more: nothing is confirmed, and so the request is acknowledged with the answer.
    let (mut peer, births) = broker.up(true, ConnAckProperties { max_qos: Some(0), ..limits() }).await;
    assert!(births.iter().all(|birth| birth.qos == QoS::AtMostOnce && birth.retain));
    node.next().await.answer("at last").await;
    let later = peer.publish().await;
    assert_eq!((mark(&later), later.qos), (&b"later"[..], QoS::AtMostOnce));
    assert_eq!(node.counts.unconfirmed_messages.get(), 4);
    let request = ask(&mut peer, "one more").await;
    node.next().await.answer("x").await;
    peer.publish().await;
    assert_eq!(peer.puback().await, request);
}

#[tokio::test]
async fn a_last_will_that_the_broker_does_not_take_gives_way_to_a_lesser_one() {
    let broker = Script::start().await;
    let _node = Node::start(quiet(broker.port()));
    let will = |peer: &Peer| peer.will.as_ref().map(|will| (will.retain, will.qos)).unwrap();
    let peer = broker.connect().await;
    assert_eq!(will(&peer), (true, QoS::AtLeastOnce));
    peer.refuse(ConnectReturnCode::RetainNotSupported).await;
    let peer = broker.connect().await;
    assert_eq!(will(&peer), (false, QoS::AtLeastOnce));
    peer.refuse(ConnectReturnCode::QoSNotSupported).await;
    let low = ConnAckProperties { retain_available: Some(0), max_qos: Some(0), ..limits() };
    let (peer, _) = broker.up(false, low).await;
    assert_eq!(will(&peer), (false, QoS::AtMostOnce));
    drop(peer);
    // As long as the broker is no better, nor is the will; then it is whole again.
    let (peer, _) = broker.up(false, limits()).await;
    assert_eq!(will(&peer), (false, QoS::AtMostOnce));
    drop(peer);
    assert_eq!(will(&broker.connect().await), (true, QoS::AtLeastOnce));
}

#[tokio::test]
async fn a_real_broker_without_qos_1_and_retained_messages_is_served() {
    let broker =
        Mosquitto::with(|_| vec!["max_qos 0".into(), "allow_anonymous true".into(), "retain_available false".into()]);
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(&topic("response/#")).await;
    for _ in 0..2 {
        let sent = std::process::Command::new(mosquitto::binary("mosquitto_pub"))
            .args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-m", "ok?", "-t", &topic("request/chat/pump")])
            .status();
        assert!(sent.unwrap().success());
        node.next().await.answer("Yes.").await;
        assert_eq!(device.next().await.payload, "Yes.");
    }
    assert_eq!(node.counts.connections.get(), 1);
}

/// Before its first final is taken, after it, and after its acknowledgement was lost.
#[tokio::test]
async fn a_message_that_is_delivered_again_and_again_runs_once() {
    let broker = Script::start().await;
    let mut node = Node::start(quiet(broker.port()));
    let (mut peer, _) = broker.up(false, limits()).await;
    let chat = topic("request/chat/pump");
    ask(&mut peer, "m").await;
    peer.deliver(true, &chat, "m", marked("m")).await;
    let course = node.next().await.accept();
    drop(peer);
    let (mut peer, _) = broker.up(true, limits()).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(peer.deliver(true, &chat, "m", marked("m")).await);
    }
    course.send(Event::Final(Box::new(answer("", "Yes.")))).await.unwrap();
    let last = peer.publish().await;
    assert_eq!((mark(&last), &last.payload[..]), (&b"m"[..], &b"Yes."[..]));
    peer.taken(&last).await;
    assert_eq!([peer.puback().await, peer.puback().await], [open[0], open[1]]);
    // Both words got lost on the way, says the broker. The kept final is sent once more: it may have been lost too.
    drop(peer);
    let (mut peer, _) = broker.up(true, limits()).await;
    let again = peer.deliver(true, &chat, "m", marked("m")).await;
    let last = peer.publish().await;
    assert_eq!(&last.payload[..], b"Yes.");
    peer.taken(&last).await;
    assert_eq!(peer.puback().await, again);
    assert!(node.submitted.try_recv().is_err(), "it ran twice");
}

/// A broker that loses every session and never takes an answer piles up requests here. Those beyond the bound stay with
/// the broker, and come when there is room.
#[tokio::test]
async fn requests_beyond_all_bounds_are_left_with_the_broker_and_fetched_later() {
    let broker = Script::start().await;
    let mqtt = Mqtt { queue: 1, parallel: 1, ..quiet(broker.port()) };
    let window = mqtt.receive_maximum();
    let mut node = Node::start(mqtt);
    let mut open = Vec::new();
    for round in 0..3 {
        let (mut peer, _) = broker.up(false, limits()).await;
        for at in 0..window {
            ask(&mut peer, &format!("{round}-{at}")).await;
            open.push(node.next().await.accept());
        }
    }
    let (mut peer, _) = broker.up(false, limits()).await;
    ask(&mut peer, "too many").await;
    within("refusal to hold it", async {
        while node.counts.ignored_requests.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(node.submitted.try_recv().is_err(), "it was taken");
    for course in open {
        course.send(Event::Final(Box::new(answer("", "x")))).await.unwrap();
    }
    // Answers go out until there is room; then the connection is made anew.
    let ((), (mut next, _)) = tokio::join!(peer.serve(), broker.up(true, limits()));
    next.deliver(true, &topic("request/chat/pump"), "too many", marked("too many")).await;
    node.next().await.answer("Now.").await;
}
