//! Ladders: lists of steps from full to least. A ladder stands at a position from 0 (no step taken) to its length; what
//! is in force there are all steps up to it.

use std::{fmt, str::FromStr};

use super::point::{Admit, OperatingPoint};

/// llama.cpp rounds a context up to a multiple of this.
pub const CELLS: u32 = 256;

/// A step down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Cached prefixes go, and the allocation shrinks to what live sequences need.
    Trim,
    /// So many percent of the configured context.
    Context(u8),
    /// The share of time that the engine works; continuous, down to [`LEAST`].
    Pace,
    /// So many percent of the GPU layers.
    Layers(u8),
    /// Running requests finish, nothing new starts.
    Hold,
    /// The model goes.
    Unload,
}

/// Least pace that the set-point is worth. Below it a stream looks dead: a tenth of the 12 to 20 tokens/s that a 7B model
/// can be expected to write on an Orin NX (an estimate) is little more than a token a second.
pub const FLOOR: f64 = 0.1;

/// Least pace at all. Between it and [`FLOOR`] pace keeps a board from more than a kelvin over its set-point; only then
/// do GPU layers go. Without them a board writes about a quarter of the tokens (assumed): at the floor as many as with
/// them at a quarter of it, for more power and a reload. So above this no layer step can pay.
pub const LEAST: f64 = FLOOR / 4.0;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trim => f.write_str("trim"),
            Self::Context(percent) => write!(f, "context {percent}"),
            Self::Pace => f.write_str("pace"),
            Self::Layers(percent) => write!(f, "layers {percent}"),
            Self::Hold => f.write_str("hold"),
            Self::Unload => f.write_str("unload"),
        }
    }
}

/// Not a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no step: there are \"trim\", \"context 75\", \"pace\", \"layers 50\", \"hold\" and \"unload\"")]
pub struct NoStep(String);

impl FromStr for Step {
    type Err = NoStep;

    fn from_str(text: &str) -> Result<Self, NoStep> {
        let error = || NoStep(text.chars().take(40).collect());
        let percent = |text: &str, least| {
            text.parse::<u8>().ok().filter(|percent| (least..100).contains(percent)).ok_or_else(error)
        };
        match (text, text.split_once(' ')) {
            ("trim", _) => Ok(Self::Trim),
            ("pace", _) => Ok(Self::Pace),
            ("hold", _) => Ok(Self::Hold),
            ("unload", _) => Ok(Self::Unload),
            (_, Some(("context", share))) => percent(share, 1).map(Self::Context),
            (_, Some(("layers", share))) => percent(share, 0).map(Self::Layers),
            _ => Err(error()),
        }
    }
}

/// What a list of steps is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Steps that give memory back.
    Memory,
    /// Steps that give off less heat.
    Heat,
}

/// Why a list of steps is no ladder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLadder {
    /// A step that does not do what the ladder is for.
    #[error("\"{0}\" does not {1}")]
    Useless(Step, &'static str),
    /// A step after one that goes further.
    #[error("\"{0}\" must go below what comes before it")]
    NotDown(Step),
}

/// A list of steps, each below the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder(Vec<Step>);

impl Ladder {
    /// Checks the order: the same element only downwards, nothing after `unload`, after `hold` only `unload`; `pace`
    /// first, since it costs no reload and is steered without steps.
    ///
    /// # Errors
    /// Names the step that is out of place.
    pub fn new(steps: Vec<Step>, against: Against) -> Result<Self, BadLadder> {
        let (mut context, mut layers, mut last) = (100, 100, None);
        for step in &steps {
            let useful = match (step, against) {
                (Step::Trim | Step::Context(_) | Step::Unload, Against::Heat) => Err("cool"),
                (Step::Pace, Against::Memory) => Err("free memory"),
                _ => Ok(()),
            };
            useful.map_err(|what| BadLadder::Useless(*step, what))?;
            let down = match (step, last) {
                (_, Some(Step::Unload)) | (Step::Pace, Some(_)) => false,
                (step, Some(Step::Hold)) => *step == Step::Unload,
                (Step::Trim, Some(_)) => context == 100 && layers == 100 && last != Some(Step::Trim),
                (Step::Context(percent), _) => *percent < std::mem::replace(&mut context, *percent),
                (Step::Layers(percent), _) => *percent < std::mem::replace(&mut layers, *percent),
                _ => true,
            };
            if !down {
                return Err(BadLadder::NotDown(*step));
            }
            last = Some(*step);
        }
        Ok(Self(steps))
    }

    /// The memory ladder where nothing is configured. On Orin fewer GPU layers free no DRAM unless the file is mapped;
    /// whether they do is the engine's to say, and steps that free nothing are skipped.
    #[must_use]
    pub fn memory() -> Self {
        let (context, layers) = ([75, 50, 25].map(Step::Context), [50, 0].map(Step::Layers));
        Self([&[Step::Trim][..], &context, &layers, &[Step::Hold, Step::Unload]].concat())
    }

    /// The thermal ladder where nothing is configured: pace sheds power at the least loss, a layer step costs a reload.
    #[must_use]
    pub fn thermal() -> Self {
        Self([&[Step::Pace][..], &[75, 50, 25, 0].map(Step::Layers), &[Step::Hold]].concat())
    }

    /// What is left to try when an engine cannot be loaded, or keeps dying: less on the GPU, then less memory.
    #[must_use]
    pub fn failure() -> Self {
        let (layers, context) = ([75, 50, 25, 0].map(Step::Layers), [75, 50, 25].map(Step::Context));
        Self([&layers[..], &context, &[Step::Hold]].concat())
    }

    /// Its steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The position right after a step; `None` where it has no such step.
    #[must_use]
    pub fn position(&self, step: Step) -> Option<usize> {
        self.0.iter().position(|one| *one == step).map(|index| index + 1)
    }

    /// Whether a step is in force at a position.
    #[must_use]
    pub fn has(&self, position: usize, step: Step) -> bool {
        self.position(step).is_some_and(|at| at <= position)
    }

    /// The step that leads to a position; `None` at the top.
    #[must_use]
    pub fn step(&self, position: usize) -> Option<Step> {
        self.0.get(position.checked_sub(1)?).copied()
    }

    /// The point at a position, of the steps that `counts`. Pace is not touched: it is steered, not stepped.
    #[must_use]
    pub fn bound(&self, position: usize, full: OperatingPoint, counts: impl Fn(Step) -> bool) -> OperatingPoint {
        self.0.iter().take(position).filter(|step| counts(**step)).fold(full, |point, step| match step {
            Step::Context(percent) => OperatingPoint { context: context(full.context, *percent), ..point },
            Step::Layers(percent) => OperatingPoint { gpu_layers: share(full.gpu_layers, *percent), ..point },
            Step::Hold => OperatingPoint { admit: Admit::Hold, ..point },
            Step::Unload => OperatingPoint { admit: Admit::Unload, ..point },
            Step::Trim | Step::Pace => point,
        })
    }
}

/// A share of a context, whole multiples of [`CELLS`] and at least one of them.
fn context(full: u32, percent: u8) -> u32 {
    (share(full, percent) / CELLS * CELLS).max(CELLS.min(full))
}

fn share(full: u32, percent: u8) -> u32 {
    // Less than full, since percent is below 100: it fits.
    u32::try_from(u64::from(full) * u64::from(percent) / 100).unwrap_or(full)
}

/// Cells that a number of tokens takes, as llama.cpp rounds.
#[must_use]
pub fn cells(tokens: u32) -> u32 {
    tokens.checked_next_multiple_of(CELLS).unwrap_or(tokens)
}
