//! What one engine has begun, another goes on with: from the tokens alone, and from the KV cache that the first one left.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of this file")]

#[path = "engine/bare.rs"]
mod bare;
#[path = "engine/harness.rs"]
mod harness;

use std::{
    collections::HashMap,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
};

use bare::{bare_loop, never_ending, text};
use harness::{Answer, Engine, greedy, load, model, start};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use temperd::wire::engine::{Load, Sampling, Save, Start, to_engine};

fn settings() -> Load {
    Load { lookup: false, ..load(&model()) }
}

/// With these a draw does not depend on how many rows a step had.
fn invariant() -> Load {
    Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".to_owned(), ..settings() }
}

/// The text of the first `count` tokens, which came one by one.
fn begin(whole: &Answer, count: usize) -> String {
    whole.pieces[..count].concat()
}

/// Another engine goes on after each of some numbers of tokens, with the same rest.
fn goes_on(asked: &Start, whole: &Answer, load: &Load) {
    let all = whole.tokens.len();
    let (mut engine, _, _) = Engine::loaded_with(load.clone());
    for count in [1, all / 3, all / 2, all - 1] {
        let written = whole.tokens[..count].to_vec();
        let sequence = 100 + count as u64;
        let rest = engine.answer(Start { sequence, written, ..asked.clone() });
        assert_eq!(rest.tokens, whole.tokens[count..], "after {count} of {all}");
        assert_eq!(begin(whole, count) + &rest.text(), whole.text(), "after {count} of {all}");
        assert_eq!((&rest.reason, &rest.error), (&whole.reason, &whole.error));
        assert_eq!(rest.digests[..], whole.digests[whole.digests.len() - rest.digests.len()..]);
        assert!(rest.cached.is_some());
    }
}

#[test]
fn a_greedy_answer_goes_on_with_the_same_bits() {
    let load = invariant();
    let (mut engine, _, _) = Engine::loaded_with(load.clone());
    let prompt = text(&mut engine)[..560].to_vec();
    let asked = Start { sampling: Some(never_ending()), digests: true, ..start(1, prompt.clone(), 40) };
    let whole = engine.answer(asked.clone());
    assert_eq!(whole.digests, bare_loop(&model(), &vec![(prompt, whole.tokens.clone())])[0][..40]);
    goes_on(&asked, &whole, &load);
}

#[test]
fn a_sampled_answer_goes_on_with_the_same_draws_penalties_and_biases() {
    let (mut engine, _, _) = Engine::loaded_with(invariant());
    let prompt = engine.chat("Write a poem about the sea.");
    let sampling = Sampling {
        temperature: 0.8,
        top_p: 0.95,
        repeat_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        seed: 11,
        logit_bias: HashMap::from([(260, 2.0), (28, -1.0)]),
        ..greedy()
    };
    let asked = Start { sampling: Some(sampling), ..start(1, prompt, 90) };
    let whole = engine.answer(asked.clone());
    assert!(whole.tokens.len() > 20, "{whole:?}");
    goes_on(&asked, &whole, &invariant());
}

#[test]
fn a_stop_string_that_was_begun_is_still_found() {
    let (mut engine, _, _) = Engine::loaded_with(settings());
    let prompt = engine.chat("What is the capital of France?");
    let whole = engine.answer(start(1, prompt.clone(), 40));
    let text = whole.text();
    // From the middle of one token to the middle of another.
    let from = text.find("aris").expect("Paris is in the answer");
    let stop = text.get(from - 4..from + 2).expect("ASCII").to_owned();
    let asked = Start { stop: vec![stop], ..start(2, prompt, 40) };
    let stopped = engine.answer(asked.clone());
    assert_eq!(stopped.reason, "stop");
    assert!(stopped.pieces.iter().any(String::is_empty), "nothing was held back");
    goes_on(&asked, &stopped, &settings());
}

