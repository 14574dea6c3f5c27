//! `[governor]`: limits, and ladders whose steps go down.

use std::time::Duration;

use super::{Check, Given, Setting};
use crate::{
    config::{Governor, file::GovernorKeys},
    governor::{Against, Bytes, Celsius, Ladder, Step},
};

/// Bounds of `reserve_mib` and `critical_mib`: more than any Orin has.
const MIB: i64 = 1_048_576;

/// All of it.
pub(super) fn governor(keys: GovernorKeys, check: &mut Check<'_>) -> Governor {
    let reserve = check.number::<u32>(keys.reserve_mib, 64..=MIB);
    let critical = check.number::<u32>(keys.critical_mib, 32..=MIB);
    if let (Given(reserve, _), Given(critical, place)) = (&reserve, &critical)
        && critical >= reserve
    {
        check.error(place, format_args!("is {critical}, must be below governor.reserve_mib, {reserve}"));
    }
    let mib = |mib: u32| Bytes::mib(mib.into());
    let defaults = Governor::default();
    let interval = check.number::<u32>(keys.interval_ms, 100..=10_000);
    let set_point: Option<u32> = check.number(keys.set_point_c, 40..=98).into();
    Governor {
        reserve: Option::from(reserve).map(mib),
        critical: Option::from(critical).map(mib),
        set_point: set_point.map(|degrees| Celsius(degrees.into())),
        interval: Option::from(interval).map_or(defaults.interval, |ms: u32| Duration::from_millis(ms.into())),
        memory_ladder: ladder(keys.memory_ladder, Against::Memory, check).unwrap_or(defaults.memory_ladder),
        thermal_ladder: ladder(keys.thermal_ladder, Against::Heat, check).unwrap_or(defaults.thermal_ladder),
    }
}

/// `None`: not written, or reported.
fn ladder(setting: Setting<Vec<String>>, against: Against, check: &mut Check<'_>) -> Option<Ladder> {
    let Setting::Given(words, place) = setting else { return None };
    let steps: Vec<Option<Step>> = words
        .iter()
        .map(|word| match word.parse() {
            Ok(step) => Some(step),
            Err(error) => {
                check.error(&place, error);
                None
            }
        })
        .collect();
    let steps = steps.into_iter().collect::<Option<_>>()?;
    match Ladder::new(steps, against) {
        Ok(ladder) => Some(ladder),
        Err(error) => {
            check.error(&place, error);
            None
        }
    }
}
