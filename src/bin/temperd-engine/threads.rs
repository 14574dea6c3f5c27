//! How many threads decode: as few as reach the speed of the best. A step of one row is bound by memory, which a part of
//! the cores uses up; each further thread is waited for at every barrier, and takes a core from other programs. Pure;
//! `measure` does the measuring, [`cpus`] and [`interruptions`] read what there is.

use std::{collections::BTreeMap, fs, thread};

use nix::sys::resource::{UsageWho, getrusage};

/// A count of threads is as good as the best where it is this near to it.
const NEAR: f64 = 0.03;
/// Cores with at least this share of the strongest one's speed do the same work in nearly its time. A step lasts as long
/// as its slowest thread, so weaker ones only hold it up.
const STRONG: (u64, u64) = (3, 4);
/// Most threads of ggml.
const MOST: usize = 512;

/// A CPU that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// The first CPU of its core; several with the same are hardware threads of one core.
    pub core: u32,
    /// Its speed in whatever unit, the same for all; `None` where the system does not say.
    pub speed: Option<u64>,
}

/// Counts of threads worth measuring, the largest first: one for each strong core, and parts of that. `quota` is how many
/// CPUs' time the process may use. At least one.
pub fn candidates(cpus: &[Cpu], quota: usize) -> Vec<usize> {
    let mut cores: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for cpu in cpus {
        let speed = cores.entry(cpu.core).or_default();
        *speed = (*speed).max(cpu.speed);
    }
    let fastest = cores.values().flatten().max().copied().unwrap_or(0);
    let strong = |speed: &&Option<u64>| speed.is_none_or(|speed| speed * STRONG.1 >= fastest * STRONG.0);
    let all = cores.values().filter(strong).count().min(quota).clamp(1, MOST);
    let mut counts: Vec<usize> = (1..=4).rev().map(|quarters| (all * quarters).div_ceil(4)).collect();
    counts.dedup();
    counts
}

/// The fewest threads among `(threads, seconds of a step)` whose speed is near the best; the most where a step of some count
/// was never left in peace, since what was measured then are the other programs, not the model.
pub fn choose(measured: &[(usize, Option<f64>)]) -> Option<usize> {
    let Some(seconds) = measured.iter().map(|(_, seconds)| *seconds).collect::<Option<Vec<f64>>>() else {
        return measured.iter().map(|(threads, _)| *threads).max();
    };
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let near = measured.iter().zip(seconds).filter(|(_, seconds)| *seconds <= best * (1.0 + NEAR));
    near.map(|((threads, _), _)| *threads).min()
}

/// How often a thread of this process had to leave its core to another program so far.
pub fn interruptions() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.involuntary_context_switches())
}

/// The CPUs that this process may use, and how many CPUs' time: a CPU set, affinity or quota may leave fewer.
pub fn cpus() -> (Vec<Cpu>, usize) {
    let quota = thread::available_parallelism().map_or(1, usize::from);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ids = allowed.map(|list| list_of(list.trim())).filter(|ids| !ids.is_empty());
    let ids = ids.unwrap_or_else(|| (0..u32::try_from(quota).unwrap_or(1)).collect());
    let read = |id: u32, file: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{id}/{file}")).ok();
    let number = |id, file| read(id, file)?.trim().parse::<u64>().ok();
    // Capacity knows of what a core does in a cycle, frequency does not; they are not to be compared with each other.
    let capacities: Option<Vec<u64>> = ids.iter().map(|id| number(*id, "cpu_capacity")).collect();
    let speeds = capacities.or_else(|| ids.iter().map(|id| number(*id, "cpufreq/cpuinfo_max_freq")).collect());
    let cpus = ids.iter().enumerate().map(|(nth, id)| Cpu {
        core: read(*id, "topology/thread_siblings_list")
            .and_then(|list| list_of(list.trim()).first().copied())
            .unwrap_or(*id),
        speed: speeds.as_ref().and_then(|speeds| speeds.get(nth).copied()),
    });
    (cpus.collect(), quota)
}

/// The numbers of a list such as `0-3,6`; what is no number is passed over.
fn list_of(text: &str) -> Vec<u32> {
    let ends = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(ends).flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cpus(cores: &[(u32, Option<u64>)]) -> Vec<Cpu> {
        cores.iter().map(|&(core, speed)| Cpu { core, speed }).collect()
    }

    #[test]
    fn each_core_counts_once_and_parts_of_all_are_tried() {
        let hyperthreads =
            cpus(&[(0, None), (1, None), (2, None), (3, None), (0, None), (1, None), (2, None), (3, None)]);
        assert_eq!(candidates(&hyperthreads, 8), [4, 3, 2, 1]);
        assert_eq!(candidates(&cpus(&[(0, None), (1, None)]), 2), [2, 1]);
        let six: Vec<_> = (0..6).map(|core| (core, Some(1024))).collect();
        assert_eq!(candidates(&cpus(&six), 6), [6, 5, 3, 2]);
        assert_eq!(candidates(&cpus(&six), 2), [2, 1]);
        assert_eq!(candidates(&[], 4), [1]);
    }

    #[test]
    fn weak_cores_are_left_to_others() {
        let big_little = cpus(&[(0, Some(420)), (1, Some(420)), (2, Some(1024)), (3, Some(1000)), (4, Some(420))]);
        assert_eq!(candidates(&big_little, 5), [2, 1]);
    }

    #[test]
    fn the_fewest_of_those_near_the_best_are_taken() {
        let some = |measured: &[(usize, f64)]| -> Vec<_> {
            measured.iter().map(|(threads, seconds)| (*threads, Some(*seconds))).collect()
        };
        assert_eq!(choose(&some(&[(8, 1.0), (6, 1.02), (4, 1.04), (2, 1.9)])), Some(6));
        assert_eq!(choose(&some(&[(8, 1.3), (6, 1.0), (4, 1.2)])), Some(6));
        assert_eq!(choose(&some(&[(2, 0.5)])), Some(2));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_count_that_other_programs_disturbed_all_the_time_is_not_judged_by_it() {
        assert_eq!(choose(&[(2, None), (1, Some(0.5))]), Some(2));
        assert_eq!(choose(&[(4, Some(0.5)), (2, None), (1, Some(0.4))]), Some(4));
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(list_of("0-2,6"), [0, 1, 2, 6]);
        assert!(list_of("").is_empty());
    }

    proptest! {
        #[test]
        fn no_count_is_beyond_cores_or_quota(
            cores in prop::collection::vec((0u32..40, prop::option::of(1u64..2000)), 0..80),
            quota in 1usize..100,
        ) {
            let counts = candidates(&cpus(&cores), quota);
            let distinct = cores.iter().map(|cpu| cpu.0).collect::<std::collections::BTreeSet<_>>().len();
            prop_assert!(counts.is_sorted_by(|more, less| more > less));
            prop_assert!(counts.iter().all(|count| (1..=quota.min(distinct.max(1))).contains(count)));
        }
    }
}
