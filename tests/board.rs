//! Readings of boards: copies of real ones' trees, the machine that the tests run on, and trees full of rubbish.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "board/show.rs"]
mod show;
#[path = "board/tree.rs"]
mod tree;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    time::{ClockId, clock_gettime},
};
use temperd::board::{
    Board, Sample, Unreadable,
    gpu::Power,
    host,
    identity::{Kind, Module},
    power::RailState,
    thermal::Zone,
    units::{Bytes, Hertz, MilliCelsius, MilliWatts, PerMille, PwmDuty, Rpm},
};
use tree::Tree;

/// Of the trees' own daemon.
const CGROUP: &str = "0::/system.slice/llm-daemon.service\n";
const GROUP: &str = "sys/fs/cgroup/system.slice/llm-daemon.service";
const OFF: Unreadable = Unreadable::Failed(Errno::AGAIN);

fn read(tree: &Tree) -> (Board, Sample) {
    let mut board = Board::open(&tree.root(), CGROUP);
    let sample = board.sample(Instant::now());
    (board, sample)
}

fn zone<'a>(sample: &'a Sample, name: &str) -> &'a Zone {
    sample.thermal.zones.iter().find(|zone| &*zone.name == name).unwrap_or_else(|| panic!("no zone {name}"))
}

fn tj(sample: &Sample) -> Option<MilliCelsius> {
    sample.thermal.tj()?.temperature.ok()
}

fn mode(sample: &Sample) -> Option<(u32, String)> {
    let mode = sample.mode.clone()?.ok()?;
    Some((mode.id, mode.name?.to_string()))
}

fn fan(sample: &Sample) -> Option<(PwmDuty, Rpm)> {
    let fan = sample.fan?;
    Some((fan.duty.ok()?, fan.speed.ok()?))
}

fn kib(tree: &Tree, name: &str) -> u64 {
    let meminfo = tree.read("proc/meminfo");
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

// === every tree ===

#[test]
fn an_idle_orin_nx() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let (board, sample) = read(&tree);
    insta::assert_snapshot!("orin_nx_idle", show::show(&board, &sample));
    assert_eq!(board.identity().kind, Kind::Orin(Module::Nx16));
    let (l4t, bad) = board.identity().bad_allocator().unwrap();
    assert_eq!((l4t.to_string(), bad.fixed_in.unwrap().to_string()), ("36.4.7".into(), "36.5.0".into()));
    assert_eq!(tj(&sample), Some(MilliCelsius(45_843)));
    assert!(sample.thermal.zones.iter().all(|zone| zone.temperature.is_ok()));
    assert_eq!(sample.power.total(), Some(MilliWatts(4304)));
    let gpu = sample.gpu.unwrap();
    assert_eq!((gpu.power, gpu.load), (Some(Ok(Power::On)), Ok(PerMille(0))));
    assert_eq!(gpu.frequency, Some(Ok(Hertz(306_000_000))));
    assert_eq!(fan(&sample), Some((PwmDuty(0), Rpm(0))));
    assert_eq!(mode(&sample), Some((4, "40W".into())));
}

#[test]
fn an_orin_nx_under_load() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-load");
    let (board, sample) = read(&tree);
    insta::assert_snapshot!("orin_nx_load", show::show(&board, &sample));
    assert_eq!(tj(&sample), Some(MilliCelsius(58_937)));
    assert_eq!(sample.power.total(), Some(MilliWatts(12_674)));
    assert_eq!(sample.power.over_current.unwrap().instantaneous, Ok(3));
    assert_eq!(sample.gpu.unwrap().load, Ok(PerMille(70)));
    assert_eq!(fan(&sample), Some((PwmDuty(110), Rpm(2500))));
    assert_eq!(mode(&sample), Some((0, "MAXN_SUPER".into())));
}

#[test]
fn an_idle_agx_whose_gpu_is_off() {
    let tree = Tree::unpack("agx-orin-64gb-jp6-idle");
    let (board, sample) = read(&tree);
    insta::assert_snapshot!("agx_idle", show::show(&board, &sample));
    assert_eq!(board.identity().kind, Kind::Orin(Module::Agx64));
    for name in ["gpu-thermal", "cv0-thermal", "cv1-thermal", "cv2-thermal"] {
        let zone = zone(&sample, name);
        assert!(zone.temperature == Err(OFF) && zone.may_be_off(), "{zone:?}");
    }
    assert_eq!(tj(&sample), Some(MilliCelsius(52_875)));
    let gpu = sample.gpu.unwrap();
    assert_eq!((gpu.power, gpu.load, gpu.frequency), (Some(Ok(Power::Off)), Ok(PerMille(0)), None));
    assert_eq!(sample.power.total(), Some(MilliWatts(3178 + 794 + 4543)));
    let disabled = sample.power.rails.iter().filter(|rail| rail.state == RailState::Disabled);
    assert_eq!(disabled.map(|rail| &*rail.name).collect::<Vec<_>>(), ["NC", "NC"]);
    assert_eq!(fan(&sample), Some((PwmDuty(66), Rpm(750))));
    assert_eq!(mode(&sample), Some((0, "MAXN".into())));
}

