//! The operating point changes while sequences run: not a token is lost, and not one is another.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of this file")]

#[path = "engine/bare.rs"]
mod bare;
#[path = "engine/harness.rs"]
mod harness;

use std::path::Path;

use bare::{Jobs, bare_loop, never_ending, text};
use harness::{Answer, Engine, load, model, start};
use temperd::wire::engine::{Load, Start};

/// Cells of the whole context, all of them there at first.
const FULL: u32 = 4096;
/// Streams, with the tokens that all of them begin with and those of their own.
const STREAMS: u64 = 8;
const COMMON: usize = 512;
const OWN: usize = 24;
const ANSWER: u32 = 72;
/// Cells that all of them fill in the end. One may begin to read for itself up to 16 tokens before the end of what is common.
const ALL: u32 = 512 + 8 * (24 + 72 + 16);
const CHANGES: usize = 20;

fn settings(model: &Path) -> Load {
    // Prompts are read in few steps, so that many changes come while streams run.
    Load { context: FULL, first_context: FULL, parallel: 9, step_target_ms: 3000, ..load(model) }
}

/// With the mode.
fn invariant(model: &Path) -> Load {
    Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".to_owned(), ..settings(model) }
}

fn asked(id: u64, prompt: Vec<u32>, answer: u32) -> Start {
    Start { sampling: Some(never_ending()), digests: true, scope: 7, ..start(id, prompt, answer) }
}

fn prompt(text: &[u32], nth: usize) -> Vec<u32> {
    [&text[..COMMON], &text[1000 + 50 * nth..][..OWN]].concat()
}

/// Cells as llama.cpp counts them.
fn rounded(cells: u32) -> u32 {
    cells.next_multiple_of(256)
}

/// Eight streams, and what `change` does between frames, so many times.
fn streams(load: Load, changes: usize, mut change: impl FnMut(&mut Engine, &[u32], usize)) -> Vec<(Vec<u32>, Answer)> {
    let (mut engine, _, ready) = Engine::loaded_with(load);
    assert_eq!(ready.allocated_context, FULL);
    let text = text(&mut engine);
    let mut random = fastrand::Rng::with_seed(5);
    let prompts: Vec<_> = (0..STREAMS as usize).map(|nth| prompt(&text, nth)).collect();
    // All are there before the second step: the pause after the first is long.
    engine.pace(0.01);
    for (id, prompt) in (1..).zip(&prompts) {
        engine.start(asked(id, prompt.clone(), ANSWER));
    }
    engine.pace(1.0);
    for nth in 0..changes {
        for _ in 0..random.usize(0..3) {
            engine.read();
        }
        change(&mut engine, &text, nth);
        assert!(engine.running() > 0, "change {nth} came too late");
    }
    let answers: Vec<_> = (1..=STREAMS).map(|id| engine.finish(id)).collect();
    for answer in &answers {
        assert_eq!((answer.error.as_deref(), answer.tokens.len()), (None, ANSWER as usize));
    }
    prompts.into_iter().zip(answers).collect()
}

/// Every row of logits is the one of a loop in which nothing else happens.
fn assert_bit_equal(found: &[(Vec<u32>, Answer)]) {
    let jobs: Jobs = found.iter().map(|(prompt, answer)| (prompt.clone(), answer.tokens.clone())).collect();
    for (nth, ((_, answer), alone)) in found.iter().zip(bare_loop(&model(), &jobs)).enumerate() {
        assert_eq!(answer.digests.len(), answer.tokens.len());
        let same = answer.digests.iter().zip(&alone).filter(|(a, b)| a == b).count();
        assert_eq!(same, answer.digests.len(), "stream {nth}");
    }
}

#[test]
fn changes_of_the_context_change_no_bit_of_any_stream() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut resized = 0;
    let found = streams(invariant(&model()), CHANGES, |engine, text, nth| {
        resized = engine.resized;
        if nth % 6 != 5 {
            // From what all of them will fill to less than there was.
            let context = random.u32(rounded(ALL)..FULL);
            let cache = ["keep", "shrunk", "live_only"][nth % 3];
            engine.operate(context, context, cache);
        } else {
            // Another one makes the cache grow again.
            engine.operate(FULL, FULL, "keep");
            let id = 100 + nth as u64;
            let length = random.usize(800..1200);
            engine.start(Start { scope: id, ..asked(id, text[600..][..length].to_vec(), 1) });
            assert_eq!(engine.finish(id).error, None);
        }
    });
    assert!(resized >= 5, "the cache has changed its size {resized} times");
    assert_bit_equal(&found);
}

