//! From readings to what the governor is told. Pure; what only grows is remembered here, so that the governor gets
//! differences.

use std::{sync::Arc, time::Duration};

use crate::{
    board::{Sample, identity::Kind, thermal::Thermal, units::MilliCelsius},
    engine::operate::Vitals,
    governor::{self, Bytes, Celsius, Engine, Failure, Heat, Input, Memory, Pin},
};

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Observer {
    major_faults: Counter,
    alloc_stalls: Counter,
    over_current: [Counter; 3],
    /// Time and work of the heartbeat before.
    beat: Option<(f64, f64)>,
    /// Number of the next failure that was not told yet.
    failures: u64,
}

/// A counter that only grows, and may not be readable at times.
#[derive(Debug, Default)]
struct Counter(Option<u64>);

impl Counter {
    /// What was added since it was last read; nothing at the first time, nor where it began anew.
    fn step(&mut self, now: Option<u64>) -> u64 {
        let Some(now) = now else { return 0 };
        self.0.replace(now).map_or(0, |before| now.saturating_sub(before))
    }
}

/// What the governor is told, with the names of what was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// As [`Input::memory`].
    pub memory: Option<Memory>,
    /// As [`Input::heat`].
    pub heat: Heat,
    /// The zone of `heat`.
    pub zone: Option<Arc<str>>,
    /// Throttle alerts that are active, by name.
    pub alerts: Vec<String>,
    over_current: u64,
    engine: Engine,
    failures: Vec<Failure>,
}

impl Seen {
    /// The governor's input.
    #[must_use]
    pub fn input(&self, now: Duration, pin: Pin) -> Input<'_> {
        Input {
            now,
            memory: self.memory,
            heat: self.heat,
            throttle_alert: !self.alerts.is_empty(),
            over_current: self.over_current,
            engine: self.engine,
            failures: &self.failures,
            pin,
        }
    }
}

impl Observer {
    /// Takes in one look at the board and the engine. `sample` is `None` where the board could not be looked at.
    pub fn observe(&mut self, kind: &Kind, sample: Option<&Sample>, vitals: &Vitals, requests: u32) -> Seen {
        let vmstat = sample.and_then(|sample| sample.vmstat.ok());
        let major_faults = self.major_faults.step(vmstat.and_then(|vmstat| vmstat.major_faults));
        let alloc_stalls = self.alloc_stalls.step(vmstat.and_then(|vmstat| vmstat.allocation_stalls));
        let memory = sample.and_then(|sample| sample.memory.ok()).map(|memory| {
            let (free, all) = (memory.meminfo.swap_free, memory.meminfo.swap_total);
            let swap = (all > Bytes(0)).then_some((free, all));
            Memory { available: memory.available(), swap, major_faults, alloc_stalls }
        });
        let (heat, zone) = match sample {
            Some(sample) => heat(kind, &sample.thermal),
            None if matches!(kind, Kind::Orin(_)) => (Heat::Unreadable, None),
            None => (Heat::None, None),
        };
        let alerts = sample.map(|sample| sample.thermal.throttled().map(str::to_owned).collect()).unwrap_or_default();
        let events = sample.and_then(|sample| sample.power.over_current);
        let counts = events.map(|events| [events.under_voltage, events.average, events.instantaneous]);
        // Each by itself: one that cannot be read for a while would else come back as a burst.
        let over_current = self.over_current.iter_mut().zip(counts.into_iter().flatten());
        let over_current = over_current.map(|(counter, count)| counter.step(count.ok())).sum();
        let engine = self.engine(vitals, requests);
        let failures = vitals.failures.iter().filter(|(number, _)| *number >= self.failures).map(|(_, what)| *what);
        let failures = failures.collect();
        self.failures = vitals.failures.last().map_or(self.failures, |(number, _)| number + 1);
        Seen { memory, heat, zone, alerts, over_current, engine, failures }
    }

