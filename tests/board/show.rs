//! A sample as text, one reading a line, for snapshots.

use std::fmt::Write;

use temperd::board::{Board, Sample};

pub fn show(board: &Board, sample: &Sample) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Debug| writeln!(text, "{name}: {value:?}").expect("a string");
    line("identity", board.identity());
    line("memory", &sample.memory);
    line("vmstat", &sample.vmstat);
    line("pressure", &sample.pressure);
    for zone in &sample.thermal.zones {
        line(&format!("zone {} {:?}", zone.name, zone.kind), &zone.temperature);
        zone.trips.iter().for_each(|trip| line("    trip", trip));
    }
    for alert in &sample.thermal.alerts {
        line(&format!("alert {}", alert.name), &alert.active);
    }
    for throttle in &sample.thermal.throttles {
        line(&format!("throttle {}", throttle.name), &(throttle.state, throttle.max_state));
    }
    line("gpu", &sample.gpu);
    for rail in &sample.power.rails {
        line(&format!("rail {}", rail.name), &rail.state);
    }
    line("over-current", &sample.power.over_current);
    line("fan", &sample.fan);
    line("mode", &sample.mode);
    line("sensors", &sample.sensors);
    text
}
