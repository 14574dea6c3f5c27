//! The memory ladder.

use super::*;

/// Little available, and an engine as it is at rest but for a change.
fn low(mib: u64, change: impl Fn(&mut Engine)) -> impl Fn(&mut Input<'static>) {
    move |input| {
        input.memory = Some(available(mib));
        change(&mut input.engine);
    }
}

#[test]
fn at_rest_everything_is_full_and_nothing_needs_a_reason() {
    let decision = Bench::new().step(|_| ());
    assert_eq!(decision.point, limits().full(33));
    assert_eq!((decision.cache, decision.grow_to, decision.pinned), (Cache::Keep, 8192, false));
    assert!(decision.reasons.is_empty() && decision.skipped.is_empty());
}

#[test]
fn slack_goes_before_prefixes_and_prefixes_before_context() {
    // 4096 cells; 2000 tokens live or cached round to 2048: 256 MiB are slack, and 128 more are prefixes.
    let decision = Bench::new().step(low(1300, |_| ()));
    assert_eq!((decision.cache, decision.point.context), (Cache::Shrunk, 8192));
    let decision = Bench::new().step(low(1200, |_| ()));
    assert_eq!((decision.cache, decision.point.context), (Cache::LiveOnly, 8192));
    assert_eq!(
        decision.reasons.first().map(|reason| (reason.code, reason.value, reason.limit)),
        Some((Code::MemoryLow, Some(1200.0), Some(1500.0)))
    );
}

#[test]
fn it_goes_straight_to_the_first_step_that_restores_the_reserve() {
    // 8000 tokens live: trimming frees nothing, 6144 cells free 256 MiB, 4096 free 512.
    let full =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (8192, 8000, 0);
    let decision = Bench::new().step(low(1100, full));
    assert_eq!((decision.point.context, decision.point.admit), (4096, Admit::Run));
    let why: Vec<_> = decision.skipped.iter().map(|skipped| (skipped.step, skipped.why)).collect();
    assert_eq!(
        why,
        [
            (Step::Trim, Why::NoGain),
            (Step::Trim, Why::NoGain),
            (Step::Context(75), Why::NotEnough { frees: Bytes::mib(256) })
        ]
    );
}

#[test]
fn memory_that_is_not_allocated_is_not_counted_on() {
    // The context could be 8192, but all that is allocated is live.
    let small =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (1024, 1000, 0);
    let decision = Bench::new().step(low(1400, small));
    assert_eq!(decision.point.admit, Admit::Hold);
    let steps: Vec<_> =
        decision.skipped.iter().filter(|skipped| skipped.why == Why::NoGain).map(|one| one.step).collect();
    assert!(steps.contains(&Step::Context(75)) && steps.contains(&Step::Context(25)), "{steps:?}");
}

#[test]
fn what_a_step_has_yet_to_give_back_is_not_asked_for_twice() {
    let mut bench = Bench::new();
    let first = bench.step(low(1200, |_| ()));
    assert_eq!(bench.steps(30, low(1200, |_| ())).point, first.point);
    // The cells are gone, and others have taken what they gave.
    let gone = |engine: &mut Engine| (engine.allocated_context, engine.cached_tokens) = (1024, 0);
    assert_eq!(bench.step(low(1200, gone)).point.admit, Admit::Hold);
}

#[test]
fn the_copy_that_a_step_makes_is_no_reason_for_another() {
    let mut bench = Bench::new();
    let first = bench.step(low(1300, |_| ()));
    assert_eq!((first.cache, first.point.context), (Cache::Shrunk, 8192));
    // 1000 live tokens are 125 MiB; the cells have not come back yet.
    let copied = low(1300 - 125, |_| ());
    let cache = bench.steps(2, &copied).cache;
    assert_eq!(cache, Cache::Shrunk);
    // A reading from before the engine has said so.
    let mut prompt = Bench::new();
    prompt.step(low(1300, |_| ()));
    let done = |engine: &mut Engine| engine.allocated_context = 2048;
    assert_eq!(prompt.step(low(1300 + 256 - 125, done)).cache, Cache::Shrunk);
    assert_eq!(prompt.step(low(1300 + 256 - 125, done)).cache, Cache::LiveOnly);
    // So long no change takes: somebody else has them.
    assert_eq!(bench.steps(2, &copied).cache, Cache::LiveOnly);
}

