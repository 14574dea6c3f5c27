//! The governor at work in a whole daemon, with the real small model: a board that gets hot and short of memory (a copied
//! tree, changed by hand), an operator's pins, engines that end in the middle of an answer, and rest.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "board/tree.rs"]
mod tree;

use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, until},
    http,
    mosquitto::{Device, Mosquitto},
    stream::{Stream, endless},
};
use temperd::{
    cli::client,
    wire::v1::{self, control_client::ControlClient},
};
use tonic::{Code, transport::Channel};
use tree::Tree;

const BOARD: &str = "orin-nx-16gb-jp6-idle";
/// `tj-thermal` of that board.
const TJ: &str = "sys/class/thermal/thermal_zone8/temp";
const FAST: &str = "[governor]\ninterval_ms = 100\n";

fn pace(status: &Value) -> f64 {
    status["operating_point"]["pace"].as_f64().unwrap()
}

/// The next message on a topic that `holds`.
async fn message(device: &mut Device, topic: &str, holds: impl Fn(&Value) -> bool) -> Value {
    loop {
        let message: Value = serde_json::from_slice(&device.next_on(topic).await.payload).unwrap();
        if holds(&message) {
            return message;
        }
    }
}

async fn operator(daemon: &Daemon) -> ControlClient<Channel> {
    ControlClient::new(client::connect(Some(daemon.socket.clone())).await.expect("connected"))
}

async fn pin(operator: &mut ControlClient<Channel>, pin: v1::Pin) -> Result<v1::Status, tonic::Status> {
    let request = v1::SetOperatingPointRequest { operating_point: Some(pin) };
    operator.set_operating_point(request).await.map(tonic::Response::into_inner)
}

fn available(tree: &Tree, mib: u64) {
    let text = tree.read("proc/meminfo");
    let with = |line: &str| match line.split_once(':') {
        Some(("MemAvailable", _)) => format!("MemAvailable: {} kB\n", mib << 10),
        Some(("CmaFree", _)) => "CmaFree: 0 kB\n".into(),
        _ => format!("{line}\n"),
    };
    tree.write("proc/meminfo", &text.lines().map(with).collect::<String>());
}

// === heat ===

#[tokio::test]
async fn a_board_that_gets_hot_slows_a_stream_which_goes_on_and_comes_back() {
    let (broker, tree) = (Mosquitto::start(), Tree::unpack(BOARD));
    let mqtt = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port());
    let daemon = Daemon::ready_on(&tree.root(), &format!("{FAST}{mqtt}")).await;
    let mut device = Device::connect(broker.port(), "watcher", None).await;
    device.subscribe("temperd/v1/test/#").await;
    let mut stream = Stream::start(&daemon, &endless(4000)).await;
    stream.pieces(10).await;

    tree.write(TJ, "95000\n");
    let hot = until(&daemon, "hot", |status| pace(status) < 0.3).await;
    let reason = &hot["reason"];
    assert_eq!((reason["code"].as_str(), reason["source"].as_str()), (Some("hot"), Some("tj-thermal")), "{hot}");
    assert_eq!((reason["reading"].as_str(), reason["limit"].as_f64()), (Some("hottest_c"), Some(87.0)), "{hot}");
    assert!(reason["value"].as_f64().unwrap() > 90.0 && hot["ready"] == true, "{hot}");
    let slow = |message: &Value| pace(message) < 0.3;
    let event = message(&mut device, "temperd/v1/test/event", slow).await;
    assert_eq!((event["kind"].as_str(), event["reasons"][0]["code"].as_str()), (Some("operating_point"), Some("hot")));
    assert!(event["previous"]["pace"].as_f64() > event["operating_point"]["pace"].as_f64(), "{event}");
    // Retained: who comes later is told as well.
    let mut later = Device::connect(broker.port(), "later", None).await;
    later.subscribe("temperd/v1/test/state").await;
    let state = message(&mut later, "temperd/v1/test/state", slow).await;
    assert_eq!(state["reason"]["source"], "tj-thermal", "{state}");
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("temperd_temperature_celsius{zone=\"tj-thermal\"} 95.0"), "{metrics}");
    stream.pieces(2).await;

    tree.write(TJ, "45000\n");
    let cool = until(&daemon, "cool again", |status| pace(status) >= 1.0).await;
    assert_eq!(cool["reason"], Value::Null, "{cool}");
    message(&mut device, "temperd/v1/test/event", |event| pace(event) >= 1.0).await;
    stream.pieces(10).await;
    assert!(daemon.log_text().contains("tj-thermal"), "each decision is a line of the log");
}

