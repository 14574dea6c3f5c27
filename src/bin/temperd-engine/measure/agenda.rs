//! What is measured next, and what it has shown: by how many threads a row is decoded best, what rows cost, and what the
//! cells that they look at cost. Pure; [`super`] makes the steps.
//!
//! ```text
//!   threads: steps of one row by each count ──▶ rows: 1, 2, 4, … ──▶ cells: the same beside filled ones ──▶ over
//! ```
//! Each piece is a single step or a copy of cells, so that a request never waits for more than one of them.

use crate::{curve::Curve, threads};

/// No new size is begun after so many seconds: a large model on a small machine takes seconds for one step of many rows,
/// which its first prompts measure as well.
const ENOUGH: f64 = 0.4;
/// Rows of the step by which the cost of outputs is measured.
const OUTPUTS: usize = 8;
/// Counts of threads are tried for so many seconds. A model whose single step takes longer is bound by its size, and gets a
/// thread for each strong core.
const THREADS: f64 = 0.2;
/// Steps by which one count of threads is measured, and how many seconds at most.
const STEPS: u32 = 12;
const ONE_COUNT: f64 = 0.06;
/// The least of so many steps of a size counts: whatever disturbs makes it longer.
const TRIES: usize = 2;
/// Cells that rows look at where the cost of a cell is measured, and rows of those steps.
const DEEP: usize = 1024;
const DEEP_ROWS: [usize; 2] = [1, 8];
/// Cells without which nothing is measured: the rows of the largest step behind filled cells.
pub const LEAST: usize = 8;

/// What can be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A step of one row by so many threads, in a context of its own.
    Alone {
        /// Threads of it.
        threads: usize,
    },
    /// A step, the rows of which are taken out again.
    Step {
        /// Tokens.
        rows: usize,
        /// How many of them are sampled from.
        outputs: usize,
        /// Behind the cells of [`Piece::Fill`], or in none.
        deep: bool,
    },
    /// Reads so many tokens and fills cells with copies of theirs: reading as many would take long.
    Fill {
        /// Tokens that are read.
        read: usize,
        /// Cells at most.
        most: usize,
    },
}

/// How a piece went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// What it took.
    pub seconds: f64,
    /// Whether other programs had a core of ours meanwhile.
    pub disturbed: bool,
    /// Cells that were filled.
    pub filled: usize,
}

/// What is known at the end of a phase.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Threads of a step of one row.
    Threads(usize),
    /// All that steps cost. Nothing more is measured.
    Curve(Curve),
}

/// What there is to be measured still.
#[derive(Debug)]
pub struct Agenda {
    phase: Phase,
    /// Whether the cost of cells can be measured: they are copied for that.
    keeps_cells: bool,
    rows: Rows,
    cells: Cells,
}

#[derive(Debug)]
enum Phase {
    Threads(Threads),
    Rows,
    Cells,
    Over,
}

#[derive(Debug, Default)]
struct Threads {
    counts: Vec<usize>,
    measured: Vec<(usize, Option<f64>)>,
    /// Steps by the present count, of which the first only starts the threads; what they took, and the shortest of them.
    steps: u32,
    here: f64,
    least: Option<f64>,
    spent: f64,
}

/// Some tries of one size.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    count: usize,
    least: Option<f64>,
}

impl Tries {
    /// Takes in one more. The shortest, where it was the last.
    fn took(&mut self, seconds: f64) -> Option<f64> {
        self.count += 1;
        let least = self.least.map_or(seconds, |least| least.min(seconds));
        self.least = Some(least);
        (self.count >= TRIES).then(|| {
            *self = Self::default();
            least
        })
    }
}

#[derive(Debug, Default)]
struct Rows {
    points: Vec<(usize, f64)>,
    /// Of the size in question, with one output, while those with more are tried.
    with_one: Option<f64>,
    tries: Tries,
    per_output: f64,
    spent: f64,
}

impl Rows {
    /// Whether the next size is under way, as the first always is.
    fn begun(&self) -> bool {
        self.points.is_empty() || self.tries.count > 0 || self.with_one.is_some()
    }

    fn next(&self) -> usize {
        self.points.last().map_or(1, |point| point.0 * 2)
    }
}

#[derive(Debug, Default)]
struct Cells {
    points: Vec<(usize, f64)>,
    filled: Option<usize>,
    tries: Tries,
    spent: f64,
}

impl Agenda {
    /// All of it; of the threads only where there are several `counts` to choose from.
    pub fn new(counts: Vec<usize>, keeps_cells: bool) -> Self {
        let phase =
            if counts.len() > 1 { Phase::Threads(Threads { counts, ..Threads::default() }) } else { Phase::Rows };
        Self { phase, keeps_cells, rows: Rows::default(), cells: Cells::default() }
    }

