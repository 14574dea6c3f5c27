//! The GPU of a Jetson, by the files of its driver (nvgpu) and of devfreq. NVML reports neither load nor clock there.
//!
//! Reading the load of a GPU that is on wakes it, and its rail is switched off after half a second of rest
//! (`railgate_delay`): whoever reads faster than about twice a second keeps an idle GPU under power. So it is read once a
//! second at most, whoever asks; and where it is off, only that is read.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    file::{Known, Reader, Reading, Unreadable, VALUE, names},
    units::{Hertz, PerMille},
};

/// Between two readings.
const INTERVAL: Duration = Duration::from_secs(1);

/// A reading of the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Whether it is on; `None` where the driver does not say.
    pub power: Option<Reading<Power>>,
    /// Share of the time in which it was busy; nothing where it is off.
    pub load: Reading<PerMille>,
    /// `None` where it is off: then it has no clock.
    pub frequency: Option<Reading<Hertz>>,
    /// How long ago it was read.
    pub age: Duration,
}

/// `gpu_powered_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It can work.
    On,
    /// Its rail is gated.
    Off,
    /// On its way.
    PoweringOn,
}

/// Where it is read, and what was read last.
#[derive(Debug)]
pub(super) struct Sensor {
    files: Option<Files>,
    last: Option<(Instant, Gpu)>,
}

#[derive(Debug)]
struct Files {
    power: Known,
    load: Known,
    frequency: Known,
}

impl Sensor {
    pub(super) fn discover(root: &Path, reader: &mut Reader) -> Self {
        Self { files: Files::discover(root, reader), last: None }
    }

    /// Looks again where the files are. The time of the last reading stays, unless that did not come to the hardware.
    pub(super) fn rediscover(&mut self, root: &Path, reader: &mut Reader) {
        self.files = Files::discover(root, reader);
        self.last = self.last.filter(|(_, gpu)| gpu.load != Err(Unreadable::Absent));
    }

    /// The last reading where that is younger than a second.
    pub(super) fn sample(&mut self, now: Instant, reader: &mut Reader) -> Option<Gpu> {
        let files = self.files.as_ref()?;
        if let Some((at, gpu)) = self.last {
            let age = now.saturating_duration_since(at);
            if age < INTERVAL {
                return Some(Gpu { age, ..gpu });
            }
        }
        let gpu = files.read(reader);
        self.last = Some((now, gpu));
        Some(gpu)
    }
}

impl Files {
    fn discover(root: &Path, reader: &mut Reader) -> Option<Self> {
        let platform = root.join("sys/devices/platform");
        // The first is the driver's own link to one of the others.
        let nodes = ["gpu.0", "bus@0/17000000.gpu", "17000000.gpu", "bus@0/17000000.ga10b", "17000000.ga10b"];
        let node = nodes.map(|node| platform.join(node)).into_iter().find(|node| node.join("load").exists());
        let frequency = devfreq(root, reader).map(|entry| Known::at(entry.join("cur_freq"))).unwrap_or_default();
        let (power, load) = match node {
            Some(node) => (Known::at(node.join("gpu_powered_on")), Known::at(node.join("load"))),
            None => (Known::default(), Known::default()),
        };
        (load.is_there() || frequency.is_there()).then_some(Self { power, load, frequency })
    }

    fn read(&self, reader: &mut Reader) -> Gpu {
        let power = self.power.is_there().then(|| reader.parse(&self.power, VALUE, "a state of power", power));
        if power == Some(Ok(Power::Off)) {
            return Gpu { power, load: Ok(PerMille(0)), frequency: None, age: Duration::ZERO };
        }
        let load = reader.number(&self.load).and_then(load);
        let frequency = Some(reader.number(&self.frequency).map(Hertz));
        Gpu { power, load, frequency, age: Duration::ZERO }
    }
}

/// The GPU's entry in devfreq: by its node's name in the device tree, or by its own where that is not shown.
fn devfreq(root: &Path, reader: &mut Reader) -> Option<PathBuf> {
    let class = root.join("sys/class/devfreq");
    let is_gpu = |entry: &String| match reader.name(&Known::at(class.join(entry).join("device/of_node/name"))) {
        Ok(name) => name == "gpu" || name == "ga10b",
        Err(_) => entry == "17000000.gpu" || entry == "17000000.ga10b",
    };
    names(&class).into_iter().find(is_gpu).map(|entry| root.join("sys/class/devfreq").join(entry))
}

pub(super) fn power(text: &str) -> Option<Power> {
    Some(match text {
        "on" => Power::On,
        "off" => Power::Off,
        "powering on" => Power::PoweringOn,
        _ => return None,
    })
}

fn load(value: u16) -> Reading<PerMille> {
    if value <= 1000 { Ok(PerMille(value)) } else { Err(Unreadable::Malformed("a share of 1000")) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &Path, name: &str, content: &str) {
        let node = root.join("sys/devices/platform/gpu.0");
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join(name), content).unwrap();
    }

    #[test]
    fn it_is_read_once_a_second_at_most() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "load", "990\n");
        let mut reader = Reader::default();
        let mut sensor = Sensor::discover(root.path(), &mut reader);
        let start = Instant::now();
        let mut load = |millis| {
            let gpu = sensor.sample(start + Duration::from_millis(millis), &mut reader).unwrap();
            (gpu.load, gpu.age)
        };
        assert_eq!(load(0), (Ok(PerMille(990)), Duration::ZERO));
        write(root.path(), "load", "20\n");
        assert_eq!(load(999), (Ok(PerMille(990)), Duration::from_millis(999)));
        assert_eq!(load(1000), (Ok(PerMille(20)), Duration::ZERO));
    }

    #[test]
    fn one_that_is_off_is_not_woken() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "load", "what a reading of it would give");
        write(root.path(), "gpu_powered_on", "off\n");
        let mut reader = Reader::default();
        let mut sensor = Sensor::discover(root.path(), &mut reader);
        let gpu = sensor.sample(Instant::now(), &mut reader).unwrap();
        assert_eq!((gpu.power, gpu.load, gpu.frequency), (Some(Ok(Power::Off)), Ok(PerMille(0)), None));
    }

    #[test]
    fn loads_and_states() {
        assert_eq!(load(1000), Ok(PerMille(1000)));
        assert_eq!(load(1001), Err(Unreadable::Malformed("a share of 1000")));
        assert_eq!(power("powering on"), Some(Power::PoweringOn));
        assert_eq!(power("1"), None);
    }

    #[test]
    fn a_board_without_one() {
        let root = tempfile::tempdir().unwrap();
        let mut reader = Reader::default();
        let mut sensor = Sensor::discover(root.path(), &mut reader);
        assert_eq!(sensor.sample(Instant::now(), &mut reader), None);
    }
}
