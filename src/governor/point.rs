//! The operating point, and an operator's pin.

/// How the engine is run. Ordered element by element: less is cooler, smaller, slower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OperatingPoint {
    /// Tokens of the one KV cache that all sequences share.
    pub context: u32,
    /// Layers on the GPU.
    pub gpu_layers: u32,
    /// Sequences decoded at once.
    pub parallel: u32,
    /// Share of the time that the engine works, 0 to 1: it pauses between decode steps.
    pub pace: f64,
    /// What happens to requests.
    pub admit: Admit,
}

/// What happens to requests. Later is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Admit {
    /// They run.
    Run,
    /// Running ones finish, queued ones wait until their deadline.
    Hold,
    /// The model is not loaded; running ones wait too, as tokens.
    Unload,
}

impl Admit {
    /// As the status writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Hold => "hold",
            Self::Unload => "unload",
        }
    }
}

impl OperatingPoint {
    /// The element-wise minimum.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            context: self.context.min(other.context),
            gpu_layers: self.gpu_layers.min(other.gpu_layers),
            parallel: self.parallel.min(other.parallel),
            pace: self.pace.min(other.pace),
            admit: self.admit.max(other.admit),
        }
    }

    /// Whether no element is over the other's.
    #[must_use]
    pub fn within(self, other: Self) -> bool {
        self.least(other) == self
    }
}

/// Upper bounds that an operator sets; `None` leaves an element to the governor. Readings still go below them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[allow(missing_docs, reason = "the elements of an operating point")]
pub struct Pin {
    pub context: Option<u32>,
    pub gpu_layers: Option<u32>,
    pub parallel: Option<u32>,
    pub pace: Option<f64>,
    pub admit: Option<Admit>,
}

impl Pin {
    /// The pin as a point: what is not pinned is `full`. A pace that is no number between 0 and 1 does not bind.
    #[must_use]
    pub fn over(self, full: OperatingPoint) -> OperatingPoint {
        let pinned = OperatingPoint {
            context: self.context.unwrap_or(full.context),
            gpu_layers: self.gpu_layers.unwrap_or(full.gpu_layers),
            parallel: self.parallel.unwrap_or(full.parallel),
            pace: self.pace.filter(|pace| (0.0..=1.0).contains(pace)).unwrap_or(full.pace),
            admit: self.admit.unwrap_or(full.admit),
        };
        pinned.least(full)
    }
}
