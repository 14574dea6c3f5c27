//! Networks and brokers that fail: a node behind a proxy that cuts, swallows and stalls, a real broker, and a dispatcher
//! that the test plays. Whatever happens, a request ends in one answer; what the wire delivers again is dropped by its
//! mark, as a client does.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "support/mosquitto.rs"]
mod mosquitto;
#[path = "support/node.rs"]
mod node;
#[path = "support/proxy.rs"]
mod proxy;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use mosquitto::{Device, Mosquitto, within};
use node::{Node, Submitted, answer, settings};
use proxy::{Flow, Proxy, Way};
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use temperd::{
    config,
    dispatch::Event,
    request::Input,
    serve::mqtt::Mqtt,
    wire::{self, v1},
};

/// A little less than what a device waits for a message, to say more of what is missing.
const PATIENCE: Duration = Duration::from_secs(19);

/// A text that no packet of the loopback device takes at once.
const LONG: usize = 100_000;

/// A node behind a proxy, and a device of its own at the broker itself.
struct Bench {
    node: Node,
    device: Device,
    proxy: Proxy,
    name: String,
    broker: u16,
    log: PathBuf,
}

impl Bench {
    async fn up(broker: &Mosquitto, name: &str) -> Self {
        let proxy = Proxy::start(broker.port());
        let node = Node::up(named(proxy.port(), name)).await;
        let mut device = Device::connect(broker.port(), &format!("device-{name}"), None).await;
        device.subscribe(&format!("temperd/v1/clients/{name}/#")).await;
        Self { node, device, proxy, name: name.into(), broker: broker.port(), log: broker.folder().join("log") }
    }

    fn topic(&self, op: &str) -> String {
        format!("temperd/v1/{}/request/{op}/{}", self.name, self.name)
    }

    fn marked(&self, mark: &str) -> PublishProperties {
        PublishProperties {
            response_topic: Some(format!("temperd/v1/clients/{}/answers", self.name)),
            correlation_data: Some(Bytes::copy_from_slice(mark.as_bytes())),
            ..PublishProperties::default()
        }
    }

    /// Asks for a stream.
    async fn ask(&mut self, mark: &str) {
        self.ask_with(mark, self.marked(mark)).await;
    }

    async fn ask_with(&mut self, mark: &str, properties: PublishProperties) {
        let message = v1::Message { role: "user".into(), content: mark.into(), ..v1::Message::default() };
        let request = v1::ChatRequest { messages: vec![message], stream: Some(true), ..v1::ChatRequest::default() };
        let topic = self.topic("chat");
        self.device.publish(&topic, wire::to_json(&request), properties).await;
    }

    async fn wait_for_outbox(&self, messages: u32) {
        let mut status = self.node.board.watch();
        let reached = status.wait_for(|status| status.mqtt.as_ref().is_some_and(|mqtt| mqtt.outbox == messages));
        within("outbox", reached).await.unwrap();
    }

    /// The finals of these requests, by their marks; none is answered in two ways.
    async fn finals(&mut self, marks: &[&str]) -> BTreeMap<String, v1::Final> {
        let mut finals = BTreeMap::new();
        self.collect(&mut finals, marks).await;
        finals
    }

    /// Adds them to those that are known.
    async fn collect(&mut self, finals: &mut BTreeMap<String, v1::Final>, marks: &[&str]) {
        while marks.iter().any(|mark| !finals.contains_key(*mark)) {
            let Ok(message) = tokio::time::timeout(PATIENCE, self.device.next()).await else {
                let log = fs::read_to_string(&self.log).unwrap();
                let log: Vec<_> = log.lines().filter(|line| line.contains(&self.name)).collect();
                panic!("{}: {:?} only; {:?}\n{}", self.name, finals.keys(), self.node.counts, log.join("\n"));
            };
            note(finals, &message);
        }
    }

    /// Everything is over: nothing is left in the outbox, and the broker has nothing to deliver to the next daemon.
    async fn settles(mut self, mut finals: BTreeMap<String, v1::Final>) {
        self.proxy.set_both(Flow::Open);
        self.ask("after").await;
        let after = self.node.next().await;
        assert_eq!(asks(&after), "after", "a request ran twice");
        after.answer("after").await;
        // Its answer has come over a whole connection, and what is asked at QoS 0 will too.
        self.collect(&mut finals, &["after"]).await;
        self.device.publish(&self.topic("status"), "{}", self.marked("status")).await;
        loop {
            let message = self.device.next().await;
            if mark(&message) == "status" {
                break;
            }
            note(&mut finals, &message);
        }
        self.wait_for_outbox(0).await;
        self.node.crash().await;
        self.node = Node::up(named(self.broker, &self.name)).await;
        self.ask("last").await;
        let last = self.node.next().await;
        assert_eq!(asks(&last), "last", "a request was not acknowledged");
    }
}