    fn engine(&mut self, vitals: &Vitals, requests: u32) -> Engine {
        let ready = vitals.ready.as_ref();
        let bytes = |of: fn(&crate::wire::engine::Ready) -> u64| Bytes(ready.map_or(0, of));
        Engine {
            loading: vitals.loading,
            layers: vitals.layers,
            gpu_layers: ready.map_or(0, |ready| ready.gpu_layers),
            allocated_context: vitals.allocated_context,
            live_tokens: vitals.heartbeat.live_tokens,
            cached_tokens: vitals.heartbeat.cached_tokens,
            kv_bytes_per_token: bytes(|ready| ready.kv_bytes_per_token),
            compute_buffers: bytes(|ready| ready.compute_bytes),
            bytes_per_gpu_layer: Bytes(ready.map_or(0, |_| vitals.bytes_per_gpu_layer)),
            resident_weights: bytes(|ready| ready.resident_bytes),
            busy: self.busy(vitals),
            requests,
            layer_step_cost: vitals.load,
        }
    }

    /// The share of the time that was computed since the look before, as far as heartbeats tell: while one step lasts,
    /// none comes, and what was known goes on; an idle engine sends few.
    fn busy(&mut self, vitals: &Vitals) -> f64 {
        let beat = &vitals.heartbeat;
        if vitals.ready.is_none() {
            self.beat = None;
            return 0.0;
        }
        match self.beat.replace((beat.at_s, beat.computed_s)) {
            Some((at, computed)) if beat.at_s > at => ((beat.computed_s - computed) / (beat.at_s - at)).clamp(0.0, 1.0),
            _ if beat.sequences == 0 => 0.0,
            _ => vitals.busy,
        }
    }
}

/// The hottest zone, by name.
///
/// On an Orin `tj` has to be readable; so it has on another Tegra that has one. Elsewhere only those zones count by which
/// the kernel slows the machine down: without a trip there is nothing that a set-point could follow from. A PC's own
/// sensors (hwmon) do not count at all: they belong to disks and chipsets as much as to the CPU, which is built to run at
/// its limit and is held there by its firmware.
#[must_use]
pub fn heat(kind: &Kind, thermal: &Thermal) -> (Heat, Option<Arc<str>>) {
    let reading = |zone: &Arc<str>, temperature: MilliCelsius| {
        (Heat::Reading(Celsius(temperature.degrees())), Some(zone.clone()))
    };
    let tj = thermal.tj();
    if matches!(kind, Kind::Orin(_)) || (*kind != Kind::Other && tj.is_some()) {
        let readable = tj.is_some_and(|tj| tj.temperature.is_ok());
        return match thermal.hottest().filter(|_| readable) {
            Some((zone, temperature)) => reading(&zone.name, temperature),
            None => (Heat::Unreadable, tj.map(|tj| tj.name.clone())),
        };
    }
    let throttling = thermal.zones.iter().filter(|zone| zone.throttling_trip().is_some());
    let hottest =
        throttling.filter_map(|zone| Some((zone, zone.temperature.ok()?))).max_by_key(|(_, degrees)| *degrees);
    hottest.map_or((Heat::None, None), |(zone, temperature)| reading(&zone.name, temperature))
}

