//! Readings of the board, all from below one root, so that tests read copies of real boards' trees.
//!
//! It decides nothing: it says what it sees, in the kernel's own units, and what it cannot see, and why. A PC has next to
//! nothing of what a Jetson has; that a piece is missing is normal, and no reading ever panics or waits.
//!
//! [`Board::open`] walks the folders once and keeps paths; [`Board::sample`] reads those, some fifty files, and walks
//! again only when one of them has vanished, since then the kernel has numbered its devices anew. Links in a copied tree
//! have to be relative: an absolute one leads out of it.
//!
//! Our own processes are those of the real `/proc`, wherever the root is: [`host`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

pub mod fan;
mod file;
pub mod gpu;
pub mod host;
mod hwmon;
pub mod identity;
pub mod memory;
pub mod modes;
pub mod power;
pub mod thermal;
pub mod units;

pub use file::{Reading, Unreadable};

use fan::Fan;
use file::Reader;
use gpu::Gpu;
use identity::Identity;
use memory::{Memory, Pressure, Vmstat};
use modes::PowerMode;
use power::Power;
use thermal::Thermal;

/// A board that can be read.
#[derive(Debug)]
pub struct Board {
    root: PathBuf,
    own_cgroup: String,
    identity: Identity,
    reader: Reader,
    memory: memory::Files,
    thermal: thermal::Files,
    gpu: gpu::Sensor,
    power: power::Files,
    fan: fan::Files,
    modes: modes::Files,
    sensors: host::Sensors,
}

/// All readings of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Memory, and the limit of our cgroup.
    pub memory: Reading<Memory>,
    /// Counters that tell of pressure on memory.
    pub vmstat: Reading<Vmstat>,
    /// `None` where the kernel does not measure it.
    pub pressure: Option<Reading<Pressure>>,
    /// Zones, throttle alerts, lowered clocks.
    pub thermal: Thermal,
    /// `None` without the GPU of a Jetson.
    pub gpu: Option<Gpu>,
    /// Rails and over-current.
    pub power: Power,
    /// `None` without the fan of a Jetson.
    pub fan: Option<Fan>,
    /// nvpmodel's mode; `None` where there are none.
    pub mode: Option<Reading<PowerMode>>,
    /// A PC's own sensors, where the root is `/` and the board no Jetson.
    pub sensors: Vec<host::Sensor>,
}

impl Board {
    /// Looks the board over. `own_cgroup` is the text of `/proc/self/cgroup` ([`host::own_cgroup`]); without it, limits
    /// of a cgroup are not seen.
    #[must_use]
    pub fn open(root: &Path, own_cgroup: &str) -> Self {
        let mut reader = Reader::default();
        let identity = Identity::read(root, &mut reader);
        let own_sensors = root == Path::new("/") && !identity.is_jetson();
        Self {
            memory: memory::Files::discover(root, own_cgroup),
            thermal: thermal::Files::discover(root, &mut reader),
            gpu: gpu::Sensor::discover(root, &mut reader),
            power: power::Files::discover(root, &mut reader),
            fan: fan::Files::discover(root, &mut reader),
            modes: modes::Files::discover(root, &mut reader),
            sensors: if own_sensors { host::Sensors::discover() } else { host::Sensors::default() },
            root: root.into(),
            own_cgroup: own_cgroup.into(),
            identity,
            reader,
        }
    }

    /// What the board is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Looks the board over again, for devices whose drivers came later. Devices that went are noticed by themselves.
    pub fn rediscover(&mut self) {
        let (root, reader) = (self.root.as_path(), &mut self.reader);
        self.memory = memory::Files::discover(root, &self.own_cgroup);
        self.thermal = thermal::Files::discover(root, reader);
        self.gpu.rediscover(root, reader);
        self.power = power::Files::discover(root, reader);
        self.fan = fan::Files::discover(root, reader);
        self.modes = modes::Files::discover(root, reader);
    }

    /// Reads everything. `now` is for the GPU, which is read once a second at most: [`gpu`] says why.
    pub fn sample(&mut self, now: Instant) -> Sample {
        self.reader.take_vanished();
        let sample = self.read(now);
        if !self.reader.take_vanished() {
            return sample;
        }
        self.rediscover();
        self.read(now)
    }

    fn read(&mut self, now: Instant) -> Sample {
        let reader = &mut self.reader;
        Sample {
            memory: self.memory.memory(reader),
            vmstat: self.memory.vmstat(reader),
            pressure: self.memory.pressure(reader),
            thermal: self.thermal.sample(reader),
            gpu: self.gpu.sample(now, reader),
            power: self.power.sample(reader),
            fan: self.fan.sample(reader),
            mode: self.modes.sample(reader),
            sensors: self.sensors.sample(),
        }
    }
}

/// CPUs that the kernel runs on.
///
/// # Errors
/// Where `/sys/devices/system/cpu/online` cannot be read, or is no list of ranges such as `0-3,6`.
pub fn cpus(root: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(root.join("sys/devices/system/cpu/online"))?;
    ranges(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a list of CPUs"))
}

fn ranges(text: &str) -> Option<u32> {
    text.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests;
