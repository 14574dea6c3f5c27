//! Engines that are killed, abort and hang beneath running answers, and binaries that are replaced meanwhile; daemon, engine
//! and model are real.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use hyper::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, install, until},
    http,
    stream::{Stream, endless},
};

/// Four answers of some length, in one of which the next token is drawn and in one of which it must not come again.
const STREAMS: usize = 4;
const TOKENS: u32 = 120;
/// What one has written does not depend on what ran beside it.
const INVARIANT: &str = "[engine]\nbatch_invariant = true\n";

fn asked(number: usize) -> Value {
    let mut body = endless(TOKENS);
    body["prompt"] = json!(format!("{number} is a number. Count: one, two,"));
    match number {
        0 => (body["temperature"], body["seed"]) = (json!(0.9), json!(5)),
        1 => body["frequency_penalty"] = json!(1.5),
        _ => {}
    }
    body
}

/// All of them, each with some pieces of its answer.
async fn begun(daemon: &Daemon) -> Vec<Stream> {
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        streams.push(Stream::start(daemon, &asked(number)).await);
    }
    pieces(&mut streams, 10).await;
    streams
}

async fn pieces(streams: &mut [Stream], count: usize) {
    for stream in streams {
        stream.pieces(count).await;
    }
}

async fn texts(streams: Vec<Stream>) -> Vec<String> {
    let mut texts = Vec::new();
    for stream in streams {
        texts.push(stream.rest().await);
    }
    texts
}

/// Signals the engine.
fn signal(daemon: &Daemon, signal: Signal) -> Pid {
    let engine = Pid::from_raw(daemon.engine_pid()).unwrap();
    kill_process(engine, signal).unwrap();
    engine
}

async fn replaced(daemon: &Daemon, times: u32) -> Value {
    until(daemon, "replaced", |status| status["engine"]["restarts"] == times && status["ready"] == true).await
}

#[tokio::test]
async fn four_streams_survive_an_engine_that_aborts_and_one_that_hangs_and_have_the_same_texts() {
    let daemon = Daemon::ready(INVARIANT).await;
    let undisturbed = texts(begun(&daemon).await).await;
    let mut streams = begun(&daemon).await;
    signal(&daemon, Signal::ABORT);
    pieces(&mut streams, 10).await;
    let stopped = signal(&daemon, Signal::STOP);
    assert_eq!(texts(streams).await, undisturbed, "every token once");
    replaced(&daemon, 2).await;
    rustix::process::test_kill_process(stopped).expect_err("it was killed");
    let log = daemon.log_text();
    for part in ["the engine was ended by signal 6", "the engine hangs"] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
}

#[tokio::test]
async fn a_request_that_ran_in_three_engines_that_were_killed_is_given_up_and_no_other() {
    let daemon = Daemon::ready("").await;
    let ask = |tokens| {
        let (socket, mut body) = (daemon.socket.clone(), endless(tokens));
        body["stream"] = json!(false);
        tokio::spawn(async move { http::post(&socket, "/v1/completions", &body).await })
    };
    // It would not be done before the last of them.
    let deadly = ask(4000);
    until(&daemon, "running", |status| status["running"] == 1).await;
    for killed in 1..=2 {
        signal(&daemon, Signal::KILL);
        replaced(&daemon, killed).await;
    }
    let other = ask(4);
    until(&daemon, "waiting", |status| status["queue"]["depth"] == 1).await;
    signal(&daemon, Signal::KILL);
    let (code, answer) = deadly.await.unwrap();
    assert_eq!((code.as_u16(), answer["error"]["code"].as_str()), (500, Some("poison")), "{answer}");
    let (code, answer) = other.await.unwrap();
    assert_eq!(code, StatusCode::OK, "{answer}");
}

/// Puts another file in the place of one, as a package is upgraded: beside it, then renamed.
fn replace(folder: &Path, name: &str, script: &str) {
    let beside = folder.join(format!("{name}.dpkg-new"));
    fs::write(&beside, script).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(beside, folder.join(name)).unwrap();
}

#[tokio::test]
async fn four_streams_survive_an_upgrade_of_both_binaries_with_an_engine_killed_in_the_middle_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let programs =
        [("temperd", env!("CARGO_BIN_EXE_temperd")), ("temperd-engine", env!("CARGO_BIN_EXE_temperd-engine"))];
    for (name, program) in programs {
        install(program.as_ref(), folder.path(), name);
    }
    let mut daemon = Daemon::start_installed(folder, INVARIANT, &[]);
    assert!(daemon.line().await.starts_with("temperd ready "), "{}", daemon.log_text());
    let undisturbed = texts(begun(&daemon).await).await;
    let mut streams = begun(&daemon).await;
    let tried = daemon.folder.path().join("tried");
    let newer = format!("#!/bin/sh\necho $0 >>'{}'\nexit 1\n", tried.display());
    replace(daemon.folder.path(), "temperd-engine", &newer);
    signal(&daemon, Signal::KILL);
    replace(daemon.folder.path(), "temperd", &newer);
    pieces(&mut streams, 10).await;
    // And once more, with all of it new.
    signal(&daemon, Signal::KILL);
    assert_eq!(texts(streams).await, undisturbed, "every token once");
    replaced(&daemon, 2).await;
    assert!(!tried.exists(), "the newer engine is not of this daemon's build");
    let name = fs::read_to_string(format!("/proc/{}/comm", daemon.engine_pid())).unwrap();
    assert_eq!(name.trim_end(), "temperd-engine");
    assert!(daemon.stop().await.success());
}
