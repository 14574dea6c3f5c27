//! Findings on the board: what it is, how hot, what it draws. A PC has next to nothing of it, which is fine.

use super::Finding;
use crate::board::{
    Sample,
    gpu::{Gpu, Power},
    identity::Identity,
    thermal::{Thermal, Zone},
};

/// What can be seen of a board, in lines.
pub(super) fn board(identity: &Identity, sample: &Sample) -> Vec<Finding> {
    let mut findings = vec![what(identity, sample)];
    findings.extend(allocator(identity));
    findings.push(heat(identity, sample));
    if identity.is_jetson() {
        findings.push(gpu(sample.gpu.as_ref()));
        findings.push(power(sample));
    }
    findings
}

fn what(identity: &Identity, sample: &Sample) -> Finding {
    const THING: &str = "board";
    let mut text = identity.kind.to_string();
    if let Some(model) = &identity.model {
        text.push_str(&format!(" ({})", visible(model)));
    }
    match &identity.l4t {
        Some(Ok(l4t)) => text.push_str(&format!(", L4T {l4t}")),
        Some(Err(why)) => {
            let remedy = "its release is not known; compare /etc/nv_tegra_release with that of a fresh system";
            return Finding::warn(THING, format!("{text}, /etc/nv_tegra_release is {why}: {remedy}"));
        }
        None if identity.is_jetson() => text.push_str(", L4T of an unknown release"),
        None => {}
    }
    if let Some(Ok(mode)) = &sample.mode {
        let name = mode.name.as_deref().map_or_else(|| mode.id.to_string(), visible);
        text.push_str(&format!(", power mode {name}"));
    }
    Finding::ok(THING, text)
}

/// Names come from files that anyone may have written: no control characters go to a terminal.
fn visible(name: &str) -> String {
    name.chars().filter(|char| !char.is_control()).collect()
}

fn allocator(identity: &Identity) -> Option<Finding> {
    let (l4t, bad) = identity.bad_allocator()?;
    let fault = format!("L4T {l4t} fails large CUDA allocations though memory is free");
    let remedy = match bad.fixed_in {
        Some(fixed) => format!("update to {fixed} or newer, or set `engine.gpu_layers = 0`"),
        None => "update to a newer release, or set `engine.gpu_layers = 0`".into(),
    };
    Some(Finding::warn("allocator", format!("{fault}: {remedy}")))
}

fn heat(identity: &Identity, sample: &Sample) -> Finding {
    const THING: &str = "heat";
    let thermal = &sample.thermal;
    if identity.is_jetson() {
        let why = match thermal.tj().map(|zone| zone.temperature) {
            Some(Ok(_)) => None,
            Some(Err(why)) => Some(why.to_string()),
            None => Some("there is no such zone".into()),
        };
        if let Some(why) = why {
            let remedy = "the board will be taken for hot; is `--board-root` right, and /sys/class/thermal readable?";
            return Finding::warn(THING, format!("tj, the hottest sensor, cannot be read: {why}; {remedy}"));
        }
    }
    let mut text = hottest(sample);
    if let Some(trip) = thermal.throttling_trip() {
        text.push_str(&format!(", the kernel throttles at {trip}"));
    }
    let off = unread(thermal, Zone::may_be_off);
    if !off.is_empty() {
        text.push_str(&format!("; without power: {off}"));
    }
    let throttled: Vec<_> = thermal.throttled().map(visible).collect();
    if !throttled.is_empty() {
        let remedy = "it is slowed down at this moment: see to its fan and air, or choose a lower power mode";
        return Finding::warn(THING, format!("{text}; active: {}; {remedy}", throttled.join(", ")));
    }
    let broken = unread(thermal, |zone| !zone.may_be_off());
    if !broken.is_empty() && identity.is_jetson() {
        return Finding::warn(THING, format!("{text}; {broken} cannot be read: see the kernel's log"));
    }
    Finding::ok(THING, text)
}

fn hottest(sample: &Sample) -> String {
    let sensors = sample.sensors.iter().filter_map(|sensor| Some((&*sensor.name, sensor.temperature.ok()?)));
    let zone = sample.thermal.hottest().map(|(zone, temperature)| (&*zone.name, temperature));
    match sensors.chain(zone).max_by_key(|(_, temperature)| *temperature) {
        Some((name, temperature)) => format!("{temperature} at {}", visible(name)),
        None => "no sensor can be read: temperature is not watched".into(),
    }
}

fn unread(thermal: &Thermal, which: impl Fn(&Zone) -> bool) -> String {
    let zones = thermal.zones.iter().filter(|zone| zone.temperature.is_err() && which(zone));
    zones.map(|zone| visible(&zone.name)).collect::<Vec<_>>().join(", ")
}

fn gpu(gpu: Option<&Gpu>) -> Finding {
    const THING: &str = "gpu";
    let Some(gpu) = gpu else {
        return Finding::warn(THING, "not seen: load its driver (nvgpu), and look for its name in the kernel's log");
    };
    if gpu.power == Some(Ok(Power::Off)) {
        return Finding::ok(THING, "off while nothing uses it");
    }
    let load = gpu.load.map_or_else(|why| format!("load {why}"), |load| format!("{load} busy"));
    let clock = match gpu.frequency {
        Some(Ok(frequency)) => format!("at {frequency}"),
        Some(Err(why)) => format!("its clock is {why}"),
        None => "without a clock".into(),
    };
    Finding::ok(THING, format!("{load}, {clock}"))
}

fn power(sample: &Sample) -> Finding {
    let mut parts = vec![match sample.power.total() {
        Some(total) => format!("the module draws {total}"),
        None => "what the module draws is not measured".into(),
    }];
    if let Some(events) = sample.power.over_current.map(|counts| counts.events()) {
        parts.push(format!("{events} over-current events since the start"));
    }
    if let Some(speed) = sample.fan.and_then(|fan| fan.speed.ok()) {
        parts.push(format!("fan at {speed}"));
    }
    Finding::ok("power", parts.join(", "))
}