#[test]
fn a_schema_holds_on() {
    let (mut engine, _, _) = Engine::loaded_with(settings());
    let prompt = engine.chat("Describe a pump as JSON.");
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"on":{"type":"boolean"},
        "litres":{"type":"integer","minimum":10,"maximum":99}},"required":["name","on","litres"],"additionalProperties":false}"#;
    let asked = Start { json_schema: Some(schema.to_owned()), ..start(1, prompt, 80) };
    let whole = engine.answer(asked.clone());
    assert!(serde_json::from_str::<serde_json::Value>(&whole.text()).is_ok(), "{whole:?}");
    goes_on(&asked, &whole, &settings());
    // What was written does not obey: the sequence ends, and the engine goes on.
    let wrong = Start { sequence: 2, written: vec![whole.tokens[0], whole.tokens[0], 17], ..asked };
    assert_eq!(engine.answer(wrong).reason, "error");
    assert_eq!(engine.answer(start(3, vec![1, 2], 2)).error, None);
}

#[test]
fn an_answer_that_was_complete_ends_at_once() {
    let (mut engine, _, _) = Engine::loaded_with(settings());
    let prompt = engine.chat("Tell me a long story.");
    let whole = engine.answer(start(1, prompt.clone(), 10));
    let rest = engine.answer(Start { written: whole.tokens, ..start(2, prompt, 10) });
    assert_eq!((rest.reason.as_str(), rest.tokens.len(), rest.text().as_str()), ("length", 0, ""));
}

fn memfd() -> File {
    // An engine inherits it, under the same number.
    memfd_create("temperd-test", MemfdFlags::ALLOW_SEALING).expect("a memfd").into()
}

/// Three streams of two clients below one prompt of the operator's.
fn stream(text: &[u32], id: u64) -> Start {
    let own = 600 + 100 * usize::try_from(id).expect("small");
    let prompt = [&text[..400], &text[own..][..40]].concat();
    Start {
        sampling: Some(never_ending()),
        digests: true,
        public_prefix: 400,
        scope: 1 + id % 2,
        ..start(id, prompt, 48)
    }
}

const STREAMS: std::ops::RangeInclusive<u64> = 1..=3;

/// Runs the streams until each has some tokens and has the engine leave its cache in a memfd. Gives what they have written.
fn save(load: &Load) -> (File, Vec<Answer>) {
    let memory = memfd();
    let (mut engine, _, _) = Engine::loaded_in(load.clone(), &[("TEMPERD_SAVE_FD", &memory.as_raw_fd().to_string())]);
    let text = text(&mut engine);
    STREAMS.for_each(|id| engine.start(stream(&text, id)));
    while STREAMS.clone().any(|id| engine.outputs.iter().filter(|output| output.sequence == id).count() < 12) {
        engine.read();
    }
    engine.send(to_engine::Frame::Save(Save {}));
    while engine.saved.is_none() {
        engine.read();
    }
    let saved = engine.saved.clone().expect("it has answered");
    assert_eq!(saved.error, None);
    assert_eq!(saved.bytes, memory.metadata().expect("a memfd").len());
    // It makes no step any more, and answers.
    let begun = STREAMS.map(|id| {
        engine.stop(id);
        let answer = engine.finish(id);
        assert_eq!(answer.reason, "cancelled");
        answer
    });
    (memory, begun.collect())
}

fn restored(load: &Load, memory: &File) -> Engine {
    let load = Load { restore: true, ..load.clone() };
    Engine::loaded_in(load, &[("TEMPERD_RESTORE_FD", &memory.as_raw_fd().to_string())]).0
}

/// Goes on with what was begun, and gives each stream's whole answer with the tokens that were there already.
fn resume(engine: &mut Engine, begun: &[Answer]) -> Vec<(Answer, u32)> {
    let text = text(engine);
    for (id, begun) in STREAMS.zip(begun) {
        engine.start(Start { written: begun.tokens.clone(), ..stream(&text, id) });
    }
    let whole = STREAMS.zip(begun).map(|(id, begun)| {
        let rest = engine.finish(id);
        assert_eq!(rest.error, None);
        let read = 440 + begun.tokens.len() as u32 - rest.cached.expect("it is told");
        let tokens = [begun.tokens.as_slice(), &rest.tokens].concat();
        let digests = [begun.digests.as_slice(), &rest.digests].concat();
        (Answer { tokens, digests, ..rest }, read)
    });
    whole.collect()
}

