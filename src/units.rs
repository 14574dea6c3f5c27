//! Units that several parts share.

use std::{
    fmt,
    ops::{Add, Sub},
};

/// An amount of memory or disk space in bytes. Sums and differences saturate: a reading that makes no sense must not wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// From MiB.
    #[must_use]
    pub fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1024 * 1024))
    }

    /// In MiB, for reasons that people read.
    #[must_use]
    pub fn as_mib(self) -> f64 {
        self.0 as f64 / (1024.0 * 1024.0)
    }

    /// So many of these.
    #[must_use]
    pub fn times(self, n: u32) -> Self {
        Self(self.0.saturating_mul(n.into()))
    }

    /// This share of it, in percent.
    #[must_use]
    pub fn percent(self, percent: u64) -> Self {
        Self(self.0 / 100 * percent)
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} MiB", self.as_mib())
    }
}
