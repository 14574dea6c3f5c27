//! The MQTT way in against a broker, with a dispatcher that the test plays. Included by tests with `#[path]`, beside
//! `mosquitto.rs`.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{sync::Arc, time::Duration};

use temperd::{
    config,
    dispatch::{Event, gate::Gate},
    request::{Client, Request, RequestError, check::Bounds},
    serve::{
        Phase,
        mqtt::{
            self, Mqtt,
            answers::{Answers, Pending},
            counts::Counts,
        },
    },
    status::StatusBoard,
    telemetry::metrics::Metrics,
    wire::v1,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::mosquitto::within;

pub const NODE: &str = "edge-7";

/// A request as the dispatcher sees it, to be accepted or refused by the test.
pub struct Submitted {
    pub request: Request,
    gate: Gate,
    verdict: oneshot::Sender<Result<Script, RequestError>>,
}

impl Submitted {
    /// Accepts it; what is sent is the course of the answer.
    pub fn accept(mut self) -> mpsc::Sender<Event> {
        // Its turn has come at once.
        drop(self.gate.knock());
        let (sender, events) = mpsc::channel(100);
        assert!(self.verdict.send(Ok(Script(events))).is_ok(), "MQTT waits for the verdict");
        sender
    }

    /// Accepts it and waits for leave to run it.
    pub async fn run(mut self) -> mpsc::Sender<Event> {
        let leave = self.gate.knock();
        let course = self.accept();
        if let Some(leave) = leave {
            within("leave", leave).await;
        }
        course
    }

    /// Accepts it and answers at once.
    pub async fn answer(self, text: &str) {
        let last = answer(&self.request.id, text);
        self.accept().send(Event::Final(Box::new(last))).await.expect("MQTT waits for the final");
    }

    pub fn refuse(self, error: RequestError) {
        assert!(self.verdict.send(Err(error)).is_ok(), "MQTT waits for the verdict");
    }
}

pub fn answer(id: &str, text: &str) -> v1::Final {
    v1::Final {
        id: id.into(),
        node: NODE.into(),
        outcome: "completed".into(),
        finish_reason: Some("stop".into()),
        message: Some(v1::Message { role: "assistant".into(), content: text.into(), ..v1::Message::default() }),
        ..v1::Final::default()
    }
}

/// The dispatcher's place.
#[derive(Clone)]
struct Stage {
    submitted: mpsc::Sender<Submitted>,
    cancelled: mpsc::Sender<(Client, String)>,
}

pub struct Script(mpsc::Receiver<Event>);

impl Answers for Stage {
    type Ticket = Script;

    async fn submit(&self, gate: Gate, request: Request) -> Result<Script, RequestError> {
        let (verdict, given) = oneshot::channel();
        self.submitted.send(Submitted { request, gate, verdict }).await.expect("the test listens");
        given.await.expect("the test decides")
    }

    async fn cancel(&self, client: &Client, id: &str) -> bool {
        self.cancelled.send((client.clone(), id.into())).await.expect("the test listens");
        id == "known"
    }
}

impl Pending for Script {
    async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// A node that serves MQTT.
pub struct Node {
    pub submitted: mpsc::Receiver<Submitted>,
    pub cancelled: mpsc::Receiver<(Client, String)>,
    pub board: StatusBoard,
    pub counts: Counts,
    pub phase: watch::Sender<Phase>,
    pub events: broadcast::Sender<v1::Event>,
    task: JoinHandle<()>,
}

/// Settings for a broker on loopback.
pub fn settings(port: u16) -> Mqtt {
    Mqtt {
        config: config::Mqtt {
            host: "127.0.0.1".into(),
            port,
            tls: false,
            user: None,
            password_file: None,
            ca: None,
            identity: None,
            response_topics: vec![format!("temperd/v1/{NODE}/response/#"), "temperd/v1/clients/+/#".into()],
            raw_prompt: false,
            pool: None,
            keep_alive: Duration::from_secs(15),
        },
        node: NODE.into(),
        bounds: Bounds { context: 8192, payload_bytes: 262_144 },
        queue: 8,
        parallel: 2,
        telemetry: config::Telemetry {
            interval: Duration::from_secs(3600),
            qos: 0,
            format: config::PublishFormat::Json,
        },
        state_directory: None,
        counts: Counts::default(),
    }
}

impl Node {
    pub fn start(mqtt: Mqtt) -> Self {
        let (to_submitted, submitted) = mpsc::channel(100);
        let (to_cancelled, cancelled) = mpsc::channel(100);
        let stage = Stage { submitted: to_submitted, cancelled: to_cancelled };
        let board = StatusBoard::new(v1::Status { node: NODE.into(), ready: true, ..v1::Status::default() });
        let (phase, watch) = watch::channel(Phase::Running);
        let counts = mqtt.counts.clone();
        let telemetry = || v1::Telemetry { node: NODE.into(), uptime_s: 1.0, ..v1::Telemetry::default() };
        let metrics = Arc::new(Metrics::default());
        let (events, happened) = broadcast::channel(16);
        let task = tokio::spawn(mqtt::run(mqtt, stage, board.clone(), telemetry, happened, metrics, watch));
        Self { submitted, cancelled, board, counts, phase, events, task }
    }

    /// Starts one and waits until it is connected.
    pub async fn up(mqtt: Mqtt) -> Self {
        let mut node = Self::start(mqtt);
        node.wait_for_state("connected").await;
        node
    }

    /// Waits for what the status says of MQTT.
    pub async fn wait_for_state(&mut self, state: &str) {
        let mut status = self.board.watch();
        let changed = status.wait_for(|status| status.mqtt.as_ref().is_some_and(|mqtt| mqtt.state == state));
        within(state, changed).await.expect("the board lives");
    }

    pub async fn next(&mut self) -> Submitted {
        within("request", self.submitted.recv()).await.expect("the node runs")
    }

    /// Ends it without a word, as a crash does.
    pub async fn crash(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Waits for its own end.
    pub async fn ended(mut self) {
        within("end", &mut self.task).await.expect("it does not panic");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}
