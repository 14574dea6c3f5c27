//! With `batch_invariant` every row of logits of a sequence is, bit for bit, that of a bare llama.cpp loop which decodes
//! the same tokens alone, one by one: whatever joins, leaves, is cancelled, shared, drafted, evicted or rebuilt beside
//! it. The sharpest test there is of scheduler, prefix sharing and lookup.

#[path = "engine/bare.rs"]
mod bare;
#[path = "engine/harness.rs"]
mod harness;
#[path = "support/make.rs"]
mod make;

use std::path::Path;

use bare::{Jobs, bare_loop, never_ending, text};
use harness::{Answer, Engine, load, model, start};
use proptest::{prelude::*, test_runner::TestRunner};
use temperd::wire::engine::{Load, Start, Stop, to_engine};

/// Schedules that are tried; each decodes some thousand tokens.
const SCHEDULES: u32 = 2;
/// So few cells that ended sequences have to go while others run, and the cells be put in order.
const CONTEXT: u32 = 1536;
/// Cells that there are at first: the cache grows while sequences run.
const FIRST: u32 = 256;
/// Where another token than alone is excused without the mode, the likeliest two are nearer than this (log).
const NEAR: f32 = 0.5;

/// One sequence of a schedule.
#[derive(Debug, Clone)]
struct Guest {
    /// Which of the two system texts it begins with.
    system: usize,
    /// Tokens of its own behind that.
    own: usize,
    answer: u32,
    client: u64,
    /// Frames that are read before it comes, and before it is stopped, where it is.
    before: usize,
    stopped_after: Option<usize>,
}

#[derive(Debug, Clone)]
struct Schedule {
    guests: Vec<Guest>,
    lookup: bool,
    n_ubatch: u32,
    step_target_ms: u32,
}

fn guest() -> impl Strategy<Value = Guest> {
    let stop = prop::option::weighted(0.2, 0usize..30);
    (0usize..2, 40usize..130, 20u32..56, 1u64..4, 0usize..12, stop).prop_map(
        |(system, own, answer, client, before, stopped_after)| Guest {
            system,
            own,
            answer,
            client,
            before,
            stopped_after,
        },
    )
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let chunks = prop::sample::select(vec![16u32, 48, 512]);
    (prop::collection::vec(guest(), 8..11), prop::bool::weighted(0.7), chunks, prop::sample::select(vec![5u32, 150]))
        .prop_map(|(guests, lookup, n_ubatch, step_target_ms)| Schedule { guests, lookup, n_ubatch, step_target_ms })
}

fn prompt(text: &[u32], guest: &Guest) -> (Vec<u32>, u32) {
    let (from, length) = [(0, 560), (900, 300)][guest.system];
    let own = &text[1500 + guest.own..][..guest.own];
    ([&text[from..from + length], own].concat(), u32::try_from(length).expect("small"))
}

/// The engine's settings for a schedule, with the mode.
fn invariant(schedule: &Schedule, model: &Path) -> Load {
    Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".to_owned(), ..plain(schedule, model) }
}

fn plain(schedule: &Schedule, model: &Path) -> Load {
    Load {
        lookup: schedule.lookup,
        lookup_always: true,
        n_ubatch: schedule.n_ubatch,
        step_target_ms: schedule.step_target_ms,
        first_context: FIRST,
        parallel: 3,
        context: CONTEXT,
        ..load(model)
    }
}

fn asked(id: u64, prompt: Vec<u32>, answer: u32) -> Start {
    Start { sampling: Some(never_ending()), digests: true, ..start(id, prompt, answer) }
}

