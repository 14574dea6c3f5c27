//! The operating point changes while sequences run: not a token is lost, and not one is another.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of this file")]

#[path = "engine/bare.rs"]
mod bare;
#[path = "engine/harness.rs"]
mod harness;

use std::{path::Path, sync::OnceLock};

use bare::{Jobs, bare_loop, never_ending, text};
use harness::{Answer, Engine, load, model, start};
use temperd::wire::engine::{Load, Start};

/// Cells of the whole context, all of them there at first.
const FULL: u32 = 4096;
/// Streams, with the tokens that all of them begin with and those of their own.
const STREAMS: u64 = 8;
const COMMON: usize = 512;
const OWN: usize = 24;
const ANSWER: u32 = 112;
/// Cells that all of them fill in the end. One may begin to read for itself up to 16 tokens before the end of what is common.
const ALL: u32 = 512 + 8 * (24 + ANSWER + 16);
/// Changes of the size.
const CHANGES: usize = 20;
/// Cells beyond those that streams are known to fill: some steps may have been made since.
const AHEAD: u32 = 64;

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

/// Eight streams that run.
struct Streams {
    engine: Engine,
    text: Vec<u32>,
    prompts: Vec<Vec<u32>>,
    random: fastrand::Rng,
    /// Cells that all of them fill in the end.
    all: u32,
}

impl Streams {
    /// All are being answered. `before` is done while they read.
    fn answering(load: Load, seed: u64, before: impl FnOnce(&mut Engine, &[u32])) -> Self {
        let (mut engine, _, ready) = Engine::loaded_with(load);
        assert_eq!(ready.allocated_context, FULL);
        let text = text(&mut engine);
        let prompts: Vec<_> = (0..STREAMS as usize).map(|nth| prompt(&text, nth)).collect();
        // All are there before the second step: the pause after the first is long.
        engine.pace(0.01);
        for (id, prompt) in (1..).zip(&prompts) {
            engine.start(asked(id, prompt.clone(), ANSWER));
        }
        engine.pace(1.0);
        before(&mut engine, &text);
        for id in 1..=STREAMS {
            engine.until_output(id);
        }
        let all = engine.beat(|beat| beat.sequences == STREAMS as u32).live_tokens;
        assert!(all <= ALL);
        Self { engine, text, prompts, random: fastrand::Rng::with_seed(seed), all }
    }

    /// Cells that they fill now, but for those of steps that have not been heard of yet.
    fn filled(&self) -> u32 {
        let left = |id| ANSWER - self.engine.tokens(id) as u32;
        self.all - (1..=STREAMS).map(left).sum::<u32>()
    }

    /// At a random moment, has the cache change its size, and waits until it has.
    fn change(&mut self, order: impl FnOnce(&mut Self)) {
        for _ in 0..self.random.usize(0..3) {
            self.engine.read();
        }
        let before = self.engine.resized;
        order(self);
        while self.engine.resized == before {
            assert!(self.engine.running() > 0, "the size stays as it is, change {before}");
            self.engine.read();
        }
    }

    /// Their prompts and answers.
    fn finish(mut self) -> Vec<(Vec<u32>, Answer)> {
        let answers: Vec<_> = (1..=STREAMS).map(|id| self.engine.finish(id)).collect();
        for answer in &answers {
            assert_eq!((answer.error.as_deref(), answer.tokens.len()), (None, ANSWER as usize));
        }
        self.prompts.into_iter().zip(answers).collect()
    }
}

/// Every row of logits is the one of a loop in which nothing else happens.
fn assert_bit_equal(found: &[(Vec<u32>, Answer)]) {
    static UNDISTURBED: OnceLock<(Jobs, Vec<Vec<u64>>)> = OnceLock::new();
    let jobs: Jobs = found.iter().map(|(prompt, answer)| (prompt.clone(), answer.tokens.clone())).collect();
    let (same_jobs, undisturbed) = UNDISTURBED.get_or_init(|| (jobs.clone(), bare_loop(&model(), &jobs)));
    assert!(jobs == *same_jobs, "other tokens than in the other test");
    for (nth, ((_, answer), alone)) in found.iter().zip(undisturbed).enumerate() {
        assert_eq!(answer.digests.len(), answer.tokens.len());
        let same = answer.digests.iter().zip(alone).filter(|(a, b)| a == b).count();
        assert_eq!(same, answer.digests.len(), "stream {nth}");
    }
}

