//! The clients that others wrote: OpenAI's Python package and gRPC stubs made from `proto/`, against a real daemon.
//! `scripts/setup --tests` makes the Python environment; `TEMPERD_TEST_PYTHON` names its interpreter.

mod support;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use support::{
    daemon::{Daemon, PATIENCE},
    mosquitto::Mosquitto,
};

fn python() -> PathBuf {
    std::env::var_os("TEMPERD_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python"), PathBuf::from)
}

async fn run(script: &str, arguments: &[&OsStr]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let child = tokio::process::Command::new(python()).arg(script).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, child).await.expect("it ends").expect("python runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
async fn the_openai_client() {
    let daemon = Daemon::ready("").await;
    run("openai_client.py", &[daemon.socket.as_os_str()]).await;
}

#[tokio::test]
async fn stubs_made_from_the_proto_files() {
    let daemon = Daemon::ready("").await;
    let stubs = tempfile::tempdir().expect("a folder");
    run("grpc_client.py", &[daemon.socket.as_os_str(), stubs.path().as_os_str()]).await;
}

#[tokio::test]
async fn a_device_that_speaks_protobuf_over_mqtt() {
    let broker = Mosquitto::start();
    let port = broker.port().to_string();
    let url = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
    let _daemon = Daemon::ready(&format!("{url}[telemetry]\nformat = \"protobuf\"\ninterval_s = 1\n")).await;
    let stubs = tempfile::tempdir().expect("a folder");
    run("mqtt_client.py", &[OsStr::new(&port), OsStr::new("test"), stubs.path().as_os_str()]).await;
}