#[test]
fn a_busy_orin_nano() {
    let tree = Tree::unpack("orin-nano-8gb-super-jp6");
    let (board, sample) = read(&tree);
    insta::assert_snapshot!("orin_nano", show::show(&board, &sample));
    assert_eq!(board.identity().kind, Kind::Orin(Module::Nano8));
    assert_eq!(board.identity().bad_allocator(), None);
    let unread = sample.thermal.zones.iter().filter(|zone| zone.temperature == Err(OFF));
    assert_eq!(unread.map(|zone| &*zone.name).collect::<Vec<_>>(), ["cv0-thermal", "cv1-thermal", "cv2-thermal"]);
    assert_eq!(sample.power.total(), Some(MilliWatts(12_300)));
    assert_eq!(sample.power.over_current.unwrap().events(), 27);
    let gpu = sample.gpu.unwrap();
    assert_eq!((gpu.load, gpu.frequency), (Ok(PerMille(990)), Some(Ok(Hertz(1_020_000_000)))));
    assert_eq!(mode(&sample), Some((1, "25W".into())));
}

#[test]
fn what_all_trees_have_in_common() {
    for tree in tree::ALL.map(Tree::unpack) {
        let (board, sample) = read(&tree);
        let memory = sample.memory.unwrap();
        let expected = (kib(&tree, "MemAvailable") - kib(&tree, "CmaFree")) * 1024;
        assert_eq!((memory.available(), memory.group), (Bytes(expected), Ok(None)), "no limit is set");
        assert_eq!(memory.meminfo.swap_total, Bytes(kib(&tree, "SwapTotal") * 1024));
        assert_eq!(sample.vmstat.unwrap().allocation_stalls, Some(0));
        assert_eq!(sample.pressure, None, "kernels of Orin do not measure it");
        assert_eq!(sample.thermal.throttling_trip(), Some(MilliCelsius(99_000)), "not that of the hot surface");
        assert_eq!(sample.thermal.alerts.len(), 8);
        assert_eq!(sample.thermal.throttled().count(), 0);
        assert!(sample.thermal.throttles.len() >= 3, "CPU clusters and GPU");
        assert!(sample.thermal.throttles.iter().all(|throttle| throttle.state == Ok(0)));
        assert!(board.identity().is_jetson() && sample.sensors.is_empty());
    }
}

// === what changes ===

#[test]
fn a_limit_of_the_cgroup_counts() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    tree.write(&format!("{GROUP}/memory.max"), "100000000\n");
    assert_eq!(read(&tree).1.memory.unwrap().available(), Bytes(40_000_000));
}

#[test]
fn pressure_where_a_kernel_measures_it() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    fs::create_dir_all(tree.path("proc/pressure")).unwrap();
    let line = "avg10=0.50 avg60=0.00 avg300=0.00 total=7";
    tree.write("proc/pressure/memory", &format!("some {line}\nfull {line}\n"));
    let pressure = read(&tree).1.pressure.unwrap().unwrap();
    assert_eq!((pressure.some.avg10, pressure.full.total), (0.5, Duration::from_micros(7)));
}

#[test]
fn a_temperature_that_rises_and_a_throttle_alert() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-load");
    let (mut board, _) = read(&tree);
    tree.write("sys/class/thermal/thermal_zone8/temp", "99500\n");
    tree.write("sys/class/thermal/cooling_device3/cur_state", "1\n");
    let sample = board.sample(Instant::now());
    assert_eq!(tj(&sample), Some(MilliCelsius(99_500)));
    assert_eq!(sample.thermal.throttled().collect::<Vec<_>>(), ["cpu-throttle-alert"]);
    tree.write("sys/class/thermal/thermal_zone8/temp", "-256000\n");
    let sample = board.sample(Instant::now());
    assert_eq!(sample.thermal.tj().unwrap().temperature, Err(Unreadable::Off));
}

