//! Trips of a zone, and which of them slow the board down.
//!
//! An Orin's zones have two passive trips since JetPack 6: at 99 C all clocks go down, at 70 C a `hot-surface-alert` is
//! raised, which warns people and slows nothing. What tells them apart is what is bound to them: the links `cdevN` and
//! the trip's index in `cdevN_trip_point`.

use std::path::Path;

use crate::board::{
    file::{Known, Reader, VALUE, names},
    units::MilliCelsius,
};

/// A temperature at which something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trip {
    /// What sort of thing.
    pub kind: TripKind,
    /// From here on.
    pub temperature: MilliCelsius,
    /// What is bound to it.
    pub effect: Effect,
}

/// The kernel's types of trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TripKind {
    /// Fans.
    Active,
    /// Less power.
    Passive,
    /// Drivers are told.
    Hot,
    /// The system shuts down.
    Critical,
}

/// What happens to the board's speed at a trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Something is bound that slows it down.
    Slows,
    /// What is bound slows nothing: a fan, or the alert of a hot surface.
    SlowsNothing,
    /// Nothing is seen to be bound.
    Unbound,
}

/// The lowest passive trip that slows something down.
///
/// Where no trip of an Orin's zone has a binding, they were not copied with the tree, or the kernel does not show them:
/// then it is the highest passive trip, since the hot surface's lies below.
pub(super) fn throttling(trips: &[Trip], orin: bool) -> Option<MilliCelsius> {
    // Zones of PCs have passive trips at 0 or below for "not set".
    let passive = || trips.iter().filter(|trip| trip.kind == TripKind::Passive && trip.temperature.0 > 0);
    if trips.iter().all(|trip| trip.effect == Effect::Unbound) {
        return passive().map(|trip| trip.temperature).max().filter(|_| orin);
    }
    passive().filter(|trip| trip.effect == Effect::Slows).map(|trip| trip.temperature).min()
}

/// A trip whose type or temperature cannot be read is left out.
pub(super) fn discover(zone: &Path, reader: &mut Reader) -> Vec<Trip> {
    let files = names(zone);
    let mut bound: Vec<(u32, String)> = Vec::new();
    for device in files.iter().filter_map(|name| name.strip_suffix("_trip_point")) {
        let index = reader.number(&Known::at(zone.join(format!("{device}_trip_point"))));
        let kind = reader.name(&Known::at(zone.join(device).join("type")));
        // The index is -1 where a device is bound to the zone alone.
        if let (Ok(index), Ok(kind)) = (index, kind) {
            bound.push((index, kind));
        }
    }
    let indices = files.iter().filter_map(|name| name.strip_prefix("trip_point_")?.strip_suffix("_type"));
    let trip = |index: &str| {
        let file = |what| Known::at(zone.join(format!("trip_point_{index}_{what}")));
        let kind = reader.parse(&file("type"), VALUE, "a type of trip", kind).ok()?;
        let temperature = MilliCelsius(reader.number(&file("temp")).ok()?);
        let index: u32 = index.parse().ok()?;
        let devices = bound.iter().filter(|(at, _)| *at == index).map(|(_, kind)| kind.as_str());
        Some(Trip { kind, temperature, effect: effect(devices) })
    };
    indices.filter_map(trip).collect()
}

pub(in crate::board) fn kind(text: &str) -> Option<TripKind> {
    Some(match text {
        "active" => TripKind::Active,
        "passive" => TripKind::Passive,
        "hot" => TripKind::Hot,
        "critical" => TripKind::Critical,
        _ => return None,
    })
}

/// Of the cooling devices that are bound to a trip, by type.
fn effect<'a>(devices: impl Iterator<Item = &'a str>) -> Effect {
    let mut effect = Effect::Unbound;
    for device in devices {
        let alert = device.ends_with("-alert") && !device.ends_with("-throttle-alert");
        if !alert && !device.to_ascii_lowercase().contains("fan") {
            return Effect::Slows;
        }
        effect = Effect::SlowsNothing;
    }
    effect
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trip(kind: TripKind, degrees: i32, effect: Effect) -> Trip {
        Trip { kind, temperature: MilliCelsius(degrees * 1000), effect }
    }

    #[test]
    fn the_hot_surface_slows_nothing() {
        assert_eq!(effect(["hot-surface-alert"].into_iter()), Effect::SlowsNothing);
        assert_eq!(effect(["pwm-fan", "hot-surface-alert"].into_iter()), Effect::SlowsNothing);
        assert_eq!(effect(["hot-surface-alert", "cpufreq-cpu0"].into_iter()), Effect::Slows);
        assert_eq!(effect(["cpu-throttle-alert"].into_iter()), Effect::Slows);
        assert_eq!(effect(["Processor"].into_iter()), Effect::Slows);
        assert_eq!(effect([].into_iter()), Effect::Unbound);
    }

    #[test]
    fn the_throttling_trip_in_any_order() {
        let mut trips = [
            trip(TripKind::Passive, 70, Effect::SlowsNothing),
            trip(TripKind::Critical, 104, Effect::Unbound),
            trip(TripKind::Passive, 99, Effect::Slows),
        ];
        assert_eq!(throttling(&trips, true), Some(MilliCelsius(99_000)));
        trips.reverse();
        assert_eq!(throttling(&trips, true), Some(MilliCelsius(99_000)));
        // Someone lowered it below the hot surface's.
        let lowered = [trip(TripKind::Passive, 70, Effect::SlowsNothing), trip(TripKind::Passive, 60, Effect::Slows)];
        assert_eq!(throttling(&lowered, true), Some(MilliCelsius(60_000)));
    }

    #[test]
    fn without_bindings_an_orins_trips_are_told_by_temperature() {
        let trips = [
            trip(TripKind::Passive, 99, Effect::Unbound),
            trip(TripKind::Passive, 70, Effect::Unbound),
            trip(TripKind::Critical, 104, Effect::Unbound),
        ];
        assert_eq!(throttling(&trips, true), Some(MilliCelsius(99_000)));
        assert_eq!(throttling(&trips, false), None, "nothing says that it slows a PC");
    }

    #[test]
    fn zones_that_slow_nothing() {
        assert_eq!(throttling(&[], true), None);
        assert_eq!(throttling(&[trip(TripKind::Passive, 70, Effect::SlowsNothing)], true), None);
        assert_eq!(throttling(&[trip(TripKind::Active, 70, Effect::Slows)], true), None);
        assert_eq!(throttling(&[trip(TripKind::Passive, 0, Effect::Slows)], false), None);
    }
}
