//! The protocol between devices, broker, daemon and engine, explored in all states within bounds: each fault at each step.
//! What decides is the daemon's own code (`serve::mqtt::protocol` with its parts, `dispatch::turn`, `dispatch::slots`,
//! `request::queue`); broker, disk, engine and time are played, and so are the shells that carry decisions out.
//!
//! `cargo test --release --test model -- --nocapture` prints how much was explored.

#[path = "model/daemon.rs"]
mod daemon;
#[path = "model/disk.rs"]
mod disk;
#[path = "model/history.rs"]
mod history;
#[path = "model/setup.rs"]
mod setup;
#[path = "model/wire.rs"]
mod wire;
#[path = "model/world.rs"]
mod world;

use std::collections::HashMap;

use history::Wrong;
use setup::{Ask, Faults, Safeguard, Setup};
use stateright::{Checker, HasDiscoveries, Model, Path};
use world::{
    ALREADY_ANSWERED, ANSWERED, Action, CANCELLED, CONFLICT, ENDS, ENGINE_POISON, EXPIRED, KEPT, POISON, QUEUE_FULL,
    REDECODED, SAFE, TWO_OUTCOMES, World,
};

const NONE: Faults =
    Faults { crashes: 0, cuts: 0, losses: 0, repeats: 0, cancels: 0, ticks: 0, engines: 0, refusals: 0, rejects: 0 };

/// An exploration with fewer states has looked at nothing much.
const LEAST: usize = 10_000;

type Found = HashMap<&'static str, Path<World, Action>>;

/// Explores all of it: nothing is wrong, at least so many states there are, and it came across all of `shown`.
fn explore(name: &str, setup: Setup, least: usize, shown: &[&str]) {
    let checker = setup.checker().threads(2).spawn_dfs().join();
    let (states, found): (_, Found) = (checker.unique_state_count(), checker.discoveries());
    println!("{name}: {states} states, {} steps at most", checker.max_depth());
    if let Some((promise, path)) = broken(&found) {
        panic!("{name}: {promise}: {}", story(path));
    }
    assert!(states >= least, "{name}: {states} states only");
    for what in shown {
        assert!(found.contains_key(what), "{name}: {what} was never seen");
    }
}

fn broken(found: &Found) -> Option<(&'static str, &Path<World, Action>)> {
    [SAFE, KEPT, ENDS].into_iter().find_map(|promise| Some((promise, found.get(promise)?)))
}

fn story(path: &Path<World, Action>) -> String {
    let steps = path.clone().into_actions();
    format!("{steps:?}\n{:?}", path.last_state().history)
}

/// Finds how a promise is broken without a safeguard, by the shortest way.
fn broken_without(safeguard: Safeguard, setup: Setup, promise: &str, wrong: Option<Wrong>) {
    let whole = setup.clone().checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let kept = broken(&whole.discoveries()).map(|(_, path)| story(path));
    assert_eq!(kept, None, "with {safeguard:?}");
    let setup = Setup { without: Some(safeguard), ..setup };
    let checker = setup.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found: Found = checker.discoveries();
    let (broken, path) = broken(&found).unwrap_or_else(|| panic!("nothing rests on {safeguard:?}"));
    println!("without {safeguard:?}: {broken}, {}", story(path));
    assert_eq!((broken, path.last_state().history.wrong), (promise, wrong), "without {safeguard:?}");
}

#[test]
fn one_request() {
    let faults = Faults { crashes: 2, cuts: 1, losses: 1, repeats: 1, refusals: 1, rejects: 1, ..NONE };
    let shown = [ANSWERED, REDECODED, POISON, QUEUE_FULL, ALREADY_ANSWERED, TWO_OUTCOMES];
    explore("one request", Setup::new(&[Ask::marked(0, 0)], faults), LEAST, &shown);
    let faults = Faults { crashes: 1, cuts: 1, cancels: 1, ticks: 2, engines: 1, ..NONE };
    let shown = [ANSWERED, REDECODED, CANCELLED, EXPIRED, TWO_OUTCOMES];
    explore("one request that expires", Setup::new(&[Ask::marked(0, 0).expiring()], faults), LEAST, &shown);
}

#[test]
fn two_requests() {
    let asks = [Ask::marked(0, 0), Ask::marked(1, 1)];
    let faults = Faults { crashes: 1, cuts: 1, cancels: 1, ..NONE };
    let setup = Setup::new(&asks, faults);
    explore("one behind the other", setup, LEAST, &[REDECODED, CANCELLED, TWO_OUTCOMES]);
    let faults = Faults { crashes: 1, cuts: 1, losses: 1, ..NONE };
    let setup = Setup { parallel: 2, window: 2, ..Setup::new(&asks, faults) };
    explore("both at once", setup, LEAST, &[REDECODED, TWO_OUTCOMES]);
}

#[test]
fn two_payloads_of_one_key() {
    let faults = Faults { crashes: 1, cuts: 1, repeats: 1, ..NONE };
    let asks = [Ask::marked(0, 0), Ask::marked(0, 1)];
    explore("one key", Setup::new(&asks, faults), LEAST, &[REDECODED, CONFLICT, ALREADY_ANSWERED]);
}