#[test]
fn the_copy_that_a_step_makes_is_no_fall_that_goes_on() {
    let mut bench = Bench::new();
    bench.step(low(1600, |_| ()));
    // Others have taken 300 MiB in a second; what the step gives back is enough for that.
    assert_eq!(bench.step(low(1300, |_| ())).cache, Cache::Shrunk);
    assert_eq!(bench.step(low(1300 - 125, |_| ())).cache, Cache::Shrunk);
    // What falls on when the cells are back is a fall.
    let gone = |engine: &mut Engine| engine.allocated_context = 2048;
    assert_eq!(bench.step(low(1300 + 256, gone)).cache, Cache::Shrunk);
    bench.step(low(1300 + 206, gone));
    assert_eq!(bench.step(low(1300 + 156, gone)).cache, Cache::LiveOnly);
}

#[test]
fn critical_holds_at_once_and_unloads_if_that_does_not_help() {
    let mut bench = Bench::new();
    let decision = bench.step(low(700, |_| ()));
    assert_eq!((decision.point.admit, decision.cache), (Admit::Hold, Cache::LiveOnly));
    assert_eq!(decision.point.gpu_layers, 33, "layers free nothing here");
    assert_eq!(codes(&decision), [Code::MemoryCritical]);
    assert_eq!(bench.steps(2, low(700, |_| ())).point.admit, Admit::Hold);
    assert_eq!(bench.steps(2, low(700, |_| ())).point.admit, Admit::Unload);
}

#[test]
fn a_fall_that_goes_on_below_critical_unloads_before_nothing_is_left() {
    let mut bench = Bench::new();
    let admit: Vec<_> = (0..6).map(|nth| bench.step(low(1600 - 200 * nth, |_| ())).point.admit).collect();
    // 400 MiB a second: 1000 are 200 in two seconds, and with what trimming gives back still below 750.
    assert_eq!(admit, [Admit::Run, Admit::Run, Admit::Hold, Admit::Unload, Admit::Unload, Admit::Unload]);
}

#[test]
fn up_one_step_at_a_time_each_after_the_dwell_and_only_where_it_can_be_afforded() {
    let mut bench = Bench::new();
    let small =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (1024, 1000, 0);
    assert_eq!(bench.step(low(1400, small)).point.admit, Admit::Hold);
    // Within reserve and hysteresis nothing moves.
    assert_eq!(bench.steps(600, low(1800, small)).point.admit, Admit::Hold);
    let roomy = low(4000, small);
    assert_eq!(bench.steps(60, &roomy).point.admit, Admit::Hold);
    let mut seen = Vec::new();
    for _ in 0..900 {
        let point = bench.step(&roomy).point;
        if seen.last().is_none_or(|(_, before)| *before != point) {
            seen.push((bench.now, point));
        }
    }
    let contexts: Vec<_> = seen.iter().map(|(_, point)| (point.context, point.admit)).collect();
    let run = |context| (context, Admit::Run);
    assert_eq!(contexts, [run(2048), run(4096), run(6144), run(8192)]);
    assert!(seen.windows(2).all(|pair| pair[1].0 - pair[0].0 >= Duration::from_secs(60)), "{seen:?}");
    // 4096 more cells would take 384 MiB beyond what is allocated, of 1875 + 300.
    let mut bench = Bench::new();
    bench.step(low(1400, small));
    assert_eq!(bench.steps(600, low(2175, small)).point.context, 2048);
}

#[test]
fn a_step_up_that_was_in_vain_makes_the_next_one_wait_longer() {
    let mut bench = Bench::new();
    let full =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (6144, 6000, 0);
    let roomy = low(4000, |engine| engine.allocated_context = 1024);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let lowered = bench.step(low(1300, full)).point.context;
        let from = bench.now;
        while bench.step(&roomy).point.context <= lowered {}
        waits.push((bench.now - from).as_secs());
    }
    assert_eq!(waits, [60, 120, 240, 480]);
}

#[test]
fn one_allocation_is_no_trend_but_a_fall_is_followed_ahead() {
    let mut bench = Bench::new();
    bench.step(low(4000, |_| ()));
    assert_eq!(bench.steps(5, low(1700, |_| ())).cache, Cache::Keep);
    let mut bench = Bench::new();
    let steady: Vec<_> = (0..5).map(|nth| bench.step(low(2100 - 100 * nth, |_| ())).cache).collect();
    // 1800 and 200 MiB/s less: 1400 in two seconds.
    assert_eq!(steady, [Cache::Keep, Cache::Keep, Cache::Keep, Cache::Shrunk, Cache::Shrunk]);
}

