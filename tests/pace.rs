//! Pace is a share of time, so this test is the only one of its process: nothing runs beside it.

#[path = "engine/harness.rs"]
mod harness;

use harness::{Engine, greedy, load, model, start};
use temperd::wire::engine::{Heartbeat, Load, Sampling, Start};

fn share(from: &Heartbeat, to: &Heartbeat) -> f64 {
    (to.computed_s - from.computed_s) / (to.at_s - from.at_s)
}

#[test]
fn pace_is_the_share_of_the_time_that_is_computed() {
    let (mut engine, _, _) = Engine::loaded_with(Load { context: 4096, lookup: false, ..load(&model()) });
    let text = engine.tokenise(&"The pump is warm, and the valve is open. ".repeat(100), false);
    // Without its end tokens an answer goes on.
    let logit_bias = (0..17).map(|token| (token, f32::NEG_INFINITY)).collect();
    let sampling = Some(Sampling { logit_bias, ..greedy() });
    for id in 1..=2 {
        let prompt = text[300 * usize::try_from(id).expect("small")..][..100].to_vec();
        engine.start(Start { sampling: sampling.clone(), ..start(id, prompt, 1500) });
    }
    engine.until_output(2);
    for pace in [0.5, 0.2] {
        engine.pace(pace);
        engine.beats.clear();
        let from = engine.beat(|_| true);
        let from = engine.beat(|beat| beat.at_s > from.at_s + 0.5);
        let before = [1, 2].map(|id| engine.tokens(id));
        let to = engine.beat(|beat| beat.at_s > from.at_s + 3.0);
        let found = share(&from, &to);
        assert!((found - f64::from(pace)).abs() < 0.1 * f64::from(pace), "{found} instead of {pace}");
        // Four heartbeats a second, also in pauses.
        let apart = engine.beats.windows(2).map(|pair| pair[1].at_s - pair[0].at_s);
        assert!(apart.clone().all(|seconds| seconds < 1.5), "{:?}", apart.collect::<Vec<_>>());
        // Both streams have slowed down alike.
        let after = [1, 2].map(|id| engine.tokens(id));
        let grown = [after[0] - before[0], after[1] - before[1]];
        assert!(grown[0].abs_diff(grown[1]) <= 2 && grown[0] > 0, "{grown:?}");
    }
    // A pause of seconds is over when the next pace comes.
    engine.pace(0.01);
    engine.beat(|_| true);
    engine.pace(1.0);
    let from = engine.beat(|_| true);
    let from = engine.beat(|beat| beat.at_s > from.at_s + 0.5);
    let to = engine.beat(|beat| beat.at_s > from.at_s + 2.0);
    assert!(share(&from, &to) > 0.9, "{}", share(&from, &to));
    for id in 1..=2 {
        engine.stop(id);
        assert_eq!(engine.finish(id).error, None);
    }
}