fn assert_uninterrupted(whole: &[(Answer, u32)]) {
    let (mut engine, _, _) = Engine::loaded_with(settings());
    let text = text(&mut engine);
    let jobs = STREAMS.zip(whole).map(|(id, (answer, _))| (stream(&text, id).prompt, answer.tokens.clone())).collect();
    for ((answer, _), alone) in whole.iter().zip(bare_loop(&model(), &jobs)) {
        assert_eq!((answer.tokens.len(), &answer.digests[..]), (48, &alone[..48]));
    }
}

#[test]
fn an_engine_goes_on_with_the_cache_of_another_and_reads_next_to_nothing() {
    let load = invariant();
    let (memory, begun) = save(&load);
    let mut engine = restored(&load, &memory);
    let whole = resume(&mut engine, &begun);
    assert!(whole.iter().all(|(_, read)| *read == 1), "{:?}", whole.iter().map(|(_, read)| read).collect::<Vec<_>>());
    assert_uninterrupted(&whole);
    // Another client sees the operator's part alone.
    let text = text(&mut engine);
    let other = Start { sequence: 9, scope: 99, ..stream(&text, 1) };
    assert_eq!(engine.answer(other).cached, Some(400));
}

#[test]
fn what_does_not_fit_is_left_alone() {
    let load = invariant();
    let (memory, begun) = save(&load);
    let mut bytes = Vec::new();
    (&memory).read_to_end(&mut bytes).expect("read");
    let copy = |bytes: &[u8], seals| {
        let copy = memfd();
        (&copy).write_all(bytes).expect("written");
        fcntl_add_seals(&copy, seals).expect("sealed");
        copy
    };
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let other_types = Load { kv_type_k: "q8_0".to_owned(), ..load.clone() };
    let smaller = Load { context: 256, ..load.clone() };
    bytes[0] ^= 1;
    let foreign = copy(&bytes, seals);
    bytes[0] ^= 1;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let damaged = copy(&bytes, seals);
    bytes[last] ^= 1;
    let short = copy(&bytes[..last], seals);
    let unsealed = copy(&bytes, SealFlags::GROW);
    for (load, memory, why) in [
        (&load, &foreign, "damaged"),
        (&load, &damaged, "damaged"),
        (&load, &short, "damaged"),
        (&load, &unsealed, "not sealed"),
        (&other_types, &memory, "other types of K and V"),
        (&smaller, &memory, "cells"),
    ] {
        let mut engine = restored(load, memory);
        let text = text(&mut engine);
        let answer = engine.answer(Start { max_tokens: 2, prompt: text[..100].to_vec(), ..stream(&text, 1) });
        assert_eq!((answer.error, answer.cached), (None, Some(0)), "{why}");
        let told = |engine: &Engine| engine.logs.iter().any(|log| log.level == "warn" && log.message.contains(why));
        // Lines of the log have a thread of their own.
        for _ in 0..3 {
            if !told(&engine) {
                engine.beat(|_| true);
            }
        }
        assert!(told(&engine), "{why}: {:?}", engine.logs.iter().filter(|log| log.level == "warn").collect::<Vec<_>>());
    }
    // Read again, it is the same.
    let (mut fresh, _, _) = Engine::loaded_with(load);
    assert_uninterrupted(&resume(&mut fresh, &begun));
}

#[test]
fn without_a_memfd_the_engine_says_so_and_stops_all_the_same() {
    let (mut engine, _, _) = Engine::loaded_with(settings());
    let prompt = engine.chat("Tell me a long story.");
    engine.start(start(1, prompt, 500));
    engine.send(to_engine::Frame::Save(Save {}));
    while engine.saved.is_none() {
        engine.read();
    }
    let saved = engine.saved.clone().expect("it has answered");
    assert_eq!(saved.bytes, 0);
    assert!(saved.error.is_some_and(|error| error.contains("TEMPERD_SAVE_FD")));
    engine.stop(1);
    assert_eq!(engine.finish(1).reason, "cancelled");
}
