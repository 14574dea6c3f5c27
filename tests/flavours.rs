//! Flavours of the engine beside an installed daemon: which is tried, which lives, and what the status says of it. The
//! daemon and the engine for the CPU are real; flavours for a GPU are played by this test.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{
    env, fs,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    thread,
    time::Duration,
};

use hyper::StatusCode;
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, install, until},
    http,
    stream::MODEL,
};
use temperd::{
    cli::client,
    engine::frames,
    wire::{
        engine::{
            FromEngine, Heartbeat, Hello, LoadFailed, Ready, ToEngine, Tokenise, Tokenised, Vocabulary,
            from_engine::Frame, to_engine,
        },
        v1::{self, control_client::ControlClient},
    },
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Layers of the played device.
const LAYERS: u32 = 5;
const FAST: &str = "[governor]\ninterval_ms = 100\n";

// === the flavours that are played ===

/// Not a test: what is started as an engine for a GPU. `PLAYS` says how it goes.
#[test]
#[ignore = "it is the engine that the other tests start"]
fn engine() {
    let Ok(plays) = env::var("PLAYS") else { return };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut socket = UnixStream::from(stdin);
    let say = |socket: &mut UnixStream, frame| frames::write(socket, &FromEngine { frame: Some(frame) }).unwrap();
    let build = if plays == "older" { "0.0.0" } else { frames::BUILD };
    say(&mut socket, Frame::Hello(Hello { protocol: frames::PROTOCOL, build: build.into(), flavour: "cuda".into() }));
    while let Some(ToEngine { frame: Some(frame) }) = frames::read(&mut socket).unwrap() {
        let load = match frame {
            to_engine::Frame::Load(load) => load,
            to_engine::Frame::Tokenise(Tokenise { id, .. }) => {
                say(&mut socket, Frame::Tokenised(Tokenised { id, tokens: vec![1, 2, 3], ..Tokenised::default() }));
                continue;
            }
            // As ggml does where a device fails in the middle of a step.
            to_engine::Frame::Start(_) => std::process::abort(),
            _ => continue,
        };
        if plays == "aborts" {
            std::process::abort();
        }
        let asked = u32::try_from(load.gpu_layers).unwrap_or(LAYERS);
        let failed = |message: &str, no_device| LoadFailed { message: message.into(), no_device };
        match plays.as_str() {
            "no device" => say(&mut socket, Frame::LoadFailed(failed("the cuda engine finds no device", true))),
            "no room" if asked > 0 => {
                say(&mut socket, Frame::LoadFailed(failed("unable to allocate CUDA0 buffer", false)));
            }
            _ => {
                let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
                let vocabulary = Vocabulary { chat_template: Some(template.into()), ..Vocabulary::default() };
                say(&mut socket, Frame::Vocabulary(vocabulary));
                let (context, gpu_layers) = (load.context, asked.min(LAYERS));
                say(&mut socket, Frame::Ready(Ready { context, gpu_layers, layers: LAYERS, ..Ready::default() }));
                beat(socket.try_clone().unwrap());
            }
        }
    }
}

/// An idle engine's heartbeats, as long as anybody listens.
fn beat(mut socket: UnixStream) {
    thread::spawn(move || {
        while frames::write(&mut socket, &FromEngine { frame: Some(Frame::Heartbeat(Heartbeat::default())) }).is_ok() {
            thread::sleep(Duration::from_secs(1));
        }
    });
}

/// Installs an engine that does so.
fn play(folder: &Path, name: &str, plays: &str) {
    let exe = env::current_exe().unwrap();
    script(folder, name, &format!("PLAYS='{plays}' exec '{}' engine --exact --ignored", exe.display()));
}

fn script(folder: &Path, name: &str, line: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\necho {name} >>'{}/tried'\n{line}\n", folder.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

// === the test's side ===

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    install(env!("CARGO_BIN_EXE_temperd").as_ref(), folder.path(), "temperd");
    folder
}

fn with_cpu() -> tempfile::TempDir {
    let folder = folder();
    install(env!("CARGO_BIN_EXE_temperd-engine").as_ref(), folder.path(), "temperd-engine");
    folder
}

async fn ready(folder: tempfile::TempDir, toml: &str) -> Daemon {
    let mut daemon = Daemon::start_installed(folder, toml, &[]);
    let line = daemon.line().await;
    assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
    daemon
}

/// Flavours for a GPU that were started, in order.
fn tried(daemon: &Daemon) -> Vec<String> {
    let tried = fs::read_to_string(daemon.folder.path().join("tried")).unwrap_or_default();
    tried.lines().map(Into::into).collect()
}

fn is(flavour: &str, degraded: bool) -> impl Fn(&Value) -> bool {
    move |status| {
        let engine = &status["engine"];
        status["ready"] == true && engine["flavour"] == flavour && engine["degraded"] == degraded
    }
}

fn question() -> Value {
    json!({"model": MODEL, "prompt": "One, two,", "max_tokens": 2})
}

async fn answers(daemon: &Daemon) {
    let (code, answer) = http::post(&daemon.socket, "/v1/completions", &question()).await;
    assert!(code.is_success(), "{answer}");
}

async fn pin(daemon: &Daemon, gpu_layers: Option<u32>) {
    let mut operator = ControlClient::new(client::connect(Some(daemon.socket.clone())).await.expect("connected"));
    let operating_point = Some(v1::Pin { gpu_layers, ..v1::Pin::default() });
    operator.set_operating_point(v1::SetOperatingPointRequest { operating_point }).await.expect("pinned");
}

#[tokio::test]
async fn without_a_device_and_of_another_build_they_are_passed_over_for_the_cpu() {
    let folder = with_cpu();
    play(folder.path(), "temperd-engine-cuda", "no device");
    play(folder.path(), "temperd-engine-vulkan", "older");
    let daemon = ready(folder, "").await;
    let status = until(&daemon, "degraded", is("cpu", true)).await;
    assert_eq!((&status["engine"]["restarts"], &status["operating_point"]["gpu_layers"]), (&json!(0), &json!(0)));
    assert_eq!(tried(&daemon), ["temperd-engine-cuda", "temperd-engine-vulkan"]);
    let log = daemon.log_text();
    for part in ["the cuda engine finds no device", "is of build 0.0.0", "no device is there"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    answers(&daemon).await;
}

#[tokio::test]
async fn one_that_ends_before_it_says_hello_is_passed_over() {
    let folder = with_cpu();
    script(folder.path(), "temperd-engine-cuda", "exit 127");
    script(folder.path(), "temperd-engine-vulkan", "echo hello >&0; exec sleep 60");
    let daemon = ready(folder, "").await;
    until(&daemon, "degraded", is("cpu", true)).await;
    assert!(daemon.log_text().contains("says nothing: the engine ended with exit code 127"), "{}", daemon.log_text());
    answers(&daemon).await;
}

#[tokio::test]
async fn without_layers_none_for_a_gpu_is_started() {
    let folder = with_cpu();
    play(folder.path(), "temperd-engine-cuda", "a device");
    let daemon = ready(folder, "[engine]\ngpu_layers = 0\n").await;
    until(&daemon, "on the CPU", is("cpu", false)).await;
    assert!(tried(&daemon).is_empty());
    answers(&daemon).await;
}

#[tokio::test]
async fn layers_that_are_asked_for_by_number_are_missed_where_there_is_no_flavour_for_them() {
    let daemon = ready(with_cpu(), "[engine]\ngpu_layers = 12\n").await;
    until(&daemon, "degraded", is("cpu", true)).await;
    drop(daemon);
    let daemon = ready(with_cpu(), "").await;
    until(&daemon, "as it should be", is("cpu", false)).await;
}

#[tokio::test]
async fn a_pin_of_no_layers_takes_the_engine_for_the_cpu_and_back() {
    let folder = with_cpu();
    play(folder.path(), "temperd-engine-cuda", "a device");
    let daemon = ready(folder, FAST).await;
    let layers = |count: u32| move |status: &Value| status["operating_point"]["gpu_layers"] == count;
    // The last is how many engines for the device have been started by then: the status has the layers that are wanted a
    // moment before the next engine is there.
    for (pinned, flavour, expected, started) in [
        (None, "cuda", LAYERS, 1),
        (Some(2), "cuda", 2, 2),
        (Some(0), "cpu", 0, 2),
        (Some(3), "cuda", 3, 3),
        (None, "cuda", LAYERS, 4),
    ] {
        pin(&daemon, pinned).await;
        let all_started = || tried(&daemon).len() == started;
        let right = |status: &Value| is(flavour, false)(status) && layers(expected)(status) && all_started();
        let status = until(&daemon, "changed", right).await;
        assert_eq!(status["engine"]["restarts"], 0, "{status}");
        if flavour == "cpu" {
            answers(&daemon).await;
        }
    }
}

#[tokio::test]
async fn a_device_without_room_is_tried_with_fewer_layers_and_ends_on_the_cpu() {
    let folder = with_cpu();
    play(folder.path(), "temperd-engine-cuda", "no room");
    play(folder.path(), "temperd-engine-vulkan", "a device");
    let daemon = ready(folder, FAST).await;
    let status = until(&daemon, "degraded", is("cpu", true)).await;
    let reason = &status["reason"];
    assert_eq!((&reason["code"], &reason["reading"]), (&json!("load_failed"), &json!("gpu_layers")), "{status}");
    let tried = tried(&daemon);
    assert!(tried.len() > 1 && tried.iter().all(|name| name == "temperd-engine-cuda"), "{tried:?}");
    // A pin to what there is anyway takes nothing from the operator.
    pin(&daemon, Some(0)).await;
    until(&daemon, "no lack", is("cpu", false)).await;
    answers(&daemon).await;
}

#[tokio::test]
async fn where_none_is_of_use_the_status_names_each_and_sighup_tries_again() {
    let folder = folder();
    play(folder.path(), "temperd-engine-vulkan", "older");
    script(folder.path(), "temperd-engine", "echo hello >&0; exec sleep 60");
    let mut daemon = Daemon::start_installed(folder, "", &[]);
    let line = daemon.line().await;
    assert!(line.starts_with("temperd not ready reason="), "{line}");
    let status = until(&daemon, "failed", |status| status["model"]["state"] == "failed").await;
    let error = status["model"]["error"].as_str().unwrap();
    for part in ["temperd-engine-vulkan is of build 0.0.0", "temperd-engine is no temperd-engine"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    assert_eq!(status["engine"]["flavour"], "", "{status}");
    fs::remove_file(daemon.folder.path().join("temperd-engine")).unwrap();
    install(env!("CARGO_BIN_EXE_temperd-engine").as_ref(), daemon.folder.path(), "temperd-engine");
    daemon.signal(rustix::process::Signal::HUP);
    until(&daemon, "degraded", is("cpu", true)).await;
}

// === flavours that die ===

#[tokio::test]
async fn a_device_that_ends_its_engine_in_every_step_ends_on_the_cpu_and_loses_no_request() {
    let folder = with_cpu();
    play(folder.path(), "temperd-engine-cuda", "a device");
    let daemon = ready(folder, FAST).await;
    until(&daemon, "on the device", is("cuda", false)).await;
    // It is there for the one that two engines died of, too.
    answers(&daemon).await;
    let status = until(&daemon, "degraded", is("cpu", true)).await;
    assert_eq!((&status["reason"]["code"], &status["engine"]["restarts"]), (&json!("crashed"), &json!(2)), "{status}");
    assert_eq!(tried(&daemon).len(), 2);
}

#[tokio::test]
async fn while_no_engine_lives_through_its_load_the_daemon_says_so_and_holds_what_comes() {
    let folder = folder();
    play(folder.path(), "temperd-engine", "aborts");
    let mut daemon = Daemon::start_installed(folder, "[limits]\nqueue = 2\nshare = 100\n", &[]);
    let line = daemon.line().await;
    assert!(line.starts_with("temperd not ready reason=") && line.contains("signal 6"), "{line}");
    let crashed = |status: &Value| status["reasons"] == json!(["model_loading", "engine_crashed"]);
    let status = until(&daemon, "tried again", |status| crashed(status) && tried(&daemon).len() > 2).await;
    assert_eq!((&status["ready"], &status["model"]["state"]), (&json!(false), &json!("loading")), "{status}");
    assert_eq!(status["model"]["error"], "the engine was ended by signal 6", "{status}");
    assert_eq!(http::get(&daemon.socket, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let mut health = HealthClient::new(client::connect(Some(daemon.socket.clone())).await.expect("connected"));
    let mut serving = async || {
        let asked = HealthCheckRequest { service: String::new() };
        health.check(asked).await.expect("an answer").into_inner().status()
    };
    assert_eq!(serving().await, ServingStatus::NotServing);

    let waiting = [(); 2].map(|()| {
        let socket = daemon.socket.clone();
        tokio::spawn(async move { http::post(&socket, "/v1/completions", &question()).await })
    });
    until(&daemon, "waiting", |status| status["queue"]["depth"] == 2).await;
    let (code, answer) = http::post(&daemon.socket, "/v1/completions", &question()).await;
    assert_eq!((code.as_u16(), answer["error"]["code"].as_str()), (429, Some("queue_full")), "{answer}");

    let path = daemon.folder.path();
    install(env!("CARGO_BIN_EXE_temperd-engine").as_ref(), path, "better");
    fs::rename(path.join("better"), path.join("temperd-engine")).unwrap();
    for waits in waiting {
        let (code, answer) = waits.await.unwrap();
        assert_eq!(code, StatusCode::OK, "{answer}");
    }
    assert!(daemon.line().await.starts_with("temperd ready "));
    let status = until(&daemon, "ready", |status| status["ready"] == true).await;
    assert_eq!((&status["model"]["error"], &status["reasons"]), (&Value::Null, &json!([])), "{status}");
    assert_eq!(serving().await, ServingStatus::Serving);
}
