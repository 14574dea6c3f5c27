//! What is written where there is no room: `/dev/full` takes no byte and says `ENOSPC`, as a full disk does.

mod support;

use std::{
    fs::File,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::json;
use support::{
    daemon::{Daemon, PATIENCE, model},
    http,
};
use tokio::process::Command;

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("Linux has it")
}

/// Runs a client with its standard output on the full disk.
async fn client(daemon: &Daemon, command: &str, arguments: &[&str]) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_temperd"))
        .arg(command)
        .arg("--socket")
        .arg(&daemon.socket)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").expect("waited")
}

#[tokio::test]
async fn a_daemon_that_cannot_log_answers_and_stops_as_always() {
    let mut daemon = Daemon::start_with_log(&model(), "[log]\nlevel = \"trace\"\n", Path::new("/dev/full"));
    let line = daemon.line().await;
    assert!(line.starts_with("temperd ready "), "{line}");
    let name = "SmolLM2-135M-Instruct.Q4_1";
    let question = json!({"model": name, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4});
    let (status, answer) = http::post(&daemon.socket, "/v1/chat/completions", &question).await;
    assert_eq!(status, 200, "{answer}");
    // A refusal is a log line.
    let (status, _) = http::post(&daemon.socket, "/v1/chat/completions", &json!({"model": name, "messages": []})).await;
    assert_eq!(status, 400);
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn clients_say_that_the_answer_could_not_be_written() {
    let daemon = Daemon::ready("").await;
    for (command, arguments) in [("ask", &["--json", "Say hello."][..]), ("ask", &["Say hello."]), ("status", &[])] {
        let output = client(&daemon, command, arguments).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command} {arguments:?}: {said}");
        assert!(said.contains("cannot write") && said.contains("No space left"), "{command} {arguments:?}: {said}");
    }
}
