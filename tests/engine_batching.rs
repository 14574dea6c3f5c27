//! What sequences of one engine have to do with each other: shared cells, drafts, and nothing else.

#[path = "engine/harness.rs"]
mod harness;

use harness::{Engine, greedy, load, model, start};
use temperd::wire::engine::{Load, Sampling, Start, Stop, from_engine, to_engine};

/// A conversation's first turn below a system prompt of some length, and how many of its tokens are the operator's.
fn prompt(engine: &mut Engine, question: &str) -> (Vec<u32>, u32) {
    let rules = "You are the voice of a small water works. Be brief, be exact, never guess. ".repeat(8);
    let system = format!("<|im_start|>system\n{rules}<|im_end|>\n<|im_start|>user\n");
    let public = engine.tokenise(&system, true);
    let rest = engine.tokenise(&format!("{question}<|im_end|>\n<|im_start|>assistant\n"), true);
    ([public.as_slice(), &rest].concat(), u32::try_from(public.len()).expect("small"))
}

fn asked(id: u64, (prompt, public_prefix): (Vec<u32>, u32), scope: u64) -> Start {
    Start { public_prefix, scope, ..start(id, prompt, 8) }
}

#[test]
fn cells_are_shared_within_a_client_and_the_operators_with_all() {
    let (mut engine, _, _) = Engine::loaded();
    let first = prompt(&mut engine, "How much water is in tank four?");
    let (length, public) = (u32::try_from(first.0.len()).expect("small"), first.1);
    let cached = |engine: &mut Engine, id, prompt: &(Vec<u32>, u32), scope| {
        engine.answer(asked(id, prompt.clone(), scope)).cached
    };
    assert_eq!(cached(&mut engine, 1, &first, 7), Some(0));
    // The last token is read again: its logits are needed.
    assert_eq!(cached(&mut engine, 2, &first, 7), Some(length - 1));
    // Another client has the same text; that it was there already must not show.
    assert_eq!(cached(&mut engine, 3, &first, 8), Some(public));
    // Nobody's text is nobody's, the second time as well.
    assert_eq!(cached(&mut engine, 4, &first, 0), Some(public));
    assert_eq!(cached(&mut engine, 5, &first, 0), Some(public));
    // What one client calls the operator's is not so because another wrote it.
    let claimed = (first.0.clone(), length);
    assert_eq!(cached(&mut engine, 6, &claimed, 9), Some(public));
}

#[test]
fn a_shared_prefix_changes_no_answer() {
    let (mut engine, _, _) = Engine::loaded();
    let question = prompt(&mut engine, "What is the capital of France?");
    let other = prompt(&mut engine, "What is the capital of Italy?");
    let alone = engine.answer(asked(1, question.clone(), 1));
    engine.answer(asked(2, other, 2));
    let again = engine.answer(asked(3, question, 2));
    assert!(again.cached > Some(0));
    assert_eq!(again.text(), alone.text());
}

#[test]
fn those_that_come_together_read_what_they_share_once() {
    let (mut engine, _, _) = Engine::loaded();
    let questions = ["What is water?", "What is a pump?", "What is a valve?"];
    let prompts = questions.map(|question| prompt(&mut engine, question));
    let public = prompts[0].1;
    for (id, prompt) in (1..).zip(prompts) {
        engine.start(asked(id, prompt, id));
    }
    let cached = [1, 2, 3].map(|id| engine.finish(id).cached.expect("it is told"));
    assert_eq!(cached[0], 0);
    // One that comes when the first has read nearly all of it does not wait for the rest.
    assert!(cached[1..].iter().all(|cached| (public - 16..=public).contains(cached)), "{cached:?} of {public}");
}

#[test]
fn one_that_waited_for_a_stopped_one_reads_for_itself() {
    let (mut engine, _, _) = Engine::loaded();
    let prompts = ["What is water?", "What is a pump?"].map(|question| prompt(&mut engine, question));
    for (id, prompt) in (1..).zip(prompts) {
        engine.start(asked(id, prompt, id));
    }
    engine.send(to_engine::Frame::Stop(Stop { sequence: 1 }));
    assert_eq!(engine.finish(1).reason, "cancelled");
    assert_eq!(engine.finish(2).error, None);
}

#[test]
fn more_sequences_than_the_cache_holds_come_and_go() {
    let (mut engine, _, _) = Engine::loaded();
    // 2,048 cells in all; 16 ended sequences of about 170 do not fit.
    for id in 1..=16 {
        let question = prompt(&mut engine, &format!("{id} pumps run. How many stand still?"));
        let answer = engine.answer(Start { public_prefix: 0, ..asked(id, question, id) });
        assert_eq!((answer.error, answer.cached), (None, Some(0)));
    }
}

#[test]
fn without_flash_attention_ended_sequences_leave_the_cache_and_come_back() {
    let load = Load { flash_attention: "off".to_owned(), ..load(&model()) };
    let (mut engine, _, _) = Engine::loaded_with(load);
    let question = prompt(&mut engine, "What is the capital of France?");
    let length = u32::try_from(question.0.len()).expect("small");
    let alone = engine.answer(asked(1, question.clone(), 7));
    // They go at rest, half a second after the last answer. When they go beside a running one is a matter of the machine's
    // speeds, and tested where it is decided (`prefix`).
    let parked =
        |frame| matches!(frame, from_engine::Frame::Heartbeat(beat) if beat.sequences == 0 && beat.kept_cells == 0);
    while !parked(engine.next()) {}
    let again = engine.answer(asked(3, question, 7));
    assert_eq!((again.cached, again.text()), (Some(length - 1), alone.text()));
}

/// A text to copy, and the prompt that asks for it.
fn rewrite(engine: &mut Engine) -> Vec<u32> {
    let text = "The pump in hall two was switched off at noon, since the filter had to be cleaned. The valve behind it \
        was closed by hand. At three the filter was back in its place, and the pump was started again. The flow was \
        measured twice and found to be the same as the day before.";
    engine.chat(&format!("Repeat this text exactly, word by word:\n{text}"))
}

#[test]
fn lookup_drafts_what_is_copied_and_changes_no_answer() {
    let answer = |lookup, sampling: Sampling| {
        // Whether drafts pay is the machine's and the moment's matter; here they are made in any case.
        let (mut engine, _, _) = Engine::loaded_with(Load { lookup, lookup_always: lookup, ..load(&model()) });
        let prompt = rewrite(&mut engine);
        engine.answer(Start { sampling: Some(sampling), ..start(1, prompt, 60) })
    };
    let sampled = Sampling { temperature: 0.3, seed: 5, ..greedy() };
    for sampling in [greedy(), sampled] {
        let (with, without) = (answer(true, sampling.clone()), answer(false, sampling));
        assert_eq!(without.drafted, 0);
        assert!(with.drafted > 0 && with.accepted > 0, "{} of {}", with.accepted, with.drafted);
        assert_eq!(with.text(), without.text());
    }
}
