use proptest::prelude::*;

use super::{
    record::{BYTES, KEY_BYTES, read},
    *,
};
use crate::request::{Client, dedupe::Mark};

const BOUNDS: Bounds = Bounds { entries: 6, age: 1000 };

fn secret() -> BoxKey {
    BoxKey::new([7; KEY_BYTES])
}

fn run(id: u8, seed: u32, dead: u8) -> Run {
    let key = Key::new("chat", &Client::mqtt(Some("pump")), "answers", Mark::Correlation(&[id]));
    Run { key, payload: Fingerprint::of("text/plain", &[id, 1]), seed, dead }
}

fn empty() -> Seen {
    Seen::restore(secret(), BOUNDS, Vec::new(), 0)
}

const FINISHED: Trace = Trace::Finished { packet: 9 };

fn finish(seen: &mut Seen, run: &Run, now: u64) -> Record {
    seen.finish(run, Some(9), now)
}

fn traced(seen: &mut Seen, run: &Run, now: u64) -> Trace {
    seen.trace(&run.key, &run.payload, now)
}

/// What the next daemon knows.
fn restarted(records: &[Record], now: u64) -> Seen {
    let file: Vec<u8> = records.iter().flat_map(|record| record.encode(&secret())).collect();
    let (records, damaged) = read(&secret(), &file);
    assert_eq!(damaged, 0);
    Seen::restore(secret(), BOUNDS, records, now)
}

#[test]
fn a_request_that_was_finished_stays_so_and_one_that_ran_keeps_its_seed() {
    let mut seen = empty();
    let (done, cut, other) = (run(1, 11, 0), run(2, 22, 0), run(3, 33, 0));
    let log = [seen.begin(&done, 5), seen.begin(&cut, 6), finish(&mut seen, &done, 7)];
    let mut next = restarted(&log, 8);
    assert_eq!(traced(&mut next, &done, 8), FINISHED);
    assert_eq!(traced(&mut next, &cut, 8), Trace::Started { seed: 22, dead: 1 });
    assert_eq!(traced(&mut next, &other, 8), Trace::Unknown);
    assert_eq!(next.trace(&done.key, &other.payload, 8), Trace::Conflict);
}

#[test]
fn a_daemon_that_lives_to_see_the_outcome_does_not_count_as_dead_of_it() {
    let mut seen = empty();
    let one = run(1, 11, 0);
    let begun = seen.begin(&one, 1);
    let Ended::Ran(ended) = seen.end(&one, 2) else { panic!("it ran") };
    assert_eq!(traced(&mut restarted(&[begun, ended], 3), &one, 3), Trace::Started { seed: 11, dead: 0 });
    let mut second = restarted(&[begun], 3);
    let again = second.begin(&Run { dead: 1, ..one }, 4);
    assert_eq!(traced(&mut restarted(&[begun, again], 5), &one, 5), Trace::Started { seed: 11, dead: 2 });
    // What an earlier daemon wrote stands where this one did not run it.
    assert_eq!(second.end(&Run { dead: 2, ..run(2, 0, 0) }, 5), waited(&run(2, 0, 2), 5));
    assert_eq!(restarted(&[begun], 3).end(&Run { dead: 1, ..one }, 4), Ended::Known);
}

fn waited(run: &Run, at: u64) -> Ended {
    let name = secret().name(&run.key);
    let state = State::Started { seed: run.seed, dead: run.dead };
    Ended::Waited(Record { name, print: secret().print(&name, &run.payload), state, at })
}

#[test]
fn one_that_ends_before_it_runs_is_known_to_the_next_daemon() {
    let mut seen = empty();
    let one = run(1, 11, 0);
    let Ended::Waited(record) = seen.end(&one, 2) else { panic!("it never ran") };
    assert_eq!(traced(&mut restarted(&[record], 3), &one, 3), Trace::Started { seed: 11, dead: 0 });
}