/// Down to the fewest cells in which all should go on, and up since the prompt of another one does not fit behind them.
#[test]
fn changes_of_the_context_change_no_bit_of_any_stream() {
    let mut streams = Streams::answering(invariant(&model()), 1, |_, _| {});
    for nth in 0..CHANGES / 2 {
        streams.change(|streams| {
            let context = rounded(streams.filled() + AHEAD);
            streams.engine.operate(context, context, ["keep", "shrunk", "live_only"][nth % 3]);
        });
        let guest = 100 + nth as u64;
        streams.change(|streams| {
            // Three quarters are what is filled before there are more.
            let length = (streams.engine.allocated * 3 / 4).saturating_sub(streams.filled()) + AHEAD;
            let prompt = streams.text[600..][..length as usize].to_vec();
            streams.engine.operate(FULL, FULL, "keep");
            streams.engine.start(Start { scope: guest, ..asked(guest, prompt, 1) });
        });
        assert_eq!(streams.engine.finish(guest).error, None);
    }
    assert!(streams.engine.resized >= CHANGES && streams.engine.running() == STREAMS as usize);
    assert_bit_equal(&streams.finish());
}

/// Contexts in which not all have room: some leave the cache and come back, by copies and by reading again, beside prefixes
/// that are kept of others.
#[test]
fn nor_do_those_in_which_streams_have_to_wait() {
    let mut streams = Streams::answering(invariant(&model()), 2, |engine, text| {
        // Also while the first reads for all.
        engine.operate(768, 768, "keep");
        engine.start(Start { scope: 1, ..asked(50, text[1500..1600].to_vec(), 2) });
        engine.operate(FULL, FULL, "keep");
        assert_eq!(engine.finish(50).error, None);
    });
    // The first that has to wait, and so short that a copy of its cells is kept at first.
    let least = Start { priority: -1, scope: 2, ..asked(51, streams.text[1600..1620].to_vec(), 1000) };
    streams.engine.start(least);
    let before = streams.engine.resized;
    for nth in 0..CHANGES / 2 {
        streams.change(|streams| {
            // What all begin with, and one stream at least, have room.
            let context = ((streams.filled() - 1) / 256 * 256).max(rounded(COMMON as u32 + 1));
            streams.engine.operate(context, context, ["keep", "shrunk"][nth % 2]);
        });
        streams.change(|streams| streams.engine.operate(FULL, FULL, "keep"));
    }
    assert!(streams.engine.resized - before >= CHANGES && streams.engine.running() > 0);
    let waited = streams.engine.logs.iter().filter(|log| log.message.contains("waits for room"));
    let copied = waited.clone().filter(|log| log.message.ends_with("true")).count();
    assert!(copied > 0 && waited.count() > copied, "they come back in one way only");
    streams.engine.stop(51);
    assert_bit_equal(&streams.finish());
}

