//! Rails of a Jetson, measured by chips of the type INA3221, and how often it was slowed down for current.

use std::{path::Path, sync::Arc};

use rustix::io::Errno;

use super::{
    file::{Known, Reader, Reading, Unreadable},
    hwmon,
    units::{MilliAmps, MilliVolts, MilliWatts},
};

/// Channels of a chip.
const CHANNELS: [u32; 3] = [1, 2, 3];
/// The rail that feeds the whole module, on Orin NX and Nano.
const MODULE: &str = "VDD_IN";
/// AGX Orin has no such rail; the rails of its first chip together feed it. `VIN_SYS_5V0` is one of them, not their sum.
const PARTS: [&str; 3] = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"];

/// Rails and over-current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Power {
    /// By chip and channel.
    pub rails: Vec<Rail>,
    /// `None` where the board does not count it.
    pub over_current: Option<OverCurrent>,
}

/// A rail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rail {
    /// Its label in the device tree; `NC` is not connected.
    pub name: Arc<str>,
    /// What is measured.
    pub state: RailState,
}

/// What is measured on a rail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the units say it")]
pub enum RailState {
    /// In steps of 8 mV, and of 8 or 20 mA.
    On { voltage: MilliVolts, current: MilliAmps },
    /// The channel is switched off, as the device tree of the board wants it.
    Disabled,
    /// It should be measured, and is not.
    Unreadable(Unreadable),
}

/// How often clocks were lowered for current since the system started (`soctherm_oc`); only differences tell something.
/// Bursts of the GPU raise the last one though averages of the rails look low.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverCurrent {
    /// OC1: the supply's voltage was too low.
    pub under_voltage: Reading<u64>,
    /// OC2: the current was too high on average.
    pub average: Reading<u64>,
    /// OC3: the current was too high at a moment.
    pub instantaneous: Reading<u64>,
}

impl Rail {
    /// Voltage times current.
    #[must_use]
    pub fn power(&self) -> Option<MilliWatts> {
        let RailState::On { voltage, current } = self.state else { return None };
        // Two factors of 32 bits have a product of 64.
        Some(MilliWatts(i64::from(voltage.0) * i64::from(current.0) / 1000))
    }
}

impl Power {
    /// What the module takes: `VDD_IN` where there is such a rail, else the sum of the three rails that feed an AGX
    /// Orin, where all can be read.
    #[must_use]
    pub fn total(&self) -> Option<MilliWatts> {
        let rail = |name: &str| self.rails.iter().find(|rail| &*rail.name == name);
        match rail(MODULE) {
            Some(rail) => rail.power(),
            None => PARTS.iter().map(|name| rail(name)?.power()).sum(),
        }
    }
}

