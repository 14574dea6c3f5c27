//! Temperatures, what the kernel does at which of them, and whether it does it now. Zones, trips and cooling devices are
//! found by name, type and temperature: their numbers differ between releases and boards.

use std::{path::Path, sync::Arc};

use super::{
    file::{Known, Reader, Reading, Unreadable, names},
    units::MilliCelsius,
};

pub mod trips;

use trips::Trip;

/// All there is below `/sys/class/thermal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thermal {
    /// In the order of their numbers.
    pub zones: Vec<Zone>,
    /// Cooling devices `<zone>-throttle-alert`: whether the kernel slows the board down because of a zone.
    pub alerts: Vec<Alert>,
    /// Cooling devices that slow CPU clusters or the GPU down.
    pub throttles: Vec<Throttle>,
}

/// A thermal zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// As the kernel writes it.
    pub name: Arc<str>,
    /// What it measures.
    pub kind: ZoneKind,
    /// Now.
    pub temperature: Reading<MilliCelsius>,
    /// As they were when the board was looked over.
    pub trips: Arc<[Trip]>,
}

/// What a zone measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneKind {
    /// The CPU clusters of an Orin.
    Cpu,
    /// The GPU of an Orin; its sensor is off while the GPU is.
    Gpu,
    /// A vision accelerator of an Orin; its sensor is off while nothing uses it, which is nearly always.
    Cv,
    /// Another part of an Orin's chip.
    Soc,
    /// The hottest of an Orin's sensors.
    Tj,
    /// Anything else.
    Other,
}

/// A throttle alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Of the cooling device: `cpu-throttle-alert`.
    pub name: Arc<str>,
    /// Now.
    pub active: Reading<bool>,
}

/// A cooling device that lowers clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// Of the cooling device: `cpufreq-cpu0`, `devfreq-17000000.gpu`; on JetPack 5 `thermal-cpufreq-0`.
    pub name: Arc<str>,
    /// Steps below full speed, 0 is full.
    pub state: Reading<u32>,
    /// Most steps.
    pub max_state: Reading<u32>,
}

impl Thermal {
    /// The hottest sensor's zone. On a Jetson it is always there, and always readable: without it the board has to be
    /// taken for hot.
    #[must_use]
    pub fn tj(&self) -> Option<&Zone> {
        self.zones.iter().find(|zone| zone.kind == ZoneKind::Tj)
    }

    /// The hottest zone that can be read.
    #[must_use]
    pub fn hottest(&self) -> Option<(&Zone, MilliCelsius)> {
        self.zones
            .iter()
            .filter_map(|zone| Some((zone, zone.temperature.ok()?)))
            .max_by_key(|(_, temperature)| *temperature)
    }

    /// The temperature at which the kernel begins to slow the board down: the lowest of the zones' throttling trips.
    #[must_use]
    pub fn throttling_trip(&self) -> Option<MilliCelsius> {
        self.zones.iter().filter_map(Zone::throttling_trip).min()
    }

    /// Names of the alerts that are active.
    pub fn throttled(&self) -> impl Iterator<Item = &str> {
        self.alerts.iter().filter(|alert| alert.active == Ok(true)).map(|alert| &*alert.name)
    }
}

impl Zone {
    /// The lowest passive trip that slows something down, as [`trips`] tells it from the one of the hot surface.
    #[must_use]
    pub fn throttling_trip(&self) -> Option<MilliCelsius> {
        trips::throttling(&self.trips, self.kind != ZoneKind::Other)
    }

    /// Whether it is normal that it cannot be read, since its part of the chip may have no power.
    #[must_use]
    pub fn may_be_off(&self) -> bool {
        matches!(self.kind, ZoneKind::Gpu | ZoneKind::Cv)
    }
}

/// By the kernel's name: `cpu-thermal` (JetPack 6 and 7) or `CPU-therm` (JetPack 5).
pub(super) fn kind(name: &str) -> ZoneKind {
    let lower = name.to_ascii_lowercase();
    let part = lower.strip_suffix("-thermal").or_else(|| lower.strip_suffix("-therm"));
    match part {
        Some("cpu") => ZoneKind::Cpu,
        Some("gpu") => ZoneKind::Gpu,
        Some("cv0" | "cv1" | "cv2") => ZoneKind::Cv,
        Some("soc0" | "soc1" | "soc2") => ZoneKind::Soc,
        Some("tj") => ZoneKind::Tj,
        _ => ZoneKind::Other,
    }
}

/// From millidegrees. Old kernels of Jetsons report -256000 for a sensor without power, and Linux has -274000 for a
/// temperature that is not valid (`THERMAL_TEMP_INVALID`); nothing that works is as cold.
pub(super) fn temperature(millidegrees: i32) -> Reading<MilliCelsius> {
    const OFF: i32 = -256_000;
    if millidegrees <= OFF { Err(Unreadable::Off) } else { Ok(MilliCelsius(millidegrees)) }
}

/// Where it is read.
#[derive(Debug)]
pub(super) struct Files {
    zones: Vec<ZoneFile>,
    alerts: Vec<(Arc<str>, Known)>,
    throttles: Vec<(Arc<str>, Known, Reading<u32>)>,
}

