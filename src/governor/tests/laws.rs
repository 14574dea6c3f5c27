//! What holds whatever comes.

use proptest::prelude::*;

use super::*;

/// A reading, an engine and a moment, as numbers.
type Draw = (u64, u64, f64, (u32, u32, u32), (u64, u64), (u64, bool, f64), Option<u32>);

fn draw() -> impl Strategy<Value = Draw> {
    (
        100_u64..5000,
        0_u64..6000,
        40.0..110.0_f64,
        (0_u32..9000, 0_u32..9000, 0_u32..9000),
        (0_u64..3, 0_u64..200),
        (0_u64..3, any::<bool>(), 0.0..=1.0_f64),
        proptest::option::of(0_u32..9000),
    )
}

/// Fills in an input. Layers cannot be given up here for memory: they would free nothing.
fn filled(draw: &Draw, now: &mut Duration) -> Input<'static> {
    let (milliseconds, mib, degrees, (allocated, live, cached), (stalls, faults), (current, alert, busy), pin) = *draw;
    *now += Duration::from_millis(milliseconds);
    let mut input = at_rest(*now);
    input.memory = (mib > 50).then(|| Memory { alloc_stalls: stalls, major_faults: faults, ..available(mib) });
    input.heat = match degrees {
        degrees if degrees < 45.0 => Heat::Unreadable,
        degrees => Heat::Reading(Celsius(degrees)),
    };
    (input.engine.allocated_context, input.engine.live_tokens, input.engine.cached_tokens) = (allocated, live, cached);
    (input.over_current, input.throttle_alert, input.engine.busy) = (current, alert, busy);
    input.pin.context = pin;
    input
}

/// Where a point is on the memory ladder, of those that differ when layers stay.
fn rung(point: OperatingPoint) -> usize {
    match (point.context, point.admit) {
        (_, Admit::Unload) => 5,
        (_, Admit::Hold) => 4,
        (8192, _) => 0,
        (6144, _) => 1,
        (4096, _) => 2,
        _ => 3,
    }
}

/// By hand: the first rung that restores the reserve, of an engine whose cache alone can give.
fn first_rung(mib: u64, engine: &Engine) -> usize {
    let limits = limits();
    let available = Bytes::mib(mib);
    if available < limits.critical {
        return 4;
    }
    if available >= limits.reserve {
        return 0;
    }
    let can_save = available >= KV.times(engine.live_tokens.min(engine.allocated_context));
    let kept = |context| cells(engine.live_tokens).min(context).min(engine.allocated_context);
    let after = |context| available + KV.times(engine.allocated_context - kept(context));
    let restores = |context: &u32| can_save && after(*context) >= limits.reserve;
    [8192, 6144, 4096, 2048].iter().position(restores).unwrap_or(4)
}

