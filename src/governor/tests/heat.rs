//! The thermal ladder, without a plant; `tests/governor.rs` has one.

use super::*;

fn hot(degrees: f64) -> impl Fn(&mut Input<'static>) {
    move |input| input.heat = Heat::Reading(Celsius(degrees))
}

fn unreadable(input: &mut Input<'static>) {
    input.heat = Heat::Unreadable;
}

#[test]
fn without_a_sensor_there_is_nothing_to_steer_for() {
    let decision = Bench::new().steps(600, |input| input.heat = Heat::None);
    assert_eq!(decision.point, limits().full(33));
    // But for the kernel's own word.
    let decision = Bench::new().step(|input| (input.heat, input.throttle_alert) = (Heat::None, true));
    assert_eq!((decision.point.pace, codes(&decision)), (LEAST, vec![Code::Throttled]));
}

#[test]
fn pace_falls_over_the_set_point_and_comes_back_below_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.steps(60, hot(80.0)).point.pace, 1.0);
    let decision = bench.steps(10, hot(88.0));
    assert!(decision.point.pace < 1.0, "{decision:?}");
    let reason = decision.reasons.first().copied();
    assert_eq!(reason.map(|one| (one.code, one.value, one.limit)), Some((Code::Hot, Some(88.0), Some(87.0))));
    assert_eq!(bench.steps(60, hot(80.0)).point.pace, 1.0);
}

#[test]
fn an_idle_board_close_to_the_set_point_does_not_start_at_full_work() {
    let mut bench = Bench::new();
    let decision = bench.steps(300, |input| {
        hot(84.0)(input);
        (input.engine.busy, input.engine.requests) = (0.0, 0);
    });
    assert!((0.2..0.3).contains(&decision.point.pace), "3 of the 12 K that full work may add: {}", decision.point.pace);
}

#[test]
fn where_the_floor_is_too_hot_a_layer_step_then_the_last_one_then_hold() {
    let mut bench = Bench::new();
    let mut seen = Vec::new();
    for _ in 0..1200 {
        let point = bench.step(hot(90.0)).point;
        if seen.last() != Some(&(point.gpu_layers, point.admit)) {
            seen.push((point.gpu_layers, point.admit));
        }
    }
    assert_eq!(seen, [(33, Admit::Run), (24, Admit::Run), (0, Admit::Run), (0, Admit::Hold)]);
}

#[test]
fn below_the_floor_pace_goes_for_the_last_kelvin_before_layers_do() {
    let mut bench = Bench::new();
    assert_eq!(bench.steps(300, hot(87.3)).point.pace, FLOOR);
    let decision = bench.steps(600, hot(87.6));
    assert_eq!((decision.point.pace, decision.point.gpu_layers), (LEAST, 33));
    assert_eq!(bench.steps(60, hot(88.0)).point.gpu_layers, 24);
}

#[test]
fn nothing_is_given_up_where_there_is_no_work_to_blame() {
    let decision = Bench::new().steps(1200, |input| {
        hot(90.0)(input);
        (input.engine.busy, input.engine.requests) = (0.0, 0);
    });
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (33, Admit::Run));
}

#[test]
fn a_layer_step_that_costs_more_than_it_is_kept_for_is_skipped() {
    let mut bench = Bench::new();
    let decision = bench.steps(600, |input| {
        hot(90.0)(input);
        input.engine.layer_step_cost = Duration::from_secs(400);
    });
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (33, Admit::Hold));
    let why = Why::Cost { cost: Duration::from_secs(800), kept: Duration::from_secs(300) };
    assert!(decision.skipped.contains(&Skipped { step: Step::Layers(75), why }), "{:?}", decision.skipped);
}

#[test]
fn without_a_gpu_there_are_no_layers_to_give_up() {
    let decision = Bench::new().steps(600, |input| {
        hot(90.0)(input);
        (input.engine.layers, input.engine.gpu_layers) = (0, 0);
    });
    assert_eq!(decision.point.admit, Admit::Hold);
    assert!(decision.skipped.contains(&Skipped { step: Step::Layers(75), why: Why::NoGain }), "{:?}", decision.skipped);
}

