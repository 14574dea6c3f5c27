//! Points, pins, ladders and limits.

use super::*;
use crate::config;

#[test]
fn a_pin_is_an_upper_bound_and_says_so() {
    let mut bench = Bench::new();
    let pin = Pin { context: Some(2048), pace: Some(0.5), gpu_layers: Some(99), ..Pin::default() };
    let decision = bench.step(|input| input.pin = pin);
    let point = decision.point;
    assert_eq!((point.context, point.pace, point.gpu_layers, point.parallel), (2048, 0.5, 33, 8));
    assert!(decision.pinned && decision.grow_to <= 2048);
    let reason = decision.reasons.first().copied();
    let expected = (Code::Pinned, Reading::Context, Some(8192.0), Some(2048.0));
    assert_eq!(reason.map(|one| (one.code, one.reading, one.value, one.limit)), Some(expected));
    // Readings go below it.
    let decision = bench.step(|input| (input.pin, input.memory) = (pin, Some(available(100))));
    assert_eq!((decision.point.admit, codes(&decision)[0]), (Admit::Hold, Code::MemoryCritical));
    // A pin that binds nothing is none.
    let decision =
        Bench::new().step(|input| input.pin = Pin { parallel: Some(8), pace: Some(f64::NAN), ..Pin::default() });
    assert_eq!((decision.pinned, decision.point), (false, limits().full(33)));
    let held = Bench::new().step(|input| input.pin.admit = Some(Admit::Unload));
    assert_eq!((held.point.admit, held.reasons[0].reading), (Admit::Unload, Reading::Admit));
}

#[test]
fn a_reason_keeps_the_time_when_it_came_up() {
    let mut bench = Bench::new();
    bench.steps(5, |_| ());
    let from = bench.now;
    let low = |input: &mut Input<'static>| input.memory = Some(available(1200));
    assert_eq!(bench.steps(20, low).reasons[0].since, from);
    let later = bench.now;
    assert_eq!(
        bench.step(|_| ()).reasons[0],
        Reason {
            code: Code::MemoryRecovering,
            reading: Reading::AvailableMib,
            value: Some(8000.0),
            limit: Some(1875.0),
            since: later,
        }
    );
}

#[test]
fn contexts_are_whole_multiples_and_layers_round_down() {
    let full = OperatingPoint { context: 5000, gpu_layers: 33, ..limits().full(33) };
    let ladder = Ladder::memory();
    let at = |step| ladder.bound(ladder.position(step).unwrap(), full, |_| true);
    assert_eq!(at(Step::Trim), full);
    assert_eq!(at(Step::Context(75)).context, 3584);
    assert_eq!(at(Step::Context(25)).context, 1024);
    assert_eq!((at(Step::Layers(50)).gpu_layers, at(Step::Layers(0)).gpu_layers), (16, 0));
    assert_eq!((at(Step::Hold).admit, at(Step::Unload).admit), (Admit::Hold, Admit::Unload));
    let tiny = OperatingPoint { context: 300, ..full };
    assert_eq!(ladder.bound(4, tiny, |_| true).context, 256);
    assert_eq!((cells(0), cells(1), cells(256), cells(u32::MAX)), (0, 256, 256, u32::MAX));
}

#[test]
fn a_step_reads_as_it_is_written_and_built_in_ladders_are_ladders() {
    for (ladder, against) in [(Ladder::memory(), Against::Memory), (Ladder::thermal(), Against::Heat)] {
        for step in ladder.steps() {
            assert_eq!(step.to_string().parse(), Ok(*step));
        }
        assert_eq!(Ladder::new(ladder.steps().to_vec(), against), Ok(ladder));
    }
}

fn by_board(keys: &str, mib: u64, trip: Option<f64>) -> Limits {
    let overrides = config::Overrides { model: Some("m".into()), ..config::Overrides::default() };
    let machine = config::Machine { hostname: "box".into(), default_socket: Some("/s".into()), state_directory: None };
    let config = config::parse(&format!("[governor]\n{keys}"), overrides, &machine).unwrap();
    let board = Board { memory: Bytes::mib(mib), throttle_trip: trip.map(Celsius) };
    Limits::new(&config.engine, &config.governor, board)
}

#[test]
fn what_is_not_configured_follows_from_the_board() {
    let mib = |limits: &Limits| (limits.reserve.as_mib().round(), limits.critical.as_mib().round());
    let nx = by_board("", 15_656, Some(99.0));
    assert_eq!((mib(&nx), nx.set_point), ((1566.0, 783.0), Celsius(87.0)));
    assert_eq!(mib(&by_board("", 62_840, None)), (2048.0, 1024.0));
    assert_eq!(mib(&by_board("reserve_mib = 400", 15_656, None)), (400.0, 200.0));
    assert_eq!(mib(&by_board("critical_mib = 1000", 15_656, None)), (2000.0, 1000.0));
    assert_eq!(mib(&by_board("reserve_mib = 500\ncritical_mib = 300", 15_656, None)), (500.0, 300.0));
    assert_eq!(by_board("set_point_c = 95", 15_656, Some(99.0)).set_point, Celsius(95.0));
    assert_eq!(by_board("set_point_c = 95", 15_656, Some(90.0)).set_point, Celsius(89.0));
    assert_eq!(by_board("", 15_656, Some(85.0)).set_point, Celsius(73.0));
}

#[test]
fn what_was_passed_over_reads_as_a_sentence() {
    let seconds = Duration::from_secs;
    for (step, why, expected) in [
        (Step::Trim, Why::NoGain, "trim would change nothing now"),
        (Step::Context(75), Why::NotEnough { frees: Bytes::mib(256) }, "context 75 frees 256 MiB, which is not enough"),
        (
            Step::Layers(50),
            Why::Cost { cost: seconds(80), kept: seconds(60) },
            "layers 50 costs 80 s of loading and is kept for 60 s",
        ),
        (Step::Trim, Why::NoRoomToSave { needs: Bytes::mib(9) }, "trim needs 9 MiB to save what is live"),
        (Step::Layers(25), Why::TriedLess, "layers 25 would be too small a step again"),
    ] {
        assert_eq!(Skipped { step, why }.to_string(), expected);
    }
}

#[test]
fn codes_readings_and_admission_have_one_name_each() {
    assert_eq!((Code::MemoryLow.as_str(), Code::HeatUnreadable.as_str()), ("memory_low", "heat_unreadable"));
    assert_eq!((Reading::AvailableMib.as_str(), Reading::HottestC.as_str()), ("available_mib", "hottest_c"));
    assert_eq!([Admit::Run, Admit::Hold, Admit::Unload].map(Admit::as_str), ["run", "hold", "unload"]);
}
