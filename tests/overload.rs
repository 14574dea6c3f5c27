//! A flood of a hundred times what there is room for: each request has one outcome or is told when to come again, those that
//! were taken are answered, and afterwards all is as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::json;
use support::{
    daemon::{Daemon, PATIENCE, until},
    http,
};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";
/// Requests that run and that wait.
const PARALLEL: u32 = 2;
const QUEUE: u32 = 6;
const CAPACITY: u32 = PARALLEL + QUEUE;
/// How many times as many are asked at once.
const TIMES: u32 = 100;
/// Who asks.
const CLIENTS: u32 = 10;
/// The least that a client is told before anything was measured: five seconds for each request of its share, of which two
/// run at once.
const GUESS_MS: u64 = 5000 * (CAPACITY as u64 / 2) / PARALLEL as u64;
/// Floods one after the other. The first two make room for as many connections at once; then nothing more is needed.
const FLOODS: usize = 5;
/// Bytes by which the daemon may have grown after those two: under 2 KiB for each request of the rest, and one that is kept
/// takes more. What is measured is 1.2 MiB, which the allocator loses between its pieces.
const GROWTH: u64 = 4 * 1024 * 1024;

fn toml() -> String {
    // We may speak for others, so that a share is not all.
    let uid = rustix::process::getuid().as_raw();
    format!(
        "[engine]\nparallel = {PARALLEL}\n[socket]\ngateways = [{uid}]\n\
         [limits]\nqueue = {QUEUE}\nshare = 50\n"
    )
}

/// The counter of `/metrics` with this beginning, summed up over its labels.
async fn count(daemon: &Daemon, beginning: &str) -> u64 {
    let (_, metrics) = http::get(&daemon.socket, "/metrics").await;
    let lines = metrics.as_str().unwrap().lines().filter(|line| line.starts_with(beginning));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

async fn is_empty(daemon: &Daemon) {
    until(daemon, "empty", |status| status["running"] == 0 && status["queue"]["depth"] == 0).await;
}

/// One request over HTTP: answered, or the seconds until it may come again.
async fn ask(daemon: &Daemon, user: &str, n: u32) -> Result<(), u64> {
    let body = json!({"model": MODEL, "prompt": format!("{n} is"), "max_tokens": 8, "stream": n.is_multiple_of(2),
        "user": user});
    let response = http::send(&daemon.socket, Method::POST, "/v1/completions", body.to_string()).await;
    let status = response.status();
    let seconds = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body);
    match status {
        StatusCode::OK => {
            assert_eq!(text.matches("\"finish_reason\":\"").count(), 1, "one end: {text}");
            Ok(())
        }
        StatusCode::TOO_MANY_REQUESTS => {
            assert!(text.contains("queue_full") || text.contains("share_exceeded"), "{text}");
            Err(seconds.expect("a hint when to come again"))
        }
        other => panic!("{other}: {text}"),
    }
}

#[tokio::test]
async fn a_flood_over_http_is_answered_or_told_when_to_come_again() {
    let daemon = Daemon::ready(&toml()).await;
    let mut memory = Vec::new();
    let (mut answered, mut refused) = (0, 0);
    for flood in 0..FLOODS {
        let users: Vec<String> = (0..CLIENTS).map(|n| format!("u{n}")).collect();
        let all =
            (0..).zip(users.iter().cycle()).take((TIMES * CAPACITY) as usize).map(|(n, user)| ask(&daemon, user, n));
        let outcomes =
            tokio::time::timeout(PATIENCE, futures_util::future::join_all(all)).await.expect("all have an end");
        let hints: Vec<u64> = outcomes.iter().filter_map(|outcome| outcome.err()).collect();
        answered += outcomes.len() as u64 - hints.len() as u64;
        refused += hints.len() as u64;
        assert!(outcomes.len() - hints.len() >= CAPACITY as usize, "all that there was room for");
        assert!(hints.len() >= ((TIMES - 10) * CAPACITY) as usize, "{} were refused", hints.len());
        // By the time of the second one it is known how long an answer takes.
        let longest = *hints.iter().max().unwrap();
        assert!(flood == 0 || longest * 1000 < GUESS_MS, "told to come again after {longest} s");
        is_empty(&daemon).await;
        memory.push(daemon.anonymous_bytes());
    }
    assert_eq!(count(&daemon, "temperd_jobs_total{way_in=\"http\",outcome=\"completed\"").await, answered);
    assert_eq!(count(&daemon, "temperd_jobs_total{").await, answered, "no other outcome");
    assert_eq!(count(&daemon, "temperd_refused_total{way_in=\"http\"").await, refused);
    assert!(memory[FLOODS - 1] <= memory[1] + GROWTH, "{memory:?} bytes after each flood");
    assert_eq!(ask(&daemon, "u1", 1).await, Ok(()));
}

#[tokio::test]
async fn one_who_floods_leaves_room_for_another() {
    let daemon = Daemon::ready(&toml()).await;
    let flood = futures_util::future::join_all((0..TIMES * CAPACITY / 2).map(|n| ask(&daemon, "flood", n)));
    let other = async {
        until(&daemon, "flooded", |status| status["running"] == PARALLEL).await;
        for n in 0..3 {
            assert_eq!(ask(&daemon, "other", n).await, Ok(()), "there is always a place for it");
        }
    };
    let (flood, ()) = tokio::join!(flood, other);
    assert!(flood.iter().any(Result::is_err));
}