#[tokio::test]
async fn a_lower_pace_is_seen_in_the_speed_of_a_stream() {
    let daemon = Daemon::ready(FAST).await;
    let mut operator = operator(&daemon).await;
    let mut stream = Stream::start(&daemon, &endless(4000)).await;
    let mut time = async |pieces: usize| {
        stream.pieces(2).await;
        let began = Instant::now();
        stream.pieces(pieces).await;
        began.elapsed().as_secs_f64() / pieces as f64
    };
    let full = time(30).await;
    pin(&mut operator, v1::Pin { pace: Some(0.1), ..v1::Pin::default() }).await.unwrap();
    let slow = time(10).await;
    assert!(slow > 3.0 * full, "{slow} s a piece at a pace of 0.1, {full} s at full pace");
}

#[tokio::test]
async fn a_tj_that_cannot_be_read_is_taken_for_hot() {
    let tree = Tree::unpack(BOARD);
    let daemon = Daemon::ready_on(&tree.root(), FAST).await;
    tree.write(TJ, "rubbish\n");
    let status = until(&daemon, "assumed hot", |status| pace(status) < 0.1).await;
    assert_eq!(status["reason"]["code"], "heat_unreadable", "{status}");
}

// === memory ===

#[tokio::test]
async fn a_board_short_of_memory_holds_what_waits() {
    let tree = Tree::unpack(BOARD);
    available(&tree, 12_000);
    let daemon = Daemon::ready_on(&tree.root(), FAST).await;
    let mut running = Stream::start(&daemon, &endless(200)).await;
    running.pieces(1).await;
    // Below the reserve, a tenth of 16 GB, and more than the small model could ever give back.
    available(&tree, 1000);
    let held = until(&daemon, "held", |status| status["ready"] == false).await;
    assert_eq!(held["reasons"], json!(["hold"]), "{held}");
    assert_eq!(held["operating_point"]["admit"], "hold", "{held}");
    assert_eq!(held["reason"]["code"], "memory_low", "{held}");
    assert_eq!(http::get(&daemon.socket, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let mut waits = endless(4);
    (waits["stream"], waits["deadline_ms"]) = (json!(false), json!(1500));
    let (code, answer) = http::post(&daemon.socket, "/v1/completions", &waits).await;
    assert_eq!((code.as_u16(), answer["error"]["code"].as_str()), (504, Some("expired")), "{answer}");
    assert!(!running.rest().await.is_empty(), "what runs may finish");
}

#[tokio::test]
#[ignore = "takes over a minute: memory has to suffice for so long before a step up"]
async fn held_requests_go_on_once_memory_is_back() {
    let tree = Tree::unpack(BOARD);
    available(&tree, 1000);
    let mut daemon = Daemon::start_on(&tree.root(), FAST);
    let line = daemon.line().await;
    assert!(line.starts_with("temperd not ready reason=\"hold"), "{line}");
    let waits = tokio::spawn({
        let (socket, mut body) = (daemon.socket.clone(), endless(4));
        body["stream"] = json!(false);
        async move { http::post(&socket, "/v1/completions", &body).await }
    });
    until(&daemon, "waiting", |status| status["queue"]["depth"] == 1).await;
    available(&tree, 12_000);
    let (code, answer) = waits.await.unwrap();
    assert_eq!(code, StatusCode::OK, "{answer}");
    assert!(daemon.line().await.starts_with("temperd ready "));
}

#[tokio::test]
async fn cells_that_nobody_uses_are_given_back_where_memory_is_short() {
    let tree = Tree::unpack(BOARD);
    available(&tree, 12_000);
    let daemon = Daemon::ready_on(&tree.root(), FAST).await;
    let mut long = endless(1);
    (long["prompt"], long["stream"]) = (json!("one two three four five six ".repeat(370)), json!(false));
    let (code, answer) = http::post(&daemon.socket, "/v1/completions", &long).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    let grown = until(&daemon, "grown", |status| status["allocated_context"].as_u64() > Some(2048)).await;
    // A few MiB are missing: the cells of that prompt have them.
    let reserve = 16_032_256 / 1024 / 10;
    available(&tree, reserve - 5);
    let before = grown["allocated_context"].as_u64();
    let status = until(&daemon, "given back", |status| status["allocated_context"].as_u64() < before).await;
    assert_eq!((&status["operating_point"]["admit"], &status["ready"]), (&json!("run"), &json!(true)), "{status}");
}

// === pins ===

#[tokio::test]
async fn an_operator_pins_and_releases() {
    let daemon = Daemon::ready("").await;
    let mut operator = operator(&daemon).await;
    let half = v1::Pin { pace: Some(0.5), context: Some(2048), ..v1::Pin::default() };
    let status = pin(&mut operator, half).await.unwrap();
    let point = status.operating_point.expect("a point");
    assert_eq!((point.pace, point.context, status.pinned), (0.5, 2048, true), "in force once it is answered");
    assert_eq!(status.reason.expect("a reason").code, "pinned");
    let (_, status) = http::get(&daemon.socket, "/v1/status").await;
    assert_eq!((pace(&status), &status["pinned"]), (0.5, &json!(true)));

    let bad = pin(&mut operator, v1::Pin { pace: Some(1.5), ..v1::Pin::default() }).await.expect_err("out of range");
    assert_eq!((bad.code(), bad.message()), (Code::InvalidArgument, "operating_point.pace: must be over 0, up to 1"));

    let status = pin(&mut operator, v1::Pin::default()).await.unwrap();
    let point = status.operating_point.expect("a point");
    assert_eq!((point.pace, point.context, status.pinned, status.reason), (1.0, 8192, false, None));
}

#[tokio::test]
async fn a_request_that_the_pinned_context_cannot_hold_waits_and_others_do_not() {
    let daemon = Daemon::ready("").await;
    let mut operator = operator(&daemon).await;
    pin(&mut operator, v1::Pin { context: Some(512), ..v1::Pin::default() }).await.unwrap();
    let large = tokio::spawn({
        let (socket, mut body) = (daemon.socket.clone(), endless(1));
        (body["stream"], body["prompt"]) = (json!(false), json!("word ".repeat(600)));
        async move { http::post(&socket, "/v1/completions", &body).await }
    });
    until(&daemon, "waiting", |status| status["queue"]["depth"] == 1).await;
    let mut small = endless(4);
    small["stream"] = json!(false);
    let (code, answer) = http::post(&daemon.socket, "/v1/completions", &small).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    let (_, status) = http::get(&daemon.socket, "/v1/status").await;
    assert_eq!(status["queue"]["depth"], 1, "{status}");
    pin(&mut operator, v1::Pin::default()).await.unwrap();
    let (code, answer) = large.await.unwrap();
    assert_eq!(code, StatusCode::OK, "{answer}");
}

// === engines that end ===

#[tokio::test]
async fn a_stream_survives_an_engine_that_is_killed() {
    let mut daemon = Daemon::ready("").await;
    let undisturbed = Stream::start(&daemon, &endless(150)).await.rest().await;
    let mut stream = Stream::start(&daemon, &endless(150)).await;
    stream.pieces(30).await;
    let engine = rustix::process::Pid::from_raw(daemon.engine_pid()).unwrap();
    rustix::process::kill_process(engine, rustix::process::Signal::KILL).unwrap();
    assert_eq!(stream.rest().await, undisturbed, "every token once");
    let status = until(&daemon, "replaced", |status| status["engine"]["restarts"] == 1).await;
    assert_eq!(status["pause"], Value::Null, "{status}");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn a_stream_survives_an_unload() {
    let daemon = Daemon::ready("").await;
    let mut operator = operator(&daemon).await;
    let undisturbed = Stream::start(&daemon, &endless(150)).await.rest().await;
    let mut stream = Stream::start(&daemon, &endless(150)).await;
    stream.pieces(30).await;
    pin(&mut operator, v1::Pin { admit: Some("unload".into()), ..v1::Pin::default() }).await.unwrap();
    let status = until(&daemon, "unloaded", |status| status["model"]["state"] == "unloaded").await;
    assert_eq!(status["reasons"], json!(["hold", "model_unloaded"]), "{status}");
    assert_eq!((&status["allocated_context"], &status["running"]), (&json!(0), &json!(1)), "{status}");
    pin(&mut operator, v1::Pin::default()).await.unwrap();
    assert_eq!(stream.rest().await, undisturbed, "every token once");
    let status = until(&daemon, "ready", |status| status["ready"] == true).await;
    assert_eq!(status["engine"]["restarts"], 0, "it was no crash: {status}");
}

// === rest ===

#[tokio::test]
async fn a_model_that_nobody_asks_is_unloaded_until_somebody_does() {
    let daemon = Daemon::ready(&format!("{FAST}[engine]\nidle_unload_s = 1\n")).await;
    let asleep = |status: &Value| status["model"]["state"] == "unloaded";
    for _ in 0..2 {
        let status = until(&daemon, "asleep", asleep).await;
        assert_eq!((&status["ready"], &status["reasons"]), (&json!(true), &json!([])), "{status}");
        assert_eq!(http::get(&daemon.socket, "/readyz").await.0, StatusCode::OK);
        let mut body = endless(4);
        body["stream"] = json!(false);
        let (code, answer) = http::post(&daemon.socket, "/v1/completions", &body).await;
        assert_eq!((code, answer["usage"]["completion_tokens"].as_u64()), (StatusCode::OK, Some(4)), "{answer}");
    }
    assert!(daemon.stop().await.success());
}