/// Contexts in which not all have room: some leave the cache and come back, by copies and by reading again, beside prefixes
/// that are kept of others.
#[test]
fn nor_do_those_in_which_streams_have_to_wait() {
    let mut random = fastrand::Rng::with_seed(2);
    let mut parked = 0;
    let found = streams(invariant(&model()), CHANGES, |engine, text, nth| {
        if nth == 0 {
            let guest = engine.answer(Start { scope: 1, ..asked(50, text[1500..1800].to_vec(), 2) });
            assert_eq!(guest.error, None);
        }
        let context = if nth % 4 == 3 { FULL } else { random.u32(COMMON as u32 + 100..ALL) };
        engine.operate(context, context, ["keep", "keep", "shrunk"][nth % 3]);
        parked = parked.max(engine.beats.iter().map(|beat| beat.parked).max().unwrap_or(0));
        if nth + 1 == CHANGES {
            engine.operate(FULL, FULL, "keep");
        }
    });
    assert!(parked > 0, "nobody had to wait");
    assert_bit_equal(&found);
}

/// Without the mode a token may depend on its company, so that is the same here: a row of a prompt per step, no drafts.
#[test]
fn without_the_mode_the_same_schedule_gives_the_same_texts() {
    let load = Load { n_ubatch: 1, lookup: false, ..settings(&model()) };
    let undisturbed = streams(load.clone(), 0, |_, _, _| {});
    let mut resized = 0;
    let mut contexts: Vec<u32> = (rounded(ALL)..FULL).step_by(256).collect();
    contexts.resize(CHANGES, FULL);
    fastrand::Rng::with_seed(3).shuffle(&mut contexts);
    contexts.sort_by_key(|context| std::cmp::Reverse(context / 1024));
    let changed = streams(load, CHANGES, |engine, _, nth| {
        engine.operate(contexts[nth], FULL, ["keep", "shrunk"][nth % 2]);
        resized = engine.resized;
    });
    assert!(resized > 0);
    for ((_, with), (_, without)) in changed.iter().zip(&undisturbed) {
        assert_eq!(with.text(), without.text());
        assert_eq!(with.tokens, without.tokens);
    }
}

fn engine(change: impl FnOnce(&mut Load)) -> (Engine, Vec<u32>) {
    let mut load = settings(&model());
    change(&mut load);
    let (mut engine, _, _) = Engine::loaded_with(load);
    let text = text(&mut engine);
    (engine, text)
}

#[test]
fn what_several_share_they_share_after_a_change_too() {
    let (mut engine, text) = engine(|_| {});
    for id in 1..=STREAMS {
        engine.start(asked(id, prompt(&text, id as usize), ANSWER));
    }
    for id in 1..=STREAMS {
        engine.until_output(id);
    }
    engine.operate(2048, 2048, "keep");
    while engine.resized == 0 {
        engine.read();
    }
    assert_eq!(engine.allocated, 2048);
    let beat = engine.beat(|beat| beat.sequences == STREAMS as u32 && beat.steps > 0);
    assert!(beat.live_tokens <= ALL, "{beat:?}");
    assert!(beat.used_cells > 8 * COMMON as u32, "{beat:?}");
    // What all may fill fits, so nothing more is needed until their end.
    engine.operate(rounded(ALL), rounded(ALL), "live_only");
    for id in 1..=STREAMS {
        assert_eq!(engine.finish(id).error, None);
    }
    assert!(engine.beats.iter().all(|beat| beat.parked == 0));
    assert!(engine.allocated <= rounded(ALL));
}

#[test]
fn the_least_urgent_wait_and_come_back_most_urgent_first() {
    let (mut engine, text) = engine(|load| load.lookup = false);
    let long = |id: u64, priority| {
        let prompt = text[id as usize * 300..][..280].to_vec();
        Start { priority, ..asked(id, prompt, 200) }
    };
    for (id, priority) in [(1, 0), (2, 1), (3, -1), (4, 0)] {
        engine.start(long(id, priority));
        engine.until_output(id);
    }
    // Room for one and its answer.
    engine.operate(512, 512, "keep");
    let beat = engine.beat(|beat| beat.parked == 3);
    assert_eq!(beat.sequences, 4);
    let before = [1, 3, 4].map(|id| engine.tokens(id));
    let mut order = Vec::new();
    while order.len() < 4 {
        engine.read();
        for output in engine.outputs.iter().filter(|output| output.finished.is_some()) {
            if !order.contains(&output.sequence) {
                order.push(output.sequence);
            }
        }
        if order.is_empty() {
            assert_eq!([1, 3, 4].map(|id| engine.tokens(id)), before, "those that wait write nothing");
        }
    }
    assert_eq!(order, [2, 1, 4, 3]);
    for id in 1..=4 {
        let answer = engine.finish(id);
        assert_eq!((answer.error, answer.tokens.len()), (None, 200));
        assert_eq!(answer.cached, Some(0));
    }
}

