//! What telemetry and metrics are told of the board. Pure.

use super::sampler::Look;
use crate::{
    board::{Reading, Sample, host::Process, modes::PowerMode},
    wire::v1,
};

/// The latest readings, as they are published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// The board.
    pub board: v1::Board,
    /// The daemon's process.
    pub daemon: Option<v1::Process>,
    /// The engine's process.
    pub engine: Option<v1::Process>,
    /// Every zone and sensor that can be read, in degrees.
    pub temperatures: Vec<(String, f64)>,
}

impl Readings {
    /// Of one look.
    #[must_use]
    pub fn of(look: &Look) -> Self {
        let sample = &look.sample;
        Self {
            board: board(sample),
            daemon: look.daemon.as_ref().map(process),
            engine: look.engine.as_ref().map(process),
            temperatures: temperatures(sample),
        }
    }
}

fn board(sample: &Sample) -> v1::Board {
    let hottest = sample.thermal.hottest();
    v1::Board {
        zone: hottest.map(|(zone, _)| zone.name.to_string()),
        temperature_c: hottest.map(|(_, temperature)| temperature.degrees()),
        memory_available_bytes: sample.memory.ok().map(|memory| float(memory.available().0)),
        power_w: sample.power.total().map(|power| float(power.0.unsigned_abs()) / 1000.0),
        fan_rpm: sample.fan.and_then(|fan| fan.speed.ok()).map(|speed| speed.0),
        power_mode: sample.mode.as_ref().and_then(mode),
        throttled: sample.thermal.throttled().next().is_some(),
    }
}

fn mode(mode: &Reading<PowerMode>) -> Option<String> {
    let mode = mode.as_ref().ok()?;
    Some(mode.name.as_deref().map_or_else(|| mode.id.to_string(), Into::into))
}

fn process(process: &Process) -> v1::Process {
    v1::Process { resident_bytes: float(process.resident.0), cpu_s: process.cpu.as_secs_f64() }
}

fn temperatures(sample: &Sample) -> Vec<(String, f64)> {
    let zones = sample.thermal.zones.iter().map(|zone| (&zone.name, zone.temperature));
    let sensors = sample.sensors.iter().map(|sensor| (&sensor.name, sensor.temperature));
    let readable = zones.chain(sensors).filter_map(|(name, reading)| Some((name, reading.ok()?)));
    readable.map(|(name, temperature)| (name.to_string(), temperature.degrees())).collect()
}

/// The wire has no 64-bit integers; a double counts exactly to 2^53.
#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53, nine petabytes")]
fn float(count: u64) -> f64 {
    count as f64
}