#[test]
fn names_of_jetpack_5() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    for number in 0..9 {
        let file = format!("sys/class/thermal/thermal_zone{number}/type");
        let name = tree.read(&file).trim().replace("-thermal", "-therm").to_uppercase().replace("TJ", "tj");
        tree.write(&file, &format!("{}\n", name.replace("-THERM", "-therm")));
    }
    // There the hot surface has no passive trip, and the throttling one is the second.
    let trips = ["104500 critical", "99000 passive", "70000 active"];
    for (index, trip) in trips.iter().enumerate() {
        let (temperature, kind) = trip.split_once(' ').unwrap();
        for zone in 0..8 {
            let file = format!("sys/class/thermal/thermal_zone{zone}/trip_point_{index}");
            tree.write(&format!("{file}_temp"), temperature);
            tree.write(&format!("{file}_type"), kind);
            for device in 0..4 {
                tree.write(&format!("sys/class/thermal/thermal_zone{zone}/cdev{device}_trip_point"), "1\n");
            }
        }
    }
    let (_, sample) = read(&tree);
    assert_eq!(&*sample.thermal.tj().unwrap().name, "tj-therm");
    assert_eq!(zone(&sample, "CPU-therm").throttling_trip(), Some(MilliCelsius(99_000)));
    assert_eq!(sample.thermal.throttling_trip(), Some(MilliCelsius(99_000)));
}

#[test]
fn trips_without_their_bindings() {
    let tree = Tree::unpack("orin-nano-8gb-super-jp6");
    for file in tree::files(&tree.path("sys/devices/virtual/thermal")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with("cdev") {
            fs::remove_file(file).unwrap();
        }
    }
    assert_eq!(read(&tree).1.thermal.throttling_trip(), Some(MilliCelsius(99_000)));
}

#[test]
fn devices_that_are_numbered_anew_are_found_again() {
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let (mut board, _) = read(&tree);
    let class = |name: &str| tree.path("sys/class").join(name);
    fs::rename(class("hwmon/hwmon1"), class("hwmon/hwmon7")).unwrap();
    assert_eq!(board.sample(Instant::now()).power.total(), Some(MilliWatts(4304)));
    let gone = class("thermal/thermal_zone8");
    let target = fs::read_link(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    assert_eq!(board.sample(Instant::now()).thermal.tj(), None);
    symlink(target, &gone).unwrap();
    assert_eq!(board.sample(Instant::now()).thermal.tj(), None, "no sample walks through folders");
    board.rediscover();
    assert_eq!(tj(&board.sample(Instant::now())), Some(MilliCelsius(45_843)));
}

#[test]
fn the_gpu_is_read_once_a_second() {
    let tree = Tree::unpack("orin-nano-8gb-super-jp6");
    let mut board = Board::open(&tree.root(), CGROUP);
    let start = Instant::now();
    let mut load = |millis| board.sample(start + Duration::from_millis(millis)).gpu.unwrap().load;
    assert_eq!(load(0), Ok(PerMille(990)));
    tree.write("sys/devices/platform/gpu.0/load", "10\n");
    assert_eq!((load(500), load(999), load(1000)), (Ok(PerMille(990)), Ok(PerMille(990)), Ok(PerMille(10))));
}

#[test]
fn rubbish_in_every_file_is_a_reason_and_never_a_panic() {
    let contents: [&[u8]; 7] =
        [b"", b"\n", b"rubbish\n", b"-1\n", b"\xff\xfe\0\xc3", b"99999999999999999999\n", b"-9223372036854775808"];
    let tree = Tree::unpack("orin-nx-16gb-jp6-idle");
    let files = tree::files(&tree.root());
    let mut before = Board::open(&tree.root(), CGROUP);
    for content in contents {
        files.iter().for_each(|file| fs::write(file, content).unwrap());
        let mut after = Board::open(&tree.root(), CGROUP);
        for sample in [before.sample(Instant::now()), after.sample(Instant::now())] {
            assert!(sample.memory.is_err(), "{content:?}");
            assert!(sample.mode.unwrap().is_err(), "{content:?}");
            let temperature = sample.thermal.zones.first().map(|zone| zone.temperature);
            assert_eq!(temperature.unwrap().is_ok(), content == b"-1\n", "{content:?}");
        }
    }
    // Long ones: nothing is read beyond what is expected.
    files.iter().for_each(|file| fs::File::create(file).unwrap().set_len(1 << 40).unwrap());
    let sample = before.sample(Instant::now());
    assert_eq!(sample.memory, Err(Unreadable::TooLong(64 * 1024)));
    assert!(sample.thermal.zones.iter().all(|zone| zone.temperature == Err(Unreadable::TooLong(4096))));
    Board::open(&tree.root(), CGROUP).sample(Instant::now());
}

#[test]
fn an_empty_root_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut board = Board::open(folder.path(), CGROUP);
    let sample = board.sample(Instant::now());
    assert_eq!((&board.identity().kind, sample.memory), (&Kind::Other, Err(Unreadable::Absent)));
    assert!(sample.thermal.zones.is_empty() && sample.power.rails.is_empty());
    assert_eq!((sample.gpu, sample.fan, sample.mode), (None, None, None));
}