#[test]
fn what_is_decided() {
    let kept = || Verdict::Answered(Some(&"answer"));
    let gone = || Verdict::<&str>::Answered(None);
    let started = |dead| Trace::Started { seed: 9, dead };
    let (marked, again) = (true, true);
    let unmarked = |again, here, before| decide(false, again, here, before);
    for again in [false, true] {
        assert_eq!(decide(marked, again, Verdict::<()>::New, Trace::Unknown), Course::Run);
        assert_eq!(decide(marked, again, Verdict::<()>::New, Trace::Conflict), Course::Conflict);
        assert_eq!(decide(marked, again, Verdict::<()>::New, started(1)), Course::RunAgain { seed: 9, dead: 1 });
        assert_eq!(decide(marked, again, Verdict::<()>::New, started(2)), Course::Poison(2));
        // What this daemon knows goes before what earlier ones left.
        assert_eq!(decide(marked, again, Verdict::<()>::Running(7), started(2)), Course::Join(7));
        assert_eq!(decide(marked, again, Verdict::<()>::Conflict, FINISHED), Course::Conflict);
        assert_eq!(decide(marked, again, kept(), FINISHED), Course::Resend(&"answer"));
    }
    assert_eq!(decide(marked, again, gone(), FINISHED), Course::Acknowledge);
    assert_eq!(decide(marked, !again, gone(), FINISHED), Course::AlreadyAnswered);
    assert_eq!(decide(marked, again, Verdict::<()>::New, FINISHED), Course::Acknowledge);
    assert_eq!(decide(marked, !again, Verdict::<()>::New, FINISHED), Course::AlreadyAnswered);
    // Without a mark, the words of one who asks anew are a new question.
    assert_eq!(unmarked(!again, kept(), FINISHED), Course::Run);
    assert_eq!(unmarked(!again, Verdict::New, started(2)), Course::Run);
    assert_eq!(unmarked(again, kept(), FINISHED), Course::Acknowledge);
    assert_eq!(unmarked(again, Verdict::New, started(1)), Course::RunAgain { seed: 9, dead: 1 });
}

#[test]
fn times_never_go_back_and_old_ones_are_forgotten() {
    let mut seen = empty();
    let log = [finish(&mut seen, &run(1, 0, 0), 5000), finish(&mut seen, &run(2, 0, 0), 10)];
    assert_eq!(log[1].at, 5000);
    // A clock that starts at 1970 makes nothing look old.
    let mut next = restarted(&log, 0);
    assert_eq!(traced(&mut next, &run(2, 0, 0), 0), FINISHED);
    assert_eq!(traced(&mut next, &run(2, 0, 0), 6000), FINISHED);
    assert_eq!(traced(&mut next, &run(2, 0, 0), 6001), Trace::Unknown);
    assert!(next.is_empty());
}

#[test]
fn a_clock_that_is_set_moves_all_that_it_showed_before() {
    for (start, by) in [(5000, 1_000_000), (5_000_000, -4_000_000), (5000, i64::MIN), (u64::MAX, i64::MAX)] {
        let mut seen = empty();
        let (old, young) = (run(1, 0, 0), run(2, 0, 0));
        seen.finish(&old, None, start - BOUNDS.age);
        seen.finish(&young, None, start);
        seen.clock_was_set(by);
        let now = start.saturating_add_signed(by);
        assert_eq!(seen.latest(), now);
        let mut next = restarted(&seen.records(), now);
        for seen in [&mut seen, &mut next] {
            assert_eq!([&old, &young].map(|run| traced(seen, run, now)), [Trace::Finished { packet: 0 }; 2], "{by}");
        }
        // What was older is forgotten first, as if nothing had happened.
        if now > 0 && now < u64::MAX {
            assert_eq!(
                [&old, &young].map(|run| traced(&mut seen, run, now + 1)),
                [Trace::Unknown, Trace::Finished { packet: 0 }]
            );
        }
    }
}

