//! The machine that temperd itself runs on, wherever the board's readings come from: our own processes and disks, and a
//! PC's sensors.

use std::{io, path::Path, sync::Arc, time::Duration};

use sysinfo::{Component, Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::{
    file::{Reading, Unreadable},
    units::{Bytes, MilliCelsius},
};

/// What a process takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its resident set. Memory that CUDA has allocated on a Jetson is not in it.
    pub resident: Bytes,
    /// CPU time since it started, of all its threads; what a core did in between is the difference of two readings.
    pub cpu: Duration,
}

/// Looks at processes.
#[derive(Debug, Default)]
pub struct Processes {
    system: System,
}

impl Processes {
    /// One reading each; `None` where there is no such process.
    pub fn read(&mut self, pids: &[u32]) -> Vec<Option<Process>> {
        let pids: Vec<_> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
        let kind = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let process = |pid: &Pid| {
            let process = self.system.process(*pid)?;
            let cpu = Duration::from_millis(process.accumulated_cpu_time());
            Some(Process { resident: Bytes(process.memory()), cpu })
        };
        pids.iter().map(process).collect()
    }
}

/// Space of the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All of it.
    pub total: Bytes,
    /// What may be written without root's privileges.
    pub free: Bytes,
}

/// Asks for the path alone: a list of all mounts, as sysinfo makes it, would wait for a network disk that hangs.
///
/// # Errors
/// Where the path does not exist, or its file system does not answer.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.f_frsize));
    Ok(Disk { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
}

/// The cgroup of this process, as [`super::Board::open`] wants it. It is of the real `/proc`, also where the board's
/// readings come from elsewhere.
///
/// # Errors
/// Where `/proc/self/cgroup` cannot be read.
pub fn own_cgroup() -> io::Result<String> {
    std::fs::read_to_string("/proc/self/cgroup")
}

/// A sensor of a PC, as its driver calls it: `coretemp Package id 0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sensor {
    /// Chip and label.
    pub name: Arc<str>,
    /// Now.
    pub temperature: Reading<MilliCelsius>,
    /// Where the driver says it becomes dangerous.
    pub critical: Option<MilliCelsius>,
}

/// A PC's sensors (hwmon).
#[derive(Debug, Default)]
pub(super) struct Sensors(Vec<(Arc<str>, Component)>);

impl Sensors {
    pub(super) fn discover() -> Self {
        // Where there is no hwmon, sysinfo lists thermal zones, which we have already.
        let hwmon = |component: &Component| component.id().is_some_and(|id| id.starts_with("hwmon"));
        let components = Vec::from(Components::new_with_refreshed_list()).into_iter().filter(hwmon);
        let mut sensors: Vec<(Arc<str>, Component)> =
            components.map(|component| (Arc::from(component.label()), component)).collect();
        sensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self(sensors)
    }

    pub(super) fn sample(&mut self) -> Vec<Sensor> {
        let sensor = |(name, component): &mut (Arc<str>, Component)| {
            component.refresh();
            let temperature = component.temperature().and_then(milli).ok_or(Unreadable::Malformed("a temperature"));
            Sensor { name: name.clone(), temperature, critical: component.critical().and_then(milli) }
        };
        self.0.iter_mut().map(sensor).collect()
    }
}

/// sysinfo gives degrees; not a number means that there is none.
#[allow(clippy::cast_possible_truncation, reason = "`as` keeps to the range of i32")]
fn milli(degrees: f32) -> Option<MilliCelsius> {
    degrees.is_finite().then(|| MilliCelsius((degrees * 1000.0).round() as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_time() {
        let mut processes = Processes::default();
        let none = u32::try_from(i32::MAX).unwrap();
        let [Some(own), None] = processes.read(&[std::process::id(), none])[..] else {
            panic!("one of the two is there");
        };
        assert!(own.resident > Bytes(1 << 20), "{own:?}");
        let mut sum = 0_u64;
        let cpu = |processes: &mut Processes| processes.read(&[std::process::id()])[0].unwrap().cpu;
        while cpu(&mut processes) == own.cpu {
            sum = std::hint::black_box((0..1_000_000).fold(sum, u64::wrapping_add));
        }
        assert!(cpu(&mut processes) > own.cpu);
    }

    #[test]
    fn disks_by_any_path_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let disk = super::disk(folder.path()).unwrap();
        assert!(disk.free > Bytes(0) && disk.free <= disk.total, "{disk:?}");
        assert!(super::disk(&folder.path().join("none")).is_err());
    }

    #[test]
    fn degrees_that_are_none() {
        assert_eq!(milli(45.843), Some(MilliCelsius(45_843)));
        assert_eq!(milli(f32::NAN), None);
        assert_eq!(milli(f32::MAX), Some(MilliCelsius(i32::MAX)));
    }
}
