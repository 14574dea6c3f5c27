//! Memory of the board, as the kernel counts it.
//!
//! CUDA's memory on a Jetson is system memory that nobody is charged for: no process's RSS and no cgroup shows it, only
//! `MemAvailable` does.

use std::{path::Path, time::Duration};

use super::{
    file::{Known, Reader, Reading, TABLE},
    units::Bytes,
};

pub mod cgroup;

use cgroup::{Cgroups, GroupLimit};

/// What there is, and what can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The whole board's.
    pub meminfo: Meminfo,
    /// The tightest limit of the daemon's own cgroup and those above it; `None` without a limit.
    pub group: Reading<Option<GroupLimit>>,
}

impl Memory {
    /// `min(MemAvailable - CmaFree, headroom of the cgroup)`, the latter where a limit exists and can be read.
    #[must_use]
    pub fn available(&self) -> Bytes {
        let board = self.meminfo.available();
        match self.group {
            Ok(Some(group)) => board.min(group.headroom()),
            Ok(None) | Err(_) => board,
        }
    }
}

/// `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meminfo {
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`: what can be had without swapping, as the kernel sees it.
    pub mem_available: Bytes,
    /// `CmaFree`: the free part of the contiguous area; nothing where the kernel has none.
    pub cma_free: Bytes,
    /// `SwapTotal`.
    pub swap_total: Bytes,
    /// `SwapFree`.
    pub swap_free: Bytes,
}

impl Meminfo {
    /// `MemAvailable - CmaFree`: the contiguous area serves devices, and the kernel counts it as available to everyone.
    /// NVIDIA's allocator (nvmap) calculates its free memory in the same way.
    #[must_use]
    pub fn available(&self) -> Bytes {
        Bytes(self.mem_available.0.saturating_sub(self.cma_free.0))
    }
}

/// Counters of `/proc/vmstat` since the system started, which only grow: their differences are signs of pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vmstat {
    /// `pgmajfault`: page faults that had to read from a disk.
    pub major_faults: Option<u64>,
    /// The sum of `allocstall_*`: allocations that had to free memory first.
    pub allocation_stalls: Option<u64>,
    /// `pswpout`: pages written to swap.
    pub pages_swapped_out: Option<u64>,
}

/// `/proc/pressure/memory`: how long tasks waited for memory. The kernels of Orin are built without it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// A line of `/proc/pressure/memory`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Share of the last 10 s, in percent.
    pub avg10: f32,
    /// Share of the last 60 s, in percent.
    pub avg60: f32,
    /// Since the system started.
    pub total: Duration,
}

/// Where it is read.
#[derive(Debug)]
pub(super) struct Files {
    meminfo: Known,
    vmstat: Known,
    pressure: Known,
    groups: Cgroups,
}

impl Files {
    pub(super) fn discover(root: &Path, own_cgroup: &str) -> Self {
        Self {
            meminfo: Known::at(root.join("proc/meminfo")),
            vmstat: Known::at(root.join("proc/vmstat")),
            pressure: Known::at(root.join("proc/pressure/memory")),
            groups: Cgroups::discover(root, own_cgroup),
        }
    }

    pub(super) fn memory(&self, reader: &mut Reader) -> Reading<Memory> {
        let meminfo = reader.parse(&self.meminfo, TABLE, "a meminfo with MemTotal and MemAvailable", meminfo)?;
        Ok(Memory { meminfo, group: self.groups.tightest(reader) })
    }

    pub(super) fn vmstat(&self, reader: &mut Reader) -> Reading<Vmstat> {
        reader.parse(&self.vmstat, TABLE, "a table of counters", vmstat)
    }

    pub(super) fn pressure(&self, reader: &mut Reader) -> Option<Reading<Pressure>> {
        self.pressure.is_there().then(|| reader.parse(&self.pressure, TABLE, "two lines of stalls", pressure))
    }
}

pub(super) fn meminfo(text: &str) -> Option<Meminfo> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let or_nothing = |name: &str| line(name).map_or(Some(Bytes(0)), kib);
    Some(Meminfo {
        total: kib(line("MemTotal")?)?,
        mem_available: kib(line("MemAvailable")?)?,
        cma_free: or_nothing("CmaFree")?,
        swap_total: or_nothing("SwapTotal")?,
        swap_free: or_nothing("SwapFree")?,
    })
}

fn kib(text: &str) -> Option<Bytes> {
    let kib: u64 = text.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

/// `None`: a line that is looked for holds no number.
pub(super) fn vmstat(text: &str) -> Option<Vmstat> {
    let mut vmstat = Vmstat { major_faults: None, allocation_stalls: None, pages_swapped_out: None };
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        let counter = match name {
            "pgmajfault" => &mut vmstat.major_faults,
            "pswpout" => &mut vmstat.pages_swapped_out,
            // By zone, or older: in one.
            name if name.starts_with("allocstall") => &mut vmstat.allocation_stalls,
            _ => continue,
        };
        let value: u64 = value.trim().parse().ok()?;
        *counter = Some(counter.unwrap_or(0).saturating_add(value));
    }
    Some(vmstat)
}

pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let stall = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value = |name: &str| line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let percent = |name| value(name)?.parse::<f32>().ok().filter(|percent| (0.0..=100.0).contains(percent));
        let total = Duration::from_micros(value("total")?.parse().ok()?);
        Some(Stall { avg10: percent("avg10")?, avg60: percent("avg60")?, total })
    };
    Some(Pressure { some: stall("some")?, full: stall("full")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contiguous_area_is_not_available() {
        let text = "MemTotal:       16032256 kB\nMemAvailable:   14716180 kB\nCmaFree:          131072 kB\n";
        let meminfo = meminfo(text).unwrap();
        assert_eq!(meminfo.total, Bytes(16_032_256 << 10));
        assert_eq!(meminfo.available(), Bytes((14_716_180 - 131_072) << 10));
    }

    #[test]
    fn a_kernel_without_such_an_area_and_without_swap() {
        let meminfo = meminfo("MemTotal: 2 kB\nMemFree: 1 kB\nMemAvailable: 1 kB\n").unwrap();
        assert_eq!((meminfo.total, meminfo.available(), meminfo.swap_total), (Bytes(2048), Bytes(1024), Bytes(0)));
    }

    #[test]
    fn damaged_text_is_no_reading() {
        let huge = format!("MemTotal: {} kB\nMemAvailable: 1 kB", u64::MAX);
        let swap = "MemTotal: 1 kB\nMemAvailable: 1 kB\nSwapFree: -1 kB";
        for bad in
            ["", "MemTotal: 1 kB", "MemTotal: x kB\nMemAvailable: 1 kB", "MemTotal: 1\nMemAvailable: 1 kB", &huge, swap]
        {
            assert_eq!(meminfo(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_limit_of_the_group_counts_where_it_is_tighter() {
        let meminfo = meminfo("MemTotal: 8 kB\nMemAvailable: 4 kB\nCmaFree: 1 kB").unwrap();
        let group = |limit, used| Ok(Some(GroupLimit { limit: Bytes(limit), used: Bytes(used) }));
        let available = |group| Memory { meminfo, group }.available();
        assert_eq!(available(Ok(None)), Bytes(3072));
        assert_eq!(available(group(2048, 1024)), Bytes(1024));
        assert_eq!(available(group(9000, 1024)), Bytes(3072));
        assert_eq!(available(group(1024, 2048)), Bytes(0));
        assert_eq!(available(Err(super::super::Unreadable::Empty)), Bytes(3072));
    }

    #[test]
    fn stalls_of_all_zones_are_summed() {
        let text = "pswpin 9\npswpout 3\npgmajfault 7\nallocstall_dma 1\nallocstall_normal 2\nallocstall_movable 4\n";
        let expected = Vmstat { major_faults: Some(7), allocation_stalls: Some(7), pages_swapped_out: Some(3) };
        assert_eq!(vmstat(text), Some(expected));
        assert_eq!(vmstat("nr_free_pages 1").and_then(|vmstat| vmstat.major_faults), None);
        assert_eq!(vmstat("pgmajfault x"), None);
    }

    #[test]
    fn pressure_where_the_kernel_measures_it() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2";
        let pressure = pressure(text).unwrap();
        assert_eq!(pressure.some, Stall { avg10: 1.5, avg60: 0.25, total: Duration::from_micros(1500) });
        assert_eq!(pressure.full.total, Duration::from_micros(2));
        for bad in ["", "some avg10=1 avg60=1 total=1", "some avg10=x avg60=1 total=1\nfull avg10=1 avg60=1 total=1"] {
            assert_eq!(super::pressure(bad), None, "{bad}");
        }
        let nan = text.replace("avg10=1.50", "avg10=NaN");
        assert_eq!(super::pressure(&nan), None);
    }
}
