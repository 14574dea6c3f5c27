//! Models whose memory is no plain KV cache: one state per sequence, or a sliding window. Whatever cannot be shared is
//! read again, and no answer changes by what runs beside or ran before. And models that cannot answer at all.

#[path = "engine/harness.rs"]
mod harness;
#[path = "support/make.rs"]
mod make;
mod support;

use std::path::Path;

use harness::{Answer, Engine, greedy, load, start};
use support::{daemon::Daemon, http};
use temperd::wire::engine::{Load, Sampling, Start};

/// The end tokens of the tiny models are out of the question, so that every answer is as long as asked for.
const ENDS: [u32; 3] = [0, 1, 2];
const ANSWER: u32 = 70;
/// Random weights make many tokens nearly equally likely.
const NEAR: f32 = 0.002;
/// What all prompts begin with, far longer than the window of 32.
const COMMON: usize = 200;

/// Tokens without any pattern, another text for each `seed`.
fn noise(seed: u64, count: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        3 + u32::try_from(state >> 33).expect("31 bits") % 400
    };
    (0..count).map(|_| next()).collect()
}

/// Prompts that begin alike: whole ones with something of their own, and ones that leave the common part early.
fn prompts() -> Vec<Vec<u32>> {
    let common = noise(1, COMMON);
    let with = |from: usize, seed, count| [&common[..from], &noise(seed, count)].concat();
    vec![
        with(COMMON, 2, 30),
        with(COMMON, 3, 5),
        with(COMMON, 4, 90),
        with(100, 5, 20),
        with(40, 6, 60),
        with(COMMON, 2, 30),
        with(150, 7, 1),
        with(COMMON, 8, 1),
    ]
}

fn asked(id: u64, prompt: Vec<u32>) -> Start {
    let sampling = Sampling { logit_bias: ENDS.map(|token| (token, f32::NEG_INFINITY)).into(), ..greedy() };
    Start { logprobs: true, top_logprobs: 2, scope: 7, sampling: Some(sampling), ..start(id, prompt, ANSWER) }
}

fn engine(file: &Path) -> Engine {
    // So few cells that they are filled again and again.
    Engine::loaded_with(Load { context: 1536, parallel: 4, n_ubatch: 64, lookup_always: true, ..load(file) }).0
}

/// Each alone in an engine of its own, then all in one: four at once, and one after the other.
fn answers_do_not_depend_on_company(kind: &str) -> Vec<Answer> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = make::model(kind, folder.path());
    let prompts = prompts();
    let alone: Vec<_> = prompts.iter().map(|prompt| engine(&file).answer(asked(1, prompt.clone()))).collect();
    assert!(alone.iter().all(|answer| answer.tokens.len() == ANSWER as usize));
    assert_ne!(alone[0].tokens, alone[1].tokens);

    let mut engine = engine(&file);
    let mut answers = Vec::new();
    for round in 0..3 {
        for four in prompts.chunks(4) {
            for (id, prompt) in (1..).zip(four) {
                engine.start(asked(id, prompt.clone()));
            }
            answers.extend((1..=4).map(|id| engine.finish(id)));
        }
        for (prompt, nth) in prompts.iter().zip(100..) {
            answers.push(engine.answer(asked(9, prompt.clone())));
            // Nothing is kept of nobody's: its cells are filled anew, and with them those that no window sees any more.
            engine.answer(Start { scope: 0, ..asked(10, noise(nth, 250)) });
        }
        for (nth, answer) in answers.iter().enumerate() {
            assert_eq!(answer.error, None);
            answer.assert_like(&alone[nth % prompts.len()], NEAR, &format!("{kind}, round {round}, answer {nth}"));
        }
    }
    answers
}

#[test]
fn a_recurrent_model_reads_each_prompt_whole_and_drafts_nothing() {
    let answers = answers_do_not_depend_on_company("mamba");
    assert!(answers.iter().all(|answer| answer.cached == Some(0) && answer.drafted == 0));
}

#[test]
fn a_sliding_window_shares_what_is_still_there_and_reads_the_rest_again() {
    let answers = answers_do_not_depend_on_company("window");
    assert!(answers.iter().any(|answer| answer.cached > Some(0)), "nothing was shared");
    assert!(answers.iter().any(|answer| answer.drafted > 0), "nothing was drafted");
}

#[tokio::test]
async fn a_model_that_writes_nothing_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(&make::model("bert", folder.path()), "");
    let line = daemon.line().await;
    assert!(line.starts_with("temperd not ready "), "{line}");
    let (_, status) = http::get(&daemon.socket, "/v1/status").await;
    assert_eq!(status["model"]["state"], "failed", "{status}");
    let error = status["model"]["error"].as_str().expect("a reason");
    assert!(error.contains("architecture bert, an encoder") && error.contains("engine.model"), "{error}");
}
