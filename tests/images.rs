//! System prompts that are kept read, and their images on the disk: by real engine processes.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of this file")]

#[path = "engine/bare.rs"]
mod bare;
#[path = "engine/harness.rs"]
mod harness;

use std::{fs, path::Path};

use bare::{bare_loop, never_ending, text};
use harness::{Answer, Engine, load, model, start};
use temperd::wire::engine::{Load, Prefix, Start, from_engine, to_engine};

/// Tokens of the system prompt.
const SYSTEM: usize = 300;

fn settings() -> Load {
    Load { lookup: false, ..load(&model()) }
}

fn invariant() -> Load {
    Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".to_owned(), ..settings() }
}

fn prefix(tokens: &[u32], path: &Path) -> to_engine::Frame {
    let path = path.to_str().expect("UTF-8").to_owned();
    to_engine::Frame::Prefix(Prefix { name: "one".to_owned(), tokens: tokens.to_vec(), path })
}

/// An engine that is told of the system prompt while it loads.
fn told(load: Load, tokens: &[u32], path: &Path) -> Engine {
    let environment: &[(&str, &str)] = if load.batch_invariant { &[("GGML_CPU_TILED_MM", "0")] } else { &[] };
    let mut engine = Engine::with_environment(environment);
    engine.send(to_engine::Frame::Load(load));
    engine.send(prefix(tokens, path));
    while !matches!(engine.next_but_logs(), from_engine::Frame::Ready(_)) {}
    engine
}

/// A client that nobody knows asks something behind the system prompt.
fn ask(sequence: u64, tokens: &[u32]) -> Start {
    let sampling = Some(never_ending());
    Start { sampling, public_prefix: SYSTEM as u32, digests: true, ..start(sequence, tokens.to_vec(), 12) }
}

/// The tokens of a question behind the system prompt, and how it is answered where nothing was read before.
fn plain(load: &Load) -> (Vec<u32>, Answer) {
    let (mut engine, _, _) = Engine::loaded_with(load.clone());
    let tokens = text(&mut engine)[..SYSTEM + 20].to_vec();
    let answer = engine.answer(ask(1, &tokens));
    assert_eq!(answer.cached, Some(0));
    (tokens, answer)
}

/// Its image, made by an engine of these settings.
fn made(load: &Load, tokens: &[u32], path: &Path) {
    let mut engine = told(load.clone(), &tokens[..SYSTEM], path);
    engine.until_log("its image has");
}

#[test]
fn the_next_engine_has_it_before_the_first_request_with_the_same_bits() {
    for load in [invariant(), settings(), Load { flash_attention: "off".to_owned(), ..settings() }] {
        let (tokens, before) = plain(&load);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("one.kv");
        let mut first = told(load.clone(), &tokens[..SYSTEM], &path);
        // Whoever comes while it is read is answered, and what was read until then is of use to them.
        first.until_measured();
        let amid = first.answer(ask(1, &tokens));
        first.until_log("its image has");
        let after = first.answer(ask(2, &tokens));
        let mut second = told(load.clone(), &tokens[..SYSTEM], &path);
        let at_once = second.answer(ask(1, &tokens));
        assert_eq!((after.cached, at_once.cached), (Some(SYSTEM as u32), Some(SYSTEM as u32)));
        // Copied out where its cells would slow down others, it is still there.
        second.until_measured();
        assert_eq!(second.answer(ask(2, &tokens)).cached, Some(SYSTEM as u32));
        if load.batch_invariant {
            let bare = bare_loop(&model(), &vec![(tokens, before.tokens.clone())]);
            assert_eq!(before.digests, bare[0][..before.digests.len()]);
            for answer in [amid, after, at_once] {
                assert_eq!((&answer.tokens, &answer.digests), (&before.tokens, &before.digests));
            }
        }
    }
}

#[test]
fn a_damaged_image_is_left_alone_and_made_anew() {
    let (tokens, before) = plain(&invariant());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("one.kv");
    made(&invariant(), &tokens, &path);
    let whole = fs::read(&path).expect("made");
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let garbage = whole.iter().map(|byte| byte.wrapping_mul(31)).collect();
    for damaged in [
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        [&whole[..], b"more"].concat(),
        flipped(9),
        flipped(100),
        flipped(whole.len() - 1),
        garbage,
    ] {
        fs::write(&path, damaged).expect("written");
        let mut engine = told(invariant(), &tokens[..SYSTEM], &path);
        let answer = engine.answer(ask(1, &tokens));
        assert_eq!((answer.cached, &answer.digests), (Some(0), &before.digests));
        engine.until_log("is not used, and made anew: it is damaged");
        engine.until_log("its image has");
        // llama.cpp writes down the sequence id too, so not all bytes are the same.
        assert_eq!(fs::metadata(&path).expect("made anew").len(), whole.len() as u64);
    }
    let answer = told(invariant(), &tokens[..SYSTEM], &path).answer(ask(1, &tokens));
    assert_eq!((answer.cached, answer.digests), (Some(SYSTEM as u32), before.digests));
}

#[test]
fn an_image_of_something_else_is_left_alone_and_made_anew() {
    let (tokens, _) = plain(&settings());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("one.kv");
    made(&settings(), &tokens, &path);
    let other = folder.path().join("other.gguf");
    fs::copy(model(), &other).expect("copied");
    let expect = |load: Load, tokens: &[u32], why: &str| {
        let mut engine = told(load, &tokens[..SYSTEM], &path);
        assert_eq!(engine.answer(ask(1, tokens)).cached, Some(0), "{why}");
        engine.until_log(why);
        engine.until_log("its image has");
    };
    // Each finds what the one before has made.
    let other = Load { model: other.to_str().expect("UTF-8").to_owned(), ..settings() };
    expect(other, &tokens, "it is of another model");
    expect(settings(), &tokens, "it is of another model");
    expect(settings(), &tokens[1..].iter().chain(&tokens[..1]).copied().collect::<Vec<_>>(), "it is of another text");
    expect(Load { kv_type_v: "q8_0".to_owned(), ..settings() }, &tokens, "it is of other types of K and V");
    expect(invariant(), &tokens, "it is of another order of cells");
}

#[test]
fn it_goes_after_all_others() {
    let (tokens, _) = plain(&settings());
    let nowhere = Path::new("");
    let mut engine = told(settings(), &tokens[..SYSTEM], nowhere);
    engine.until_log("tokens are kept");
    // More than the cache holds, each by a client that keeps what it wrote.
    for nth in 1..=6 {
        let own: Vec<u32> = tokens.iter().map(|token| (token + nth * 7) % 40_000 + 100).collect();
        let asked = Start { public_prefix: 0, scope: 10 + u64::from(nth), ..ask(u64::from(nth), &own.repeat(2)) };
        assert_eq!(engine.answer(asked).cached, Some(0));
    }
    assert_eq!(engine.answer(ask(9, &tokens)).cached, Some(SYSTEM as u32));
}

#[test]
fn what_would_take_too_much_of_the_context_is_not_kept() {
    let (mut engine, _, ready) = Engine::loaded_with(settings());
    let tokens = text(&mut engine)[..ready.context as usize / 4 + 1].to_vec();
    engine.send(prefix(&tokens, Path::new("")));
    engine.until_log("at most 512 are kept");
    engine.send(prefix(&[u32::MAX], Path::new("")));
    engine.until_log("beyond the vocabulary");
    engine.send(prefix(&[], Path::new("")));
    engine.until_log("it is empty");
}