    /// The next piece, with steps of up to `rows` rows and up to `cells` cells at once; `None` where all is known.
    pub fn next(&mut self, rows: usize, cells: usize) -> Option<Piece> {
        loop {
            match &self.phase {
                Phase::Threads(threads) => {
                    let threads = *threads.counts.get(threads.measured.len())?;
                    return Some(Piece::Alone { threads });
                }
                Phase::Rows => {
                    let size = self.rows.next();
                    let begun = self.rows.begun();
                    if begun || (size <= rows.min(cells) && self.rows.spent < ENOUGH) {
                        let outputs = if self.rows.with_one.is_some() { OUTPUTS } else { 1 };
                        return Some(Piece::Step { rows: size, outputs, deep: false });
                    }
                    self.phase = Phase::Cells;
                }
                Phase::Cells => {
                    let read = self.rows.points.last().map_or(1, |point| point.0);
                    let most = DEEP.min(cells);
                    if self.cells.filled.is_none() && self.keeps_cells && read <= most && self.deep().is_some() {
                        return Some(Piece::Fill { read, most });
                    }
                    match self.deep() {
                        Some((rows, _)) if self.cells.filled.is_some() => {
                            return Some(Piece::Step { rows, outputs: 1, deep: true });
                        }
                        _ => self.phase = Phase::Over,
                    }
                }
                Phase::Over => return None,
            }
        }
    }

    /// The rows by which cells are measured next, and what those took without cells.
    fn deep(&self) -> Option<(usize, f64)> {
        let (rows, alone) = self.deep_rows()?;
        (self.cells.tries.count > 0 || self.cells.spent + alone < ENOUGH).then_some((rows, alone))
    }

    /// Takes in how the last piece went.
    pub fn took(&mut self, taken: Taken) -> Option<Found> {
        match &mut self.phase {
            Phase::Threads(threads) => {
                let found = threads.took(taken)?;
                self.phase = Phase::Rows;
                found.map(Found::Threads)
            }
            Phase::Rows => {
                self.rows.took(taken.seconds);
                None
            }
            Phase::Cells => {
                self.cells.spent += taken.seconds;
                match (self.cells.filled, self.deep_rows()) {
                    (None, _) => self.cells.filled = Some(taken.filled),
                    (Some(filled), Some((rows, alone))) => {
                        if let Some(least) = self.cells.tries.took(taken.seconds) {
                            self.cells.points.push((rows, (least - alone).max(0.0) / filled.max(1) as f64));
                        }
                    }
                    (Some(_), None) => {}
                }
                None
            }
            Phase::Over => None,
        }
    }

    /// As [`Self::deep`], whatever it takes.
    fn deep_rows(&self) -> Option<(usize, f64)> {
        let rows = *DEEP_ROWS.get(self.cells.points.len())?;
        self.rows.points.iter().find(|point| point.0 == rows).copied()
    }

    /// Something else came up, and what was in cells and contexts for this is gone.
    pub fn interrupted(&mut self) {
        if let Phase::Threads(threads) = &mut self.phase {
            threads.steps = 0;
        }
        (self.cells.filled, self.cells.tries) = (None, Tries::default());
    }

    /// What steps cost, by all that was measured.
    pub fn curve(&self) -> Curve {
        let per_output = self.rows.per_output;
        let alone = |(rows, seconds): &(usize, f64)| (*rows, (seconds - per_output).max(seconds / 10.0));
        Curve::new(self.rows.points.iter().map(alone).collect(), self.cells.points.clone(), per_output)
    }
}

impl Threads {
    /// What was found, at the end of all.
    fn took(&mut self, taken: Taken) -> Option<Option<usize>> {
        self.steps += 1;
        if self.steps == 1 {
            return None;
        }
        self.here += taken.seconds;
        self.spent += taken.seconds;
        if !taken.disturbed {
            self.least = Some(self.least.map_or(taken.seconds, |least| least.min(taken.seconds)));
        }
        if self.steps <= STEPS && self.here < ONE_COUNT {
            return None;
        }
        let count = *self.counts.get(self.measured.len())?;
        self.measured.push((count, self.least.take()));
        (self.steps, self.here) = (0, 0.0);
        (self.measured.len() == self.counts.len() || self.spent >= THREADS).then(|| threads::choose(&self.measured))
    }
}

