//! Start and stop: models that cannot be loaded, sockets that are taken, signals.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{fs, os::unix::net::UnixListener};

use hyper::StatusCode;
use serde_json::json;
use support::{
    daemon::{Daemon, model},
    http,
};

fn question() -> serde_json::Value {
    json!({"model": "model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
}

/// The daemon stays up, says why, and answers 503; once the file is good it becomes ready by itself.
async fn recovers(bad: Option<&[u8]>, word: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    if let Some(bytes) = bad {
        fs::write(&path, bytes).unwrap();
    }
    let mut daemon = Daemon::start(&path, "");
    let line = daemon.line().await;
    assert!(line.starts_with("temperd not ready reason=") && line.contains(word), "{line}");
    let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &question()).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (503, Some("model_unavailable")), "{answer}");
    let (status, ready) = http::get(&daemon.socket, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{ready}");
    assert_eq!(http::get(&daemon.socket, "/healthz").await.0, StatusCode::OK);
    let (_, status) = http::get(&daemon.socket, "/v1/status").await;
    assert_eq!(status["model"]["state"], "failed");
    assert!(status["model"]["error"].as_str().unwrap().contains(word), "{status}");

    let copy = folder.path().join("copy");
    fs::copy(model(), &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    let line = daemon.line().await;
    assert!(line.starts_with("temperd ready "), "{line}\n{}", daemon.log_text());
    let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &question()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_missing_model_is_no_end() {
    recovers(None, "model.gguf").await;
}

#[tokio::test]
async fn a_truncated_model_is_no_end() {
    let bytes = fs::read(model()).unwrap();
    recovers(Some(&bytes[..bytes.len() / 2]), "truncated").await;
}

#[tokio::test]
async fn a_file_that_is_no_model_is_no_end() {
    recovers(Some(b"this is a text file, and a long one at that, but no model at all"), "GGUF").await;
}

#[tokio::test]
async fn hangup_tries_the_model_again() {
    let folder = tempfile::tempdir().unwrap();
    // A link into another folder: what is there is not watched.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let link = folder.path().join("model.gguf");
    std::os::unix::fs::symlink(elsewhere.join("real.gguf"), &link).unwrap();
    let mut daemon = Daemon::start(&link, "");
    assert!(daemon.line().await.starts_with("temperd not ready"));
    fs::copy(model(), elsewhere.join("real.gguf")).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    assert!(daemon.line().await.starts_with("temperd ready "));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let first = Daemon::ready("").await;
    let config = format!("[engine]\nmodel = {:?}\n[socket]\npath = {:?}\n", model(), first.socket);
    let file = first.folder.path().join("second.toml");
    fs::write(&file, config).unwrap();
    let second = tokio::process::Command::new(env!("CARGO_BIN_EXE_temperd"))
        .args(["run", "--config"])
        .arg(&file)
        .output()
        .await
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("temperd.sock") && said.contains("running"), "{said}");
    assert_eq!(http::get(&first.socket, "/healthz").await.0, StatusCode::OK, "the first one lives on");

    // A socket that nobody listens to any more.
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("temperd.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let mut third = Daemon::start_with_own_socket(&model(), "", &stale);
    assert!(third.line().await.starts_with("temperd ready "));
    assert_eq!(http::get(&stale, "/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_engine_that_is_killed_is_replaced() {
    let mut daemon = Daemon::ready("").await;
    let engine = daemon.engine_pid();
    let pid = rustix::process::Pid::from_raw(engine).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut status = json!({});
    let started = std::time::Instant::now();
    while status["engine"]["restarts"] != 1 || status["ready"] != true {
        status = http::get(&daemon.socket, "/v1/status").await.1;
        assert!(started.elapsed() < support::daemon::PATIENCE, "{status}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut body = question();
    body["model"] = status["model"]["name"].clone();
    let (code, answer) = http::post(&daemon.socket, "/v1/chat/completions", &body).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}