#[derive(Debug)]
struct ZoneFile {
    name: Arc<str>,
    kind: ZoneKind,
    trips: Arc<[Trip]>,
    temperature: Known,
}

impl Files {
    pub(super) fn discover(root: &Path, reader: &mut Reader) -> Self {
        let class = root.join("sys/class/thermal");
        let mut files = Self { zones: Vec::new(), alerts: Vec::new(), throttles: Vec::new() };
        for entry in names(&class) {
            let folder = class.join(&entry);
            // A zone without a name is still hot.
            let name: Arc<str> = reader.name(&Known::at(folder.join("type"))).unwrap_or_else(|_| entry.clone()).into();
            if entry.starts_with("thermal_zone") {
                let trips = trips::discover(&folder, reader).into();
                let temperature = Known::at(folder.join("temp"));
                files.zones.push(ZoneFile { kind: kind(&name), name, trips, temperature });
            } else if entry.starts_with("cooling_device") {
                let state = Known::at(folder.join("cur_state"));
                if name.ends_with("-throttle-alert") {
                    files.alerts.push((name, state));
                } else if lowers_clocks(&name) {
                    let most = reader.number(&Known::at(folder.join("max_state")));
                    files.throttles.push((name, state, most));
                }
            }
        }
        files
    }

    pub(super) fn sample(&self, reader: &mut Reader) -> Thermal {
        let zone = |reader: &mut Reader, file: &ZoneFile| Zone {
            name: file.name.clone(),
            kind: file.kind,
            temperature: reader.number(&file.temperature).and_then(temperature),
            trips: file.trips.clone(),
        };
        let alert = |reader: &mut Reader, (name, state): &(Arc<str>, Known)| Alert {
            name: name.clone(),
            // 0 inactive, 1 active, 2: on its way out, with the driver.
            active: reader.number(state).map(|state: u32| state == 1),
        };
        let throttle = |reader: &mut Reader, (name, state, most): &(Arc<str>, Known, Reading<u32>)| Throttle {
            name: name.clone(),
            state: reader.number(state),
            max_state: *most,
        };
        Thermal {
            zones: self.zones.iter().map(|file| zone(reader, file)).collect(),
            alerts: self.alerts.iter().map(|file| alert(reader, file)).collect(),
            throttles: self.throttles.iter().map(|file| throttle(reader, file)).collect(),
        }
    }
}

fn lowers_clocks(name: &str) -> bool {
    let name = name.strip_prefix("thermal-").unwrap_or(name);
    name.starts_with("cpufreq-") || name.starts_with("devfreq-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str, temperature: Reading<MilliCelsius>) -> Zone {
        Zone { name: name.into(), kind: kind(name), temperature, trips: Arc::new([]) }
    }

    #[test]
    fn zones_of_both_generations_by_name() {
        assert_eq!((kind("tj-thermal"), kind("tj-therm")), (ZoneKind::Tj, ZoneKind::Tj));
        assert_eq!((kind("cpu-thermal"), kind("CPU-therm")), (ZoneKind::Cpu, ZoneKind::Cpu));
        assert_eq!((kind("cv2-thermal"), kind("CV0-therm")), (ZoneKind::Cv, ZoneKind::Cv));
        for other in ["Tboard_tegra", "x86_pkg_temp", "acpitz", "tj", "", "soc3-thermal"] {
            assert_eq!(kind(other), ZoneKind::Other, "{other}");
        }
    }

    #[test]
    fn a_sensor_without_power_is_a_state_and_no_temperature() {
        assert_eq!(temperature(-256_000), Err(Unreadable::Off));
        assert_eq!(temperature(-274_000), Err(Unreadable::Off));
        assert_eq!(temperature(-40_000), Ok(MilliCelsius(-40_000)));
        assert_eq!(temperature(104_500), Ok(MilliCelsius(104_500)));
    }

    #[test]
    fn the_hottest_is_of_those_that_can_be_read() {
        let zones = vec![
            zone("cpu-thermal", Ok(MilliCelsius(50_000))),
            zone("gpu-thermal", Err(Unreadable::Off)),
            zone("tj-thermal", Ok(MilliCelsius(52_875))),
        ];
        let thermal = Thermal { zones, alerts: Vec::new(), throttles: Vec::new() };
        assert_eq!(thermal.hottest().map(|(_, temperature)| temperature), Some(MilliCelsius(52_875)));
        assert_eq!(thermal.tj().map(|zone| &*zone.name), Some("tj-thermal"));
    }

    #[test]
    fn clocks_are_lowered_by_devices_of_both_generations() {
        for name in ["cpufreq-cpu4", "devfreq-17000000.gpu", "thermal-cpufreq-0", "thermal-devfreq-0"] {
            assert!(lowers_clocks(name), "{name}");
        }
        for name in ["pwm-fan", "cpu-throttle-alert", "hot-surface-alert", "Processor"] {
            assert!(!lowers_clocks(name), "{name}");
        }
    }
}
