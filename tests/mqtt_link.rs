//! What MQTT does when connections break, brokers restart and daemons die; against a real broker.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;

use std::{fs, time::Duration};

use bytes::Bytes;
use mosquitto::{Device, Mosquitto, within};
use node::{NODE, Node, answer, settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, PublishProperties};
use temperd::wire::{self, v1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

/// Waits for a count, which nobody announces.
async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A device whose session, and so the answers in it, outlives the broker.
async fn lasting_device(broker: &Mosquitto) -> Device {
    Device::with(broker.port(), "pump", |options| {
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(600);
        options.set_clean_start(false).set_connect_properties(properties);
    })
    .await
}

#[tokio::test]
async fn a_node_without_a_broker_waits_for_it() {
    let mut broker = Mosquitto::prepared(|_| vec!["allow_anonymous true".into()]);
    let mut node = Node::start(settings(broker.port()));
    wait_until("a loss", || node.counts.losses.get() > 0).await;
    node.wait_for_state("connecting").await;
    broker.run();
    node.wait_for_state("connected").await;
}

#[tokio::test]
async fn an_answer_survives_the_restart_of_the_broker() {
    let mut broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = lasting_device(&broker).await;
    device.subscribe(REPLY).await;
    device.publish(&topic("request/chat/pump"), "ok?", marked("m")).await;
    let asked = node.next().await;
    broker.stop();
    node.wait_for_state("connecting").await;
    // The answer is ready while the broker is away; its request is delivered again and must not run again.
    asked.answer("Yes.").await;
    broker.run();
    node.wait_for_state("connected").await;
    let mut device = lasting_device(&broker).await;
    let got = device.next().await;
    assert_eq!(got.payload, "Yes.");
    assert_eq!(got.properties.unwrap().correlation_data.as_deref(), Some(&b"m"[..]));
    // A second request shows that nothing else was submitted in between, and that subscriptions are in force.
    device.publish(&topic("request/chat/pump"), "and now?", marked("n")).await;
    let asked = node.next().await;
    assert!(matches!(&asked.request.input, temperd::request::Input::Chat(turns) if turns[0].content == "and now?"));
    asked.answer("Still.").await;
    while device.next().await.payload != "Still." {}
}

/// What the broker delivers again is recognised even where its sender gave it no mark.
#[tokio::test]
async fn a_request_without_a_mark_does_not_run_twice_over_a_lost_connection() {
    let mut broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = lasting_device(&broker).await;
    device.publish(&topic("request/chat/pump"), "ok?", PublishProperties::default()).await;
    let asked = node.next().await;
    broker.stop();
    node.wait_for_state("connecting").await;
    broker.run();
    wait_until("delivery again", || node.counts.repeats.get() == 1).await;
    let mut device = lasting_device(&broker).await;
    device.subscribe(&topic("response/#")).await;
    asked.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
    // The same words from the sender are a new question.
    device.publish(&topic("request/chat/pump"), "ok?", PublishProperties::default()).await;
    node.next().await.answer("Yes again.").await;
    assert_eq!(device.next().await.payload, "Yes again.");
}

#[tokio::test]
async fn a_broker_that_lost_the_session_is_subscribed_again() {
    let mut broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    broker.stop();
    node.wait_for_state("connecting").await;
    fs::remove_file(broker.folder().join("mosquitto.db")).unwrap();
    broker.run();
    node.wait_for_state("connected").await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.publish(&topic("request/chat/pump"), "ok?", marked("m")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
    device.subscribe(&topic("availability")).await;
    assert_eq!(device.next().await.payload, "online");
}

#[tokio::test]
async fn a_request_outlives_a_daemon_that_dies_and_its_will_is_published() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.subscribe(&topic("availability")).await;
    device.publish(&topic("request/chat/pump"), "ok?", marked("m")).await;
    let _running = node.next().await.accept();
    node.crash().await;
    device.wait_for(&topic("availability"), "offline").await;
    let mut node = Node::up(settings(broker.port())).await;
    device.wait_for(&topic("availability"), "online").await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next_on(REPLY).await.payload, "Yes.");
}