/// What the limits follow from. Where our cgroup has less than the board, that is all the memory there is.
#[must_use]
pub fn board(sample: Option<&Sample>) -> governor::Board {
    let total = |sample: &Sample| {
        let memory = sample.memory.ok()?;
        let group = memory.group.ok().flatten().map_or(memory.meminfo.total, |group| group.limit);
        Some(memory.meminfo.total.min(group))
    };
    let trip = sample.and_then(|sample| sample.thermal.throttling_trip());
    governor::Board {
        memory: sample.and_then(total).unwrap_or(Bytes(0)),
        throttle_trip: trip.map(|trip| Celsius(trip.degrees())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        board::{
            Reading, Unreadable,
            identity::Module,
            memory::{Meminfo, Vmstat, cgroup::GroupLimit},
            power::{OverCurrent, Power},
            thermal::{
                Zone, ZoneKind,
                trips::{Effect, Trip, TripKind},
            },
        },
        wire::engine::{Heartbeat, Ready},
    };

    const ORIN: Kind = Kind::Orin(Module::Nx16);
    const LOST: Unreadable = Unreadable::Empty;

    fn zone(name: &str, kind: ZoneKind, degrees: Reading<i32>, trip: Option<i32>) -> Zone {
        let trip = trip.map(|degrees| Trip {
            kind: TripKind::Passive,
            temperature: MilliCelsius(degrees * 1000),
            effect: Effect::Slows,
        });
        let trips = trip.into_iter().collect();
        Zone { name: name.into(), kind, temperature: degrees.map(|degrees| MilliCelsius(degrees * 1000)), trips }
    }

    fn thermal(zones: Vec<Zone>) -> Thermal {
        Thermal { zones, alerts: Vec::new(), throttles: Vec::new() }
    }

    fn sample() -> Sample {
        let meminfo = Meminfo {
            total: Bytes(1000),
            mem_available: Bytes(600),
            cma_free: Bytes(100),
            swap_total: Bytes(0),
            swap_free: Bytes(0),
        };
        Sample {
            memory: Ok(crate::board::memory::Memory { meminfo, group: Ok(None) }),
            vmstat: Ok(vmstat(Some(10), Some(1))),
            pressure: None,
            thermal: thermal(vec![zone("tj-thermal", ZoneKind::Tj, Ok(50), None)]),
            gpu: None,
            power: Power { rails: Vec::new(), over_current: Some(currents(Ok(1), Ok(2), Ok(3))) },
            fan: None,
            mode: None,
            sensors: Vec::new(),
        }
    }

    fn vmstat(major_faults: Option<u64>, allocation_stalls: Option<u64>) -> Vmstat {
        Vmstat { major_faults, allocation_stalls, pages_swapped_out: None }
    }

    fn currents(under_voltage: Reading<u64>, average: Reading<u64>, instantaneous: Reading<u64>) -> OverCurrent {
        OverCurrent { under_voltage, average, instantaneous }
    }

    fn see(observer: &mut Observer, sample: &Sample) -> Seen {
        observer.observe(&ORIN, Some(sample), &Vitals::default(), 0)
    }

    #[test]
    fn counters_are_told_as_differences() {
        let mut observer = Observer::default();
        let first = see(&mut observer, &sample());
        let memory = first.memory.expect("it can be read");
        assert_eq!((memory.available, memory.swap, memory.major_faults), (Bytes(500), None, 0));
        assert_eq!(first.over_current, 0);
        let mut later = sample();
        later.vmstat = Ok(vmstat(Some(17), None));
        later.power.over_current = Some(currents(Err(LOST), Ok(4), Ok(3)));
        let second = see(&mut observer, &later);
        let memory = second.memory.expect("it can be read");
        assert_eq!((memory.major_faults, memory.alloc_stalls, second.over_current), (7, 0, 2));
        later.vmstat = Ok(vmstat(Some(17), Some(4)));
        later.power.over_current = Some(currents(Ok(2), Ok(4), Ok(0)));
        let third = see(&mut observer, &later);
        let memory = third.memory.expect("it can be read");
        assert_eq!((memory.major_faults, memory.alloc_stalls), (0, 3));
        assert_eq!(third.over_current, 1, "what was not readable for a while, and what began anew, is no burst");
    }

    #[test]
    fn what_is_missing_is_said_to_be_missing() {
        let mut observer = Observer::default();
        let mut poor = sample();
        poor.memory = Err(LOST);
        poor.vmstat = Err(LOST);
        poor.power.over_current = None;
        let seen = see(&mut observer, &poor);
        assert_eq!((seen.memory, seen.over_current), (None, 0));
        let blind = observer.observe(&ORIN, None, &Vitals::default(), 0);
        assert_eq!((blind.memory, blind.heat), (None, Heat::Unreadable));
        let pc = observer.observe(&Kind::Other, None, &Vitals::default(), 0);
        assert_eq!(pc.heat, Heat::None);
        assert_eq!(board(None).memory, Bytes(0));
    }

    #[test]
    fn limits_follow_from_what_there_is() {
        let mut tight = sample();
        tight.thermal.zones.push(zone("cpu-thermal", ZoneKind::Cpu, Ok(50), Some(99)));
        let whole = board(Some(&tight));
        assert_eq!((whole.memory, whole.throttle_trip), (Bytes(1000), Some(Celsius(99.0))));
        let group = GroupLimit { limit: Bytes(400), used: Bytes(100) };
        tight.memory = tight.memory.map(|memory| crate::board::memory::Memory { group: Ok(Some(group)), ..memory });
        assert_eq!(board(Some(&tight)).memory, Bytes(400));
    }

    #[test]
    fn heat_of_a_jetson_is_its_hottest_zone_while_tj_can_be_read() {
        let zones = |tj| {
            thermal(vec![
                zone("cpu-thermal", ZoneKind::Cpu, Ok(61), Some(99)),
                zone("cv0-thermal", ZoneKind::Cv, Err(LOST), Some(99)),
                zone("tj-thermal", ZoneKind::Tj, tj, None),
            ])
        };
        assert_eq!(heat(&ORIN, &zones(Ok(62))), (Heat::Reading(Celsius(62.0)), Some("tj-thermal".into())));
        assert_eq!(heat(&ORIN, &zones(Ok(60))), (Heat::Reading(Celsius(61.0)), Some("cpu-thermal".into())));
        assert_eq!(heat(&ORIN, &zones(Err(LOST))), (Heat::Unreadable, Some("tj-thermal".into())));
        assert_eq!(heat(&ORIN, &thermal(Vec::new())), (Heat::Unreadable, None));
        let tegra = Kind::Tegra("nvidia,p3971".into());
        assert_eq!(heat(&tegra, &zones(Err(LOST))).0, Heat::Unreadable);
        let older = thermal(vec![
            zone("PMIC-Die", ZoneKind::Other, Ok(100), None),
            zone("CPU-therm", ZoneKind::Cpu, Ok(50), Some(96)),
        ]);
        assert_eq!(heat(&tegra, &older), (Heat::Reading(Celsius(50.0)), Some("CPU-therm".into())));
    }

    #[test]
    fn elsewhere_only_zones_count_by_which_the_kernel_throttles() {
        assert_eq!(heat(&Kind::Other, &thermal(Vec::new())), (Heat::None, None));
        let idle = thermal(vec![zone("acpitz", ZoneKind::Other, Ok(90), None)]);
        assert_eq!(heat(&Kind::Other, &idle), (Heat::None, None));
        let zones = thermal(vec![
            zone("acpitz", ZoneKind::Other, Ok(90), None),
            zone("cpu_thermal", ZoneKind::Other, Ok(70), Some(85)),
        ]);
        assert_eq!(heat(&Kind::Other, &zones), (Heat::Reading(Celsius(70.0)), Some("cpu_thermal".into())));
        let lost = thermal(vec![zone("cpu_thermal", ZoneKind::Other, Err(LOST), Some(85))]);
        assert_eq!(heat(&Kind::Other, &lost), (Heat::None, None));
    }

    #[test]
    fn work_is_counted_between_two_looks() {
        let mut observer = Observer::default();
        let mut vitals = Vitals { ready: Some(Ready::default()), busy: 0.9, ..Vitals::default() };
        let mut busy = |at_s, computed_s, sequences| {
            vitals.heartbeat = Heartbeat { at_s, computed_s, sequences, ..Heartbeat::default() };
            observer.observe(&ORIN, None, &vitals, 1).engine.busy
        };
        assert!((busy(10.0, 2.0, 1) - 0.9).abs() < 1e-9, "the first look goes by what the supervisor saw");
        assert!((busy(11.0, 2.25, 1) - 0.25).abs() < 1e-9);
        assert!((busy(11.0, 2.25, 1) - 0.9).abs() < 1e-9, "a long step goes on");
        assert!(busy(11.0, 2.25, 0).abs() < 1e-9, "idle engines send few heartbeats");
        assert!(busy(0.0, 0.0, 0).abs() < 1e-9);
    }

    #[test]
    fn each_failure_is_told_once() {
        let mut observer = Observer::default();
        let mut vitals = Vitals::default();
        let crash = |context| Failure::Crash { gpu_layers: 0, context };
        vitals.failed(crash(1));
        vitals.failed(crash(2));
        let mut told = |vitals: &Vitals| observer.observe(&ORIN, None, vitals, 0).failures;
        assert_eq!(told(&vitals), [crash(1), crash(2)]);
        assert_eq!(told(&vitals), []);
        vitals.failed(crash(3));
        assert_eq!(told(&vitals), [crash(3)]);
    }

    #[test]
    fn an_engine_that_says_nothing_of_its_memory_frees_nothing() {
        let mut observer = Observer::default();
        let ready = Ready { gpu_layers: 4, ..Ready::default() };
        let vitals = Vitals { ready: Some(ready), layers: 9, allocated_context: 2048, ..Vitals::default() };
        let engine = observer.observe(&ORIN, None, &vitals, 3).engine;
        assert_eq!((engine.gpu_layers, engine.layers, engine.requests), (4, 9, 3));
        assert_eq!((engine.kv_bytes_per_token, engine.resident_weights), (Bytes(0), Bytes(0)));
    }
}