fn named(port: u16, name: &str) -> Mqtt {
    let mqtt = settings(port);
    let config = config::Mqtt { keep_alive: Duration::from_secs(5), ..mqtt.config };
    Mqtt { node: name.into(), config, ..mqtt }
}

fn note(finals: &mut BTreeMap<String, v1::Final>, message: &Publish) {
    if let Ok(last) = wire::from_json::<v1::Final>(&message.payload)
        && !last.outcome.is_empty()
    {
        let known = finals.entry(mark(message).into()).or_insert_with(|| last.clone());
        assert_eq!(*known, last, "two answers");
    }
}

fn mark(message: &Publish) -> &str {
    std::str::from_utf8(message.properties.as_ref().unwrap().correlation_data.as_deref().unwrap()).unwrap()
}

fn asks(asked: &Submitted) -> String {
    match &asked.request.input {
        Input::Chat(turns) => turns[0].content.clone(),
        Input::Raw(_) | Input::Texts(_) => panic!("it was a conversation"),
    }
}

/// Chunks, then the final that is all of them.
async fn stream(asked: Submitted, chunks: u32, delta: &str) {
    let course = asked.accept();
    for seq in 0..chunks {
        let chunk = v1::Chunk { seq, delta: delta.into(), ..v1::Chunk::default() };
        course.send(Event::Chunk(chunk)).await.unwrap();
    }
    let text = delta.repeat(chunks as usize);
    course.send(Event::Final(Box::new(answer("", &text)))).await.unwrap();
}

/// A connection that breaks anywhere between a request's first byte and its acknowledgement: in the middle of the
/// request, of a chunk, of the final, of either PUBACK, and between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_byte_leaves_one_answer() {
    let broker = Mosquitto::start();
    // An exchange has some 900 bytes to the broker, and some 300 from it.
    let places = (0..12).flat_map(|at| [(Way::ToServer, 1 + at * 80), (Way::ToClient, 1 + at * 28)]);
    let courses = places.map(async |(way, bytes)| {
        let mut bench = Bench::up(&broker, &format!("cut-{way:?}-{bytes}").to_lowercase()).await;
        bench.wait_for_outbox(0).await;
        bench.proxy.set(way, Flow::CutAfter(bytes));
        bench.ask("m").await;
        stream(bench.node.next().await, 3, "word ").await;
        let finals = bench.finals(&["m"]).await;
        assert_eq!(finals["m"], answer("", "word word word "));
        let cut = bench.proxy.accepted() > 1;
        bench.settles(finals).await;
        cut
    });
    let cut = join_all(courses).await.into_iter().filter(|cut| *cut).count();
    assert!(cut >= 16, "only {cut} of 24 connections were cut within the exchange");
}

#[tokio::test]
async fn resets_slices_and_delay_leave_one_answer() {
    let broker = Mosquitto::start();
    let mut bench = Bench::up(&broker, "rough").await;
    bench.proxy.set_both(Flow::Slices(7, Duration::ZERO));
    bench.ask("a").await;
    bench.ask("b").await;
    stream(bench.node.next().await, 3, "slice ").await;
    let mut finals = bench.finals(&["a"]).await;
    bench.proxy.set_both(Flow::Delay(Duration::from_millis(20)));
    bench.proxy.reset();
    bench.node.wait_for_state("connecting").await;
    stream(bench.node.next().await, 3, "late ").await;
    bench.collect(&mut finals, &["b"]).await;
    bench.settles(finals).await;
}

#[tokio::test]
async fn a_black_hole_is_found_by_its_silence() {
    let broker = Mosquitto::start();
    let mut bench = Bench::up(&broker, "hole").await;
    bench.ask("before").await;
    bench.ask("within").await;
    let [before, within] = [bench.node.next().await, bench.node.next().await];
    let running = before.accept();
    bench.proxy.set_both(Flow::BlackHole);
    // Answers and chunks go out into nothing, and nobody says so.
    running.send(Event::Chunk(v1::Chunk { delta: "lost".into(), ..v1::Chunk::default() })).await.unwrap();
    within.answer("within").await;
    bench.wait_for_outbox(1).await;
    assert_eq!(bench.node.board.get().mqtt.unwrap().state, "connected");
    bench.node.wait_for_state("connecting").await;
    running.send(Event::Final(Box::new(answer("", "before")))).await.unwrap();
    bench.wait_for_outbox(2).await;
    bench.proxy.set_both(Flow::Open);
    let finals = bench.finals(&["before", "within"]).await;
    assert_eq!(finals["within"], answer("", "within"));
    bench.settles(finals).await;
}