#[test]
fn up_again_one_step_at_a_time_and_no_more_than_four_changes_an_hour() {
    let mut bench = Bench::new();
    assert_eq!(bench.steps(600, hot(90.0)).point.admit, Admit::Hold);
    let mut changes = Vec::new();
    let mut before = (0, Admit::Hold);
    for _ in 0..6 * 7200 {
        let point = bench.step(hot(70.0)).point;
        let now = (point.gpu_layers, point.admit);
        if now != before {
            changes.push((bench.now, now));
        }
        before = now;
    }
    let steps: Vec<_> = changes.iter().map(|(_, step)| *step).collect();
    assert_eq!(steps, [(0, Admit::Run), (24, Admit::Run), (33, Admit::Run)], "the way it came");
    let hour = Duration::from_secs(3600);
    assert!(changes.windows(3).all(|three| three[2].0 - three[0].0 > hour), "{changes:?}");
}

#[test]
fn a_tj_that_cannot_be_read_is_taken_for_hot() {
    let mut bench = Bench::new();
    assert_eq!(bench.steps(2, unreadable).point, limits().full(33), "one failed transfer is no fault");
    let decision = bench.steps(3, unreadable);
    assert_eq!((decision.point.pace, codes(&decision)), (LEAST, vec![Code::HeatUnreadable]));
    assert_eq!(decision.reasons.first().and_then(|reason| reason.value), None);
    let decision = bench.steps(7200, unreadable);
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (33, Admit::Run), "slow, but not stopped");
    assert_eq!(bench.steps(30, hot(70.0)).point, limits().full(33));
}

#[test]
fn a_blind_board_that_the_kernel_throttles_gives_up_layers_and_is_held() {
    let mut bench = Bench::new();
    let throttled = |input: &mut Input<'static>| (input.heat, input.throttle_alert) = (Heat::Unreadable, true);
    let decision = bench.step(throttled);
    assert_eq!((decision.point.pace, codes(&decision)), (LEAST, vec![Code::HeatUnreadable, Code::Throttled]));
    let decision = bench.steps(60, throttled);
    assert_eq!((decision.point.gpu_layers, decision.point.admit), (0, Admit::Run));
    assert_eq!(bench.steps(60, throttled).point.admit, Admit::Hold);
}

#[test]
fn a_throttle_alert_is_heat_whatever_is_read() {
    let decision = Bench::new().steps(10, |input| {
        hot(70.0)(input);
        input.throttle_alert = true;
    });
    assert_eq!(decision.point.pace, LEAST);
    assert_eq!(codes(&decision).first(), Some(&Code::Throttled));
}

#[test]
fn over_current_takes_pace_and_gives_it_back_slowly() {
    let mut bench = Bench::new();
    let events = |input: &mut Input<'static>| input.over_current = 5;
    let decision = bench.step(events);
    assert!((decision.point.pace - 0.9).abs() < 1e-9, "{decision:?}");
    let reason = decision.reasons.first().copied();
    assert_eq!(reason.map(|one| (one.code, one.value)), Some((Code::OverCurrent, Some(5.0))));
    assert_eq!(bench.steps(60, events).point.pace, 0.5);
    let later = bench.steps(300, |_| ()).point.pace;
    assert!((0.7..0.8).contains(&later), "{later}");
    assert_eq!(bench.steps(310, |_| ()).point, limits().full(33));
}

#[test]
fn a_ladder_without_pace_or_hold() {
    let mut limits = limits();
    limits.thermal = Ladder::new(vec![Step::Layers(50)], Against::Heat).unwrap();
    let decision = Bench::with(limits.clone()).steps(1200, hot(95.0));
    assert_eq!((decision.point.pace, decision.point.gpu_layers, decision.point.admit), (1.0, 16, Admit::Run));
    limits.thermal = Ladder::new(Vec::new(), Against::Heat).unwrap();
    assert_eq!(Bench::with(limits.clone()).steps(1200, hot(95.0)).point, limits.full(33));
}