#[test]
fn a_request_without_a_mark_that_is_asked_again() {
    let faults = Faults { crashes: 1, cuts: 2, repeats: 2, ..NONE };
    explore("without a mark", Setup::new(&[Ask::unmarked(0)], faults), LEAST, &[ANSWERED, REDECODED]);
}

#[test]
fn daemons_and_engines_that_keep_dying() {
    let faults = Faults { crashes: 4, cuts: 1, repeats: 1, ..NONE };
    let shown = [REDECODED, POISON, TWO_OUTCOMES, ALREADY_ANSWERED];
    explore("daemons die", Setup::new(&[Ask::marked(0, 0)], faults), LEAST, &shown);
    let faults = Faults { engines: 3, cuts: 1, ..NONE };
    let asks = [Ask::marked(0, 0), Ask::marked(1, 1)];
    explore("engines die", Setup { parallel: 2, ..Setup::new(&asks, faults) }, LEAST, &[ANSWERED, ENGINE_POISON]);
}

#[test]
fn finals_that_are_not_kept_and_a_daemon_without_a_disk() {
    let faults = Faults { cuts: 2, repeats: 2, crashes: 1, ..NONE };
    let setup = Setup { keeps: false, ..Setup::new(&[Ask::marked(0, 0)], faults) };
    explore("not kept", setup, LEAST, &[ANSWERED, ALREADY_ANSWERED]);
    // Without a disk the promise holds as long as the daemon lives.
    let faults = Faults { cuts: 2, repeats: 1, cancels: 1, ..NONE };
    let asks = [Ask::marked(0, 0), Ask::marked(0, 1)];
    let setup = Setup { disk: false, ..Setup::new(&asks, faults) };
    explore("no disk", setup, LEAST, &[ANSWERED, CONFLICT, CANCELLED]);
}

/// The same with more faults.
#[test]
#[ignore = "takes minutes"]
fn larger_bounds() {
    let one = [Ask::marked(0, 0)];
    let faults = Faults { crashes: 5, cuts: 2, repeats: 1, ..NONE };
    explore("daemons die more often", Setup::new(&one, faults), 1_000_000, &[POISON, TWO_OUTCOMES]);
    let one_key = [Ask::marked(0, 0), Ask::marked(0, 1)];
    let faults = Faults { crashes: 1, cuts: 1, losses: 1, repeats: 1, ..NONE };
    explore("one key, lost sessions", Setup::new(&one_key, faults), 1_000_000, &[CONFLICT, TWO_OUTCOMES]);
    let two = [Ask::marked(0, 0), Ask::marked(1, 1)];
    let faults = Faults { engines: 4, cuts: 1, crashes: 1, ..NONE };
    let setup = Setup { parallel: 2, ..Setup::new(&two, faults) };
    explore("engines and daemons die", setup, 1_000_000, &[ENGINE_POISON, REDECODED]);
}

#[test]
fn each_safeguard_is_needed() {
    let one = |faults| Setup::new(&[Ask::marked(0, 0)], faults);
    let two = |faults| Setup::new(&[Ask::marked(0, 0), Ask::marked(1, 1)], faults);
    let of_one_key = |faults| Setup::new(&[Ask::marked(0, 0), Ask::marked(0, 1)], faults);
    let crash = Faults { crashes: 1, ..NONE };
    let cut = Faults { cuts: 1, ..NONE };
    let unmarked = Some(Wrong::SecondOutcomeUnmarked);
    let decoded = Some(Wrong::DecodedThoughFinished);
    let out_of_turn = Some(Wrong::AckOutOfTurn);
    broken_without(Safeguard::AckAfterFinal, one(crash), KEPT, None);
    broken_without(Safeguard::AckOrder, Setup { parallel: 2, ..two(NONE) }, SAFE, out_of_turn);
    broken_without(Safeguard::AcksReset, two(Faults { losses: 1, ..NONE }), SAFE, out_of_turn);
    broken_without(Safeguard::Resend, one(cut), ENDS, None);
    broken_without(Safeguard::Dedupe, one(cut), SAFE, unmarked);
    broken_without(Safeguard::Digest, of_one_key(NONE), SAFE, Some(Wrong::AnswerOfAnother));
    broken_without(Safeguard::BeginRecord, one(crash), SAFE, unmarked);
    broken_without(Safeguard::BeginSync, one(crash), SAFE, unmarked);
    broken_without(Safeguard::EndRecord, one(Faults { crashes: 2, ..NONE }), SAFE, Some(Wrong::FalselyAccused));
    broken_without(Safeguard::OutcomeRecord, two(Faults { cancels: 1, ..crash }), SAFE, unmarked);
    broken_without(Safeguard::FinishRecord, one(crash), SAFE, decoded);
    broken_without(Safeguard::FinishSync, one(crash), SAFE, decoded);
    broken_without(Safeguard::RepeatSync, one(Faults { cuts: 1, ..crash }), SAFE, decoded);
    broken_without(Safeguard::Redecoded, one(crash), SAFE, unmarked);
}