proptest! {
    #[test]
    fn no_point_is_over_full_or_pin_and_nothing_is_counted_twice(draws in prop::collection::vec(draw(), 1..60)) {
        let (mut governor, mut now) = (Governor::new(limits()), Duration::ZERO);
        for draw in &draws {
            let input = filled(draw, &mut now);
            let decision = governor.step(&input);
            let full = limits().full(33);
            prop_assert!(decision.point.within(input.pin.over(full)), "{decision:?}");
            prop_assert!((LEAST..=1.0).contains(&decision.point.pace));
            prop_assert!(decision.grow_to <= decision.point.context);
            let engine = &input.engine;
            let grown = KV.times(decision.grow_to.saturating_sub(engine.allocated_context));
            let spare = input.memory.map_or(Bytes(0), |memory| memory.available - limits().reserve);
            prop_assert!(grown <= spare, "{decision:?}");
            for skipped in &decision.skipped {
                if let Why::NoRoomToSave { needs } = skipped.why {
                    prop_assert!(needs <= KV.times(9000));
                }
            }
            // Full, or with a reason.
            prop_assert_eq!(decision.point == full && decision.cache == Cache::Keep, decision.reasons.is_empty());
            prop_assert!(decision.reasons.is_sorted_by_key(|reason| reason.code));
            prop_assert!(decision.reasons.iter().all(|reason| reason.since <= now));
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_decisions(draws in prop::collection::vec(draw(), 2..40)) {
        let (mut one, mut now) = (Governor::new(limits()), Duration::ZERO);
        let (first, rest) = draws.split_at(draws.len() / 2);
        for draw in first {
            one.step(&filled(draw, &mut now));
        }
        let mut other = one.clone();
        for draw in rest {
            let input = filled(draw, &mut now);
            prop_assert_eq!(one.step(&input), other.step(&input));
        }
    }

    #[test]
    fn down_goes_to_the_first_step_that_restores_the_reserve(
        mib in 300_u64..2000, allocated in 0_u32..=32, live in 0_u32..8192, cached in 0_u32..8192,
    ) {
        let mut bench = Bench::new();
        let mut input = at_rest(bench.now);
        let engine = &mut input.engine;
        engine.allocated_context = allocated * CELLS;
        engine.live_tokens = live.min(engine.allocated_context);
        engine.cached_tokens = cached.min(engine.allocated_context - engine.live_tokens);
        input.memory = Some(available(mib));
        let decision = bench.governor.step(&input);
        prop_assert_eq!(rung(decision.point), first_rung(mib, &input.engine), "{:?}", decision);
        let all = KV.times(input.engine.allocated_context);
        let counted = |skipped: &Skipped| matches!(skipped.why, Why::NotEnough { frees } if frees > all);
        prop_assert!(!decision.skipped.iter().any(counted), "{:?}", decision);
    }

    #[test]
    fn up_goes_one_step_at_a_time(draws in prop::collection::vec(draw(), 1..200)) {
        let (mut governor, mut now, mut before) = (Governor::new(limits()), Duration::ZERO, 0);
        for draw in &draws {
            let mut input = filled(draw, &mut now);
            (input.heat, input.throttle_alert, input.pin) = (Heat::None, false, Pin::default());
            // Long stretches, or nothing would ever go up.
            now += Duration::from_secs(60);
            let after = rung(governor.step(&input).point);
            prop_assert!(after + 1 >= before, "from {before} to {after}");
            before = after;
        }
    }

    #[test]
    fn constant_input_moves_in_one_direction_and_comes_to_rest(
        draws in prop::collection::vec(draw(), 0..20), last in draw(),
    ) {
        let (mut governor, mut now) = (Governor::new(limits()), Duration::ZERO);
        for draw in &draws {
            governor.step(&filled(draw, &mut now));
        }
        let mut input = filled(&last, &mut now);
        let mut decisions = Vec::new();
        for _ in 0..8000 {
            now += Duration::from_secs(2);
            input.now = now;
            decisions.push(governor.step(&input));
        }
        // The very first one sees a change.
        let lowered = |pair: &[Decision]| !pair[0].point.within(OperatingPoint { pace: 1.0, ..pair[1].point });
        let raised = |pair: &[Decision]| !pair[1].point.within(OperatingPoint { pace: 1.0, ..pair[0].point });
        let pairs = || decisions[1..].windows(2);
        let (down, up) = (pairs().filter(|pair| lowered(pair)).count(), pairs().filter(|pair| raised(pair)).count());
        // Memory may go up where heat goes down; neither does both.
        prop_assert!(down <= 4 && up <= 10, "{down} down, {up} up");
        let rest = &decisions[7000..];
        prop_assert!(rest.iter().all(|decision| decision.point == rest[0].point), "{:?} {:?}", rest[0], rest[999]);
    }

    #[test]
    fn between_reserve_and_hysteresis_nothing_moves(mib in 1500_u64..1875, start in 0_usize..3) {
        let mut bench = Bench::new();
        let first = bench.step(|input| input.memory = Some(available([8000, 1400, 700][start])));
        for _ in 0..2000 {
            let next = bench.step(|input| input.memory = Some(available(mib)));
            prop_assert_eq!((next.point, next.cache), (first.point, first.cache));
        }
    }
}