impl OverCurrent {
    /// All three, as far as they can be read.
    #[must_use]
    pub fn events(&self) -> u64 {
        let counts = [self.under_voltage, self.average, self.instantaneous];
        counts.iter().flatten().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Where it is read.
#[derive(Debug)]
pub(super) struct Files {
    channels: Vec<Channel>,
    over_current: Option<[Known; 3]>,
}

#[derive(Debug)]
struct Channel {
    name: Arc<str>,
    voltage: Known,
    current: Known,
    enable: Known,
}

impl Files {
    pub(super) fn discover(root: &Path, reader: &mut Reader) -> Self {
        let mut channels = Vec::new();
        for chip in hwmon::devices(root, "ina3221", reader) {
            for channel in CHANNELS {
                let file = |name: &str| Known::at(chip.join(name));
                let name = reader.name(&file(&format!("in{channel}_label")));
                let voltage = file(&format!("in{channel}_input"));
                if name.is_ok() || voltage.is_there() {
                    let name = name.unwrap_or_else(|_| format!("in{channel}")).into();
                    let current = file(&format!("curr{channel}_input"));
                    channels.push(Channel { name, voltage, current, enable: file(&format!("in{channel}_enable")) });
                }
            }
        }
        let over_current = hwmon::devices(root, "soctherm_oc", reader)
            .first()
            .map(|folder| CHANNELS.map(|number| Known::at(folder.join(format!("oc{number}_event_cnt")))));
        Self { channels, over_current }
    }

    pub(super) fn sample(&self, reader: &mut Reader) -> Power {
        let rail = |channel: &Channel| Rail { name: channel.name.clone(), state: channel.read(reader) };
        let rails = self.channels.iter().map(rail).collect();
        let over_current = self.over_current.as_ref().map(|[under_voltage, average, instantaneous]| OverCurrent {
            under_voltage: reader.number(under_voltage),
            average: reader.number(average),
            instantaneous: reader.number(instantaneous),
        });
        Power { rails, over_current }
    }
}

impl Channel {
    fn read(&self, reader: &mut Reader) -> RailState {
        let voltage = reader.number(&self.voltage).map(MilliVolts);
        let current = reader.number(&self.current).map(MilliAmps);
        match (voltage, current) {
            (Ok(voltage), Ok(current)) => RailState::On { voltage, current },
            (Err(why), _) | (_, Err(why)) => without(why, || reader.number(&self.enable)),
        }
    }
}

/// A channel that is switched off answers with `ENODATA`, and says so in `inN_enable`.
fn without(why: Unreadable, enable: impl FnOnce() -> Reading<u32>) -> RailState {
    if why == Unreadable::Failed(Errno::NODATA) || enable() == Ok(0) {
        return RailState::Disabled;
    }
    RailState::Unreadable(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rail(name: &str, voltage: i32, current: i32) -> Rail {
        let state = RailState::On { voltage: MilliVolts(voltage), current: MilliAmps(current) };
        Rail { name: name.into(), state }
    }

    fn total(rails: Vec<Rail>) -> Option<MilliWatts> {
        Power { rails, over_current: None }.total()
    }

    #[test]
    fn one_rail_feeds_a_module_of_nx_or_nano() {
        let rails = vec![rail("VDD_IN", 5224, 824), rail("VDD_CPU_GPU_CV", 5120, 112), rail("VDD_SOC", 5080, 240)];
        assert_eq!(total(rails), Some(MilliWatts(4304)));
    }

    #[test]
    fn three_feed_an_agx() {
        let rails =
            vec![rail("VDD_GPU_SOC", 19_864, 160), rail("VDD_CPU_CV", 19_864, 40), rail("VIN_SYS_5V0", 5048, 900)];
        assert_eq!(total(rails.clone()), Some(MilliWatts(3178 + 794 + 4543)));
        assert_eq!(total(rails.into_iter().skip(1).collect()), None, "one is missing");
        assert_eq!(total(Vec::new()), None);
    }

    #[test]
    fn power_of_what_is_not_measured_or_out_of_all_range() {
        let disabled = Rail { name: "NC".into(), state: RailState::Disabled };
        assert_eq!(disabled.power(), None);
        assert_eq!(rail("VDD_CPU_CV", 4976, -80).power(), Some(MilliWatts(-398)));
        assert_eq!(rail("x", i32::MIN, i32::MIN).power(), Some(MilliWatts((1 << 62) / 1000)));
    }

    #[test]
    fn a_channel_that_is_switched_off_is_no_fault() {
        let unasked = || panic!("the answer says it already");
        assert_eq!(without(Unreadable::Failed(Errno::NODATA), unasked), RailState::Disabled);
        let again = Unreadable::Failed(Errno::AGAIN);
        assert_eq!(without(again, || Ok(0)), RailState::Disabled);
        assert_eq!(without(again, || Ok(1)), RailState::Unreadable(again));
        assert_eq!(without(again, || Err(Unreadable::Absent)), RailState::Unreadable(again));
    }

    #[test]
    fn events_that_cannot_be_read_are_left_out_of_the_sum() {
        let broken = Err(Unreadable::Failed(Errno::INVAL));
        let counts = OverCurrent { under_voltage: broken, average: Ok(1), instantaneous: Ok(27) };
        assert_eq!(counts.events(), 28);
    }
}