/// Without the mode a token may depend on its company, so that is the same here: the rows of the eight streams, and of another
/// one that is only read, in a part of the step for itself. For its prompt the cache grows each time it may.
#[test]
fn without_the_mode_the_same_schedule_gives_the_same_texts() {
    let (mut engine, text) = engine(|load| (load.n_ubatch, load.lookup) = (STREAMS as u32, false));
    let public = |start: Start| Start { scope: 0, public_prefix: COMMON as u32, ..start };
    let prompt = |nth: u64| [&text[..COMMON], &text[1000 + nth as usize..][..1]].concat();
    // What all begin with is there, once for both runs.
    assert_eq!(engine.answer(public(asked(1, prompt(0), 1))).error, None);
    let mut run = |ids: std::ops::Range<u64>, changes: usize| {
        let first = ids.start;
        engine.pace(0.01);
        engine.start(public(asked(first, prompt(0), ANSWER)));
        engine.until_output(first);
        // They come in the long pause, and the rows of all fit into the next step.
        for id in ids.clone().skip(1) {
            engine.start(public(asked(id, prompt(id - first), ANSWER)));
        }
        engine.pace(1.0);
        for id in ids.clone() {
            engine.until_output(id);
        }
        let mut random = fastrand::Rng::with_seed(3);
        let guest = first + 50;
        if changes > 0 {
            let long = asked(guest, text[100..][..1000].to_vec(), 1);
            engine.start(Start { priority: -1, scope: guest, ..long });
        }
        let before = engine.resized;
        for nth in 0..changes {
            for _ in 0..random.usize(0..3) {
                engine.read();
            }
            let tokens: usize = ids.clone().map(|id| engine.tokens(id)).sum();
            let context = if nth % 2 == 0 { rounded((COMMON + tokens) as u32 + AHEAD) } else { FULL };
            engine.operate(context, context, if nth % 2 == 0 { "live_only" } else { "keep" });
            while engine.resized - before <= nth {
                engine.read();
            }
        }
        assert!(ids.clone().all(|id| engine.tokens(id) < ANSWER as usize));
        engine.stop(guest);
        ids.map(|id| engine.finish(id)).collect::<Vec<_>>()
    };
    let undisturbed = run(10..10 + STREAMS, 0);
    let changed = run(100..100 + STREAMS, CHANGES);
    for (with, without) in changed.iter().zip(&undisturbed) {
        assert_eq!((with.error.as_deref(), with.tokens.len()), (None, ANSWER as usize));
        assert_eq!(with.text(), without.text());
        assert_eq!((&with.tokens, &with.digests), (&without.tokens, &without.digests));
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
        engine.start(asked(id, prompt(&text, id as usize), 40));
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
        let prompt = text[id as usize * 300..][..140].to_vec();
        Start { priority, ..asked(id, prompt, 100) }
    };
    for (id, priority) in [(1, 0), (2, 1), (3, -1), (4, 0)] {
        engine.start(long(id, priority));
        engine.until_output(id);
    }
    // Room for one and its answer.
    engine.operate(256, 256, "keep");
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
        assert_eq!((answer.error, answer.tokens.len()), (None, 100));
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
    let question = |id| Start { public_prefix: 200, ..asked(id, text[..300].to_vec(), 5) };
    assert_eq!(engine.answer(question(1)).cached, Some(0));
    assert_eq!(engine.answer(question(2)).cached, Some(299));
    assert!(engine.beat(|beat| beat.sequences == 0).cached_tokens >= 300);
    engine.operate(FULL, FULL, "shrunk");
    while engine.allocated == FULL {
        engine.read();
    }
    assert_eq!(engine.allocated, 512);
    assert_eq!(engine.answer(question(3)).cached, Some(299));
    engine.operate(FULL, FULL, "live_only");
    assert_eq!(engine.answer(question(4)).cached, Some(0));
    assert_eq!(engine.answer(question(5)).cached, Some(0));
    engine.beat(|beat| beat.sequences == 0 && beat.cached_tokens == 0);
    while engine.allocated > 256 {
        engine.read();
    }
    engine.operate(FULL, FULL, "keep");
    assert_eq!(engine.answer(question(6)).cached, Some(0));
    assert_eq!(engine.answer(question(7)).cached, Some(299));
}

/// The allocation does not grow where memory is short: those that came last wait, and the first gets what it needs.
#[test]
fn where_memory_is_short_streams_wait_for_each_other() {
    let (mut engine, text) = engine(|load| load.first_context = 256);
    assert_eq!(engine.allocated, 256);
    engine.operate(FULL, 256, "live_only");
    for id in 1..=2 {
        engine.start(asked(id, text[id as usize * 300..][..150].to_vec(), 200));
    }
    // The second is not let in: what both may come to fill is more than there is. One alone gets what it needs.
    assert_eq!(engine.finish(1).tokens.len(), 200);
    assert_eq!((engine.tokens(2), engine.allocated), (0, 512));
    assert_eq!(engine.finish(2).tokens.len(), 200);
    while engine.allocated != 256 {
        assert!(engine.allocated <= 512);
        engine.read();
    }
}

/// Steps of 64 MiB and more: what is predicted from `kv_bytes_per_token` comes back.
#[test]
fn memory_comes_back_as_predicted() {
    // With it the compute buffers of all sizes are alike.
    let flash_attention = "on".to_owned();
    let load = Load { context: 8192, first_context: 8192, flash_attention, ..load(&model()) };
    let (mut engine, _, ready) = Engine::loaded_with(load.clone());
    let summary = temperd::gguf::inspect(&model()).expect("the model");
    assert_eq!(Some(ready.kv_bytes_per_token), summary.cache_bytes(1, [false, false]));
    assert_eq!((ready.layers, ready.bytes_per_gpu_layer), (0, 0));
    assert!(ready.compute_bytes > 1 << 20 && ready.compute_bytes < 1 << 30, "{ready:?}");
    let text = text(&mut engine);
    // Until then memory comes and goes for other reasons.
    engine.until_measured();
    let mut fresh = text.chunks(400).zip(1..);
    let mut answer = |engine: &mut Engine| {
        let (prompt, id) = fresh.next().expect("a long text");
        assert_eq!(engine.answer(asked(id, prompt.to_vec(), 5)).error, None);
    };
    answer(&mut engine);
    for context in [4608, 1024] {
        let (before, cells) = (engine.anonymous(), engine.allocated);
        engine.operate(context, context, "keep");
        while engine.allocated != context {
            engine.read();
        }
        // Its compute buffer is touched by steps like those before.
        answer(&mut engine);
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
