//! Failed loads and crashes.

use super::*;

fn loaded(gpu_layers: u32, context: u32) -> impl FnOnce(&mut Input<'static>) {
    move |input| input.failures = Vec::leak(vec![Failure::Load { gpu_layers, context }])
}

fn crashed(input: &mut Input<'static>) {
    input.failures = &[Failure::Crash { gpu_layers: 33, context: 8192 }];
}

#[test]
fn a_failed_load_goes_down_to_the_cpu_then_to_a_smaller_context_then_waits() {
    let mut bench = Bench::new();
    let mut point = limits().full(33);
    let mut seen = Vec::new();
    for _ in 0..8 {
        point = bench.step(loaded(point.gpu_layers, point.context)).point;
        seen.push((point.gpu_layers, point.context, point.admit));
    }
    let run = |layers, context| (layers, context, Admit::Run);
    let expected = [run(24, 8192), run(16, 8192), run(8, 8192), run(0, 8192), run(0, 6144), run(0, 4096), run(0, 2048)];
    assert_eq!(seen[..7], expected);
    assert_eq!(seen[7], (0, 2048, Admit::Hold));
}

#[test]
fn what_was_tried_counts_not_what_was_asked_for() {
    let decision = Bench::new().step(loaded(10, 8192));
    assert_eq!(decision.point.gpu_layers, 8);
    let reason = decision.reasons.first().copied();
    let expected = (Code::LoadFailed, Reading::GpuLayers, Some(10.0), Some(8.0));
    assert_eq!(reason.map(|one| (one.code, one.reading, one.value, one.limit)), Some(expected));
}

#[test]
fn one_crash_may_be_chance_two_are_not() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(crashed).point, limits().full(33));
    assert_eq!(bench.steps(700, |_| ()).point, limits().full(33));
    assert_eq!(bench.step(crashed).point, limits().full(33), "the other was too long ago");
    let decision = bench.step(crashed);
    let expected = OperatingPoint { gpu_layers: 0, ..limits().full(33) };
    assert_eq!((decision.point, codes(&decision)), (expected, vec![Code::Crashed]));
}

#[test]
fn crashes_take_the_gpu_away_and_it_comes_back_as_it_was() {
    let mut bench = Bench::new();
    // So many layers as could be loaded.
    bench.step(loaded(33, 8192));
    let crash = |gpu_layers| {
        move |input: &mut Input<'static>| {
            input.failures = Vec::leak(vec![Failure::Crash { gpu_layers, context: 8192 }]);
        }
    };
    bench.step(crash(24));
    assert_eq!(bench.step(crash(24)).point.gpu_layers, 0);
    // On the CPU it takes less context.
    bench.step(crash(0));
    assert_eq!(bench.step(crash(0)).point, OperatingPoint { gpu_layers: 0, context: 6144, ..limits().full(33) });
    assert_eq!(bench.steps(601, |_| ()).point, OperatingPoint { gpu_layers: 0, ..limits().full(33) });

    let mut bench = Bench::new();
    bench.step(loaded(33, 8192));
    bench.step(crash(24));
    assert_eq!(bench.step(crash(24)).point.gpu_layers, 0);
    assert_eq!(bench.steps(601, |_| ()).point.gpu_layers, 24, "not more than could be loaded");
}

#[test]
fn it_is_tried_again_later_and_later() {
    let mut bench = Bench::new();
    let mut waits = Vec::new();
    for _ in 0..3 {
        assert_eq!(bench.step(loaded(33, 8192)).point.gpu_layers, 24);
        let from = bench.now;
        while bench.step(|_| ()).point.gpu_layers < 33 {}
        waits.push((bench.now - from).as_secs());
    }
    assert_eq!(waits, [600, 1200, 2400]);
    // Good for long enough: forgotten.
    bench.steps(4801, |_| ());
    bench.step(loaded(33, 8192));
    assert_eq!(bench.steps(601, |_| ()).point.gpu_layers, 33);
}

#[test]
fn another_file_is_tried_as_if_nothing_had_failed() {
    let mut bench = Bench::new();
    (0..8).for_each(|_| drop(bench.step(loaded(0, 256))));
    assert_eq!(bench.step(|input| input.failures = &[Failure::Over]).point, limits().full(33));
    assert_eq!(bench.step(crashed).point, limits().full(33), "nor is there a crash before this one");
}