#[test]
fn one_that_waits_can_be_stopped_and_one_that_never_fits_waits_on() {
    let (mut engine, text) = engine(|_| {});
    engine.start(asked(1, text[..300].to_vec(), 3000));
    engine.until_output(1);
    engine.operate(256, 256, "keep");
    engine.beat(|beat| beat.parked == 1);
    // Nothing else may come in its stead but what fits.
    engine.start(asked(2, text[..100].to_vec(), 50));
    assert_eq!(engine.finish(2).error, None);
    engine.stop(1);
    let answer = engine.finish(1);
    assert_eq!((answer.reason.as_str(), answer.error), ("cancelled", None));
    assert!(answer.tokens.len() < 300);
    assert_eq!(engine.beat(|beat| beat.sequences == 0).parked, 0);
    // A new one of that size waits too, until the context is back.
    engine.start(asked(3, text[..300].to_vec(), 20));
    engine.beat(|beat| beat.parked == 1);
    engine.operate(FULL, FULL, "keep");
    assert_eq!(engine.finish(3).tokens.len(), 20);
}

#[test]
fn live_only_gives_back_what_ended_and_keeps_nothing() {
    let (mut engine, text) = engine(|_| {});
    let question = |id| Start { public_prefix: 300, ..asked(id, text[..400].to_vec(), 5) };
    assert_eq!(engine.answer(question(1)).cached, Some(0));
    assert_eq!(engine.answer(question(2)).cached, Some(399));
    assert!(engine.beat(|beat| beat.sequences == 0).cached_tokens >= 400);
    engine.operate(FULL, FULL, "shrunk");
    while engine.allocated == FULL {
        engine.read();
    }
    assert_eq!(engine.allocated, 512);
    assert_eq!(engine.answer(question(3)).cached, Some(399));
    engine.operate(FULL, FULL, "live_only");
    assert_eq!(engine.answer(question(4)).cached, Some(0));
    assert_eq!(engine.answer(question(5)).cached, Some(0));
    engine.beat(|beat| beat.sequences == 0 && beat.cached_tokens == 0);
    while engine.allocated > 256 {
        engine.read();
    }
    engine.operate(FULL, FULL, "keep");
    assert_eq!(engine.answer(question(6)).cached, Some(0));
    assert_eq!(engine.answer(question(7)).cached, Some(399));
}

/// The allocation does not grow where memory is short: those that came last wait, and the first gets what it needs.
#[test]
fn where_memory_is_short_streams_wait_for_each_other() {
    let (mut engine, text) = engine(|load| load.first_context = 512);
    assert_eq!(engine.allocated, 512);
    engine.operate(FULL, 512, "live_only");
    for id in 1..=2 {
        engine.start(asked(id, text[id as usize * 300..][..200].to_vec(), 500));
    }
    // The second is not let in: what both may come to fill is more than there is. One alone gets what it needs.
    assert_eq!(engine.finish(1).tokens.len(), 500);
    assert_eq!((engine.tokens(2), engine.allocated), (0, 768));
    assert_eq!(engine.finish(2).tokens.len(), 500);
    while engine.allocated != 256 {
        assert!(engine.allocated <= 768);
        engine.read();
    }
}

/// Steps of 64 MiB and more: what is predicted from `kv_bytes_per_token` comes back.
#[test]
fn memory_comes_back_as_predicted() {
    let load = Load { context: 8192, first_context: 8192, ..load(&model()) };
    let (mut engine, _, ready) = Engine::loaded_with(load.clone());
    let summary = temperd::gguf::inspect(&model()).expect("the model");
    assert_eq!(Some(ready.kv_bytes_per_token), summary.cache_bytes(1, [false, false]));
    assert_eq!((ready.layers, ready.bytes_per_gpu_layer), (0, 0));
    assert!(ready.compute_bytes > 1 << 20 && ready.compute_bytes < 1 << 30, "{ready:?}");
    let text = text(&mut engine);
    assert_eq!(engine.answer(asked(1, text[..400].to_vec(), 5)).error, None);
    // Until then memory comes and goes for other reasons.
    engine.until_measured();
    for context in [4608, 1024] {
        let (before, cells) = (engine.anonymous(), engine.allocated);
        engine.operate(context, context, "keep");
        while engine.allocated != context {
            engine.read();
        }
        let predicted = ready.kv_bytes_per_token * u64::from(cells - context);
        assert!(predicted >= 64 << 20);
        let freed = before.saturating_sub(engine.anonymous());
        assert!(freed.abs_diff(predicted) <= predicted / 10, "{freed} bytes came back of {predicted}");
    }
    let (_, _, mapped) = Engine::loaded_with(load.clone());
    let (_, _, read) = Engine::loaded_with(Load { load_mode: "read".to_owned(), ..load });
    let file = std::fs::metadata(model()).expect("the model").len();
    assert!(mapped.resident_bytes < file / 2, "{mapped:?}");
    assert!(read.resident_bytes > file / 10 * 9, "{read:?}");
}