/// The order of acknowledgements is seen from outside: a daemon that dies gets exactly those requests again whose
/// answers the broker did not have, and those behind them.
#[tokio::test]
async fn only_answered_requests_are_acknowledged() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    for mark in ["a", "b", "c"] {
        device.publish(&topic("request/chat/pump"), mark, marked(mark)).await;
    }
    let [first, second, third] = [node.next().await, node.next().await, node.next().await];
    first.answer("first").await;
    third.answer("third").await;
    let mut texts = [device.next().await.payload, device.next().await.payload];
    texts.sort();
    assert_eq!(texts, ["first", "third"]);
    // The acknowledgement of the first is on its way; a later request passes the connection behind it.
    device.publish(&topic("request/status/pump"), "", marked("s")).await;
    assert_eq!(device.next().await.payload, "ready");
    drop(second);
    node.crash().await;
    let mut node = Node::up(settings(broker.port())).await;
    let again = [node.next().await, node.next().await];
    let texts = again.each_ref().map(|asked| match &asked.request.input {
        temperd::request::Input::Chat(turns) => turns[0].content.clone(),
        temperd::request::Input::Raw(_) | temperd::request::Input::Texts(_) => panic!("it was a conversation"),
    });
    assert_eq!(texts, ["b", "c"]);
}

#[tokio::test]
async fn a_wrong_password_is_no_end_and_a_corrected_one_needs_no_restart() {
    let broker = Mosquitto::with(|folder| {
        let passwords = folder.join("passwords");
        let made = std::process::Command::new(mosquitto::binary("mosquitto_passwd"))
            .args(["-b", "-c"])
            .arg(&passwords)
            .args(["temperd", "right"])
            .status();
        assert!(made.unwrap().success());
        vec!["allow_anonymous false".into(), format!("password_file {}", passwords.display())]
    });
    let password = broker.folder().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let mut mqtt = settings(broker.port());
    mqtt.config.user = Some("temperd".into());
    mqtt.config.password_file = Some(password.clone());
    let mut node = Node::start(mqtt);
    wait_until("a loss", || node.counts.losses.get() > 0).await;
    node.wait_for_state("connecting").await;
    fs::write(&password, "right\n").unwrap();
    node.wait_for_state("connected").await;
}

