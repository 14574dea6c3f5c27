//! System prompts of the configuration, in a whole daemon with the real small model.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use serde_json::json;
use support::{daemon::Daemon, http};

const TEXT: &str = "You are the voice of a small water works by the river. You know its pumps, its valves and its two halls, \
                    and you answer everybody who asks, in one short sentence and without any jokes.";

fn named(name: &str, text: &str) -> String {
    format!("[[system_prompt]]\nname = \"{name}\"\ntext = \"{text}\"\n")
}

/// Tokens of the first answer that were there already.
async fn cached(daemon: &Daemon, system: &str) -> u64 {
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": "Is the pump on?"}]);
    let body = json!({"model": "SmolLM2-135M-Instruct.Q4_1", "messages": messages, "max_tokens": 1});
    let (_, answer) = http::post(&daemon.socket, "/v1/chat/completions", &body).await;
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
}

/// Waits until the daemon's log says so.
async fn says(daemon: &Daemon, words: &str) {
    tokio::time::timeout(support::daemon::PATIENCE, async {
        while !daemon.log_text().contains(words) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{words:?} is not in the log\n{}", daemon.log_text()));
}

fn images(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state.join("prefixes")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn an_image_serves_the_next_start_and_goes_with_its_prompt() {
    let state = tempfile::tempdir().unwrap();
    let first = Daemon::ready_with_state(state.path(), &named("works", TEXT)).await;
    says(&first, "its image has").await;
    assert!(cached(&first, TEXT).await > 30);
    assert!(!first.log_text().contains("jokes"), "no text of a prompt in the log");
    first.stop().await;
    assert_eq!(images(state.path()), ["works.kv"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = state.path().join("prefixes");
    assert_eq!((mode(&folder), mode(&folder.join("works.kv"))), (0o700, 0o600));

    let second = Daemon::ready_with_state(state.path(), &named("works", TEXT)).await;
    says(&second, "tokens from its image").await;
    assert!(cached(&second, TEXT).await > 30);
    second.stop().await;

    let other = TEXT.replace("river", "sea");
    let third = Daemon::ready_with_state(state.path(), &named("works", &other)).await;
    says(&third, "it is of another text").await;
    says(&third, "its image has").await;
    assert!(cached(&third, &other).await > 30);
    third.stop().await;

    let fourth = Daemon::ready_with_state(state.path(), &named("harbour", &other)).await;
    says(&fourth, "its image has").await;
    assert_eq!(images(state.path()), ["harbour.kv"]);
    fourth.stop().await;

    let last = Daemon::ready_with_state(state.path(), "").await;
    says(&last, "removed the old image").await;
    assert_eq!(images(state.path()), [""; 0]);
}

#[tokio::test]
async fn without_a_place_for_state_it_is_read_at_each_start() {
    let daemon = Daemon::ready(&named("works", TEXT)).await;
    says(&daemon, "tokens are kept").await;
    assert!(cached(&daemon, TEXT).await > 30);
}
