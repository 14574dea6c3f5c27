//! Constraints in the engine's batch loop: beside drafts, where they are wrong, and what they cost.

#[path = "engine/harness.rs"]
mod harness;

use harness::{Engine, greedy, load, model, start};
use temperd::wire::engine::{Load, Sampling, Start};

const LIST: &str = r#"{"type": "array", "minItems": 3, "maxItems": 6, "items": {"type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "hall": {"type": "integer", "minimum": 1, "maximum": 9},
    "on": {"type": "boolean"}}, "required": ["name", "hall", "on"], "additionalProperties": false}}"#;
/// Recursive, so that each character is a lexeme of its own.
const NESTED: &str = "root ::= \"(\" word (\", \" (word | root)){1,4} \")\"\nword ::= [a-z]{3,9}";

#[test]
fn drafts_change_no_constrained_answer() {
    let answer = |lookup, start: &Start| {
        let (mut engine, _, _) = Engine::loaded_with(Load { lookup, lookup_always: lookup, ..load(&model()) });
        let prompt = engine.chat("List three pumps as JSON with name, hall and on.");
        engine.answer(Start { prompt, ..start.clone() })
    };
    let sampled = Sampling { temperature: 0.6, seed: 5, ..greedy() };
    let penalised = Sampling { repeat_penalty: 1.1, ..greedy() };
    for sampling in [greedy(), sampled, penalised] {
        for (schema, grammar) in [(Some(LIST), None), (None, Some(NESTED))] {
            let start = Start {
                sampling: Some(sampling.clone()),
                json_schema: schema.map(Into::into),
                grammar: grammar.map(Into::into),
                ..start(1, Vec::new(), 200)
            };
            let (with, without) = (answer(true, &start), answer(false, &start));
            assert_eq!(without.drafted, 0);
            assert!(
                schema.is_none() || with.drafted > with.accepted && with.accepted > 0,
                "drafts are right and wrong"
            );
            assert_eq!((with.text(), &with.tokens, &with.reason), (without.text(), &without.tokens, &without.reason));
            assert_eq!(with.reason, "stop");
        }
    }
}

/// The daemon lets none of these through.
#[test]
fn what_cannot_be_compiled_ends_its_sequence_alone() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Count to ten.");
    let free = engine.answer(start(1, prompt.clone(), 30));
    engine.start(start(2, prompt.clone(), 30));
    let grammar = Some("root ::= nothing".into());
    let error = engine.answer(Start { grammar, ..start(3, prompt.clone(), 5) }).error.expect("an error");
    assert!(error.contains("nothing"), "{error}");
    let json_schema = Some("{".into());
    assert!(engine.answer(Start { json_schema, ..start(4, prompt.clone(), 5) }).error.is_some());
    assert_eq!(engine.finish(2).text(), free.text());
}

#[test]
fn the_best_allowed_token_is_taken_and_reported_as_the_model_sees_it() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Is the sky blue? Answer yes or no.");
    let top = Start { logprobs: true, top_logprobs: 20, ..start(1, prompt.clone(), 1) };
    let free = engine.answer(top.clone());
    let grammar = Some("root ::= \"yes\" | \"no\" | \"No\"".into());
    let bound = engine.answer(Start { sequence: 2, grammar, max_tokens: 4, ..top });
    let (first, free) = (&bound.logprobs[0], &free.logprobs[0]);
    assert_eq!(first.top, free.top, "the model's own probabilities, before any constraint");
    let best = free.top.iter().find(|token| ["yes", "no", "No"].iter().any(|word| word.as_bytes() == token.bytes));
    assert_eq!(Some(&first.bytes), best.map(|token| &token.bytes), "{:?}", free.top);
}

#[test]
#[ignore = "a measurement: what constraints cost per token, alone on the machine"]
fn cost_per_token() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("List pumps as JSON, with long names.");
    let mut id = 0;
    let mut tokens_per_second = |schema: Option<&str>, grammar: Option<&str>| {
        let mut best = f64::MAX;
        for _ in 0..3 {
            id += 1;
            let begun = std::time::Instant::now();
            let asked = Start {
                json_schema: schema.map(Into::into),
                grammar: grammar.map(Into::into),
                scope: 1,
                ..start(id, prompt.clone(), 150)
            };
            let answer = engine.answer(asked);
            best = best.min(begun.elapsed().as_secs_f64() * 1e6 / answer.tokens.len() as f64);
        }
        best
    };
    let any = r#"{"type":"array","items":{"type":"string"},"minItems":9}"#;
    println!("free            {:8.0} us", tokens_per_second(None, None));
    println!("schema          {:8.0} us", tokens_per_second(Some(any), None));
    println!("list            {:8.0} us", tokens_per_second(Some(LIST), None));
    println!("grammar         {:8.0} us", tokens_per_second(None, Some("root ::= [a-z ,.]{600}")));
    println!("grammar, any    {:8.0} us", tokens_per_second(None, Some("root ::= .{600}")));
    println!("recursive       {:8.0} us", tokens_per_second(None, Some("root ::= [a-z ,.] root | [.]{600}")));
    println!("recursive, any  {:8.0} us", tokens_per_second(None, Some("root ::= . root | [.]{600}")));
}