#[test]
fn signs_of_strain_count_where_memory_is_near_the_reserve() {
    type Change = fn(&mut Memory);
    let mib = Bytes::mib;
    let strained: [(Change, bool); 4] = [
        (|memory| memory.alloc_stalls = 3, true),
        (|memory| memory.swap = Some((Bytes::mib(100), Bytes::mib(8000))), true),
        (|memory| memory.swap = Some((Bytes::mib(4000), Bytes::mib(8000))), false),
        (|memory| memory.major_faults = 1000, false),
    ];
    for (change, counts) in strained {
        for (mib, near) in [(1600, true), (4000, false)] {
            let decision = Bench::new().step(|input| {
                let mut memory = available(mib);
                change(&mut memory);
                input.memory = Some(memory);
            });
            assert_eq!(decision.cache != Cache::Keep, counts && near, "{mib}");
        }
    }
    // Swap that fills while pages come back from it.
    let mut bench = Bench::new();
    let swapping = |free: u64, faults: u64| {
        move |input: &mut Input<'static>| {
            input.memory = Some(Memory { swap: Some((mib(free), mib(8000))), major_faults: faults, ..available(1600) });
        }
    };
    assert_eq!(bench.step(swapping(5000, 50)).cache, Cache::Keep);
    assert_eq!(bench.step(swapping(4900, 0)).cache, Cache::Keep);
    assert_ne!(bench.step(swapping(4800, 50)).cache, Cache::Keep);
}

#[test]
fn layers_go_only_where_they_free_something_at_a_price_that_is_worth_it() {
    let live =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (1024, 1000, 0);
    let mapped = move |engine: &mut Engine| {
        live(engine);
        engine.bytes_per_gpu_layer = Bytes::mib(90);
    };
    let decision = Bench::new().step(low(800, mapped));
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (16, Admit::Run));
    let decision = Bench::new().step(low(800, move |engine| {
        mapped(engine);
        engine.layer_step_cost = Duration::from_secs(40);
    }));
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (33, Admit::Hold));
    let cost = Why::Cost { cost: Duration::from_secs(80), kept: Duration::from_secs(60) };
    assert!(decision.skipped.contains(&Skipped { step: Step::Layers(50), why: cost }), "{:?}", decision.skipped);
    let decision = Bench::new().step(low(800, live));
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (33, Admit::Hold));
    assert!(decision.skipped.contains(&Skipped { step: Step::Layers(50), why: Why::NoGain }), "{:?}", decision.skipped);
}

#[test]
fn while_a_model_loads_only_critical_counts() {
    let loading = |engine: &mut Engine| engine.loading = true;
    assert_eq!(Bench::new().steps(10, low(1000, loading)).point, limits().full(33));
    assert_eq!(Bench::new().step(low(700, loading)).point.admit, Admit::Hold);
}

#[test]
fn a_state_that_cannot_be_saved_is_not_asked_for() {
    let live =
        |engine: &mut Engine| (engine.allocated_context, engine.live_tokens, engine.cached_tokens) = (16_384, 8000, 0);
    let mut limits = limits();
    (limits.context, limits.critical) = (16_384, Bytes::mib(300));
    let decision = Bench::with(limits).step(low(900, live));
    assert_eq!(decision.point.admit, Admit::Hold);
    let why = Why::NoRoomToSave { needs: Bytes::mib(1000) };
    assert!(decision.skipped.contains(&Skipped { step: Step::Trim, why }), "{:?}", decision.skipped);
}

#[test]
fn the_allocation_grows_into_what_is_over_the_reserve() {
    let decision = Bench::new().step(low(1600, |_| ()));
    // 100 MiB are 800 tokens: three times 256.
    assert_eq!((decision.grow_to, decision.point.context), (4096 + 768, 8192));
    assert_eq!(Bench::new().step(|input| input.memory = None).grow_to, 4096);
}

#[test]
fn a_reading_that_fails_decides_nothing_new() {
    let mut bench = Bench::new();
    let before = bench.step(low(1200, |_| ()));
    let after = bench.steps(600, |input| input.memory = None);
    assert_eq!((after.point, after.cache), (before.point, before.cache));
}

#[test]
fn after_unload_what_loading_takes_must_be_there() {
    let mut bench = Bench::new();
    bench.steps(10, low(700, |_| ()));
    let gone = |engine: &mut Engine| {
        (engine.allocated_context, engine.gpu_layers, engine.live_tokens, engine.cached_tokens) = (0, 0, 0, 0);
        (engine.compute_buffers, engine.resident_weights) = (Bytes(0), Bytes(0));
    };
    // 512 MiB of cache, 100 of buffers and 3000 of weights were given back.
    assert_eq!(bench.steps(600, low(1875 + 3500, gone)).point.admit, Admit::Unload);
    assert_eq!(bench.steps(70, low(1875 + 3700, gone)).point.admit, Admit::Hold);
}