/// Its buffers full, the connection can't even say that it is alive.
#[tokio::test]
async fn a_broker_that_stops_reading_is_left() {
    let broker = Mosquitto::start();
    let mut bench = Bench::up(&broker, "stuck").await;
    bench.ask("m").await;
    let asked = bench.node.next().await;
    bench.proxy.set(Way::ToServer, Flow::Unread);
    let course = asked.accept();
    let delta = "x".repeat(LONG);
    let mut chunks = 0;
    // More than the buffers of the system take, until chunks have to be dropped: they never wait for the broker.
    while bench.node.counts.dropped_messages.get() == 0 {
        let chunk = v1::Chunk { seq: chunks, delta: delta.clone(), ..v1::Chunk::default() };
        course.send(Event::Chunk(chunk)).await.unwrap();
        chunks += 1;
    }
    course.send(Event::Final(Box::new(answer("", "done")))).await.unwrap();
    bench.wait_for_outbox(1).await;
    bench.node.wait_for_state("connecting").await;
    bench.proxy.set(Way::ToServer, Flow::Open);
    let finals = bench.finals(&["m"]).await;
    assert_eq!(finals["m"], answer("", "done"));
    bench.settles(finals).await;
}

/// The broker dies without writing anything down. Answers are kept here; whoever asks again is answered once.
#[tokio::test]
async fn a_broker_that_forgets_everything_is_told_the_answers_all_the_same() {
    let mut broker = Mosquitto::start();
    let mut bench = Bench::up(&broker, "forgotten").await;
    let marks = ["answered", "away", "running"];
    for mark in marks {
        bench.ask(mark).await;
    }
    let [answered, away, running] = [bench.node.next().await, bench.node.next().await, bench.node.next().await];
    answered.answer("answered").await;
    let mut finals = bench.finals(&["answered"]).await;
    broker.kill();
    bench.node.wait_for_state("connecting").await;
    away.answer("away").await;
    bench.wait_for_outbox(1).await;
    broker.run();
    // Nobody subscribes yet: what the node publishes at once is lost, and the client asks again.
    bench.node.wait_for_state("connected").await;
    bench.wait_for_outbox(0).await;
    bench.device = Device::connect(broker.port(), "device-again", None).await;
    bench.device.subscribe("temperd/v1/clients/forgotten/#").await;
    for mark in marks {
        bench.ask(mark).await;
    }
    running.answer("running").await;
    let again = bench.finals(&marks).await;
    assert_eq!(again["answered"], finals["answered"]);
    finals.extend(again);
    assert_eq!(bench.node.counts.repeats.get(), 3);
    bench.settles(finals).await;
}

#[tokio::test]
async fn an_answer_waits_for_the_broker_until_it_expires_and_that_is_counted() {
    let broker = Mosquitto::start();
    let mut bench = Bench::up(&broker, "patient").await;
    let short = PublishProperties { message_expiry_interval: Some(5), ..bench.marked("short") };
    bench.ask_with("short", short).await;
    bench.ask("long").await;
    let [short, long] = [bench.node.next().await, bench.node.next().await];
    bench.proxy.refuse(true);
    bench.proxy.cut();
    bench.node.wait_for_state("connecting").await;
    short.answer("too late").await;
    long.answer("in time").await;
    bench.wait_for_outbox(2).await;
    assert_eq!(bench.node.counts.expired_messages.get(), 0);
    bench.wait_for_outbox(1).await;
    assert_eq!(bench.node.counts.expired_messages.get(), 1);
    bench.proxy.refuse(false);
    let finals = bench.finals(&["long"]).await;
    assert_eq!(finals["long"], answer("", "in time"));
    bench.settles(finals).await;
}

/// Jobs fill the window that the broker may deliver without our word; a cancel is not held back by it.
#[tokio::test]
async fn a_cancel_gets_past_a_full_window() {
    let broker = Mosquitto::start();
    let mqtt = Mqtt { queue: 1, parallel: 1, ..settings(broker.port()) };
    let window = mqtt.receive_maximum();
    let mut node = Node::up(mqtt).await;
    let mut device = Device::connect(broker.port(), "pump", None).await;
    device.subscribe("temperd/v1/edge-7/response/#").await;
    let chat = "temperd/v1/edge-7/request/chat/pump";
    for id in 0..=window {
        device
            .publish(
                chat,
                format!(r#"{{"id":"{id}","messages":[{{"role":"user","content":"x"}}]}}"#),
                PublishProperties::default(),
            )
            .await;
    }
    let mut open = Vec::new();
    for _ in 0..window {
        open.push(node.next().await);
    }
    device.publish("temperd/v1/edge-7/request/cancel/pump", r#"{"id":"known"}"#, PublishProperties::default()).await;
    let reply = device.next_on("temperd/v1/edge-7/response/cancel/pump").await;
    let reply: v1::CancelReply = wire::from_json(&reply.payload).unwrap();
    assert_eq!((reply.id.as_str(), reply.result.as_str()), ("known", "cancelled"));
    assert!(node.submitted.try_recv().is_err(), "the window was not full");
    // The one behind it comes when the first is over.
    open.remove(0).answer("x").await;
    assert_eq!(node.next().await.request.id, window.to_string());
}