/// Runs a schedule and gives, for each guest, its prompt and answer.
fn run(schedule: &Schedule, load: Load) -> Vec<(Vec<u32>, Answer)> {
    let (mut engine, _, _) = Engine::loaded_with(load);
    let text = text(&mut engine);
    let mut prompts = Vec::new();
    for (guest, id) in schedule.guests.iter().zip(1..) {
        for _ in 0..guest.before {
            if engine.quiet() {
                break;
            }
            engine.read();
        }
        // What runs at once must fit the context, as the daemon sees to.
        while engine.running() >= 3 {
            engine.read();
        }
        let (prompt, public_prefix) = prompt(&text, guest);
        prompts.push(prompt.clone());
        engine.start(Start { public_prefix, scope: guest.client, ..asked(id, prompt, guest.answer) });
        if let Some(frames) = guest.stopped_after {
            for _ in 0..frames {
                engine.read();
            }
            engine.send(to_engine::Frame::Stop(Stop { sequence: id }));
        }
    }
    let mut rejected = 0;
    let answers = (1..).zip(prompts).map(|(id, prompt)| {
        let answer = engine.finish(id);
        assert_eq!(answer.error, None);
        rejected += answer.drafted - answer.accepted;
        (prompt, answer)
    });
    let answers: Vec<_> = answers.collect();
    assert!(engine.allocated > FIRST, "the cache has not grown");
    // Rejected drafts leave cells between those of the sequences beside them.
    assert_eq!(rejected > 0, schedule.lookup, "{rejected} drafted tokens were rejected");
    answers
}

/// Tries so many schedules, always the same ones.
fn schedules(count: u32, test: impl Fn(&Schedule) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases: count, max_shrink_iters: 0, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()))
        .run(&schedule(), |schedule| test(&schedule))
        .expect("every schedule");
}

fn is_bit_equal(schedule: &Schedule, model: &Path) -> Result<(), TestCaseError> {
    let found = run(schedule, invariant(schedule, model));
    let jobs: Jobs = found.iter().map(|(prompt, answer)| (prompt.clone(), answer.tokens.clone())).collect();
    for (nth, ((_, answer), alone)) in found.iter().zip(bare_loop(model, &jobs)).enumerate() {
        let same = answer.digests.iter().zip(&alone).filter(|(a, b)| a == b).count();
        prop_assert_eq!(same, answer.digests.len(), "guest {} of {:?}", nth, schedule);
        prop_assert!(answer.digests.len() >= answer.tokens.len());
    }
    Ok(())
}

#[test]
fn no_schedule_changes_a_bit() {
    schedules(SCHEDULES, |schedule| is_bit_equal(schedule, &model()));
}

/// K-quants of matrices that are multiples of 256 wide, as the small model has none, and heads of 128.
#[test]
fn nor_does_one_with_a_layer_of_mistrals_shape() {
    let (_folder, shape) = make::mistral_shape(1);
    schedules(1, |schedule| is_bit_equal(schedule, &shape));
}

/// Without the mode, with and without flash attention: a text may differ from the one alone only where the best two
/// tokens were near each other. How many are alike is reported.
#[test]
fn without_the_mode_only_near_ties_fall_otherwise() {
    for flash_attention in ["on", "off"] {
        schedules(1, |schedule| {
            let load = Load { flash_attention: flash_attention.into(), ..plain(schedule, &model()) };
            let found = run(schedule, load.clone());
            let (mut engine, _, _) = Engine::loaded_with(Load { lookup: false, lookup_always: false, ..load });
            let mut alike = 0;
            for (nth, (prompt, answer)) in found.iter().enumerate() {
                let length = u32::try_from(answer.tokens.len()).expect("short").max(1);
                let with = Start { logprobs: true, top_logprobs: 2, ..asked(1 + nth as u64, prompt.clone(), length) };
                let alone = engine.answer(with);
                answer.assert_like(&alone, NEAR, &format!("guest {nth} of {schedule:?}"));
                alike += usize::from(answer.tokens == alone.tokens[..answer.tokens.len()]);
            }
            eprintln!("flash attention {flash_attention}: {alike} of {} texts are the ones alone", found.len());
            Ok(())
        });
    }
}