#[test]
fn what_runs_is_not_forgotten_however_much_is_finished_meanwhile() {
    let mut seen = empty();
    let long = run(200, 4, 0);
    seen.begin(&long, 1);
    for id in 0..50 {
        finish(&mut seen, &run(id, 0, 0), 1);
    }
    assert_eq!(seen.len(), BOUNDS.entries + 1);
    assert_eq!(traced(&mut restarted(&seen.records(), 2), &long, 2), Trace::Started { seed: 4, dead: 1 });
}

fn any_record() -> impl Strategy<Value = Record> {
    (any::<u8>(), any::<u32>(), any::<u8>(), any::<bool>(), any::<u64>()).prop_map(|(id, seed, dead, done, at)| {
        let run = run(id, 0, 0);
        let name = secret().name(&run.key);
        let state = if done { State::Finished { packet: 9 } } else { State::Started { seed, dead } };
        Record { name, print: secret().print(&name, &run.payload), state, at }
    })
}

proptest! {
    #[test]
    fn a_file_that_is_cut_anywhere_keeps_all_whole_records(records in prop::collection::vec(any_record(), 0..5)) {
        let file: Vec<u8> = records.iter().flat_map(|record| record.encode(&secret())).collect();
        for end in 0..=file.len() {
            let (read, damaged) = read(&secret(), &file[..end]);
            prop_assert_eq!(&read[..], &records[..end / BYTES]);
            prop_assert_eq!(damaged, usize::from(end % BYTES > 0));
        }
    }

    #[test]
    fn a_byte_that_is_wrong_costs_its_own_record_only(
        records in prop::collection::vec(any_record(), 1..5), at: prop::sample::Index, wrong in 1_u8..,
    ) {
        let mut file: Vec<u8> = records.iter().flat_map(|record| record.encode(&secret())).collect();
        let at = at.index(file.len());
        file[at] ^= wrong;
        let mut left = records.clone();
        left.remove(at / BYTES);
        prop_assert_eq!(read(&secret(), &file), (left, 1));
    }

    #[test]
    fn anything_else_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..300), other in any::<[u8; KEY_BYTES]>(),
                                  record in any_record()) {
        prop_assert!(read(&secret(), &bytes).0.is_empty());
        prop_assume!(other != [7; KEY_BYTES]);
        prop_assert!(read(&BoxKey::new(other), &record.encode(&secret())).0.is_empty());
    }

    /// Whenever the daemon dies, the next one knows from the log what this one knew, and from the whole file the same.
    #[test]
    fn a_daemon_that_comes_back_knows_what_the_dead_one_wrote(
        steps in prop::collection::vec((0_u8..10, 0_u8..4, 0_u64..200, any::<u32>()), 1..120),
    ) {
        let (mut seen, mut log, mut now) = (empty(), Vec::new(), 0);
        for (id, what, wait, seed) in steps {
            now += wait;
            let one = run(id, seed, 0);
            match what {
                0 | 1 => log.push(seen.begin(&one, now)),
                2 => match seen.end(&one, now) {
                    Ended::Ran(record) | Ended::Waited(record) => log.push(record),
                    Ended::Known => {}
                },
                _ => log.push(finish(&mut seen, &one, now)),
            }
            let (mut by_log, mut by_whole) = (restarted(&log, now), restarted(&seen.records(), now));
            for id in 0..10 {
                let one = run(id, 0, 0);
                let (whole, known) = (traced(&mut by_whole, &one, now), traced(&mut seen, &one, now));
                // What runs is beyond the bound only as long as it runs.
                if whole != Trace::Unknown {
                    prop_assert_eq!(whole, known);
                }
                if known == FINISHED {
                    prop_assert_eq!(traced(&mut by_log, &one, now), FINISHED);
                }
            }
            let running = seen.entries.values().filter(|entry| entry.live).count();
            prop_assert!(seen.len() <= BOUNDS.entries + running);
            prop_assert!(seen.finished.len() <= BOUNDS.entries && seen.left.is_empty());
        }
    }
}
