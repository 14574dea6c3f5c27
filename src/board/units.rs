//! Units of readings. A number from a sensor travels in the unit in which the kernel gives it, so that none is rounded
//! on the way and readings can be compared exactly.

use std::{fmt, iter::Sum};

pub use crate::units::Bytes;

/// A temperature in thousandths of a degree Celsius.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCelsius(pub i32);

/// A share of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerMille(pub u16);

/// A frequency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hertz(pub u64);

/// A voltage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliVolts(pub i32);

/// A current; an idle rail may read a little below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliAmps(pub i32);

/// A power; an idle rail may read a little below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliWatts(pub i64);

/// Revolutions per minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rpm(pub u32);

/// What a fan is driven with: 255 is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PwmDuty(pub u8);

impl MilliCelsius {
    /// In degrees.
    #[must_use]
    pub fn degrees(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl Sum for MilliWatts {
    fn sum<I: Iterator<Item = Self>>(powers: I) -> Self {
        Self(powers.fold(0, |sum, power| sum.saturating_add(power.0)))
    }
}

impl fmt::Display for MilliCelsius {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} C", self.degrees())
    }
}

impl fmt::Display for PerMille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0 / 10)
    }
}

impl fmt::Display for Hertz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MHz", self.0 / 1_000_000)
    }
}

impl fmt::Display for MilliWatts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.unsigned_abs().saturating_add(50) / 100;
        let sign = if self.0 < 0 && tenths > 0 { "-" } else { "" };
        write!(f, "{sign}{}.{} W", tenths / 10, tenths % 10)
    }
}

impl fmt::Display for Rpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rpm", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_tenths() {
        assert_eq!(MilliCelsius(45_843).to_string(), "45.8 C");
        assert_eq!(MilliWatts(4_304).to_string(), "4.3 W");
        assert_eq!(MilliWatts(-398).to_string(), "-0.4 W");
        assert_eq!(MilliWatts(-8).to_string(), "0.0 W");
        assert_eq!(MilliWatts(i64::MIN).to_string(), "-9223372036854775.8 W");
        assert_eq!(Hertz(1_300_500_000).to_string(), "1300 MHz");
        assert_eq!(PerMille(990).to_string(), "99 %");
    }
}