#[tokio::test]
async fn an_answer_larger_than_the_broker_takes_becomes_an_error_that_says_so() {
    let broker = Mosquitto::with(|_| vec!["allow_anonymous true".into(), "max_packet_size 2000".into()]);
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device
        .publish(&topic("request/chat/pump"), r#"{"id":"7","messages":[{"role":"user","content":"x"}]}"#, marked("m"))
        .await;
    node.next().await.answer(&"long ".repeat(1000)).await;
    let last: v1::Final = wire::from_json(&device.next().await.payload).unwrap();
    let error = last.error.expect("an error");
    assert_eq!((last.id.as_str(), last.outcome.as_str(), error.code.as_str()), ("7", "failed", "payload_too_large"));
    assert_eq!(error.limit, Some(2000));
    // The connection is the same, and works.
    device.publish(&topic("request/chat/pump"), "ok?", marked("n")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
    assert_eq!((node.counts.connections.get(), node.counts.oversized_messages.get()), (1, 1));
}

#[tokio::test]
async fn a_packet_over_the_announced_maximum_does_not_end_the_connection() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    device.publish(&topic("request/chat/pump"), vec![b'x'; 2 * 1024 * 1024], marked("big")).await;
    device.publish(&topic("request/chat/pump"), "ok?", marked("m")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
    assert_eq!(node.counts.connections.get(), 1);
}

/// A broker of one connection that does as the specification says: accepts, grants every subscription, then tells that
/// the session was taken over.
async fn broker_that_gives_the_session_away(listener: tokio::net::TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut grants = 0;
    while grants < 2 {
        let (kind, body) = read_packet(&mut stream).await;
        match kind {
            0x10 => stream.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap(),
            0x82 => {
                let filters = if grants == 0 { 6 } else { 4 };
                let mut granted = vec![0x90, 3 + filters, body[0], body[1], 0];
                granted.extend(std::iter::repeat_n(0, usize::from(filters)));
                stream.write_all(&granted).await.unwrap();
                grants += 1;
            }
            other => panic!("a packet of type {other:#x} before the subscriptions"),
        }
    }
    stream.write_all(&[0xe0, 2, 0x8e, 0]).await.unwrap();
    // Held open: it is the word that counts, not the close.
    std::future::pending().await
}

async fn read_packet(stream: &mut tokio::net::TcpStream) -> (u8, Vec<u8>) {
    let kind = stream.read_u8().await.unwrap();
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.unwrap();
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (kind, body)
}

#[tokio::test]
async fn a_session_that_another_client_takes_is_left_to_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker = tokio::spawn(broker_that_gives_the_session_away(listener));
    let node = Node::start(settings(port));
    wait_until("loss", || node.counts.losses.get() == 1).await;
    assert_eq!((node.counts.takeovers.get(), node.counts.connections.get()), (1, 1));
    broker.abort();
}

/// mosquitto 2.0.11 closes the old connection without a word.
#[tokio::test]
async fn clients_who_throw_each_other_out_are_noticed_without_a_word_from_the_broker() {
    let broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    for _ in 0..2 {
        node.wait_for_state("connected").await;
        let other = Device::connect(broker.port(), &format!("temperd-{NODE}"), None).await;
        node.wait_for_state("connecting").await;
        drop(other);
    }
    assert!(node.counts.takeovers.get() >= 1);
}

#[tokio::test]
async fn messages_that_the_acl_forbids_are_given_up_and_nothing_else_is_held_up() {
    let broker = Mosquitto::with(|folder| {
        let acl = folder.join("acl");
        fs::write(&acl, format!("topic readwrite {}\ntopic readwrite temperd/v1/clients/#\n", topic("#"))).unwrap();
        vec!["allow_anonymous true".into(), format!("acl_file {}", acl.display())]
    });
    let mut mqtt = settings(broker.port());
    mqtt.config.response_topics = vec!["#".into()];
    let mut node = Node::up(mqtt).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe(REPLY).await;
    let forbidden = PublishProperties { response_topic: Some("plant/answers".into()), ..marked("f") };
    device.publish(&topic("request/chat/pump"), "ok?", forbidden).await;
    node.next().await.answer("lost").await;
    device.publish(&topic("request/chat/pump"), "ok?", marked("m")).await;
    node.next().await.answer("Yes.").await;
    assert_eq!(device.next().await.payload, "Yes.");
    let refused = node.counts.refused_messages.clone();
    tokio::time::timeout(Duration::from_secs(40), async {
        while refused.get() == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the broker's refusal is noticed, tried again and counted");
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "plant authority");
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let broker = Mosquitto::with(|folder| {
        let (certificate, key) = signed("localhost");
        for (name, text) in [("ca.pem", &authority_pem), ("broker.pem", &certificate), ("broker.key", &key)] {
            fs::write(folder.join(name), text).unwrap();
        }
        let path = |name: &str| folder.join(name).display().to_string();
        vec![
            format!("cafile {}", path("ca.pem")),
            format!("certfile {}", path("broker.pem")),
            format!("keyfile {}", path("broker.key")),
            "require_certificate true".into(),
            "use_identity_as_username true".into(),
        ]
    });
    let (certificate, key) = signed("temperd");
    let [certificate_file, key_file] = ["temperd.pem", "temperd.key"].map(|name| broker.folder().join(name));
    fs::write(&certificate_file, certificate).unwrap();
    fs::write(&key_file, key).unwrap();
    let mut mqtt = settings(broker.port());
    mqtt.config.host = "localhost".into();
    mqtt.config.tls = true;
    mqtt.config.ca = Some(broker.folder().join("ca.pem"));

    // Without the certificate the broker ends it, with it all is well.
    let refused = Node::start(mqtt.clone());
    wait_until("a loss", || refused.counts.losses.get() > 0).await;
    assert_eq!(refused.counts.connections.get(), 0);
    refused.crash().await;
    mqtt.config.identity = Some((certificate_file, key_file));
    mqtt.counts = temperd::serve::mqtt::counts::Counts::default();
    let node = Node::up(mqtt).await;
    assert_eq!(node.counts.connections.get(), 1);
    assert!(broker.log().contains("u'temperd'"), "{}", broker.log());
}

/// Every answer reaches the broker although its restarts cut the connection again and again.
#[tokio::test]
async fn no_answer_is_lost_over_many_connections() {
    let mut broker = Mosquitto::start();
    let mut node = Node::up(settings(broker.port())).await;
    for round in 0..3u32 {
        let mut device = lasting_device(&broker).await;
        device.subscribe(REPLY).await;
        for at in 0..10u32 {
            let payload = format!(r#"{{"id":"{round}-{at}","messages":[{{"role":"user","content":"x"}}]}}"#);
            let properties = PublishProperties { correlation_data: None, ..marked("") };
            device.publish(&topic("request/chat/pump"), payload, properties).await;
        }
        let mut asked = Vec::new();
        for _ in 0..10 {
            asked.push(node.next().await);
        }
        broker.stop();
        for asked in asked {
            asked.answer("x").await;
        }
        broker.run();
        node.wait_for_state("connected").await;
        let mut device = lasting_device(&broker).await;
        let mut open: Vec<_> = (0..10u32).map(|at| format!("{round}-{at}")).collect();
        while !open.is_empty() {
            let last: v1::Final = wire::from_json(&device.next().await.payload).unwrap();
            assert_eq!(last, answer(&last.id, "x"));
            open.retain(|id| *id != last.id);
        }
    }
    assert!(node.submitted.try_recv().is_err(), "no request ran twice");
}