// === this machine ===

#[test]
fn the_machine_that_this_runs_on() {
    let mut board = Board::open(Path::new("/"), &host::own_cgroup().unwrap());
    let sample = board.sample(Instant::now());
    let memory = sample.memory.unwrap();
    assert!(memory.available() > Bytes(0) && memory.available() <= memory.meminfo.total, "{memory:?}");
    assert!(sample.vmstat.unwrap().major_faults.is_some());
    if !board.identity().is_jetson() {
        assert_eq!((sample.gpu, sample.fan), (None, None));
    }
    for sensor in &sample.sensors {
        assert!(!sensor.name.is_empty(), "{sensor:?}");
    }
}

/// 2 ms of CPU time once a second is 0.2 % of a core. The files of a tree cost what those of a real `/proc` and `/sys`
/// do, but for the work of the drivers, which is not in it.
#[test]
fn a_sample_a_second_takes_less_than_0_2_percent_of_a_core() {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    };
    let tree = Tree::unpack("agx-orin-64gb-jp6-idle");
    let start = Instant::now();
    for (root, own) in [(tree.root(), CGROUP.into()), ("/".into(), host::own_cgroup().unwrap())] {
        let mut board = Board::open(&root, &own);
        let mut times: Vec<_> = (0..50)
            .map(|second| {
                let before = cpu();
                std::hint::black_box(board.sample(start + Duration::from_secs(second)));
                cpu() - before
            })
            .collect();
        times.sort();
        println!("{}: median {:?} of CPU time for a sample", root.display(), times[25]);
        assert!(times[25] < Duration::from_millis(2), "{times:?}");
    }
}

// === temperd check ===

fn check(root: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_temperd"))
        .args(["check", "--model", "none.gguf", "--socket", "/nowhere/socket", "--board-root"])
        .arg(root)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn check_says_what_it_sees_of_a_board() {
    let text = check(&Tree::unpack("orin-nx-16gb-jp6-load").root());
    for expected in [
        "ok      board: Orin NX 16 GB (NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super), L4T 36.4.7, \
         power mode MAXN_SUPER",
        "warn    allocator: L4T 36.4.7 fails large CUDA allocations though memory is free: update to 36.5.0 or newer, \
         or set `engine.gpu_layers = 0`",
        "ok      heat: 58.9 C at ",
        "ok      gpu: 7 % busy, at 306 MHz",
        "ok      power: the module draws 12.7 W, 3 over-current events since the start, fan at 2500 rpm",
    ] {
        assert!(text.lines().any(|line| line.starts_with(expected)), "{expected}\n{text}");
    }
    assert!(text.contains(", the kernel throttles at 99.0 C"), "{text}");
}

#[test]
fn check_warns_of_what_is_wrong_with_a_board() {
    let tree = Tree::unpack("agx-orin-64gb-jp6-idle");
    let text = check(&tree.root());
    assert!(text.contains("; without power: gpu-thermal, cv0-thermal, cv1-thermal, cv2-thermal\n"), "{text}");
    assert!(text.contains("ok      gpu: off while nothing uses it"), "{text}");
    tree.write("sys/class/thermal/cooling_device5/cur_state", "1\n");
    let throttled = |line: &str| line.starts_with("warn    heat: ") && line.contains("-throttle-alert; ");
    assert!(check(&tree.root()).lines().any(throttled), "{}", check(&tree.root()));
    tree.write("sys/class/thermal/thermal_zone8/temp", "-256000\n");
    let text = check(&tree.root());
    assert!(text.contains("warn    heat: tj, the hottest sensor, cannot be read: the sensor is off; "), "{text}");
}

#[test]
fn check_on_a_machine_that_is_no_jetson() {
    let folder = tempfile::tempdir().unwrap();
    let text = check(folder.path());
    assert!(text.contains("ok      board: no Jetson\n"), "{text}");
    assert!(text.contains("ok      heat: no sensor can be read"), "{text}");
    assert!(!text.contains("gpu:"), "{text}");
}
