//! What the governor decides, and why.

use std::{fmt, time::Duration};

use super::{ladder::Step, point::OperatingPoint, units::Bytes};

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The point in force.
    pub point: OperatingPoint,
    /// What may stay in the KV cache.
    pub cache: Cache,
    /// Tokens that the allocation may grow to now, at most `point.context`: what is over stays reserved. Never below
    /// what is allocated, but for `point.context`.
    pub grow_to: u32,
    /// Whether a pin lowers the point.
    pub pinned: bool,
    /// Whether there would be more GPU layers, had no load failed and no engine died.
    pub layers_failed: bool,
    /// Why it is not full, most pressing first; empty at the full point.
    pub reasons: Vec<Reason>,
    /// Steps that were passed over by what is in force.
    pub skipped: Vec<Skipped>,
}

/// What may stay in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    /// Everything, within `point.context`.
    Keep,
    /// Live sequences and prefixes; the allocation shrinks to them.
    Shrunk,
    /// Prefixes go and the allocation shrinks to what live sequences need.
    LiveOnly,
}

/// Why the point is not full.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reason {
    /// What it is about.
    pub code: Code,
    /// Which reading.
    pub reading: Reading,
    /// What it read; `None` where that is what is wrong, or no number.
    pub value: Option<f64>,
    /// What it is compared with, in the same unit.
    pub limit: Option<f64>,
    /// When this code came up, on the clock of [`super::Input::now`].
    pub since: Duration,
}

/// What a reason is about, most pressing first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "`as_str` and the comments say it")]
pub enum Code {
    /// Less memory than `critical`.
    MemoryCritical,
    /// `tj` cannot be read: assumed hot.
    HeatUnreadable,
    /// The kernel slows the board down.
    Throttled,
    /// The engine could not be loaded at more.
    LoadFailed,
    /// The engine kept dying at more.
    Crashed,
    /// Less memory than the reserve.
    MemoryLow,
    /// The least pace is still too hot.
    TooHot,
    /// Pace keeps the board at its set-point.
    Hot,
    /// The board drew more current than it may.
    OverCurrent,
    /// Memory is back; the way up takes its time.
    MemoryRecovering,
    /// It has cooled down; the way up takes its time.
    CoolingDown,
    /// An operator set a bound.
    Pinned,
}

impl Code {
    /// As the status writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryCritical => "memory_critical",
            Self::HeatUnreadable => "heat_unreadable",
            Self::Throttled => "throttled",
            Self::LoadFailed => "load_failed",
            Self::Crashed => "crashed",
            Self::MemoryLow => "memory_low",
            Self::TooHot => "too_hot",
            Self::Hot => "hot",
            Self::OverCurrent => "over_current",
            Self::MemoryRecovering => "memory_recovering",
            Self::CoolingDown => "cooling_down",
            Self::Pinned => "pinned",
        }
    }
}

/// Which reading a reason goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`as_str` says it")]
pub enum Reading {
    AvailableMib,
    HottestC,
    ThrottleAlert,
    OverCurrentEvents,
    GpuLayers,
    Context,
    Pace,
    Parallel,
    Admit,
}

impl Reading {
    /// As the status writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AvailableMib => "available_mib",
            Self::HottestC => "hottest_c",
            Self::ThrottleAlert => "throttle_alert",
            Self::OverCurrentEvents => "over_current_events",
            Self::GpuLayers => "gpu_layers",
            Self::Context => "context",
            Self::Pace => "pace",
            Self::Parallel => "parallel",
            Self::Admit => "admit",
        }
    }
}

/// A step that was passed over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Skipped {
    /// Which.
    pub step: Step,
    /// Why.
    pub why: Why,
}

/// Why a step was passed over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// It would free or cool nothing now.
    NoGain,
    /// It would free something, but not enough to restore the reserve.
    NotEnough {
        /// What it would free, with the steps before it.
        frees: Bytes,
    },
    /// Loading for it and back again takes longer than it would be kept.
    Cost {
        /// Both loads.
        cost: Duration,
        /// How long it is kept at least.
        kept: Duration,
    },
    /// Saving the live sequences takes memory that is not there.
    NoRoomToSave {
        /// What it takes.
        needs: Bytes,
    },
    /// A smaller step was tried shortly before and was not enough.
    TriedLess,
}

/// For people and the log: `context 75 frees 256 MiB, which is not enough`.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.step;
        match self.why {
            Why::NoGain => write!(f, "{step} would change nothing now"),
            Why::NotEnough { frees } => write!(f, "{step} frees {frees}, which is not enough"),
            Why::Cost { cost, kept } => {
                write!(f, "{step} costs {} s of loading and is kept for {} s", cost.as_secs(), kept.as_secs())
            }
            Why::NoRoomToSave { needs } => write!(f, "{step} needs {needs} to save what is live"),
            Why::TriedLess => write!(f, "{step} would be too small a step again"),
        }
    }
}
