//! The fan of a Jetson. It belongs to NVIDIA's own service (nvfancontrol); we only look.

use std::path::Path;

use super::{
    file::{Known, Reader, Reading},
    hwmon,
    units::{PwmDuty, Rpm},
};

/// A fan. Each of the two is absent on boards that cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fan {
    /// What it is driven with (`pwmfan`).
    pub duty: Reading<PwmDuty>,
    /// How fast it turns (`pwm_tach`).
    pub speed: Reading<Rpm>,
}

/// Where it is read.
#[derive(Debug)]
pub(super) struct Files {
    duty: Known,
    speed: Known,
}

impl Files {
    pub(super) fn discover(root: &Path, reader: &mut Reader) -> Self {
        let mut file = |device, name| {
            Known::first(hwmon::devices(root, device, reader).into_iter().map(|folder| folder.join(name)))
        };
        Self { duty: file("pwmfan", "pwm1"), speed: file("pwm_tach", "rpm") }
    }

    pub(super) fn sample(&self, reader: &mut Reader) -> Option<Fan> {
        (self.duty.is_there() || self.speed.is_there())
            .then(|| Fan { duty: reader.number(&self.duty).map(PwmDuty), speed: reader.number(&self.speed).map(Rpm) })
    }
}