impl Rows {
    fn took(&mut self, seconds: f64) {
        self.spent += seconds;
        let Some(least) = self.tries.took(seconds) else { return };
        let size = self.next();
        match self.with_one.take() {
            None if size == OUTPUTS => self.with_one = Some(least),
            None => self.points.push((size, least)),
            Some(with_one) => {
                self.per_output = (least - with_one).max(0.0) / (OUTPUTS - 1) as f64;
                self.points.push((size, with_one));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::curve::Size;

    fn took(seconds: f64) -> Taken {
        Taken { seconds, disturbed: false, filled: 0 }
    }

    /// Seconds of a piece on a machine that is nobody's, and cells that it fills.
    fn machine(piece: Piece) -> Taken {
        match piece {
            Piece::Alone { threads } => took(0.02 / threads as f64),
            Piece::Step { rows, outputs, deep } => took(
                0.004 + 0.001 * rows as f64 + 0.0005 * outputs as f64 + if deep { 0.001 * rows as f64 } else { 0.0 },
            ),
            Piece::Fill { read, most } => Taken { filled: most / read * read, ..took(0.01) },
        }
    }

    #[test]
    fn threads_come_first_then_rows_then_cells() {
        let mut agenda = Agenda::new(vec![4, 2], true);
        let (mut pieces, mut found) = (Vec::new(), None);
        while let Some(piece) = agenda.next(512, 1024) {
            pieces.push(piece);
            found = found.or(agenda.took(machine(piece)));
        }
        assert_eq!(found, Some(Found::Threads(4)));
        assert_eq!(pieces.first(), Some(&Piece::Alone { threads: 4 }));
        let rows = pieces.iter().filter_map(|piece| match piece {
            Piece::Step { rows, deep: false, .. } => Some(*rows),
            _ => None,
        });
        let mut rows: Vec<_> = rows.collect();
        rows.dedup();
        assert_eq!(rows, [1, 2, 4, 8, 16, 32, 64, 128]);
        assert!(pieces.contains(&Piece::Fill { read: 128, most: 1024 }));
        assert_eq!(pieces.last(), Some(&Piece::Step { rows: 8, outputs: 1, deep: true }));
        let curve = agenda.curve();
        let seconds = |rows, outputs, depth| curve.seconds(Size { rows, outputs, depth });
        assert!((seconds(64, 1, 0.0) - 0.0685).abs() < 1e-6);
        assert!((seconds(8, 1, 1024.0) - seconds(8, 1, 0.0) - 0.008).abs() < 1e-6);
        assert!((seconds(8, 8, 0.0) - seconds(8, 1, 0.0) - 0.0035).abs() < 1e-6);
    }

    #[test]
    fn a_slow_model_is_not_measured_for_long() {
        let mut agenda = Agenda::new(vec![2, 1], true);
        let mut spent = 0.0;
        while let Some(piece) = agenda.next(512, 1024) {
            let seconds = match piece {
                Piece::Step { rows, .. } => 0.3 * rows as f64,
                _ => 0.3,
            };
            spent += seconds;
            agenda.took(took(seconds));
        }
        assert!(spent < 2.5, "{spent}");
        assert!((agenda.curve().seconds(Size { rows: 1, outputs: 0, depth: 0.0 }) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn what_disturbs_is_not_taken_for_the_machine() {
        let mut agenda = Agenda::new(vec![2, 1], true);
        let mut found = None;
        while let Some(piece @ Piece::Alone { threads }) = agenda.next(512, 1024) {
            found = found.or(agenda.took(Taken { disturbed: threads == 2, ..machine(piece) }));
        }
        assert_eq!(found, Some(Found::Threads(2)));
    }

    #[test]
    fn one_count_is_no_choice_and_a_recurrent_model_has_no_cells() {
        let mut agenda = Agenda::new(vec![1], false);
        while let Some(piece) = agenda.next(8, 64) {
            assert!(matches!(piece, Piece::Step { deep: false, rows, .. } if rows <= 8), "{piece:?}");
            assert_eq!(agenda.took(machine(piece)), None);
        }
    }

    proptest! {
        #[test]
        fn it_comes_to_an_end_whatever_interrupts(
            breaks in prop::collection::vec(0usize..200, 0..20), rows in 1usize..600, cells in 1usize..3000, keeps: bool,
        ) {
            let mut agenda = Agenda::new(vec![3, 2, 1], keeps);
            let mut count = 0;
            while let Some(piece) = agenda.next(rows, cells) {
                count += 1;
                prop_assert!(count < 1000);
                if let Piece::Step { rows: size, outputs, .. } = piece {
                    prop_assert!(size <= rows && outputs <= size.max(1));
                }
                agenda.took(machine(piece));
                if breaks.contains(&count) {
                    agenda.interrupted();
                }
            }
            prop_assert_eq!(agenda.next(rows, cells), None);
        }
    }
}
